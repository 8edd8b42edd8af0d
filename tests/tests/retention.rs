//! Flows that have ended are forgotten, as their types and the workers say.

use std::time::Duration;

use ergon::{
    StartError,
    prelude::*,
    storage::{ExecutionLog, Filter, FlowState, ManualClock, PrunePolicy},
};
use ergon_tests::{FaultyLog, Place, both, soon, state_of, until};

const MICROSECOND: Duration = Duration::from_micros(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

both!(
    flows_are_forgotten_at_the_age_that_their_type_says,
    what_a_live_parent_waits_for_stays,
    a_number_stays_of_each_type,
    nothing_is_forgotten_unless_asked,
    many_are_forgotten_a_few_at_a_time,
    a_log_that_refuses_is_asked_again_later,
    the_stop_of_a_worker_waits_for_no_pruning,
    several_workers_forget_together,
);

#[flow(retention = "1h")]
async fn import(file: u32) -> ergon::Result<u32> {
    Ok(file)
}

#[flow]
async fn order(cents: u32) -> ergon::Result<u32> {
    if cents == 0 { Err(ergon::Error::new("nothing to pay")) } else { Ok(cents) }
}

#[flow]
async fn note(number: u32) -> ergon::Result<u32> {
    Ok(number)
}

#[flow]
async fn mother(file: u32) -> ergon::Result<u32> {
    let child = child(import(file)).id("child").start();
    signal::<()>("go on").await?;
    child.await
}

fn worker(log: &FaultyLog) -> Worker {
    Worker::new(log.clone())
        .register::<import>()
        .register::<order>()
        .register::<mother>()
        .register::<note>()
        .retention_interval(SECOND)
        .lease(100 * HOUR)
}

fn prunes(log: &FaultyLog) -> u64 {
    log.calls().get("prune").copied().unwrap_or_default()
}

/// Lets the workers of a process look so often for what is to be forgotten.
async fn looks_for_old(log: &FaultyLog, clock: &ManualClock, times: u64) {
    let before = prunes(log);
    until("the workers to prune", || async {
        clock.advance(SECOND / 10);
        prunes(log) >= before + times
    })
    .await;
    log.at_rest().await;
}

/// The ids of all flows, in their order.
async fn ids(log: &FaultyLog) -> Vec<String> {
    let page = log.list(&Filter::all(), None, 10_000).await.unwrap();
    page.flows.into_iter().map(|flow| flow.id.to_string()).collect()
}

async fn flows_are_forgotten_at_the_age_that_their_type_says(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let scheduler = Scheduler::new(log.clone());
    let worker = worker(&log).start().await.unwrap();
    let old = scheduler.schedule(import(1)).id("old").await.unwrap();
    let other = scheduler.schedule(order(1)).id("other").await.unwrap();
    assert_eq!(
        (soon("an import", old.result()).await.unwrap(), soon("an order", other.result()).await.unwrap()),
        (1, 1)
    );
    clock.advance(30 * MINUTE);
    let new = scheduler.schedule(import(2)).id("new").await.unwrap();
    soon("another import", new.result()).await.unwrap();
    looks_for_old(&log, &clock, 3).await;
    assert_eq!(ids(&log).await, ["old", "other", "new"]);
    clock.advance(30 * MINUTE);
    looks_for_old(&log, &clock, 3).await;
    assert_eq!(ids(&log).await, ["other", "new"], "nobody asked for orders to be forgotten");
    clock.advance(30 * MINUTE);
    looks_for_old(&log, &clock, 3).await;
    assert_eq!(ids(&log).await, ["other"]);
    // The id is free again.
    let again = scheduler.schedule(import(3)).id("old").await.unwrap();
    assert_eq!(soon("a later import", again.result()).await.unwrap(), 3);
    worker.shutdown().await;
}

/// Also when the worker is another one, and the parent has to be replayed.
async fn what_a_live_parent_waits_for_stays(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let scheduler = Scheduler::new(log.clone());
    let dead = log.another();
    let first = worker(&dead).start().await.unwrap();
    let flow = scheduler.schedule(mother(7)).id("mother").await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    state_of(&log, &FlowId::new("child").unwrap(), FlowState::Completed).await;
    clock.advance(10 * HOUR);
    looks_for_old(&dead, &clock, 3).await;
    dead.crash().await;
    drop(first);
    let second = worker(&log).start().await.unwrap();
    looks_for_old(&log, &clock, 3).await;
    assert_eq!(ids(&log).await, ["mother", "child"]);
    flow.signal("go on", &()).await.unwrap();
    assert_eq!(soon("the mother", flow.result()).await.unwrap(), 7);
    looks_for_old(&log, &clock, 3).await;
    assert_eq!(ids(&log).await, ["mother"], "the child is as old as it was all the time");
    second.shutdown().await;
}

async fn a_number_stays_of_each_type(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let scheduler = Scheduler::new(log.clone());
    // Of each type the last two, and of the orders the failed ones.
    let failed = PrunePolicy::all_but(1).with_flow_type("order").with_state(FlowState::Failed);
    let completed = PrunePolicy::all_but(2).with_flow_type("order").with_state(FlowState::Completed);
    let worker = worker(&log).retention(PrunePolicy::all_but(3)).retention(failed).retention(completed);
    let worker = worker.start().await.unwrap();
    for number in 0..5 {
        let flow = scheduler.schedule(order(number % 3)).id(format!("order-{number}")).await.unwrap();
        _ = soon("an order", flow.result()).await;
        let flow = scheduler.schedule(note(number)).id(format!("note-{number}")).await.unwrap();
        _ = soon("a note", flow.result()).await;
        clock.advance(MICROSECOND);
    }
    looks_for_old(&log, &clock, 6).await;
    assert_eq!(ids(&log).await, ["order-2", "note-2", "order-3", "note-3", "order-4", "note-4"]);
    worker.shutdown().await;
}

async fn nothing_is_forgotten_unless_asked(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let worker = Worker::new(log.clone()).register::<order>().retention_interval(SECOND).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(order(1)).await.unwrap();
    soon("an order", flow.result()).await.unwrap();
    for _ in 0..10 {
        clock.advance(1_000 * HOUR);
        log.at_rest().await;
    }
    assert_eq!((prunes(&log), ids(&log).await.len()), (0, 1));
    worker.shutdown().await;
    let refused = Worker::new(log.clone()).register::<order>().retention_interval(Duration::ZERO).start().await;
    assert!(matches!(refused, Err(StartError::NoRetentionInterval)));
}

async fn many_are_forgotten_a_few_at_a_time(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let scheduler = Scheduler::new(log.clone());
    for number in 0..250 {
        let flow = scheduler.schedule(import(number)).await.unwrap();
        flow.cancel("").await.unwrap();
    }
    clock.advance(HOUR);
    let worker = worker(&log).start().await.unwrap();
    until("them to be forgotten", || async {
        clock.advance(SECOND / 10);
        ids(&log).await.is_empty()
    })
    .await;
    assert!(prunes(&log) >= 3, "250 flows are forgotten in {} calls", prunes(&log));
    worker.shutdown().await;
}

async fn a_log_that_refuses_is_asked_again_later(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let worker = worker(&log).start().await.unwrap();
    let scheduler = Scheduler::new(log.clone());
    let flow = scheduler.schedule(import(1)).await.unwrap();
    soon("an import", flow.result()).await.unwrap();
    clock.advance(2 * HOUR);
    log.break_down("prune", true);
    looks_for_old(&log, &clock, 2).await;
    assert_eq!(ids(&log).await.len(), 1);
    let flow = scheduler.schedule(order(2)).await.unwrap();
    assert_eq!(soon("a flow meanwhile", flow.result()).await.unwrap(), 2);
    log.break_down("prune", false);
    looks_for_old(&log, &clock, 2).await;
    assert_eq!(ids(&log).await, [flow.id().to_string()]);
    worker.shutdown().await;
}

async fn the_stop_of_a_worker_waits_for_no_pruning(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let worker = worker(&log).start().await.unwrap();
    log.hold("prune");
    until("the worker to prune", || async {
        clock.advance(SECOND / 10);
        prunes(&log) == 1
    })
    .await;
    soon("the stop", worker.shutdown()).await;
    log.free("prune");
    clock.advance(HOUR);
    log.at_rest().await;
    assert_eq!(prunes(&log), 1);
}

async fn several_workers_forget_together(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let mut workers = Vec::new();
    for number in 0..3 {
        workers.push(worker(&log.another()).name(format!("worker-{number}")).start().await.unwrap());
    }
    let scheduler = Scheduler::new(log.clone());
    let live = scheduler.schedule(mother(1)).id("mother").await.unwrap();
    state_of(&log, live.id(), FlowState::Suspended).await;
    for number in 0..150 {
        let flow = scheduler.schedule(import(number)).await.unwrap();
        _ = soon("an import", flow.result()).await;
    }
    clock.advance(HOUR);
    until("them to be forgotten", || async {
        clock.advance(SECOND / 10);
        ids(&log).await.len() == 2
    })
    .await;
    assert_eq!(ids(&log).await, ["mother", "child"]);
    for worker in workers {
        worker.shutdown().await;
    }
}
