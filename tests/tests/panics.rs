//! User code that panics where the engine calls it: an attempt or a flow fails, or a flow is stalled, and the worker
//! lives.

// Raw strings are as expect-test writes them.
#![allow(clippy::needless_raw_string_hashes)]

use std::{
    collections::BTreeSet,
    fmt::{self, Write},
    sync::Mutex,
    time::Duration,
};

use ergon::{FlowError, prelude::*, storage::FlowState};
use ergon_tests::{Place, both, soon, state_of, until};
use expect_test::expect;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const LONG: Duration = Duration::from_secs(1_000_000);

both!(
    the_worker_lives_through_panics,
    a_value_that_panics_when_it_is_read_stalls,
    who_reads_a_value_hears_of_its_panic,
    errors_that_panic_fail_the_flow,
);

/// A value whose own code panics where it hurts.
struct Bomb(String);

/// What panics when it is read, from now on.
static ARMED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl<'de> Deserialize<'de> for Bomb {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let armed = ARMED.lock().unwrap().contains(&text);
        assert!(!armed && text != "deserialize", "in Deserialize");
        Ok(Self(text))
    }
}

impl fmt::Debug for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assert!(self.0 != "debug", "in Debug");
        f.write_str(&self.0)
    }
}

impl Serialize for Bomb {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(self.0 != "serialize", "in Serialize");
        self.0.serialize(serializer)
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(self.0 != "drop" || std::thread::panicking(), "in Drop");
    }
}

/// Handles bombs.
#[flow_type]
struct Bombs {
    place: String,
    how: String,
}

