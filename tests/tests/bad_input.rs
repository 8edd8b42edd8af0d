//! What cannot be: each a clear typed error at the earliest place, and nothing half-written.

// Raw strings are as expect-test writes them, and its macros read best in place.
#![allow(clippy::needless_raw_string_hashes, clippy::needless_pass_by_value)]

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use ergon::{
    Entry, ErrorKind as Kind, FlowError, SqliteExecutionLog, StartError, StorageError,
    prelude::*,
    storage::{ErrorKind, ExecutionLog, Filter, Limits, SqliteOptions, SystemClock},
};
use ergon_tests::{FaultyLog, Place, both, soon};
use expect_test::{Expect, expect};
use serde::{Deserialize, Serialize};

both!(
    ids_have_a_length,
    an_id_is_taken_once,
    signals_need_a_flow_that_lives,
    payloads_have_a_limit,
    far_futures_are_refused,
    values_that_json_keeps_come_back_as_they_were,
    values_that_json_does_not_keep_are_refused,
);

/// Echoes text of some length.
#[flow_type]
#[derive(Debug, Clone)]
struct Echo {
    text: String,
    what: String,
}

#[flow_type]
impl Echo {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let long = "x".repeat(2_000);
        match self.what.as_str() {
            "step" => {
                self.step(2_000).await?;
            }
            "failing step" => self.fails(2_000).await?,
            "result" => return Ok(long),
            "error" => return Err(ergon::Error::permanent(long)),
            "child" => return child(Echo { text: long, what: String::new() }).await,
            "signal" => return signal("text").await,
            _ => {}
        }
        Ok(self.text.clone())
    }

    #[step]
    async fn step(&self, length: usize) -> ergon::Result<String> {
        Ok("x".repeat(length))
    }

    #[step]
    async fn fails(&self, length: usize) -> ergon::Result<()> {
        Err(ergon::Error::permanent("x".repeat(length)))
    }
}

fn echo(text: &str, what: &str) -> Echo {
    Echo { text: text.into(), what: what.into() }
}

async fn nothing_written(log: &FaultyLog) {
    assert!(log.list(&Filter::all(), None, 10).await.unwrap().flows.is_empty());
}

fn refused<T: Debug>(result: Result<T, StorageError>, kind: ErrorKind, expect: Expect) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    expect.assert_eq(&error.to_string());
}

