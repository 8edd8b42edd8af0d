//! Flows that clean up when they are cancelled, while workers run them, let go of them, or die.

use std::time::Duration;

use ergon::{
    FlowError, FlowHandle, cancelled, on_cancel,
    prelude::*,
    saga,
    storage::{Cleanup, ErrorKind, ExecutionLog, FlowState, Limits, ManualClock},
};
use ergon_tests::{FaultyLog, Gate, Place, Trace, both, note, soon, state_of, trace, until};

const LEASE: Duration = Duration::from_secs(3_600);

both!(
    the_clean_up_waits_for_a_body_that_runs,
    a_body_that_does_not_watch_is_dropped_before,
    a_worker_that_is_gone_is_waited_for_until_its_lease_ends,
    a_flow_that_stays_in_memory_is_replayed,
    an_executor_cleans_up,
    a_time_limit_passes_while_a_step_runs,
    the_longest_reason_is_kept,
    a_time_limit_passes_before_the_code_is_where_it_was,
);

/// Reserves a table, and is at something else when it is cancelled.
#[flow_type]
#[derive(Clone)]
struct Dinner {
    how: String,
}

#[flow_type]
impl Dinner {
    #[flow(timeout = "10h")]
    async fn run(&self) -> ergon::Result<()> {
        let eaten = saga(async |saga| {
            let table = self.reserve().await?;
            saga.undo(move || self.release(table));
            match self.how.as_str() {
                "watches" => self.watches().await,
                "cooks" => self.cooks().await,
                _ => signal("served").await,
            }
        });
        Ok(eaten.await?)
    }

    #[step]
    async fn reserve(&self) -> ergon::Result<u32> {
        note("reserve");
        Ok(7)
    }

    #[step]
    async fn release(&self, table: u32) -> ergon::Result<()> {
        note(format!("release {table}"));
        Ok(())
    }

    #[step]
    async fn watches(&self) -> ergon::Result<()> {
        let told = cancelled();
        note("begins");
        note(format!("told: {}", told.await));
        state::<Gate>().pass().await;
        note("lets go");
        Ok(())
    }

    #[step]
    async fn cooks(&self) -> ergon::Result<()> {
        let _dropped = Dropped(trace());
        note("begins");
        std::future::pending().await
    }
}

/// Notes that it is dropped.
struct Dropped(Trace);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add("dropped");
    }
}

/// A dinner that is under way, and a worker that runs it.
struct Scene {
    clock: ManualClock,
    log: FaultyLog,
    trace: Trace,
    gate: Gate,
    worker: ergon::WorkerHandle,
    flow: FlowHandle<(), ergon::Error>,
}

impl Scene {
    async fn begin(place: &Place, how: &str) -> Self {
        let clock = ManualClock::new();
        let log = place.log_at(clock.clone()).await;
        let (trace, gate) = (Trace::new(), Gate::closed());
        let worker = worker(&log, &trace, &gate).await;
        let flow = Scheduler::new(log.clone()).schedule(Dinner { how: how.into() }).id("flow").await.unwrap();
        if how == "waits" {
            state_of(&log, flow.id(), FlowState::Suspended).await;
        } else {
            until("the step to begin", || async { trace.count("begins") == 1 }).await;
        }
        trace.take().clear();
        Self { clock, log, trace, gate, worker, flow }
    }

    /// Cancels the flow, which is only to come to its end.
    async fn cancel(&self) {
        self.flow.cancel("too late").await.unwrap();
        assert_eq!(self.flow.status().await.unwrap().cleanup, Cleanup::Underway);
    }

    /// Waits for the end of the flow, and returns what was noted.
    async fn end(self) -> Vec<String> {
        let result = soon("the end", self.flow.result()).await;
        assert!(matches!(&result, Err(FlowError::Cancelled(reason)) if reason == "too late"), "{result:?}");
        soon("the shutdown", self.worker.shutdown()).await;
        self.trace.take()
    }
}

async fn worker(log: &FaultyLog, trace: &Trace, gate: &Gate) -> ergon::WorkerHandle {
    let worker = Worker::new(log.clone()).register::<Dinner>().lease(LEASE).cancel_grace(LEASE / 6);
    let worker = worker.with_state(trace.clone()).with_state(gate.clone()).grace(Duration::from_millis(10));
    worker.start().await.unwrap()
}

async fn the_clean_up_waits_for_a_body_that_runs(place: Place) {
    let scene = Scene::begin(&place, "watches").await;
    let other = worker(&scene.log.another(), &scene.trace, &scene.gate).await;
    scene.cancel().await;
    scene.log.at_rest().await;
    assert_eq!(scene.trace.notes(), Vec::<String>::new(), "its worker has not heard of it");
    scene.clock.advance(LEASE / 3);
    until("the body to hear", || async { scene.trace.count("told: too late") == 1 }).await;
    scene.log.at_rest().await;
    assert_eq!(scene.trace.notes(), ["told: too late"], "its worker has not let go of it");
    scene.gate.open();
    other_ends(scene, other, &["told: too late", "lets go", "release 7"]).await;
}

async fn other_ends(scene: Scene, other: ergon::WorkerHandle, noted: &[&str]) {
    assert_eq!(scene.end().await, noted);
    other.shutdown().await;
}

