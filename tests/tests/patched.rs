//! Code that changes under live flows, behind a condition.

use std::time::Duration;

use ergon::{
    Flow, FlowHandle, WorkerHandle,
    prelude::*,
    storage::{CallKind, ExecutionLog, FlowState, ManualClock},
};
use ergon_tests::{Fault, FaultyLog, Place, Trace, both, note, soon, state_of};

const HOUR: Duration = Duration::from_secs(3600);

both!(
    flows_that_have_passed_the_place_go_on_as_they_did,
    flows_that_have_not_come_to_the_place_take_the_change_up,
    the_answer_outlasts_a_crash_at_any_write,
    the_answer_is_the_same_in_every_round_of_a_loop,
    branches_that_have_gone_on_decide_for_all,
    the_order_in_which_branches_are_polled_decides_nothing,
    a_flow_that_goes_the_old_way_stalls_when_that_is_gone,
    a_deprecated_change_outlasts_a_crash_at_any_write,
    the_removal_of_the_old_way_can_be_taken_back,
    a_name_has_a_length,
);

#[step]
async fn work(what: &str) -> Result<(), String> {
    note(what);
    Ok(())
}

/// Versions of one flow's code; each module is a deploy.
macro_rules! deploys {
    ($($name:ident: { $($body:tt)* })*) => {
        $(mod $name {
            use super::*;

            #[flow_type(name = "trip")]
            pub(super) struct Trip;

            #[flow_type]
            impl Trip {
                #[flow]
                async fn run(&self) -> Result<(), String> { $($body)* }
            }
        })*
    };
}

deploys! {
    old: {
        sleep(HOUR).await;
        work("a").await?;
        work("b").await?;
        sleep(HOUR).await;
        work("c").await
    }
    patched: {
        sleep(HOUR).await;
        work("a").await?;
        if ergon::patched("instead of b") {
            work("x").await?;
            work("y").await?;
        } else {
            work("b").await?;
        }
        sleep(HOUR).await;
        work("c").await
    }
    deprecated: {
        sleep(HOUR).await;
        work("a").await?;
        ergon::deprecate_patch("instead of b");
        work("x").await?;
        work("y").await?;
        sleep(HOUR).await;
        work("c").await
    }
    settled: {
        sleep(HOUR).await;
        work("a").await?;
        work("x").await?;
        work("y").await?;
        sleep(HOUR).await;
        work("c").await
    }
    old_loop: {
        for _ in 0..4 {
            sleep(HOUR).await;
            work("a").await?;
        }
        Ok(())
    }
    patched_loop: {
        for _ in 0..4 {
            sleep(HOUR).await;
            let what = if ergon::patched("another work") { "x" } else { "a" };
            work(what).await?;
        }
        Ok(())
    }
    old_branches: {
        let slow = async {
            sleep(HOUR * 3).await;
            work("a").await
        };
        let fast = async {
            sleep(HOUR).await;
            work("b").await?;
            sleep(HOUR).await;
            work("c").await
        };
        tokio::try_join!(slow, fast).map(drop)
    }
    patched_branches: {
        let slow = async {
            sleep(HOUR * 3).await;
            work(if ergon::patched("slow") { "x" } else { "a" }).await
        };
        let fast = async {
            sleep(HOUR).await;
            work(if ergon::patched("fast") { "y" } else { "b" }).await?;
            sleep(HOUR).await;
            work("c").await
        };
        tokio::try_join!(slow, fast).map(drop)
    }
    old_order: {
        let one = async {
            work("a").await?;
            signal::<u32>("on").await.map_err(|error| error.to_string())
        };
        let two = async { signal::<u32>("go").await.map_err(|error| error.to_string()) };
        futures::future::try_join(one, two).await.map(drop)
    }
    patched_order: {
        let one = async {
            if ergon::patched("x first") {
                work("x").await?;
            }
            work("a").await?;
            signal::<u32>("on").await.map_err(|error| error.to_string())
        };
        let two = async { signal::<u32>("go").await.map_err(|error| error.to_string()) };
        // As a combinator without an order of its own may poll them.
        futures::future::try_join(two, one).await.map(drop)
    }
    long_name: {
        ergon::patched(&"x".repeat(256));
        Ok(())
    }
    no_name: {
        ergon::deprecate_patch("");
        Ok(())
    }
}

async fn deploy<F: Flow>(log: &FaultyLog, trace: &Trace) -> WorkerHandle {
    let worker = Worker::new(log.clone()).register::<F>().with_state(trace.clone()).lease(HOUR * 1_000);
    worker.start().await.unwrap()
}

