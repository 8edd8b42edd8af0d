//! What comes from outside the program, broken at random: it is refused with an error or taken whole, and whatever is
//! taken never makes the engine panic.
//!
//! `ERGON_MUTATIONS=1000000 cargo test -p ergon-tests --test hostile` breaks more.

use std::{
    panic,
    path::Path,
    sync::{Arc, Mutex, Once, PoisonError},
    time::Duration,
};

use ergon::{
    Admin, Filter, FlowState, InMemoryExecutionLog, SqliteExecutionLog, StorageError,
    prelude::*,
    storage::{CallPath, Clock, ExecutionLog, ManualClock, SystemClock},
};
use ergon_tests::mutate::{Mutator, mutations};
use futures::TryStreamExt;

const NOTES: Mailbox<String> = Mailbox::new("notes");
const HOUR: Duration = Duration::from_secs(3_600);

/// A bit of everything that a history can hold.
#[flow_type]
struct Order {
    address: String,
    lines: Vec<u32>,
}

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        self.reserve(&self.lines).await?;
        ergon::emit("log", "reserved")?;
        ergon::set_status("packing")?;
        let (weight, drawn) = tokio::try_join!(self.weigh(7), self.weigh(8))?;
        let note = ergon::timeout(HOUR, NOTES.recv()).await.unwrap_or_else(|_| Ok("none".into()))?;
        sleep(HOUR).await;
        let packed = child(Parcel { note }).await?;
        if self.address == "elsewhere" && ergon::run_number() == 1 {
            return ergon::continue_as_new(Order { address: "here".into(), lines: Vec::new() }).await;
        }
        self.ship(&format!("{packed} {weight} {drawn}")).await
    }

    #[step]
    async fn reserve(&self, lines: &[u32]) -> ergon::Result<u32> {
        Ok(lines.iter().copied().fold(0, u32::wrapping_add))
    }

    #[step]
    async fn weigh(&self, part: u64) -> ergon::Result<u64> {
        Ok(part)
    }

    #[step(retry = none)]
    async fn ship(&self, what: &str) -> ergon::Result<String> {
        if self.address == "nowhere" { Err(ergon::Error::new("no such place")) } else { Ok(what.to_owned()) }
    }
}

#[flow_type]
struct Parcel {
    note: String,
}

#[flow_type]
impl Parcel {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        self.wrap().await
    }

    #[step]
    async fn wrap(&self) -> ergon::Result<String> {
        Ok(format!("a parcel with {:?}", self.note))
    }
}

/// Panics, wherever they are caught.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(info.to_string());
            usual(info);
        }));
    });
}

/// Fails when something has panicked.
fn expect_no_panic(input: &dyn std::fmt::Debug) {
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(panics.is_empty(), "{panics:#?} for {input:?}");
}

fn worker(log: impl ExecutionLog + 'static) -> Worker {
    Worker::new(log).register::<Order>().register::<Parcel>()
}

/// Lets whatever can go on do so: in a runtime whose time is paused, a moment passes when nothing does any more.
async fn rest() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// The lines of orders in all their states.
async fn exported() -> Vec<String> {
    let clock = ManualClock::starting_at(SystemClock.now());
    let log = InMemoryExecutionLog::new().with_clock(Arc::new(clock.clone()));
    let scheduler = Scheduler::new(log.clone());
    let order = |address: &str| Order { address: address.into(), lines: vec![1, 2, 3] };
    let mut lines = Vec::new();
    let worker = worker(log.clone()).start().await.unwrap();
    for (id, address) in [("here", "here"), ("nowhere", "nowhere"), ("elsewhere", "elsewhere")] {
        let order = scheduler.schedule(order(address)).id(id).label("customer", "7").await.unwrap();
        order.send_once(&NOTES, &"hello".to_owned(), "once").await.unwrap();
    }
    scheduler.schedule(order("waits")).id("waits").await.unwrap();
    let admin = Admin::new(log);
    for _ in 0..5 {
        rest().await;
        lines.extend(admin.export_live(Filter::all()).try_collect::<Vec<_>>().await.unwrap());
        clock.advance(HOUR);
    }
    worker.shutdown().await;
    lines
}