/// Well before the lease ends.
async fn a_body_that_does_not_watch_is_dropped_before(place: Place) {
    let scene = Scene::begin(&place, "cooks").await;
    scene.cancel().await;
    scene.clock.advance(LEASE / 3);
    assert_eq!(scene.end().await, ["dropped", "release 7"]);
}

async fn a_worker_that_is_gone_is_waited_for_until_its_lease_ends(place: Place) {
    let scene = Scene::begin(&place, "cooks").await;
    for method in ["heartbeat", "claim", "release"] {
        scene.log.hold(method);
    }
    let trace = Trace::new();
    let other = worker(&scene.log.another(), &trace, &scene.gate).await;
    scene.cancel().await;
    scene.clock.advance(LEASE / 2);
    scene.log.at_rest().await;
    assert_eq!(trace.notes(), Vec::<String>::new());
    scene.clock.advance(LEASE / 2);
    until("the other to clean up", || async { trace.count("release 7") == 1 }).await;
    for method in ["heartbeat", "claim", "release"] {
        scene.log.free(method);
    }
    assert_eq!(scene.end().await, ["dropped"]);
    other.shutdown().await;
}

async fn a_flow_that_stays_in_memory_is_replayed(place: Place) {
    let scene = Scene::begin(&place, "waits").await;
    scene.cancel().await;
    assert_eq!(scene.end().await, ["release 7"]);
}

async fn an_executor_cleans_up(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let executor = Executor::new(log.clone()).with_state(trace.clone());
    let flow = Scheduler::new(log.clone()).handle::<Dinner>(FlowId::new("dinner").unwrap());
    let (result, ()) = tokio::join!(
        soon("the end", async { executor.run(Dinner { how: "waits".into() }).id("dinner").await }),
        async {
            until("the flow to exist", || async { log.flow(flow.id()).await.unwrap().is_some() }).await;
            state_of(&log, flow.id(), FlowState::Suspended).await;
            flow.cancel("too late").await.unwrap();
        }
    );
    assert!(matches!(&result, Err(FlowError::Cancelled(reason)) if reason == "too late"), "{result:?}");
    assert_eq!(trace.take(), ["reserve", "release 7"]);
}

async fn a_time_limit_passes_while_a_step_runs(place: Place) {
    let scene = Scene::begin(&place, "cooks").await;
    for _ in 0..40 {
        scene.log.at_rest().await;
        scene.clock.advance(LEASE / 4);
    }
    let error = soon("the end", scene.flow.result()).await.unwrap_err();
    assert_eq!(error.to_string(), "the flow failed: the flow exceeded its time limit");
    assert_eq!(scene.trace.take(), ["dropped", "release 7"]);
    scene.worker.shutdown().await;
}

/// Waits for ever, and tells why it was cancelled.
#[flow]
async fn patient() -> ergon::Result<()> {
    on_cancel(signal::<()>("never"), async |reason| count(reason.len()).await).await
}

#[step]
async fn count(bytes: usize) -> ergon::Result<()> {
    note(bytes.to_string());
    Ok(())
}

async fn the_longest_reason_is_kept(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let worker = Worker::new(log.clone()).register::<patient>().with_state(trace.clone()).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(patient()).id("flow").await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    let reason = "ü".repeat(Limits::REASON_BYTES_MAX / 2 + 1);
    assert_eq!(flow.cancel(&reason).await.unwrap_err().kind(), ErrorKind::TooLarge);
    flow.cancel(&reason[2..]).await.unwrap();
    let result = soon("the end", flow.result()).await;
    assert!(matches!(&result, Err(FlowError::Cancelled(told)) if *told == reason[2..]), "{result:?}");
    assert_eq!(trace.take(), [Limits::REASON_BYTES_MAX.to_string()]);
    worker.shutdown().await;
}

/// Comes to its saga only when something has let it through that is not durable.
#[flow(timeout = "10h")]
async fn held() -> ergon::Result<()> {
    state::<Gate>().pass().await;
    let eaten = saga(async |saga| {
        count(7).await?;
        saga.undo(|| count(8));
        signal("never").await
    });
    Ok(eaten.await?)
}

/// Whoever finds the limit passed cannot know yet what there is to be cleaned up, but that there is something.
async fn a_time_limit_passes_before_the_code_is_where_it_was(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    gate.open();
    let worker = |log: &FaultyLog, gate: &Gate| {
        Worker::new(log.clone()).register::<held>().with_state(trace.clone()).with_state(gate.clone()).start()
    };
    let first = worker(&log.another(), &gate).await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(held()).id("flow").await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    soon("the shutdown", first.shutdown()).await;
    clock.advance(LEASE * 10);
    let gate = Gate::closed();
    let second = worker(&log, &gate).await.unwrap();
    until("the time limit to be found", || async { flow.status().await.unwrap().cleanup == Cleanup::Underway }).await;
    gate.open();
    let error = soon("the end", flow.result()).await.unwrap_err();
    assert_eq!(error.to_string(), "the flow failed: the flow exceeded its time limit");
    assert_eq!(trace.take(), ["7", "8"]);
    second.shutdown().await;
}
