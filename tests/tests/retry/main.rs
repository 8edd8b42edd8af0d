//! Going on after a failure: what has failed is done again, what has succeeded is not.

mod families;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ergon::{
    FlowError, FlowHandle, WorkerHandle,
    prelude::*,
    storage::{Channel, ExecutionLog, Filter, FlowState, ManualClock, NewMessage, Retried},
};
use ergon_tests::{FaultyLog, Gate, Place, Trace, both, note, soon, state_of, trace, until};
use futures::{StreamExt, stream::FuturesUnordered};

const SECOND: Duration = Duration::from_secs(1);

both!(
    a_failed_branch_is_done_again_whatever_else_was_recorded,
    a_failure_that_was_dealt_with_stays,
    a_wait_that_was_too_long_begins_anew,
    what_failed_inside_a_step_is_done_again,
    all_that_failed_go_on_at_once,
    what_failed_two_levels_down_beside_another_is_done_again,
    what_a_call_made_beforehand_dealt_with_stays,
    signals_outlast_a_failure,
    the_time_limit_begins_anew,
    a_retry_is_the_same_whether_the_flow_was_parked,
);

/// What is wrong with the world until it is put right.
#[derive(Debug, Clone, Default)]
struct World(Arc<AtomicBool>);

impl World {
    fn repair(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn works(&self) -> Result<(), String> {
        if self.0.load(Ordering::SeqCst) { Ok(()) } else { Err("broken".into()) }
    }
}

async fn worker(log: &FaultyLog, trace: &Trace, world: &World) -> WorkerHandle {
    let worker = Worker::new(log.clone()).register::<Branches>().register::<Waits>();
    let worker = worker.register::<Nests>().register::<Deep>().register::<Compensates>();
    worker.register::<Caught>().with_state(trace.clone()).with_state(world.clone()).start().await.unwrap()
}

/// Waits until a flow has failed.
async fn fails<T: serde::de::DeserializeOwned>(flow: &FlowHandle<T, String>) -> String {
    match soon("the failure", flow.result()).await {
        Err(FlowError::Failed(error)) => error,
        Err(other) => other.to_string(),
        Ok(_) => panic!("the flow should fail"),
    }
}

/// A step that calls others, and fails when one of them does.
#[flow_type]
struct Nests;

#[flow_type]
impl Nests {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        self.outer().await
    }

    #[step(retry = none)]
    async fn outer(&self) -> Result<String, String> {
        let fine = self.inner("fine").await?;
        let broken = self.middle().await?;
        Ok(fine + &broken)
    }

    #[step(retry = none)]
    async fn middle(&self) -> Result<String, String> {
        let fine = self.inner("deep and fine").await?;
        let broken = self.inner("broken").await?;
        Ok(fine + &broken)
    }

    #[step(retry = none)]
    async fn inner(&self, what: &str) -> Result<String, String> {
        note(what);
        if what == "broken" {
            state::<World>().works()?;
        }
        Ok(format!("{what} "))
    }
}

async fn what_failed_inside_a_step_is_done_again(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Nests).await.unwrap();
    assert_eq!(fails(&flow).await, "broken");
    // In vain at first, so that the next history is one that was read.
    flow.retry().await.unwrap();
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "fine deep and fine broken ");
    assert_eq!(trace.take(), ["fine", "deep and fine", "broken", "broken", "broken"]);
    worker.shutdown().await;
}

async fn all_that_failed_go_on_at_once(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let scheduler = Scheduler::new(log.clone());
    let nests = scheduler.schedule_all((0..20).map(|_| Nests)).await.unwrap();
    let other = scheduler.schedule(Branches { how: "join".into() }).await.unwrap();
    for flow in &nests {
        assert_eq!(fails(flow).await, "broken");
    }
    fails(&other).await;
    world.repair();
    let all = Filter::all();
    assert_eq!(scheduler.retry_all(&all.clone().with_state(FlowState::Completed)).await.unwrap(), 0);
    assert_eq!(scheduler.retry_all(&all.clone().with_state(FlowState::Stalled)).await.unwrap(), 0);
    assert_eq!(scheduler.retry_all(&all.clone().with_flow_type("Nests")).await.unwrap(), 20);
    for flow in &nests {
        assert_eq!(soon("the result", flow.result()).await.unwrap(), "fine deep and fine broken ");
    }
    assert_eq!(other.status().await.unwrap().state, FlowState::Failed);
    assert_eq!(scheduler.retry_all(&all).await.unwrap(), 1);
    assert_eq!(soon("the result", other.result()).await.unwrap(), "done");
    assert_eq!(scheduler.retry_all(&all).await.unwrap(), 0);
    worker.shutdown().await;
}

