//! Going on after a failure: what has failed is done again, what has succeeded is not.

use std::{
    collections::HashMap,
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
    a_child_that_failed_is_done_again,
    children_that_end_while_their_parent_has_failed_are_heard,
    a_child_that_was_retried_first_is_heard_once,
    a_cancelled_child_fails_its_parent_again,
    a_wait_that_was_too_long_begins_anew,
    what_failed_inside_a_step_is_done_again,
    all_that_failed_go_on_at_once,
    what_failed_two_levels_down_beside_another_is_done_again,
    what_a_call_made_beforehand_dealt_with_stays,
    signals_outlast_a_failure,
    the_time_limit_begins_anew,
    a_retry_is_the_same_whether_the_flow_was_parked,
    a_deleted_parent_can_be_scheduled_anew,
    a_child_of_an_earlier_flow_is_another_ones,
    a_retried_parent_hears_of_its_own_child,
    a_child_whose_value_was_wrong_gets_another,
    one_retry_is_enough_for_a_family,
    a_child_whose_value_holds_a_map_goes_on,
    a_call_hears_of_its_own_child,
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
    let worker = Worker::new(log.clone()).register::<Branches>().register::<Generation>().register::<Waits>();
    let worker = worker.register::<Nests>().register::<Deep>().register::<Compensates>();
    let worker = worker.register::<Earlier>().register::<Waiting>().register::<Corrected>();
    let worker = worker.register::<Siblings>().register::<Buys>().register::<Ships>();
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

/// A parent of some children that are parents of some; the youngest work, or wait for a signal.
#[flow_type]
struct Generation {
    number: u32,
    children: u32,
    waits: bool,
}

#[flow_type]
impl Generation {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        if self.number == 0 {
            if self.waits {
                return signal("go").await.map_err(|error| error.to_string());
            }
            return self.work().await;
        }
        let young = |index| Generation {
            number: self.number - 1,
            children: self.children,
            waits: self.number == 1 && index > 0,
        };
        let handles: Vec<_> = (0..self.children).map(|index| child(young(index)).start()).collect();
        let mut sum = 0;
        for handle in handles {
            sum += handle.await?;
        }
        Ok(sum)
    }

    #[step(retry = none)]
    async fn work(&self) -> Result<u32, String> {
        note("work");
        state::<World>().works().map(|()| 1)
    }
}

/// A family whose founder has this id.
async fn family(log: &FaultyLog, id: &str, number: u32, children: u32) -> FlowHandle<u32, String> {
    Scheduler::new(log.clone()).schedule(Generation { number, children, waits: false }).id(id).await.unwrap()
}

async fn a_child_that_failed_is_done_again(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = family(&log, "family", 3, 1).await;
    assert_eq!(fails(&flow).await, "broken");
    assert_eq!(trace.count("work"), 1);
    // Retrying the founder is enough.
    flow.retry().await.unwrap();
    until("the second failure", || async { trace.count("work") == 2 }).await;
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 1);
    assert_eq!(trace.count("work"), 3);
    worker.shutdown().await;
}

async fn children_that_end_while_their_parent_has_failed_are_heard(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = family(&log, "family", 1, 3).await;
    assert_eq!(fails(&flow).await, "broken");
    for name in ["family/2", "family/3"] {
        let id = ergon::FlowId::new(name).unwrap();
        log.send(NewMessage::new(id.clone(), Channel::signal("go"), "5")).await.unwrap();
        state_of(&log, &id, FlowState::Completed).await;
    }
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 11);
    assert_eq!(log.messages(flow.id(), &[], 0, 10).await.unwrap(), []);
    worker.shutdown().await;
}

async fn a_child_that_was_retried_first_is_heard_once(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = family(&log, "family", 1, 1).await;
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    let child = ergon::FlowId::new("family/1").unwrap();
    Scheduler::new(log.clone()).retry(&child).await.unwrap();
    state_of(&log, &child, FlowState::Completed).await;
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 1);
    assert_eq!(trace.count("work"), 2);
    worker.shutdown().await;
}

async fn a_cancelled_child_fails_its_parent_again(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    world.repair();
    let worker = worker(&log, &trace, &world).await;
    let flow = family(&log, "family", 1, 2).await;
    let waiting = ergon::FlowId::new("family/2").unwrap();
    until("the child", || async { log.flow(&waiting).await.unwrap().is_some() }).await;
    state_of(&log, &waiting, FlowState::Suspended).await;
    Scheduler::new(log.clone()).cancel(&waiting, "enough").await.unwrap();
    let error = fails(&flow).await;
    assert!(error.contains("enough"), "{error}");
    flow.retry().await.unwrap();
    assert_eq!(fails(&flow).await, error);
    // A child that is gone is started anew.
    Scheduler::new(log.clone()).log().delete(&waiting).await.unwrap();
    flow.retry().await.unwrap();
    until("the child", || async { log.flow(&waiting).await.unwrap().is_some() }).await;
    state_of(&log, &waiting, FlowState::Suspended).await;
    log.send(NewMessage::new(waiting, Channel::signal("go"), "5")).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 6);
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