/// Lets a flow go on by some hours, one by one, with this code.
async fn hours<F: Flow>(
    log: &FaultyLog,
    clock: &ManualClock,
    flow: &FlowHandle<(), String>,
    hours: u32,
) -> Vec<String> {
    let trace = Trace::new();
    let worker = deploy::<F>(log, &trace).await;
    state_of(log, flow.id(), FlowState::Suspended).await;
    for _ in 0..hours {
        clock.advance(HOUR);
        log.at_rest().await;
        let info = flow.status().await.unwrap();
        assert!(info.state == FlowState::Suspended || info.state.is_final(), "{info:#?}");
    }
    worker.shutdown().await;
    trace.take()
}

/// Lets hours pass for a process until the flow has ended or the process has died. True if it has died.
async fn hour_by_hour(process: &FaultyLog, clock: &ManualClock, flow: &FlowHandle<(), String>) -> bool {
    for _ in 0..100 {
        process.at_rest().await;
        if process.has_crashed() {
            return true;
        }
        if flow.status().await.unwrap().state.is_final() {
            return false;
        }
        clock.advance(HOUR);
    }
    panic!("the flow neither ends nor dies: {:#?}", flow.status().await);
}

/// Which changes the history of a flow tells of.
async fn told(log: &FaultyLog, flow: &FlowHandle<(), String>) -> Vec<String> {
    let history = log.history(flow.id(), 0, 100).await.unwrap();
    history.iter().filter(|record| record.kind == CallKind::Patch).map(|record| record.name.to_string()).collect()
}

async fn flows_that_have_passed_the_place_go_on_as_they_did(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let flow = Scheduler::new(log.clone()).schedule(old::Trip).await.unwrap();
    assert_eq!(hours::<old::Trip>(&log, &clock, &flow, 1).await, ["a", "b"]);
    assert_eq!(hours::<patched::Trip>(&log, &clock, &flow, 1).await, ["c"]);
    assert_eq!(told(&log, &flow).await, [""; 0]);
    soon("the result", flow.result()).await.unwrap();
}

async fn flows_that_have_not_come_to_the_place_take_the_change_up(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let flow = Scheduler::new(log.clone()).schedule(old::Trip).await.unwrap();
    assert!(hours::<old::Trip>(&log, &clock, &flow, 0).await.is_empty());
    assert_eq!(hours::<patched::Trip>(&log, &clock, &flow, 1).await, ["a", "x", "y"]);
    assert_eq!(told(&log, &flow).await, ["instead of b"]);
    let timeline = flow.history().await.unwrap().to_string();
    assert!(timeline.contains("patch    instead of b"), "{timeline}");
    // The old way can go once nobody goes it, and the history tells of a change that the code knows no more.
    assert_eq!(hours::<settled::Trip>(&log, &clock, &flow, 1).await, ["c"]);
    soon("the result", flow.result()).await.unwrap();
}

async fn the_answer_outlasts_a_crash_at_any_write(place: Place) {
    outlasts_a_crash_at_any_write::<patched::Trip, patched::Trip>(place).await;
}

/// One deploy dies, and the next one goes on: replays it makes see the change whichever of the two has written it.
async fn a_deprecated_change_outlasts_a_crash_at_any_write(place: Place) {
    let again = || if place.is_file() { Place::sqlite() } else { Place::memory() };
    outlasts_a_crash_at_any_write::<patched::Trip, deprecated::Trip>(again()).await;
    outlasts_a_crash_at_any_write::<deprecated::Trip, deprecated::Trip>(again()).await;
    outlasts_a_crash_at_any_write::<deprecated::Trip, patched::Trip>(again()).await;
}

async fn outlasts_a_crash_at_any_write<First: Flow, Next: Flow>(place: Place) {
    for fault in [Fault::CrashBefore, Fault::CrashAfter] {
        for write in 1.. {
            let clock = ManualClock::new();
            let log = place.log_at(clock.clone()).await;
            let flow = Scheduler::new(log.clone()).schedule(patched::Trip).await.unwrap();
            let trace = Trace::new();
            let dies = log.another();
            dies.order(write, fault);
            let worker = deploy::<First>(&dies, &trace).await;
            let crashed = hour_by_hour(&dies, &clock, &flow).await;
            drop(worker);
            clock.advance(HOUR * 1_000);
            let worker = deploy::<Next>(&log, &trace).await;
            hour_by_hour(&log, &clock, &flow).await;
            soon("the result", flow.result()).await.unwrap();
            let mut ran = trace.take();
            ran.dedup();
            assert_eq!(ran, ["a", "x", "y", "c"], "{fault:?} at write {write}");
            assert_eq!(told(&log, &flow).await, ["instead of b"]);
            worker.shutdown().await;
            if !crashed {
                break;
            }
        }
    }
}

