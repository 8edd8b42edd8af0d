//! What the engine tells the recorder of the program.

#![allow(clippy::float_cmp)] // counts are whole numbers

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ergon::{
    prelude::*,
    storage::{ExecutionLog, FlowId, FlowState, ManualClock, NewFlow},
};
use ergon_tests::{FaultyLog, Gate, Measured, TestClock, Trace, note, soon, state_of, until};
use expect_test::expect;
use tokio::sync::{Mutex, MutexGuard};

/// The recorder, and the right to be the only one who measures: gauges are shared.
async fn alone() -> (Measured, MutexGuard<'static, ()>) {
    static ALONE: Mutex<()> = Mutex::const_new(());
    let alone = ALONE.lock().await;
    (Measured::install(), alone)
}

#[flow_type(name = "life")]
struct Life {}

#[flow_type]
impl Life {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        let number = self.flaky().await?;
        if self.hopeless().await.is_ok() {
            return Ok(0);
        }
        sleep(Duration::from_secs(60)).await;
        child(Offspring {}).await.map_err(|_| ergon::Error::permanent("the leaf failed"))?;
        tokio::select! {
            biased;
            () = sleep(Duration::from_millis(10)) => {}
            _ = self.endless() => {}
        }
        Ok(number)
    }

    #[step(retry(max_attempts = 5, backoff = "1s"))]
    async fn flaky(&self) -> ergon::Result<u32> {
        if attempt() < 3 { Err(ergon::Error::new("not yet")) } else { Ok(attempt()) }
    }

    #[step(retry(max_attempts = 5))]
    async fn hopeless(&self) -> ergon::Result<()> {
        Err(ergon::Error::permanent("never"))
    }

    #[step]
    async fn endless(&self) -> ergon::Result<()> {
        std::future::pending().await
    }
}

#[flow_type(name = "life.child")]
struct Offspring {}

#[flow_type]
impl Offspring {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        Ok(())
    }
}

#[flow_type(name = "leaf")]
struct Leaf {}