async fn ids_have_a_length(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let result = scheduler.schedule(echo("", "")).id("").await;
    refused(result, ErrorKind::Invalid, expect![["a flow id must not be empty"]]);
    let result = scheduler.schedule(echo("", "")).id("ü".repeat(128)).await;
    refused(result, ErrorKind::Invalid, expect![["a flow id must not exceed 255 bytes, this one has 256"]]);
    // All or nothing.
    let result = scheduler.schedule_all([Entry::new(echo("", "")).id("good"), Entry::new(echo("", "")).id("")]).await;
    refused(result, ErrorKind::Invalid, expect![["a flow id must not be empty"]]);
    let result = scheduler.schedule(echo("", "")).id("q").queue("").await;
    refused(result, ErrorKind::Invalid, expect![[r#"flow "q": a queue name has 1 to 128 bytes, this one has 0"#]]);
    nothing_written(&log).await;
    // What is allowed is allowed to the last byte, whatever it is.
    for id in ["ü".repeat(127), "\0'\"; DROP TABLE flows; --".to_owned(), "💥".into(), " ".into()] {
        let flow = scheduler.schedule(echo(&id, "")).id(&id).await.unwrap();
        assert_eq!(flow.status().await.unwrap().id.as_str(), id);
    }
}

async fn an_id_is_taken_once(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    assert!(!scheduler.schedule(echo("a", "")).id("one").await.unwrap().existed());
    assert!(scheduler.schedule(echo("a", "")).id("one").await.unwrap().existed());
    let result = scheduler.schedule(echo("b", "")).id("one").await;
    refused(
        result,
        ErrorKind::Conflict,
        expect![[
            r#"flow "one": there is a flow of this id with another type or value; choose another id, or use Scheduler::handle to reach the one that is there"#
        ]],
    );
    let result = Executor::new(log.clone()).run(echo("b", "")).id("one").await;
    assert!(matches!(&result, Err(FlowError::Log(error)) if error.kind() == ErrorKind::Conflict), "{result:?}");
}

async fn signals_need_a_flow_that_lives(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let nobody = FlowId::new("nobody").unwrap();
    let result = scheduler.signal(&nobody, "text", "hello").await;
    refused(result, ErrorKind::NotFound, expect![[r#"flow "nobody": there is no such flow"#]]);
    let result = scheduler.cancel(&nobody, "why").await;
    refused(result, ErrorKind::NotFound, expect![[r#"flow "nobody": there is no such flow"#]]);
    let result = scheduler.retry(&nobody).await;
    refused(result, ErrorKind::NotFound, expect![[r#"flow "nobody": there is no such flow"#]]);
    let result = soon("an answer", scheduler.handle::<Echo>(nobody).result()).await;
    assert!(matches!(&result, Err(FlowError::Log(error)) if error.kind() == ErrorKind::NotFound), "{result:?}");
    assert!(scheduler.status(&FlowId::new("nobody").unwrap()).await.unwrap().is_none());

    let flow = scheduler.schedule(echo("", "")).id("some").await.unwrap();
    for name in ["", &"n".repeat(249)] {
        let error = flow.signal(name, "hello").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("a signal's name has 1 to 248 bytes"), "{error}");
    }
    flow.signal(&"n".repeat(248), "hello").await.unwrap();
    let worker = Worker::new(log.clone()).register::<Echo>().start().await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    worker.shutdown().await;
    let result = flow.signal("text", "hello").await;
    refused(result, ErrorKind::Finished, expect![[r#"flow "some": the flow is completed already"#]]);
}

async fn payloads_have_a_limit(place: Place) {
    let mut limits = Limits::default();
    limits.payload_bytes_max = 1_000;
    let log = place.log_with(Arc::new(SystemClock), limits).await;
    let scheduler = Scheduler::new(log.clone());
    let result = scheduler.schedule(echo(&"x".repeat(1_000), "")).id("big").await;
    refused(
        result,
        ErrorKind::TooLarge,
        expect![[
            r#"flow "big": the value of flow type "Echo" takes 1021 bytes, the limit is 1000; keep large data elsewhere and pass its address"#
        ]],
    );
    nothing_written(&log).await;
    let fits = scheduler.schedule(echo(&"x".repeat(979), "")).await.unwrap();
    let listens = scheduler.schedule(echo("", "signal")).id("listens").await.unwrap();
    let result = listens.signal("text", &"x".repeat(999)).await;
    refused(
        result,
        ErrorKind::TooLarge,
        expect![[
            r#"flow "listens": the signal "text" takes 1001 bytes, the limit is 1000; keep large data elsewhere and pass its address"#
        ]],
    );
    listens.signal("text", &"x".repeat(998)).await.unwrap();
    let worker = Worker::new(log.clone()).register::<Echo>().start().await.unwrap();
    assert_eq!(soon("the largest value", fits.result()).await.unwrap().len(), 979);
    assert_eq!(soon("the largest signal", listens.result()).await.unwrap().len(), 998);
    for (what, names) in [
        ("step", "the outcome of step \"step\" takes 2002 bytes"),
        ("failing step", "the error of step \"fails\" takes"),
        ("result", "the flow's result takes 2002 bytes"),
        ("error", "the flow's error takes"),
        ("child", "the value of child flow \"Echo\" takes"),
    ] {
        let flow = scheduler.schedule(echo("", what)).await.unwrap();
        let error = soon(what, flow.result()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(names) && text.contains("the limit is 1000"), "{what}: {text}");
        let kind = match &error {
            FlowError::Failed(error) | FlowError::Fault(error) => error.kind(),
            _ => panic!("{what}: {error:?}"),
        };
        assert_eq!(kind, Kind::Payload, "{what}");
    }
    worker.shutdown().await;
}

/// Waits for longer than there is time.
#[flow_type]
struct Forever {
    how: String,
}

#[flow_type]
impl Forever {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        match self.how.as_str() {
            "sleep" => sleep(Duration::MAX).await,
            "in a step" => self.sleeps().await?,
            "signal" => drop(signal::<()>("never").timeout(Duration::MAX).await?),
            "name" => schedule_timer_named("", Duration::ZERO).await,
            "signal name" => drop(signal::<()>("").await?),
            "child id" => drop(child(Forever { how: String::new() }).id("").await),
            "child start" => drop(child(Forever { how: String::new() }).delay(Duration::MAX).await),
            "child in a step" => self.child().await?,
            _ => {}
        }
        Ok(())
    }

    #[step]
    async fn sleeps(&self) -> ergon::Result<()> {
        sleep(Duration::MAX).await;
        Ok(())
    }

    #[step(retry = none)]
    async fn child(&self) -> ergon::Result<()> {
        child(Forever { how: String::new() }).await
    }
}

async fn far_futures_are_refused(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let forever = |how: &str| Forever { how: how.into() };
    let result = scheduler.schedule(forever("")).id("late").delay(Duration::MAX).await;
    refused(
        result,
        ErrorKind::Invalid,
        expect![[r#"flow "late": a start in 18446744073709551615.999999999s is past the end of time"#]],
    );
    nothing_written(&log).await;
    let worker = Worker::new(log.clone()).register::<Forever>().start().await.unwrap();
    for (how, names) in [
        ("sleep", "timer \"sleep\""),
        ("in a step", "timer \"sleep\""),
        ("signal", "signal \"never\""),
        ("name", "a timer's name has 1 to 255 bytes, \"\" has 0"),
        ("signal name", "a signal's name has 1 to 248 bytes, \"\" has 0"),
        ("child id", "the child flow \"Forever\" cannot be started: a flow id must not be empty"),
        ("child start", "the child flow \"Forever\" cannot be started"),
        ("child in a step", "a child flow is started by a flow, not by a step"),
    ] {
        let flow = scheduler.schedule(forever(how)).await.unwrap();
        let error = soon(how, flow.result()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(names), "{how}: {text}");
        let past_the_end = ["sleep", "in a step", "signal", "child start"].contains(&how);
        assert_eq!(text.contains("is past the end of time"), past_the_end, "{how}: {text}");
        let children = log.list(&Filter::all().with_parent(flow.id().clone()), None, 10).await.unwrap();
        assert!(children.flows.is_empty(), "{how}");
    }
    worker.shutdown().await;
}

/// Values of all kinds, through a flow's value, arguments, outcomes and result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Values {
    text: String,
    unit: (),
    option: Option<String>,
    float: f64,
    small: f64,
    wide: u128,
    negative: i128,
    most: u64,
    bytes: Vec<u8>,
    by_number: BTreeMap<u64, String>,
    by_text: HashMap<String, Vec<Option<bool>>>,
    variant: Variant,
    letter: char,
    time: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Variant {
    Unit,
    Tuple(u8, String),
    Struct { name: String },
}

#[flow_type]
#[derive(Debug, Clone)]
struct Keeps {
    values: Values,
}

#[flow_type]
impl Keeps {
    #[flow]
    async fn run(&self) -> ergon::Result<Values> {
        let kept = self.keep(self.values.clone()).await?;
        // Read from the log again.
        sleep(Duration::from_millis(60)).await;
        Ok(kept)
    }

    #[step]
    async fn keep(&self, values: Values) -> ergon::Result<Values> {
        Ok(values)
    }
}

async fn values_that_json_keeps_come_back_as_they_were(place: Place) {
    let log = place.log().await;
    let worker = Worker::new(log.clone()).register::<Keeps>().parked_max(0).start().await.unwrap();
    let floats = [(0.1 + 0.2, f64::MIN_POSITIVE), (-0.0, f64::MAX), (1e300, 5e-324), (f64::EPSILON, 1.0 / 3.0)];
    for (float, small) in floats {
        let values = Values {
            text: "quotes \" ' \\ \u{0} \u{1f} \u{2028} \u{10ffff} 💥".into(),
            unit: (),
            option: None,
            float,
            small,
            wide: u128::MAX,
            negative: i128::MIN,
            most: u64::MAX,
            bytes: (0..=255).collect(),
            by_number: BTreeMap::from([(0, "zero".into()), (u64::MAX, "most".into())]),
            by_text: (0..50).map(|n| (n.to_string(), vec![None, Some(n % 2 == 0)])).collect(),
            variant: match small {
                small if small > 1.0 => Variant::Unit,
                small if small > 1e-300 => Variant::Tuple(7, String::new()),
                _ => Variant::Struct { name: "name".into() },
            },
            letter: '\u{10ffff}',
            time: Duration::new(u64::MAX, 999_999_999),
        };
        let flow = Scheduler::new(log.clone()).schedule(Keeps { values: values.clone() }).await.unwrap();
        let kept = soon("the result", flow.result()).await.unwrap();
        assert_eq!(kept, values);
        assert_eq!(kept.float.to_bits(), values.float.to_bits());
    }
    worker.shutdown().await;
}

/// Values that JSON changes, without a word if one lets it.
#[flow_type]
struct Loses {
    what: String,
}

#[flow_type]
impl Loses {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        match self.what.as_str() {
            "nan" => drop(self.float(true).await?),
            "infinity" => drop(self.float(false).await?),
            "options" => drop(self.options().await?),
            "skipped" => _ = self.skipped().await?,
            "keys" => drop(self.keys().await?),
            _ => return Ok(self.what.clone()),
        }
        Ok("lost".into())
    }

    #[step]
    async fn float(&self, nan: bool) -> ergon::Result<Option<f64>> {
        Ok(Some(if nan { f64::NAN } else { f64::INFINITY }))
    }

    #[step]
    async fn options(&self) -> ergon::Result<Option<Option<u8>>> {
        Ok(Some(None))
    }

    #[step]
    async fn skipped(&self) -> ergon::Result<Skips> {
        Ok(Skips { kept: 1, lost: 2 })
    }

    #[step]
    async fn keys(&self) -> ergon::Result<BTreeMap<(u8, u8), u8>> {
        Ok(BTreeMap::from([((1, 2), 3)]))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Skips {
    kept: u8,
    #[serde(serialize_with = "as_one", rename = "other")]
    lost: u8,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
fn as_one<S: serde::Serializer>(_: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("one")
}

async fn values_that_json_does_not_keep_are_refused(place: Place) {
    let log = place.log().await;
    let worker = Worker::new(log.clone()).register::<Loses>().start().await.unwrap();
    for what in ["nan", "infinity", "options", "skipped", "keys"] {
        let flow = Scheduler::new(log.clone()).schedule(Loses { what: what.into() }).await.unwrap();
        let error = soon(what, flow.result()).await.unwrap_err();
        let FlowError::Failed(error) = error else { panic!("{what}: {error:?}") };
        assert_eq!(error.kind(), Kind::Payload, "{what}");
        let text = error.to_string();
        let says = match what {
            "keys" => "cannot be written as JSON: key must be a string",
            _ => "does not survive being written as JSON and read again",
        };
        assert!(text.starts_with("the outcome of step") && text.contains(says), "{what}: {text}");
        assert_eq!(flow.history().await.unwrap().calls()[0].attempts, 1, "{what}: trying again cannot help");
    }
    worker.shutdown().await;
}

mod twin {
    use super::*;

    #[flow_type(name = "Echo")]
    pub(super) struct Twin;

    #[flow_type]
    impl Twin {
        #[flow]
        async fn run(&self) -> ergon::Result<()> {
            Ok(())
        }
    }
}

fn does_not_start<T: Debug>(result: Result<T, StartError>, expect: Expect) {
    expect.assert_eq(&result.unwrap_err().to_string());
}

#[tokio::test]
async fn workers_that_cannot_be_do_not_start() {
    let log = InMemoryExecutionLog::new();
    let worker = || Worker::new(log.clone());
    does_not_start(
        worker().start().await,
        expect![["a worker needs at least one flow type: call .register::<MyFlow>()"]],
    );
    does_not_start(
        worker().register::<Echo>().slots(0).start().await,
        expect![["a worker needs at least one slot: call .slots(n) with n >= 1"]],
    );
    does_not_start(
        worker().register::<Echo>().queues(["a", ""]).start().await,
        expect![["a worker needs at least one queue, and the names of queues have 1 to 128 bytes"]],
    );
    does_not_start(
        worker().register::<Echo>().queues(Vec::<String>::new()).start().await,
        expect![["a worker needs at least one queue, and the names of queues have 1 to 128 bytes"]],
    );
    does_not_start(
        worker().register::<Echo>().deliveries_max(0).start().await,
        expect![["a flow must be delivered at least once: call .deliveries_max(n) with n >= 1"]],
    );
    does_not_start(
        worker().register::<Echo>().lease(Duration::ZERO).start().await,
        expect![["a lease of 0ns is too short, the least is 100ms"]],
    );
    does_not_start(
        worker().register::<Echo>().register::<Echo>().start().await,
        expect![[r#"the flow type bad_input::Echo ("Echo" version 1) was registered twice"#]],
    );
    does_not_start(
        worker().register::<Echo>().register::<twin::Twin>().start().await,
        expect![[
            r#"the flow types bad_input::Echo and bad_input::twin::Twin have the same name "Echo" and version 1; give one of them another name with #[flow_type(name = "…")]"#
        ]],
    );
    let faulty = FaultyLog::new(log.clone());
    faulty.outage(true);
    let error = Worker::new(faulty).register::<Echo>().start().await.unwrap_err();
    assert!(matches!(&error, StartError::Log(error) if error.is_retryable()), "{error:?}");
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn durations_that_are_too_long_for_a_worker_do_no_harm() {
    let log = InMemoryExecutionLog::new();
    let worker = Worker::new(log.clone()).register::<Echo>().lease(Duration::MAX).moment(Duration::MAX);
    let worker = worker.grace(Duration::MAX).fallback(Duration::MAX).slots(usize::MAX).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(echo("text", "")).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "text");
    soon("the shutdown", worker.shutdown()).await;
    let executor = Executor::new(log).lease(Duration::MAX);
    assert_eq!(soon("the result", async { executor.run(echo("text", "")).await }).await.unwrap(), "text");
}

#[tokio::test]
async fn files_that_are_no_logs_are_refused() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("text.db"), "this is not a database, whatever its name says".repeat(100)).unwrap();
    let text = std::fs::read(path("text.db")).unwrap();
    let cases = [
        (path("missing/log.db"), ErrorKind::Invalid),
        (directory.path().to_owned(), ErrorKind::Invalid),
        (path("text.db"), ErrorKind::Corrupt),
    ];
    for (path, kind) in cases {
        let error = SqliteExecutionLog::open(&path).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains(name) || error.to_string().contains("missing"), "{error}");
    }
    assert_eq!(std::fs::read(path("text.db")).unwrap(), text, "it is left as it was");
    assert!(!path("missing").exists());
    let error = SqliteOptions::new(path("none.db")).create(false).open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(!path("none.db").exists());
}