async fn the_answer_is_the_same_in_every_round_of_a_loop(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let flow = Scheduler::new(log.clone()).schedule(old_loop::Trip).await.unwrap();
    assert_eq!(hours::<old_loop::Trip>(&log, &clock, &flow, 2).await, ["a", "a"]);
    assert_eq!(hours::<patched_loop::Trip>(&log, &clock, &flow, 1).await, ["a"]);
    assert_eq!(hours::<patched_loop::Trip>(&log, &clock, &flow, 1).await, ["a"]);
    soon("the result", flow.result()).await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(old_loop::Trip).await.unwrap();
    assert!(hours::<old_loop::Trip>(&log, &clock, &flow, 0).await.is_empty());
    assert_eq!(hours::<patched_loop::Trip>(&log, &clock, &flow, 4).await, ["x"; 4]);
    assert_eq!(told(&log, &flow).await, ["another work"]);
}

async fn branches_that_have_gone_on_decide_for_all(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let flow = Scheduler::new(log.clone()).schedule(old_branches::Trip).await.unwrap();
    assert_eq!(hours::<old_branches::Trip>(&log, &clock, &flow, 1).await, ["b"]);
    // In several deploys, each of which replays.
    assert_eq!(hours::<patched_branches::Trip>(&log, &clock, &flow, 1).await, ["c"]);
    assert_eq!(hours::<patched_branches::Trip>(&log, &clock, &flow, 1).await, ["x"]);
    soon("the result", flow.result()).await.unwrap();
    assert_eq!(told(&log, &flow).await, ["slow"]);
}

/// What another branch has called by then is no sign of how far the flow had come.
async fn the_order_in_which_branches_are_polled_decides_nothing(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let old = deploy::<old_order::Trip>(&log, &trace).await;
    let flow = Scheduler::new(log.clone()).schedule(old_order::Trip).await.unwrap();
    let info = state_of(&log, flow.id(), FlowState::Suspended).await;
    assert_eq!((trace.take(), info.records), (vec!["a".to_owned()], 1));
    old.shutdown().await;
    let patched = deploy::<patched_order::Trip>(&log, &trace).await;
    flow.signal("go", &1).await.unwrap();
    flow.signal("on", &1).await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    assert_eq!(trace.take(), [""; 0]);
    patched.shutdown().await;
}

async fn a_flow_that_goes_the_old_way_stalls_when_that_is_gone(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let flow = Scheduler::new(log.clone()).schedule(old::Trip).await.unwrap();
    assert_eq!(hours::<old::Trip>(&log, &clock, &flow, 1).await, ["a", "b"]);
    clock.advance(HOUR);
    let before = log.history(flow.id(), 0, 100).await.unwrap();
    let trace = Trace::new();
    let worker = Worker::new(log.clone()).register::<deprecated::Trip>().with_state(trace.clone()).build("no old way");
    let worker = worker.start().await.unwrap();
    let stalled = state_of(&log, flow.id(), FlowState::Stalled).await;
    let reason = stalled.reason.unwrap();
    assert!(reason.starts_with("the flow goes by the code from before the change \"instead of b\""), "{reason}");
    worker.shutdown().await;
    assert_eq!(log.history(flow.id(), 0, 100).await.unwrap(), before, "nothing is lost, and nothing written");
    // Code with both ways is another build, and is offered it.
    let worker = Worker::new(log.clone()).register::<patched::Trip>().with_state(trace.clone()).build("both ways");
    let worker = worker.start().await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    assert_eq!(trace.take(), ["c"]);
    worker.shutdown().await;
}

async fn the_removal_of_the_old_way_can_be_taken_back(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let flow = Scheduler::new(log.clone()).schedule(old::Trip).await.unwrap();
    assert!(hours::<old::Trip>(&log, &clock, &flow, 0).await.is_empty());
    assert_eq!(hours::<deprecated::Trip>(&log, &clock, &flow, 1).await, ["a", "x", "y"]);
    assert_eq!(told(&log, &flow).await, ["instead of b"]);
    assert_eq!(hours::<patched::Trip>(&log, &clock, &flow, 1).await, ["c"]);
    soon("the result", flow.result()).await.unwrap();
}

async fn a_name_has_a_length(place: Place) {
    async fn refused<F: Flow<Output = (), Error = String>>(place: &Place, flow: F) {
        let log = place.log().await;
        let flow = Scheduler::new(log.clone()).schedule(flow).await.unwrap();
        let worker = deploy::<F>(&log, &Trace::new()).await;
        let error = soon("the failure", flow.result()).await.unwrap_err().to_string();
        assert!(error.contains("a patch's id has 1 to 255 bytes"), "{error}");
        worker.shutdown().await;
    }
    refused(&place, long_name::Trip).await;
    let other = if place.is_file() { Place::sqlite() } else { Place::memory() };
    refused(&other, no_name::Trip).await;
}