#[flow_type]
impl Leaf {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_life_is_counted_once_and_its_replay_not_at_all() {
    let (measured, _alone) = alone().await;
    let log = InMemoryExecutionLog::new().with_clock(Arc::new(TestClock::new(1)));
    let worker = Worker::new(log.clone()).register::<Life>().register::<Offspring>();
    // Nothing stays in memory: each claim replays all the steps.
    let running = worker.parked_max(0).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Life {}).id("life").await.unwrap();
    assert_eq!(flow.result().await.unwrap(), 3);
    running.shutdown().await;
    expect![[r#"
        ergon_flow_duration_seconds{flow_type="life"} 1
        ergon_flow_duration_seconds{flow_type="life.child"} 1
        ergon_flow_wait_seconds{flow_type="life"} 1
        ergon_flow_wait_seconds{flow_type="life.child"} 1
        ergon_flows_ended_total{flow_type="life",state="completed"} 1
        ergon_flows_ended_total{flow_type="life.child",state="completed"} 1
        ergon_flows_resumed_total{flow_type="life",from="log"} 4
        ergon_flows_scheduled_total{flow_type="life"} 1
        ergon_flows_scheduled_total{flow_type="life.child"} 1
        ergon_flows_started_total{flow_type="life"} 1
        ergon_flows_started_total{flow_type="life.child"} 1
        ergon_flows_suspended_total{flow_type="life"} 4
        ergon_step_attempts_total{flow_type="life",outcome="completed",step="flaky"} 1
        ergon_step_attempts_total{flow_type="life",outcome="dropped",step="endless"} 1
        ergon_step_attempts_total{flow_type="life",outcome="failed",step="hopeless"} 1
        ergon_step_attempts_total{flow_type="life",outcome="retried",step="flaky"} 2
        ergon_step_duration_seconds{flow_type="life",step="endless"} 1
        ergon_step_duration_seconds{flow_type="life",step="flaky"} 3
        ergon_step_duration_seconds{flow_type="life",step="hopeless"} 1
    "#]]
    .assert_eq(&measured.about("flow_type=\"life"));
}

#[flow_type(name = "rounds")]
struct Rounds {
    left: u32,
}

#[flow_type]
impl Rounds {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        if self.left == 0 {
            return Ok(());
        }
        ergon::continue_as_new(Self { left: self.left - 1 }).await
    }
}

#[tokio::test]
async fn a_flow_that_begins_again_is_counted_each_time() {
    let (measured, _alone) = alone().await;
    let log = InMemoryExecutionLog::new();
    let worker = Worker::new(log.clone()).register::<Rounds>().start().await.unwrap();
    Scheduler::new(log).schedule(Rounds { left: 3 }).await.unwrap().result().await.unwrap();
    worker.shutdown().await;
    expect![[r#"
        ergon_flow_duration_seconds{flow_type="rounds"} 1
        ergon_flow_wait_seconds{flow_type="rounds"} 1
        ergon_flows_continued_total{flow_type="rounds"} 3
        ergon_flows_ended_total{flow_type="rounds",state="completed"} 1
        ergon_flows_resumed_total{flow_type="rounds",from="log"} 3
        ergon_flows_scheduled_total{flow_type="rounds"} 1
        ergon_flows_started_total{flow_type="rounds"} 1
    "#]]
    .assert_eq(&measured.about("flow_type=\"rounds"));
}

#[flow_type(name = "guarded")]
struct Guarded {
    number: u32,
}

#[flow_type]
impl Guarded {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        self.pass().await
    }

    #[step]
    async fn pass(&self) -> ergon::Result<u32> {
        state::<Gate>().pass().await;
        Ok(self.number)
    }
}

#[tokio::test]
async fn how_flows_end_is_counted_by_type() {
    let (measured, _alone) = alone().await;
    let log = InMemoryExecutionLog::new();
    // Its value cannot be read: it is stalled.
    let id = FlowId::new("odd").unwrap();
    log.enqueue(vec![NewFlow::new(id.clone(), "guarded", 1, "\"odd\"")]).await.unwrap();
    let gate = Gate::closed();
    let worker =
        Worker::new(log.clone()).register::<Guarded>().with_state(gate.clone()).slots(7).start().await.unwrap();
    let scheduler = Scheduler::new(log.clone());
    let flow = scheduler.schedule(Guarded { number: 1 }).id("one").await.unwrap();
    scheduler.schedule(Guarded { number: 1 }).id("one").await.unwrap();
    state_of(&log, flow.id(), FlowState::Running).await;
    state_of(&log, &id, FlowState::Stalled).await;
    until("one slot to be in use", || async { measured.value("ergon_slots_used") == 1.0 }).await;
    assert_eq!(measured.value("ergon_slots"), 7.0);
    flow.cancel("enough").await.unwrap();
    flow.cancel("again").await.unwrap();
    let lost = || async { measured.value("ergon_leases_lost_total{flow_type=\"guarded\"}") == 1.0 };
    gate.open();
    until("the worker to let go of the cancelled flow", lost).await;
    worker.shutdown().await;
    assert_eq!((measured.value("ergon_slots_used"), measured.value("ergon_slots")), (0.0, 0.0));
    let ended = |state| measured.value(&format!("ergon_flows_ended_total{{flow_type=\"guarded\",state={state:?}}}"));
    assert_eq!((ended("stalled"), ended("cancelled"), ended("completed"), ended("failed")), (1.0, 1.0, 0.0, 0.0));
    assert_eq!(measured.value("ergon_flows_scheduled_total{flow_type=\"guarded\"}"), 1.0, "one was known already");

    let executor = Executor::new(log).with_state(gate);
    assert_eq!(executor.run(Guarded { number: 2 }).await.unwrap(), 2);
    assert_eq!(ended("completed"), 1.0);
}

#[flow_type(name = "failing")]
struct Failing {}

#[flow_type]
impl Failing {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        self.fail().await
    }

    #[step(retry = none)]
    async fn fail(&self) -> ergon::Result<()> {
        Err(ergon::Error::new("never"))
    }
}

#[tokio::test]
async fn a_flow_that_fails_is_counted_each_time() {
    let (measured, _alone) = alone().await;
    let log = InMemoryExecutionLog::new();
    let worker = Worker::new(log.clone()).register::<Failing>().start().await.unwrap();
    let flow = Scheduler::new(log).schedule(Failing {}).await.unwrap();
    let ended = |state| measured.value(&format!("ergon_flows_ended_total{{flow_type=\"failing\",state={state:?}}}"));
    for times in [1.0, 2.0] {
        flow.result().await.unwrap_err();
        until("its end to be counted", || async { ended("failed") == times }).await;
        flow.retry().await.unwrap();
    }
    flow.result().await.unwrap_err();
    worker.shutdown().await;
    assert_eq!((ended("failed"), ended("completed"), ended("stalled")), (3.0, 0.0, 0.0));
    let attempts = measured.value("ergon_step_attempts_total{flow_type=\"failing\",outcome=\"failed\",step=\"fail\"}");
    assert_eq!(attempts, 3.0);
}

#[flow_type(name = "leased")]
struct Leased {}

#[flow_type]
impl Leased {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        self.pass().await
    }