async fn a_deleted_parent_can_be_scheduled_anew(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    world.repair();
    let worker = worker(&log, &trace, &world).await;
    for round in 1..=3 {
        let flow = family(&log, "family", 2, 1).await;
        assert!(!flow.existed());
        assert_eq!(soon("the result", flow.result()).await.unwrap(), 1);
        assert_eq!(trace.count("work"), round, "its children are new too");
        assert!(log.delete(flow.id()).await.unwrap());
    }
    worker.shutdown().await;
}

/// Waits for its child, unless it is of the first generation, which leaves it behind.
#[flow_type]
struct Earlier {
    generation: u32,
    child: String,
}

#[flow_type]
impl Earlier {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let young = child(Waiting { number: self.generation }).id(&*self.child).start();
        if self.generation == 1 {
            self.nothing().await?;
            return Ok(0);
        }
        young.await
    }

    #[step]
    async fn nothing(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Waits for a signal, and does its work; without a number, it never ends.
#[flow_type]
struct Waiting {
    number: u32,
}

#[flow_type]
impl Waiting {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let _: u32 = signal("go").await.map_err(|error| error.to_string())?;
        state::<World>().works()?;
        if self.number == 0 {
            return signal("never").await.map_err(|error| error.to_string());
        }
        Ok(self.number)
    }
}

/// Sends a flow that waits for a signal on its way, and waits until it has come to this state.
async fn let_go(log: &FaultyLog, name: &str, end: FlowState) {
    let id = ergon::FlowId::new(name).unwrap();
    until("the flow", || async { log.flow(&id).await.unwrap().is_some() }).await;
    state_of(log, &id, FlowState::Suspended).await;
    log.send(NewMessage::new(id.clone(), Channel::signal("go"), "1")).await.unwrap();
    state_of(log, &id, end).await;
}

/// Runs the first generation of a flow to its end and deletes it, and schedules the second under the same id. Each has
/// started a child that waits.
async fn two_generations(log: &FaultyLog, children: [&str; 2]) -> FlowHandle<u32, String> {
    let scheduler = Scheduler::new(log.clone());
    let first = scheduler.schedule(Earlier { generation: 1, child: children[0].into() }).id("p").await.unwrap();
    soon("the first", first.result()).await.unwrap();
    assert!(log.delete(first.id()).await.unwrap());
    scheduler.schedule(Earlier { generation: 2, child: children[1].into() }).id("p").await.unwrap()
}

async fn a_child_of_an_earlier_flow_is_another_ones(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    world.repair();
    let worker = worker(&log, &trace, &world).await;
    // It is not heard.
    let second = two_generations(&log, ["old", "young"]).await;
    state_of(&log, second.id(), FlowState::Suspended).await;
    let_go(&log, "old", FlowState::Completed).await;
    assert_eq!(log.messages(second.id(), &[], 0, 10).await.unwrap(), []);
    let_go(&log, "young", FlowState::Completed).await;
    assert_eq!(soon("the second", second.result()).await.unwrap(), 2);
    assert!(log.delete(second.id()).await.unwrap());
    // It is not cancelled.
    let second = two_generations(&log, ["older", "younger"]).await;
    state_of(&log, second.id(), FlowState::Suspended).await;
    second.cancel("enough").await.unwrap();
    state_of(&log, &ergon::FlowId::new("younger").unwrap(), FlowState::Cancelled).await;
    let_go(&log, "older", FlowState::Completed).await;
    worker.shutdown().await;
}

async fn a_retried_parent_hears_of_its_own_child(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    world.repair();
    let worker = worker(&log, &trace, &world).await;
    let second = two_generations(&log, ["young", "young"]).await;
    let error = fails(&second).await;
    assert!(error.contains("earlier flow"), "{error}");
    let_go(&log, "young", FlowState::Completed).await;
    second.retry().await.unwrap();
    let young = ergon::FlowId::new("young").unwrap();
    until("the new child", || async { !log.flow(&young).await.unwrap().unwrap().info.state.is_final() }).await;
    let_go(&log, "young", FlowState::Completed).await;
    assert_eq!(soon("the second", second.result()).await.unwrap(), 2);
    worker.shutdown().await;
}

/// Gives its child a value that stands for the code before and after it was put right.
#[flow_type]
struct Corrected;

#[flow_type]
impl Corrected {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let number = if state::<World>().works().is_ok() { 6 } else { 0 };
        child(Waiting { number }).id("child").await
    }
}

