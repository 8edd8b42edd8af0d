//! What comes from outside the program, whatever it is: lines to be imported, payloads, addresses, names.
//!
//! It is refused with an error or taken whole, and what is taken never makes the engine panic. Each function is given
//! one input and looks at that; the tests in `tests/hostile.rs` break valid input at random, the programs in the folder
//! `fuzz` let a fuzzer choose.

use std::{
    fmt::Debug,
    panic,
    sync::{Arc, Mutex, Once, PoisonError},
    time::Duration,
};

use ergon::{
    Admin, Filter, Flow as _, FlowState, InMemoryExecutionLog,
    prelude::*,
    storage::{CallPath, Clock, ExecutionLog, ManualClock, NewFlow, SystemClock},
};
use futures::TryStreamExt;

const NOTES: Mailbox<String> = Mailbox::new("notes");
const HOUR: Duration = Duration::from_secs(3_600);

/// A bit of everything that a history can hold.
#[flow_type]
pub struct Order {
    /// Where it goes: "nowhere" fails, "elsewhere" continues as new.
    pub address: String,
    /// What a step is given.
    pub lines: Vec<u32>,
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

/// A child of an [`Order`].
#[flow_type]
pub struct Parcel {
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

/// A worker for orders and parcels.
pub fn worker(log: impl ExecutionLog + 'static) -> Worker {
    Worker::new(log).register::<Order>().register::<Parcel>()
}

/// Panics, wherever they are caught.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From here on [`expect_no_panic`] knows of every panic of the process.
pub fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(info.to_string());
            usual(info);
        }));
    });
}

/// Looks for panics that were caught.
///
/// # Panics
///
/// When there was one since [`watch_for_panics`].
pub fn expect_no_panic(input: &dyn Debug) {
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(panics.is_empty(), "{panics:#?} for {input:?}");
}

/// Lets whatever can go on do so: in a runtime whose time is paused, a moment passes when nothing does any more.
async fn rest() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// The lines of orders in all their states, to be broken. In a runtime whose time is paused.
///
/// # Panics
///
/// When they cannot be made.
pub async fn exported() -> Vec<String> {
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

/// A line to be imported: how many flows were taken from it. In a runtime whose time is paused.
///
/// # Panics
///
/// When a part of it was taken, when a copy of what was taken differs, or when the engine panics over it.
pub async fn import(line: &str) -> u64 {
    let later = SystemClock.now().saturating_add(24 * HOUR);
    let log = InMemoryExecutionLog::new().with_clock(Arc::new(ManualClock::starting_at(later)));
    let admin = Admin::new(log.clone());
    let report = match admin.import([Ok(line)]).await {
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
    if report.imported > 0 {
        run_all(&log, &line).await;
    }
    report.imported
}

/// A payload as the value of a flow.
///
/// # Panics
///
/// When the engine panics over it, or leaves the flow where it is.
pub async fn payload(bytes: &[u8]) {
    let log = InMemoryExecutionLog::new();
    let flow = NewFlow::new(FlowId::new("order").unwrap(), Order::NAME, Order::VERSION, bytes.to_vec());
    if log.enqueue(vec![flow]).await.is_ok() {
        run_all(&log, &bytes).await;
    }
}

/// Lets a worker do with the flows what it can: they go on, or stand still with a reason.
async fn run_all(log: &InMemoryExecutionLog, input: &dyn Debug) {
    let worker = worker(log.clone()).start().await.unwrap();
    rest().await;
    worker.shutdown().await;
    expect_no_panic(input);
    for flow in log.list(&Filter::all(), None, 100).await.unwrap().flows {
        assert!(flow.state != FlowState::Running, "nobody runs {flow:?} from {input:?}");
    }
}

/// An address of a server.
///
/// # Panics
///
/// When something panics over it.
pub fn server(url: &str) {
    let _ = format!("{:?}", ergon::storage::PostgresOptions::new(url));
    let _ = format!("{:?}", ergon::storage::RedisOptions::new(url));
    expect_no_panic(&url);
}

/// The name of a call, or of a flow.
///
/// # Panics
///
/// When it is another after it was written down.
pub fn name(text: &str) {
    if let Ok(path) = text.parse::<CallPath>() {
        assert_eq!(path.to_string().parse::<CallPath>().unwrap(), path, "{text:?}");
    }
    if let Ok(id) = FlowId::new(text) {
        assert_eq!(id.as_str(), text);
    }
    expect_no_panic(&text);
}