    #[step]
    async fn pass(&self) -> ergon::Result<()> {
        note("begins");
        state::<Gate>().pass().await;
        Ok(())
    }
}

/// A process is paused for longer than its lease, another one ends its flow, and it hears of that when it goes on.
#[tokio::test]
async fn a_lease_that_ends_is_counted_as_lost() {
    const LEASE: Duration = Duration::from_secs(60);
    let (measured, _alone) = alone().await;
    let clock = ManualClock::new();
    let log = FaultyLog::new(InMemoryExecutionLog::new().with_clock(Arc::new(clock.clone())));
    let (trace, gate, other_gate) = (Trace::new(), Gate::closed(), Gate::closed());
    let worker = |log: &FaultyLog, gate: &Gate| {
        let worker = Worker::new(log.clone()).register::<Leased>().with_state(trace.clone());
        worker.with_state(gate.clone()).lease(LEASE).start().into_future()
    };
    let flow = Scheduler::new(log.clone()).schedule(Leased {}).await.unwrap();
    let paused = log.another();
    let zombie = worker(&paused, &gate).await.unwrap();
    until("the step to begin", || async { trace.count("begins") == 1 }).await;
    paused.hold("heartbeat");
    paused.hold("claim");
    clock.advance(LEASE);
    other_gate.open();
    let other = worker(&log, &other_gate).await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    let lost = || measured.value("ergon_leases_lost_total{flow_type=\"leased\"}");
    assert_eq!(lost(), 0.0, "nobody knows yet");
    gate.open();
    until("the first worker to let go", || async { zombie.running() == 0 && lost() == 1.0 }).await;
    paused.free("heartbeat");
    paused.free("claim");
    zombie.shutdown().await;
    other.shutdown().await;
    let ended = measured.value("ergon_flows_ended_total{flow_type=\"leased\",state=\"completed\"}");
    assert_eq!((lost(), ended), (1.0, 1.0), "it ended once");
}

#[flow_type(name = "sleeper")]
struct Sleeper {}

#[flow_type]
impl Sleeper {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        signal::<()>("go").await
    }
}

#[tokio::test]
async fn a_parked_flow_goes_on_from_memory() {
    let (measured, _alone) = alone().await;
    let log = InMemoryExecutionLog::new();
    let worker = Worker::new(log.clone()).register::<Sleeper>().start().await.unwrap();
    let flow = Scheduler::new(log).schedule(Sleeper {}).await.unwrap();
    until("the flow to be parked", || async { measured.value("ergon_flows_parked") == 1.0 }).await;
    flow.signal("go", &()).await.unwrap();
    flow.result().await.unwrap();
    worker.shutdown().await;
    assert_eq!(measured.value("ergon_flows_resumed_total{flow_type=\"sleeper\",from=\"memory\"}"), 1.0);
    until("nothing to be parked", || async { measured.value("ergon_flows_parked") == 0.0 }).await;
}