async fn a_child_whose_value_was_wrong_gets_another(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Corrected).await.unwrap();
    let_go(&log, "child", FlowState::Failed).await;
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    // While the former child lives, there can be no other.
    let child = ergon::FlowId::new("child").unwrap();
    log.retry(&child).await.unwrap();
    state_of(&log, &child, FlowState::Suspended).await;
    flow.retry().await.unwrap();
    let error = fails(&flow).await;
    assert!(error.contains("another value"), "{error}");
    log.cancel(&child, "it has the wrong value").await.unwrap();
    flow.retry().await.unwrap();
    until("the new child", || async { !log.flow(&child).await.unwrap().unwrap().info.state.is_final() }).await;
    let_go(&log, "child", FlowState::Completed).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 6);
    worker.shutdown().await;
}

/// Waits for some children, one after another.
#[flow_type]
struct Siblings {
    children: u32,
}

#[flow_type]
impl Siblings {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let start = |number| child(Waiting { number }).id(format!("child {number}")).start();
        let handles: Vec<_> = (1..=self.children).map(start).collect();
        let mut sum = 0;
        for handle in handles {
            sum += handle.await?;
        }
        Ok(sum)
    }
}

async fn one_retry_is_enough_for_a_family(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Siblings { children: 3 }).await.unwrap();
    let_go(&log, "child 1", FlowState::Failed).await;
    assert_eq!(fails(&flow).await, "broken");
    // The flow has not heard of these when it is retried.
    let_go(&log, "child 2", FlowState::Failed).await;
    let_go(&log, "child 3", FlowState::Failed).await;
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 6);
    worker.shutdown().await;
}

/// A child whose value, a map, is made anew by each call, in another order.
#[flow_type]
struct Buys;

#[flow_type]
impl Buys {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let cart = |seller: u32| (0..20).map(|item| (format!("item {item}"), seller + item)).collect();
        child(Ships { carts: (0..3).map(|seller| (seller, cart(seller))).collect() }).await
    }
}

/// Sellers and what is bought of them.
#[flow_type]
struct Ships {
    carts: HashMap<u32, HashMap<String, u32>>,
}

#[flow_type]
impl Ships {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let cents = self.carts.values().flat_map(HashMap::values).sum();
        self.pay(cents).await?;
        self.ship().await.map(|()| cents)
    }

    #[step(retry = none)]
    async fn pay(&self, cents: u32) -> Result<(), String> {
        note(format!("pays {cents}"));
        Ok(())
    }

    #[step(retry = none)]
    async fn ship(&self) -> Result<(), String> {
        note("ships");
        state::<World>().works()
    }
}

async fn a_child_whose_value_holds_a_map_goes_on(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Buys).await.unwrap();
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 630);
    assert_eq!(trace.take(), ["pays 630", "ships", "ships"]);
    worker.shutdown().await;
}

/// A part of a whole, which comes to a gate.
#[flow_type]
struct Part;

#[flow_type]
impl Part {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        self.make().await
    }

    #[step(retry = none)]
    async fn make(&self) -> Result<String, String> {
        state::<World>().works()?;
        let id = ergon::flow_id().to_string();
        if id == "new" {
            state::<Gate>().pass().await;
        }
        Ok(format!("made by {id}"))
    }
}

/// The same flow in two builds: the child that it starts has another id.
macro_rules! wholes {
    ($($name:ident $id:literal)*) => {
        $(mod $name {
            use super::*;

            #[flow_type(name = "whole")]
            pub(super) struct Whole;

            #[flow_type]
            impl Whole {
                #[flow]
                async fn run(&self) -> Result<String, String> {
                    child(Part).id($id).await
                }
            }
        })*
    };
}

wholes! { before "old" after "new" }

async fn a_call_hears_of_its_own_child(place: Place) {
    let log = place.log().await;
    let (world, gate) = (World::default(), Gate::closed());
    let worker = || Worker::new(log.clone()).register::<Part>().with_state(world.clone()).with_state(gate.clone());
    let first = worker().register::<before::Whole>().start().await.unwrap();
    let whole = Scheduler::new(log.clone()).schedule(before::Whole).await.unwrap();
    assert_eq!(fails(&whole).await, "broken");
    first.shutdown().await;
    world.repair();
    whole.retry().await.unwrap();
    let second = worker().register::<after::Whole>().start().await.unwrap();
    let [old, new] = ["old", "new"].map(|id| ergon::FlowId::new(id).unwrap());
    until("the new child", || async { log.flow(&new).await.unwrap().is_some() }).await;
    // It ends while the new one is at the gate.
    log.retry(&old).await.unwrap();
    state_of(&log, &old, FlowState::Completed).await;
    state_of(&log, whole.id(), FlowState::Suspended).await;
    gate.open();
    assert_eq!(soon("the result", whole.result()).await.unwrap(), "made by new");
    second.shutdown().await;
}
