//! Steps that hear of the cancellation of their flow.

use std::time::Duration;

use ergon::{
    FlowError, FlowHandle, WorkerHandle, cancelled,
    prelude::*,
    storage::{FlowState, ManualClock},
};
use ergon_tests::{FaultyLog, Gate, Place, Trace, both, note, soon, trace, until};

const LEASE: Duration = Duration::from_secs(3_600);
const GRACE: Duration = Duration::from_secs(60);

both!(
    a_step_that_watches_cleans_up,
    a_blocking_step_looks_now_and_then,
    it_has_its_time_and_no_more,
    children_hear_of_it_too,
    who_writes_first_hears_it_first,
    a_lost_lease_is_no_cancellation,
    a_shutdown_does_not_wait_for_it_longer_than_for_others,
);

/// Notes that it is dropped.
struct Dropped(Trace);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add("dropped");
    }
}

/// Watches in one way or another.
#[flow_type]
#[derive(Clone)]
struct Watches {
    how: String,
}

#[flow_type]
impl Watches {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        match self.how.as_str() {
            "parent" => child(Watches { how: "cleans up".into() }).id("child").await,
            "blocking" => self.blocks().await,
            "beside" => tokio::try_join!(self.cleans_up(), self.plain()).map(drop),
            "stays" => self.stays().await,
            _ => self.cleans_up().await,
        }
    }

    #[step]
    async fn cleans_up(&self) -> ergon::Result<()> {
        let told = cancelled();
        note("begins");
        let reason = told.await;
        note(format!("told: {reason}"));
        // Cleaning up takes more than one turn.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        note("cleaned up");
        Ok(())
    }

    #[step]
    async fn plain(&self) -> ergon::Result<()> {
        note("begins");
        state::<Gate>().pass().await;
        Ok(())
    }

    #[step]
    async fn stays(&self) -> ergon::Result<()> {
        let told = cancelled();
        note("begins");
        note(format!("told: {}", told.await));
        let _dropped = Dropped(trace());
        // What it calls now never begins.
        self.plain().await
    }

    #[step(blocking)]
    fn blocks(&self) -> ergon::Result<()> {
        let told = cancelled();
        note("begins");
        let reason = loop {
            match told.reason() {
                Some(reason) => break reason,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        note(format!("told: {reason}"));
        Ok(())
    }
}

/// A flow that watches, whose step has begun.
struct Scene {
    clock: ManualClock,
    log: FaultyLog,
    trace: Trace,
    gate: Gate,
    worker: WorkerHandle,
    flow: FlowHandle<(), ergon::Error>,
}

impl Scene {
    async fn begin(place: &Place, how: &str) -> Self {
        let clock = ManualClock::new();
        let log = place.log_at(clock.clone()).await;
        let (trace, gate) = (Trace::new(), Gate::closed());
        let worker = Worker::new(log.clone()).register::<Watches>().lease(LEASE).cancel_grace(GRACE);
        let worker = worker.with_state(trace.clone()).with_state(gate.clone()).grace(Duration::from_millis(10));
        let worker = worker.start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Watches { how: how.into() }).id("flow").await.unwrap();
        let steps = if how == "beside" { 2 } else { 1 };
        until("the steps to begin", || async { trace.count("begins") == steps }).await;
        trace.take().clear();
        Self { clock, log, trace, gate, worker, flow }
    }

    /// Cancels the flow, and lets the worker hear of it.
    async fn cancel(&self) {
        let records = self.flow.status().await.unwrap().records;
        self.flow.cancel("too dear").await.unwrap();
        let result = soon("the end", self.flow.result()).await;
        assert!(matches!(result, Err(FlowError::Cancelled(reason)) if reason == "too dear"));
        assert_eq!(self.flow.status().await.unwrap().records, records);
        self.clock.advance(LEASE / 3);
    }

    /// Waits until the worker has let go of all flows, and returns what was noted.
    async fn end(self) -> Vec<String> {
        until("the worker to let go", || async { self.worker.running() == 0 }).await;
        assert!(self.flow.status().await.unwrap().state.is_final());
        self.worker.shutdown().await;
        self.trace.take()
    }
}

async fn a_step_that_watches_cleans_up(place: Place) {
    let scene = Scene::begin(&place, "cleans up").await;
    scene.cancel().await;
    assert_eq!(scene.end().await, ["told: too dear", "cleaned up"]);
}

async fn a_blocking_step_looks_now_and_then(place: Place) {
    let scene = Scene::begin(&place, "blocking").await;
    scene.cancel().await;
    assert_eq!(scene.end().await, ["told: too dear"]);
}

async fn it_has_its_time_and_no_more(place: Place) {
    let scene = Scene::begin(&place, "stays").await;
    scene.cancel().await;
    until("it to hear", || async { scene.trace.count("told: too dear") == 1 }).await;
    scene.clock.advance(Duration::from_micros(59_999_999));
    scene.log.at_rest().await;
    assert_eq!((scene.worker.running(), scene.trace.count("dropped")), (1, 0));
    scene.clock.advance(Duration::from_micros(1));
    assert_eq!(scene.end().await, ["told: too dear", "dropped"]);
}

async fn children_hear_of_it_too(place: Place) {
    let scene = Scene::begin(&place, "parent").await;
    scene.cancel().await;
    assert_eq!(scene.end().await, ["told: too dear", "cleaned up"]);
}

/// The log refuses what another step of the flow has come to, long before the lease is renewed.
async fn who_writes_first_hears_it_first(place: Place) {
    let scene = Scene::begin(&place, "beside").await;
    scene.flow.cancel("too dear").await.unwrap();
    scene.gate.open();
    assert_eq!(scene.end().await, ["told: too dear", "cleaned up"]);
}

async fn a_lost_lease_is_no_cancellation(place: Place) {
    let scene = Scene::begin(&place, "beside").await;
    // Another worker has the flow by now.
    scene.log.hold("heartbeat");
    scene.log.hold("claim");
    scene.clock.advance(LEASE);
    let (trace, gate) = (Trace::new(), Gate::closed());
    let other = Worker::new(scene.log.another()).register::<Watches>().lease(LEASE);
    let other = other.with_state(trace.clone()).with_state(gate.clone()).start().await.unwrap();
    until("the other to begin", || async { trace.count("begins") == 2 }).await;
    scene.gate.open();
    until("the worker to let go", || async { scene.worker.running() == 0 }).await;
    assert_eq!(scene.trace.take(), Vec::<String>::new());
    assert_eq!(scene.flow.status().await.unwrap().state, FlowState::Running);
    scene.flow.cancel("too dear").await.unwrap();
    gate.open();
    until("the other to let go", || async { other.running() == 0 }).await;
    assert_eq!(trace.take(), ["begins", "begins", "told: too dear", "cleaned up"]);
    for method in ["heartbeat", "claim"] {
        scene.log.free(method);
    }
    other.shutdown().await;
    scene.worker.shutdown().await;
}

async fn a_shutdown_does_not_wait_for_it_longer_than_for_others(place: Place) {
    let scene = Scene::begin(&place, "stays").await;
    scene.cancel().await;
    until("it to hear", || async { scene.trace.count("told: too dear") == 1 }).await;
    soon("the shutdown", scene.worker.shutdown()).await;
    assert_eq!(scene.trace.take(), ["told: too dear", "dropped"]);
}