#[tokio::test]
async fn outages_and_refusals_of_the_log_are_told_apart() {
    let (measured, _alone) = alone().await;
    let errors = |operation: &str, kind: &str| {
        measured.value(&format!("ergon_log_errors_total{{kind={kind:?},operation={operation:?}}}"))
    };
    let before = [errors("claim", "unavailable"), errors("enqueue", "unavailable"), errors("cancel", "not_found")];
    let claims = measured.value("ergon_log_duration_seconds{operation=\"claim\"}");
    let log = FaultyLog::new(InMemoryExecutionLog::new());
    let scheduler = Scheduler::new(log.clone());
    log.outage(true);
    assert!(scheduler.schedule(Leaf {}).await.unwrap_err().is_retryable());
    log.outage(false);
    let worker = Worker::new(log.clone()).register::<Leaf>().start().await.unwrap();
    log.outage(true);
    let other = Scheduler::new(log.another()).schedule(Leaf {}).id("leaf").await.unwrap();
    until("a claim to fail", || async { errors("claim", "unavailable") > before[0] }).await;
    log.outage(false);
    other.result().await.unwrap();
    assert!(scheduler.cancel(&FlowId::new("nobody").unwrap(), "").await.is_err());
    worker.shutdown().await;
    assert!(errors("enqueue", "unavailable") > before[1]);
    assert!(errors("cancel", "not_found") > before[2]);
    assert!(measured.value("ergon_log_duration_seconds{operation=\"claim\"}") > claims);
}

#[tokio::test(start_paused = true)]
async fn queues_are_sampled() {
    let (measured, _alone) = alone().await;
    let clock = TestClock::new(1);
    let log = InMemoryExecutionLog::new().with_clock(Arc::new(clock.clone()));
    let scheduler = Scheduler::new(log.clone());
    for number in 0..3 {
        scheduler.schedule(Guarded { number }).queue("slow").await.unwrap();
    }
    clock.skip(Duration::from_secs(90));
    let every = Duration::from_secs(5);
    // It knows neither the queue nor the type.
    let worker = Worker::new(log.clone()).register::<Leaf>().sampling(every).start().await.unwrap();
    let depth = "ergon_flows{flow_type=\"guarded\",queue=\"slow\",state=\"scheduled\"}";
    let age = "ergon_queue_oldest_due_seconds{flow_type=\"guarded\",queue=\"slow\"}";
    soon("a sample", async {
        while measured.value(depth) < 3.0 {
            tokio::time::sleep(every).await;
        }
    })
    .await;
    assert!((90.0..200.0).contains(&measured.value(age)), "{}", measured.value(age));
    let guarded = Worker::new(log).register::<Guarded>().queues(["slow"]).with_state(Gate::closed());
    let guarded = guarded.start().await.unwrap();
    until("none to wait", || async { measured.value(depth) == 0.0 && measured.value(age) == 0.0 }).await;
    assert_eq!(measured.value("ergon_flows{flow_type=\"guarded\",queue=\"slow\",state=\"running\"}"), 3.0);
    drop(guarded);
    worker.shutdown().await;
}

/// The rows of the table: kinds and labels by name.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = include_str!("../../docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `ergon_"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels))
    })
    .collect()
}

#[tokio::test]
async fn the_table_names_all_that_is_measured() {
    let (measured, _alone) = alone().await;
    let log = FaultyLog::new(InMemoryExecutionLog::new());
    let worker = Worker::new(log.clone())
        .register::<Guarded>()
        .with_state(Gate::closed())
        .sampling(Duration::from_secs(1))
        .start()
        .await
        .unwrap();
    let scheduler = Scheduler::new(log);
    scheduler.schedule(Guarded { number: 1 }).await.unwrap();
    assert!(scheduler.cancel(&FlowId::new("nobody").unwrap(), "").await.is_err());
    let table = documented();
    let described: BTreeMap<_, _> =
        measured.described().into_iter().map(|(name, (kind, _))| (name, kind.to_owned())).collect();
    let kinds: BTreeMap<_, _> = table.iter().map(|(name, (kind, _))| (name.clone(), kind.clone())).collect();
    assert_eq!(described, kinds);
    let labels = || measured.labels().into_iter().filter(|(name, _)| name.starts_with("ergon_"));
    until("all to be measured", || async { labels().count() >= table.len() - 1 }).await;
    drop(worker);
    // Others' tests end flows.
    for (name, (kind, labels)) in labels() {
        assert_eq!(table.get(&name), Some(&(kind.to_owned(), labels.into_iter().collect())), "{name}");
    }
}