#[tokio::test(start_paused = true)]
async fn flows_to_be_imported() {
    watch_for_panics();
    let valid = exported().await;
    let later = SystemClock.now().saturating_add(24 * HOUR);
    let mut taken = 0;
    for seed in 0..mutations(3_000) {
        let line = Mutator::new(seed, &valid).text();
        let log = InMemoryExecutionLog::new().with_clock(Arc::new(ManualClock::starting_at(later)));
        let admin = Admin::new(log.clone());
        let report = match admin.import([Ok(&line)]).await {
            Ok(report) => report,
            Err(error) => error.report,
        };
        expect_no_panic(&line);
        // What was taken is there as a whole: it can be taken elsewhere, and is the same there.
        let lines = admin.export_live(Filter::all()).try_collect::<Vec<_>>().await.unwrap();
        assert_eq!(lines.len() as u64, report.imported, "{line}");
        let copy = InMemoryExecutionLog::new();
        let copied = Admin::new(copy.clone());
        copied.import(lines.iter().map(Ok)).await.unwrap_or_else(|error| panic!("{error:?} for {line}"));
        assert_eq!(copied.export_live(Filter::all()).try_collect::<Vec<_>>().await.unwrap(), lines);
        if report.imported == 0 {
            continue;
        }
        taken += 1;
        // And it goes on, or stands still with a reason.
        let worker = worker(log.clone()).start().await.unwrap();
        rest().await;
        worker.shutdown().await;
        expect_no_panic(&line);
        for flow in log.list(&Filter::all(), None, 100).await.unwrap().flows {
            assert!(flow.state != FlowState::Running, "nobody runs {flow:?} from {line}");
        }
    }
    assert!(taken > 0, "nothing that was broken was still a flow");
}

#[tokio::test]
async fn addresses_of_logs() {
    watch_for_panics();
    let valid = ["memory:", "sqlite::memory:", "sqlite:orders.db", "memory://", "sqlite:///", "orders.db"];
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..mutations(2_000) {
        let url = Mutator::new(seed, valid).text();
        let (scheme, rest) = url.split_once(':').unwrap_or_default();
        if scheme.eq_ignore_ascii_case("sqlite") && rest.strip_prefix("//").unwrap_or(rest) != ":memory:" {
            // In a folder of its own.
            let name = rest.replace(['/', '\\'], "");
            let _ = ergon::open(&format!("sqlite:{}/{name}", dir.path().display())).await;
        } else {
            let _ = ergon::open(&url).await;
        }
        expect_no_panic(&url);
    }
}

#[test]
fn addresses_of_servers() {
    watch_for_panics();
    let valid = [
        "redis://localhost",
        "rediss://ada:secret@db.example.com:6379/0",
        "postgres://user:password@host:5432/database?sslmode=require",
        "postgresql://host/db?connect_timeout=10",
    ];
    for seed in 0..mutations(20_000) {
        let url = Mutator::new(seed, valid).text();
        let _ = format!("{:?}", ergon::storage::PostgresOptions::new(&url));
        let _ = format!("{:?}", ergon::storage::RedisOptions::new(&url));
        expect_no_panic(&url);
    }
}

#[test]
fn names_of_calls_and_flows() {
    watch_for_panics();
    for seed in 0..mutations(50_000) {
        let text = Mutator::new(seed, ["1", "3.1", "4294967295.2.7", "1.1.1.1.1.1.1.1"]).text();
        if let Ok(path) = text.parse::<CallPath>() {
            assert_eq!(path.to_string().parse::<CallPath>().unwrap(), path, "{text:?}");
        }
        if let Ok(id) = FlowId::new(text.clone()) {
            assert_eq!(id.as_str(), text);
        }
        expect_no_panic(&text);
    }
}

/// A log with an order in the middle, as the bytes of its file.
async fn file(dir: &Path) -> Vec<u8> {
    let path = dir.join("valid.db");
    {
        let log = SqliteExecutionLog::open(&path).await.unwrap();
        let worker = worker(log.clone()).start().await.unwrap();
        let scheduler = Scheduler::new(log.clone());
        let order = Order { address: "here".into(), lines: vec![1] };
        let order = scheduler.schedule(order).id("order").label("customer", "7").await.unwrap();
        ergon_tests::state_of(&log, order.id(), FlowState::Suspended).await;
        worker.shutdown().await;
    }
    std::fs::read(&path).unwrap()
}

#[tokio::test]
async fn files_that_are_damaged() {
    async fn look(path: &Path) -> Result<(), StorageError> {
        let log = SqliteExecutionLog::open(path).await?;
        let flow = FlowId::new("order").unwrap();
        let _ = log.flow(&flow).await?;
        let _ = log.history(&flow, 0, 100).await?;
        let _ = log.list(&Filter::all(), None, 100).await?;
        let worker = worker(log.clone()).start().await.map_err(|_| StorageError::not_found(&flow))?;
        log.send(ergon::storage::NewMessage::new(flow, ergon::storage::Channel::signal("x"), "1")).await?;
        worker.shutdown().await;
        Ok(())
    }
    watch_for_panics();
    let dir = tempfile::tempdir().unwrap();
    let valid = [file(dir.path()).await];
    for seed in 0..mutations(300) {
        let path = dir.path().join(format!("{seed}.db"));
        std::fs::write(&path, Mutator::new(seed, &valid).bytes()).unwrap();
        // Whatever the answer is, it comes.
        let _ = ergon_tests::soon("an answer", look(&path)).await;
        expect_no_panic(&seed);
    }
}