/// A step whose failure is not the first one: what calls it has not ended when another one fails.
#[flow_type]
struct Deep;

#[flow_type]
impl Deep {
    #[flow]
    async fn run(&self) -> Result<(), String> {
        self.outer().await
    }

    #[step(retry = none)]
    async fn outer(&self) -> Result<(), String> {
        tokio::try_join!(self.middle(), self.beside()).map(|_| ())
    }

    #[step(retry = none)]
    async fn middle(&self) -> Result<(), String> {
        let inner = self.inner().await;
        note("middle");
        if inner.is_err() {
            std::future::pending::<()>().await;
        }
        inner
    }

    #[step(retry = none)]
    async fn inner(&self) -> Result<(), String> {
        note("inner");
        state::<World>().works()
    }

    #[step(retry = none)]
    async fn beside(&self) -> Result<(), String> {
        let trace = trace();
        until("the other branch", || async { trace.count("middle") > 0 }).await;
        state::<World>().works()
    }
}

/// The step in between has no outcome by which it could be found.
async fn what_failed_two_levels_down_beside_another_is_done_again(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Deep).await.unwrap();
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    flow.retry().await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    assert_eq!(trace.take(), ["inner", "middle", "inner", "middle"]);
    worker.shutdown().await;
}

/// Several branches, one or more of which fail.
#[flow_type]
struct Branches {
    how: String,
}

#[flow_type]
impl Branches {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        self.fine("before".into()).await?;
        match &*self.how {
            "try_join" => {
                tokio::try_join!(self.broken(1), self.fine("beside".into()), self.broken(2))?;
            }
            "join" => {
                let (one, other, third) = tokio::join!(self.broken(1), self.fine("beside".into()), self.broken(2));
                one?;
                other?;
                third?;
            }
            "stored" => {
                let calls = [self.broken(1), self.broken(2)];
                let fine = self.fine("beside".into());
                let mut all: FuturesUnordered<_> = calls.into_iter().collect();
                fine.await?;
                while let Some(result) = all.next().await {
                    result?;
                }
            }
            _ => {
                tokio::select! {
                    result = self.broken(1) => result?,
                    () = sleep(SECOND * 3_600) => {}
                }
            }
        }
        self.fine("after".into()).await?;
        Ok("done".into())
    }

    #[step]
    async fn fine(&self, what: String) -> Result<(), String> {
        note(what);
        Ok(())
    }

    #[step(retry = none)]
    async fn broken(&self, number: u32) -> Result<(), String> {
        note(format!("broken {number}"));
        state::<World>().works()
    }
}

async fn a_failed_branch_is_done_again_whatever_else_was_recorded(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    for how in ["try_join", "join", "stored", "select"] {
        let (trace, world) = (Trace::new(), World::default());
        let worker = worker(&log, &trace, &world).await;
        let flow = scheduler.schedule(Branches { how: how.into() }).await.unwrap();
        // Once in vain, then with the world put right.
        assert_eq!(fails(&flow).await, "broken");
        assert_eq!(flow.retry().await.unwrap(), Retried::Scheduled);
        assert_eq!(fails(&flow).await, "broken");
        world.repair();
        assert_eq!(flow.retry().await.unwrap(), Retried::Scheduled);
        assert_eq!(soon("the result", flow.result()).await.unwrap(), "done", "{how}");
        for what in ["before", "after"] {
            assert_eq!(trace.count(what), 1, "{how}: {what}");
        }
        assert_eq!(trace.count("beside"), usize::from(how != "select"), "{how}");
        assert_eq!(trace.count("broken 1"), 3, "{how}");
        worker.shutdown().await;
    }
}

/// Deals with a failure, goes on, and fails of something else.
#[flow_type]
struct Caught;

#[flow_type]
impl Caught {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        let first = self.attempt("first".into()).await;
        let second = self.attempt(format!("second, {}", first.is_ok())).await;
        second.map(|()| format!("{first:?}"))
    }

    #[step(retry = none)]
    async fn attempt(&self, what: String) -> Result<(), String> {
        note(what);
        state::<World>().works()
    }
}

async fn a_failure_that_was_dealt_with_stays(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Caught).await.unwrap();
    fails(&flow).await;
    world.repair();
    flow.retry().await.unwrap();
    // What was done after it hangs on it.
    assert_eq!(soon("the result", flow.result()).await.unwrap(), r#"Err("broken")"#);
    assert_eq!(trace.take(), ["first", "second, false", "second, false"]);
    worker.shutdown().await;
}

/// Makes a call before another one fails, and awaits it because of that.
#[flow_type]
struct Compensates;