#[flow_type]
impl Bombs {
    #[flow]
    async fn run(&self) -> ergon::Result<Bomb> {
        let bomb = || Bomb(self.how.clone());
        match self.place.as_str() {
            "outcome" => drop(self.outcome().await?),
            "error" => self.error().await.map_err(|_| ergon::Error::new("the error"))?,
            "signal" => drop(signal::<Bomb>("bomb").await?),
            "argument" => self.argument(&bomb()).await?,
            "body" => self.body().await?,
            "held" => {
                let _held = bomb();
                sleep(LONG).await;
            }
            _ => return Ok(bomb()),
        }
        Ok(Bomb("defused".into()))
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"))]
    async fn outcome(&self) -> ergon::Result<Bomb> {
        Ok(Bomb(self.how.clone()))
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"))]
    async fn error(&self) -> Result<(), Bomb> {
        Err(Bomb(self.how.clone()))
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"))]
    async fn argument(&self, _bomb: &Bomb) -> ergon::Result<()> {
        Ok(())
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"))]
    async fn body(&self) -> ergon::Result<()> {
        let _bomb = Bomb(self.how.clone());
        Ok(())
    }
}

async fn the_worker_lives_through_panics(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let worker = Worker::new(log.clone()).register::<Bombs>().slots(2).start().await.unwrap();
    let mut table = String::new();
    for how in ["serialize", "deserialize", "debug", "drop"] {
        for place in ["outcome", "error", "argument", "body", "result"] {
            let flow = scheduler.schedule(Bombs { place: place.into(), how: how.into() }).await.unwrap();
            let _ = soon(&format!("the end of a flow with a bomb in {how} of its {place}"), flow.result()).await;
            let info = flow.status().await.unwrap();
            writeln!(table, "{how} {place}: {} {}", info.state, info.reason.as_deref().unwrap_or("-")).unwrap();
        }
    }
    expect![[r#"
        serialize outcome: failed step "outcome" panicked: in Serialize
        serialize error: failed the error of step "error" panicked: in Serialize
        serialize argument: failed the flow panicked: in Serialize
        serialize body: completed -
        serialize result: failed the flow panicked: in Serialize
        deserialize outcome: failed step "outcome" panicked: in Deserialize
        deserialize error: failed the error of step "error" panicked: in Deserialize
        deserialize argument: completed -
        deserialize body: completed -
        deserialize result: failed the flow panicked: in Deserialize
        debug outcome: completed -
        debug error: failed the error of step "error" panicked: in Debug
        debug argument: completed -
        debug body: completed -
        debug result: completed -
        drop outcome: failed the flow panicked: in Drop
        drop error: failed the flow panicked: in Drop
        drop argument: failed the flow panicked: in Drop
        drop body: failed step "body" panicked: in Drop
        drop result: failed the flow panicked: in Drop
    "#]]
    .assert_eq(&table);
    // Both slots are free, and a flow that is dropped with a bomb in its hands takes nothing with it.
    let held = scheduler.schedule(Bombs { place: "held".into(), how: "drop".into() }).await.unwrap();
    state_of(&log, held.id(), FlowState::Suspended).await;
    let good = scheduler.schedule(Bombs { place: "result".into(), how: "good".into() }).await.unwrap();
    assert_eq!(soon("a good flow", good.result()).await.unwrap().0, "good");
    until("the slots to be free", || async { worker.running() == 0 }).await;
    soon("the shutdown", worker.shutdown()).await;
}

/// Waits for a word with a value in its hands, which a replay has to read again.
#[flow_type]
struct Reads {
    place: String,
    text: String,
    value: Bomb,
}

#[flow_type]
impl Reads {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        let text = self.text.clone();
        let read = match self.place.as_str() {
            "outcome" => self.outcome(&text).await?,
            "error" => self.error(&text).await.unwrap_err(),
            "child" => child(Gives { text }).await.map_err(|error| error.0.clone())?,
            "failing child" => child(Gives { text: format!("!{text}") }).await.unwrap_err(),
            _ => Bomb(text),
        };
        let _: u32 = signal("go").await.map_err(|error| error.to_string())?;
        Ok(read.0.clone())
    }

    #[step]
    async fn outcome(&self, text: &str) -> Result<Bomb, String> {
        Ok(Bomb(text.into()))
    }

    #[step(retry = none)]
    async fn error(&self, text: &str) -> Result<(), Bomb> {
        Err(Bomb(text.into()))
    }
}

/// Gives what it was given, or fails with it.
#[flow_type]
struct Gives {
    text: String,
}

#[flow_type]
impl Gives {
    #[flow]
    async fn run(&self) -> Result<Bomb, Bomb> {
        match self.text.strip_prefix('!') {
            Some(text) => Err(Bomb(text.into())),
            None => Ok(Bomb(self.text.clone())),
        }
    }
}

fn arm(text: &str) {
    ARMED.lock().unwrap().insert(text.to_owned());
}

async fn a_value_that_panics_when_it_is_read_stalls(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let worker = Worker::new(log.clone()).register::<Reads>().register::<Gives>().slots(1).parked_max(0);
    let worker = worker.start().await.unwrap();
    let mut table = String::new();
    for what in ["value", "outcome", "error", "child", "failing child"] {
        let text = format!("{what} in {}", if place.is_file() { "a file" } else { "memory" });
        let value = Bomb(if what == "value" { text.clone() } else { "harmless".into() });
        let flow = scheduler.schedule(Reads { place: what.into(), text: text.clone(), value }).id(what).await.unwrap();
        until("the wait for the word", || async {
            let info = flow.status().await.unwrap();
            info.state == FlowState::Suspended
                && info.wake.channels.iter().any(|channel| channel.as_str() == "signal:go")
        })
        .await;
        arm(&text);
        flow.signal("go", &1).await.unwrap();
        let info = state_of(&log, flow.id(), FlowState::Stalled).await;
        let reason = info.reason.as_deref().unwrap_or_default();
        writeln!(table, "{}", reason.split(';').next().unwrap_or_default()).unwrap();
        // Once it can be read, the flow goes on.
        ARMED.lock().unwrap().remove(&text);
        flow.retry().await.unwrap();
        assert_eq!(soon("the result", flow.result()).await.unwrap(), text);
    }
    expect![[r#"
        the flow's value cannot be read as panics::Reads: its Deserialize panicked: in Deserialize
        the recorded outcome of step "outcome" cannot be read as panics::Bomb: its Deserialize panicked: in Deserialize
        the recorded outcome of step "error" cannot be read as panics::Bomb: its Deserialize panicked: in Deserialize
        the result of child flow "child/1" cannot be read as panics::Bomb: its Deserialize panicked: in Deserialize
        the result of child flow "failing child/1" cannot be read as ergon::flow::Failure<panics::Bomb>: its Deserialize panicked: in Deserialize
    "#]]
    .assert_eq(&table);
    until("the slot to be free", || async { worker.running() == 0 }).await;
    worker.shutdown().await;
}

/// A signal that cannot be read is the flow's to handle, a result the caller's.
async fn who_reads_a_value_hears_of_its_panic(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let worker = Worker::new(log.clone()).register::<Bombs>().register::<Gives>().start().await.unwrap();
    let flow = scheduler.schedule(Bombs { place: "signal".into(), how: String::new() }).await.unwrap();
    flow.signal("bomb", "deserialize").await.unwrap();
    let error = soon("the result", flow.result()).await.unwrap_err();
    expect![[
        r#"the flow failed: the signal "bomb" cannot be read as panics::Bomb: its Deserialize panicked: in Deserialize"#
    ]]
    .assert_eq(&error.to_string());
    let text = format!("the result in a {}", if place.is_file() { "file" } else { "memory" });
    let flow = scheduler.schedule(Gives { text: text.clone() }).await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    arm(&text);
    let error = flow.result().await.map(|bomb| bomb.0.clone()).unwrap_err();
    assert!(matches!(&error, FlowError::Fault(error) if error.kind() == ergon::ErrorKind::Payload), "{error}");
    worker.shutdown().await;
}

/// An error that panics in code which the engine calls.
#[derive(Debug, Serialize, Deserialize)]
struct Explosive(String);

impl From<ergon::Error> for Explosive {
    fn from(error: ergon::Error) -> Self {
        panic!("in From, with {error}")
    }
}

impl ergon::Retryable for Explosive {
    fn is_retryable(&self) -> bool {
        panic!("in Retryable, with {}", self.0)
    }
}

/// Fails in ways that call that code.
#[flow_type]
struct Explodes {
    how: String,
}

#[flow_type]
impl Explodes {
    #[flow]
    async fn run(&self) -> Result<(), Explosive> {
        match self.how.as_str() {
            "child" => child(Explodes { how: "from".into() }).await,
            _ => self.step().await,
        }
    }

    #[step(retry = none)]
    async fn step(&self) -> Result<(), Explosive> {
        match self.how.as_str() {
            "from" => panic!("in the body"),
            _ => Err(Explosive("its error".into())),
        }
    }
}

async fn errors_that_panic_fail_the_flow(place: Place) {
    let log = place.log().await;
    let worker = Worker::new(log.clone()).register::<Explodes>().slots(2).start().await.unwrap();
    let mut table = String::new();
    for how in ["from", "retryable", "child"] {
        let flow = Scheduler::new(log.clone()).schedule(Explodes { how: how.into() }).await.unwrap();
        let error = soon("the end", flow.result()).await.unwrap_err();
        writeln!(table, "{how}: {error}").unwrap();
    }
    expect![[r#"
        from: the flow failed: making the error of step "step" panicked: in From, with step "step" panicked: in the body
        retryable: the flow failed: making the error of step "step" panicked: in From, with the error of step "step" panicked: in Retryable, with its error
        child: the flow failed: the flow panicked: in From, with making the error of step "step" panicked: in From, with step "step" panicked: in the body
    "#]]
    .assert_eq(&table);
    until("the slots to be free", || async { worker.running() == 0 }).await;
    worker.shutdown().await;
}