#[flow_type]
impl Compensates {
    #[flow]
    async fn run(&self) -> Result<(), String> {
        let refund = self.refund();
        let charged = self.charge().await;
        if charged.is_err() {
            refund.await?;
        }
        charged
    }

    #[step(retry = none)]
    async fn charge(&self) -> Result<(), String> {
        note("charge");
        state::<World>().works()
    }

    #[step(retry = none)]
    async fn refund(&self) -> Result<(), String> {
        note("refund");
        Ok(())
    }
}

/// What counts is when the code began to await it.
async fn what_a_call_made_beforehand_dealt_with_stays(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Compensates).await.unwrap();
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(fails(&flow).await, "broken");
    assert_eq!(trace.take(), ["charge", "refund"]);
    worker.shutdown().await;
}

/// Waits for a signal, not for ever, then works and waits for another one.
#[flow_type]
struct Waits;

#[flow_type]
impl Waits {
    #[flow(timeout = "100s")]
    async fn run(&self) -> Result<u32, String> {
        let first = signal::<u32>("first").timeout(SECOND * 10).await.map_err(|error| error.to_string())?;
        let first = first.ok_or("it took too long")?;
        self.work().await?;
        let second: u32 = signal("second").await.map_err(|error| error.to_string())?;
        Ok(first + second)
    }

    #[step(retry = none)]
    async fn work(&self) -> Result<(), String> {
        note("work");
        state::<World>().works()
    }
}

async fn a_wait_that_was_too_long_begins_anew(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, world) = (Trace::new(), World::default());
    world.repair();
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Waits).await.unwrap();
    for _ in 0..2 {
        state_of(&log, flow.id(), FlowState::Suspended).await;
        clock.advance(SECOND * 10);
        assert_eq!(fails(&flow).await, "it took too long");
        clock.advance(SECOND * 1_000);
        flow.retry().await.unwrap();
    }
    state_of(&log, flow.id(), FlowState::Suspended).await;
    flow.signal("first", &1).await.unwrap();
    flow.signal("second", &2).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 3);
    assert_eq!(trace.count("work"), 1);
    worker.shutdown().await;
}

async fn signals_outlast_a_failure(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Waits).await.unwrap();
    flow.signal("second", &2).await.unwrap();
    flow.signal("first", &1).await.unwrap();
    assert_eq!(fails(&flow).await, "broken");
    assert!(flow.signal("third", &3).await.is_err(), "nothing is sent to a flow that has ended");
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 3);
    assert_eq!(trace.count("work"), 2);
    worker.shutdown().await;
}

async fn the_time_limit_begins_anew(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, world) = (Trace::new(), World::default());
    world.repair();
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Waits).await.unwrap();
    flow.signal("first", &1).await.unwrap();
    for _ in 0..2 {
        until("the work", || async { trace.count("work") == 1 }).await;
        state_of(&log, flow.id(), FlowState::Suspended).await;
        clock.advance(SECOND * 100);
        let error = fails(&flow).await;
        assert!(error.contains("exceeded its time limit"), "{error}");
        flow.retry().await.unwrap();
    }
    flow.signal("second", &2).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 3);
    assert_eq!(trace.count("work"), 1);
    worker.shutdown().await;
}

/// Fails in one branch while another one waits, until the flow's time is up.
#[flow_type]
struct Late;

#[flow_type]
impl Late {
    #[flow(timeout = "100s")]
    async fn run(&self) -> Result<u32, String> {
        let (done, number) = tokio::join!(self.work(), signal::<u32>("go"));
        done?;
        number.map_err(|error| error.to_string())
    }

    #[step(retry = none)]
    async fn work(&self) -> Result<(), String> {
        note("work");
        state::<World>().works()
    }
}

/// Who finds the time limit passed may have the flow in memory or not have replayed it yet.
async fn a_retry_is_the_same_whether_the_flow_was_parked(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    for parked in [0, 10] {
        let (trace, world) = (Trace::new(), World::default());
        let worker = Worker::new(log.clone()).register::<Late>().with_state(trace.clone()).with_state(world.clone());
        let worker = worker.parked_max(parked).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Late).await.unwrap();
        state_of(&log, flow.id(), FlowState::Suspended).await;
        clock.advance(SECOND * 100);
        let error = fails(&flow).await;
        assert!(error.contains("exceeded its time limit"), "{error}");
        world.repair();
        flow.retry().await.unwrap();
        flow.signal("go", &1).await.unwrap();
        assert_eq!(soon("the result", flow.result()).await.unwrap(), 1, "{parked} parked");
        assert_eq!(trace.take(), ["work", "work"], "{parked} parked");
        worker.shutdown().await;
    }
}
