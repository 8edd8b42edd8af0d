//! Workers that die, pause, stop, idle, and share.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ergon::{
    Admin, Entry, WorkerHandle,
    admin::Problem,
    prelude::*,
    storage::{ExecutionLog, Filter, FlowState, ManualClock, Phase},
};
use ergon_tests::{Fault, FaultyLog, Gate, Place, TestClock, Trace, both, looks, note, soon, state_of, until};
use rand::{Rng, SeedableRng, rngs::StdRng};

const LEASE: Duration = Duration::from_secs(60);
/// When a worker that hears nothing looks by itself, where that is told apart from looking for a reason: what a busy
/// machine takes for the test is far less than the difference.
const FALLBACK: Duration = Duration::from_secs(3_600);
const SOONER: Duration = Duration::from_secs(3_540);

both!(threads:
    shutdown_at_any_write_loses_nothing,
    an_outage_delays_and_corrupts_nothing,
    faults_at_random_corrupt_nothing,
    two_workers_share_a_queue,
    one_slot_is_enough_for_parents_and_children,
);

/// A step, one that waits at the gate, and another one.
#[flow_type]
#[derive(Clone)]
struct Gated;

#[flow_type]
impl Gated {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let a = self.work("a").await?;
        let b = self.wait("b").await?;
        Ok(a + &b + &self.work("c").await?)
    }

    #[step]
    async fn work(&self, label: &str) -> ergon::Result<String> {
        note(label);
        Ok(label.into())
    }

    #[step]
    async fn wait(&self, label: &str) -> ergon::Result<String> {
        note(label);
        state::<Gate>().pass().await;
        note(format!("{label} ended"));
        Ok(label.into())
    }
}

fn gated(log: &FaultyLog, trace: &Trace, gate: &Gate) -> Worker {
    Worker::new(log.clone()).register::<Gated>().with_state(trace.clone()).with_state(gate.clone()).lease(LEASE)
}

/// A worker that is late with its heartbeat may claim a flow that it still runs: the former run is dropped.
async fn a_worker_that_claims_its_own_flow_again_runs_it_once(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    let worker = gated(&log, &trace, &gate).start().await.unwrap();
    until("the step to begin", || async { trace.count("b") == 1 }).await;
    log.hold("heartbeat");
    clock.advance(LEASE);
    until("the step to begin again", || async { trace.count("b") == 2 }).await;
    assert_eq!(worker.running(), 1);
    log.at_rest().await;
    gate.open();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "abc");
    assert_eq!(trace.take(), ["a", "b", "b", "b ended", "c"]);
    log.free("heartbeat");
    worker.shutdown().await;
}

both!(
    a_worker_that_claims_its_own_flow_again_runs_it_once,
    a_crashed_workers_flow_is_taken_over_once_its_lease_ends,
    what_a_zombie_writes_is_refused,
    a_step_does_not_begin_once_the_lease_has_ended,
    a_lost_lease_drops_the_body,
    shutdown_at_any_write_loses_nothing,
    shutdown_lets_running_steps_end,
    shutdown_drops_steps_that_do_not_end,
    a_dropped_handle_stops_the_worker,
    a_worker_leaves_types_alone_that_it_lacks,
    an_idle_worker_asks_nothing,
    an_outage_delays_and_corrupts_nothing,
    faults_at_random_corrupt_nothing,
    shutdown_ends_though_the_log_is_out_of_order,
    shutdown_ends_though_the_log_does_not_answer,
    what_is_claimed_during_a_shutdown_is_given_back,
    what_was_let_go_is_given_back_at_a_shutdown,
    large_flows_are_flows_like_others,
    an_outage_longer_than_the_lease_lets_flows_go,
    an_outage_is_no_delivery,
    a_poison_flow_is_stalled_with_its_reason,
    a_flow_whose_end_is_refused_is_poison,
    a_grace_period_may_be_endless,
    two_workers_share_a_queue,
    one_slot_is_enough_for_parents_and_children,
    priorities_queues_and_delays_are_kept,
    a_worker_claims_no_more_than_its_slots,
);

async fn a_crashed_workers_flow_is_taken_over_once_its_lease_ends(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    let dead = log.another();
    let first = gated(&dead, &trace, &gate).name("first").start().await.unwrap();
    until("the step to begin", || async { trace.count("b") == 1 }).await;
    dead.crash().await;

    let second = gated(&log, &trace, &gate).name("second").fallback(Duration::from_millis(5)).start().await.unwrap();
    clock.advance(Duration::from_micros(59_999_999));
    // It looks several times in vain.
    let looks = || log.calls().get("claim").copied().unwrap_or_default();
    let looked = looks();
    until("the second worker to look", || async { looks() > looked + 3 }).await;
    assert_eq!(flow.status().await.unwrap().worker.as_deref(), Some("first"));
    assert_eq!(trace.take(), ["a", "b"]);

    clock.advance(Duration::from_micros(1));
    gate.open();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "abc");
    assert_eq!(flow.status().await.unwrap().worker.as_deref(), Some("second"));
    let ran: Vec<_> = trace.take().into_iter().filter(|note| note == "a" || note == "b").collect();
    assert_eq!(ran, ["b"], "the first step is not repeated, the second one is");
    second.shutdown().await;
    drop(first);
}

async fn what_a_zombie_writes_is_refused(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, other_trace) = (Trace::new(), Trace::new());
    let (gate, other_gate) = (Gate::closed(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    let paused = log.another();
    let zombie = gated(&paused, &trace, &gate).start().await.unwrap();
    until("the step to begin", || async { trace.count("b") == 1 }).await;
    // The zombie neither hears nor says anything while its lease ends.
    paused.hold("heartbeat");
    paused.hold("claim");
    clock.advance(LEASE);
    other_gate.open();
    let other = gated(&log, &other_trace, &other_gate).start().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "abc");
    let (record, history) = (log.flow(flow.id()).await.unwrap(), log.history(flow.id(), 0, 100).await.unwrap());

    // It wakes up in the middle of its step, ends it and writes.
    gate.open();
    until("the zombie to write", || async { paused.writes() >= 2 }).await;
    until("the zombie to let go", || async { zombie.running() == 0 }).await;
    assert_eq!(log.flow(flow.id()).await.unwrap(), record);
    assert_eq!(log.history(flow.id(), 0, 100).await.unwrap(), history);
    assert_eq!(trace.count("c"), 0, "it does not go on");
    paused.free("heartbeat");
    paused.free("claim");
    zombie.shutdown().await;
    other.shutdown().await;
}

/// A step that fails once, and is tried again within the moment in which a flow keeps its slot.
#[flow_type]
struct Again;

#[flow_type]
impl Again {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        self.step().await
    }

    #[step(retry(max_attempts = 3, backoff = "1s", jitter = 0.0))]
    async fn step(&self) -> ergon::Result<u32> {
        note(attempt().to_string());
        if attempt() == 1 { Err(ergon::Error::new("not yet")) } else { Ok(attempt()) }
    }
}

async fn a_step_does_not_begin_once_the_lease_has_ended(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let flow = Scheduler::new(log.clone()).schedule(Again).await.unwrap();
    let paused = log.another();
    let zombie = Worker::new(paused.clone()).register::<Again>().with_state(trace.clone()).lease(LEASE);
    let zombie = zombie.moment(Duration::from_secs(10)).start().await.unwrap();
    until("the first attempt to be recorded", || async { flow.status().await.unwrap().records == 1 }).await;
    // The process is paused for longer than its lease, and its next attempt comes due meanwhile.
    paused.hold("heartbeat");
    paused.hold("claim");
    clock.advance(2 * LEASE);
    paused.at_rest().await;
    assert_eq!(trace.take(), ["1"], "another worker may have run it long ago");
    // Nobody has taken the flow meanwhile: it gives it back, and is as good as any other to go on.
    paused.free("heartbeat");
    paused.free("claim");
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 2);
    assert_eq!(trace.take(), ["2"]);
    zombie.shutdown().await;
}

async fn a_lost_lease_drops_the_body(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    let worker = gated(&log, &trace, &gate).start().await.unwrap();
    until("the step to begin", || async { trace.count("b") == 1 }).await;
    flow.cancel("no longer wanted").await.unwrap();
    clock.advance(LEASE / 3);
    until("the worker to hear of it", || async { worker.running() == 0 }).await;
    gate.open();
    assert_eq!(trace.take(), ["a", "b"]);
    worker.shutdown().await;
}

/// Steps, parallel ones, waits and a retry.
#[flow_type]
#[derive(Clone)]
struct Mixed {
    number: u32,
}

#[flow_type]
impl Mixed {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let a = self.work("a").await?;
        let (b, c) = tokio::try_join!(self.work("b"), self.work("c"))?;
        sleep(Duration::from_millis(1)).await;
        let d = self.flaky("d").await?;
        sleep(Duration::from_millis(60)).await;
        Ok(a + &b + &c + &d + &self.work("e").await?)
    }

    #[step]
    async fn work(&self, label: &str) -> ergon::Result<String> {
        note(format!("{}{label}", self.number));
        tokio::task::yield_now().await;
        note(format!("{}{label} ended", self.number));
        Ok(label.into())
    }

    #[step(retry(max_attempts = 5, backoff = "1ms"))]
    async fn flaky(&self, label: &str) -> ergon::Result<String> {
        note(format!("{}{label}{}", self.number, attempt()));
        if attempt() == 1 { Err(ergon::Error::new("not yet")) } else { Ok(label.into()) }
    }
}

fn mixed(log: &FaultyLog, trace: &Trace) -> Worker {
    Worker::new(log.clone()).register::<Mixed>().with_state(trace.clone()).lease(LEASE * 60)
}

async fn shutdown_at_any_write_loses_nothing(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    for write in 0..20 {
        let trace = Trace::new();
        let flow = scheduler.schedule(Mixed { number: write }).await.unwrap();
        let first = log.another();
        let worker = mixed(&first, &trace).start().await.unwrap();
        until("so many writes", || async {
            first.writes() >= u64::from(write) || flow.try_result().await.unwrap().is_some()
        })
        .await;
        soon("the shutdown", worker.shutdown()).await;
        let info = flow.status().await.unwrap();
        assert_ne!(info.state, FlowState::Running, "after {write} writes, {info:#?}");
        // The next worker goes on at once: the lease would have lasted for an hour.
        let second = mixed(&log, &trace).start().await.unwrap();
        assert_eq!(soon("the result", flow.result()).await.unwrap(), "abcde", "after {write} writes");
        soon("the shutdown", second.shutdown()).await;
        // A graceful shutdown repeats nothing.
        let mut ran: BTreeMap<_, u32> = BTreeMap::new();
        trace.take().into_iter().for_each(|label| *ran.entry(label).or_default() += 1);
        assert!(ran.values().all(|times| *times == 1), "after {write} writes: {ran:?}");
        assert_eq!(ran.len(), 10, "after {write} writes: {ran:?}");
    }
}

async fn shutdown_lets_running_steps_end(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    let worker = gated(&log, &trace, &gate).start().await.unwrap();
    until("the step to begin", || async { trace.count("b") == 1 }).await;
    let shutdown = tokio::spawn(worker.shutdown());
    tokio::task::yield_now().await;
    gate.open();
    soon("the shutdown", shutdown).await.unwrap();
    assert_eq!(trace.take(), ["a", "b", "b ended"]);
    assert_eq!(flow.status().await.unwrap().state, FlowState::Scheduled);
    assert_eq!(flow.status().await.unwrap().records, 2);
    let worker = gated(&log, &trace, &gate).start().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "abc");
    assert_eq!(trace.take(), ["c"]);
    worker.shutdown().await;
}

async fn shutdown_drops_steps_that_do_not_end(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    let worker = gated(&log, &trace, &gate).grace(Duration::from_millis(20)).start().await.unwrap();
    until("the step to begin", || async { trace.count("b") == 1 }).await;
    soon("the shutdown", worker.shutdown()).await;
    gate.open();
    let info = flow.status().await.unwrap();
    assert_eq!((info.state, info.records, info.deliveries), (FlowState::Scheduled, 1, 0));
    assert_eq!(trace.take(), ["a", "b"]);
    let worker = gated(&log, &trace, &gate).start().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "abc");
    assert_eq!(trace.take(), ["b", "b ended", "c"]);
    worker.shutdown().await;
}

async fn a_dropped_handle_stops_the_worker(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    gate.open();
    let scheduler = Scheduler::new(log.clone());
    let worker = gated(&log, &trace, &gate).fallback(FALLBACK).start().await.unwrap();
    let flow = scheduler.schedule(Gated).await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    drop(worker);
    log.at_rest().await;
    let later = scheduler.schedule(Gated).await.unwrap();
    // Neither the hint nor the time makes it look again.
    log.pass(2 * FALLBACK).await;
    assert_eq!(later.status().await.unwrap().state, FlowState::Scheduled);
}

async fn a_worker_leaves_types_alone_that_it_lacks(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let trace = Trace::new();
    let others: Vec<_> = (0..50).map(|_| Entry::new(Gated).priority(100)).collect();
    let others = scheduler.schedule_all(others).await.unwrap();
    let process = log.another();
    let worker = mixed(&process, &trace).fallback(FALLBACK).start().await.unwrap();
    // What it can run, it finds behind what it cannot.
    let own = scheduler.schedule(Mixed { number: 1 }).await.unwrap();
    assert_eq!(soon("the result", own.result()).await.unwrap(), "abcde");
    process.at_rest().await;
    let calls = process.calls_in_all();
    process.pass(SOONER).await;
    assert_eq!(process.calls_in_all(), calls, "it looks without a reason: {:?}", process.calls());
    scheduler.schedule(Gated).await.unwrap();
    process.at_rest().await;
    let looks = process.calls_in_all() - calls;
    assert!(looks <= 3, "one hint is worth a look, not {looks}");
    for flow in &others {
        let info = flow.status().await.unwrap();
        assert_eq!((info.state, info.deliveries, info.epoch), (FlowState::Scheduled, 0, 0));
    }
    let filter = Filter::all().with_flow_type("Gated").with_state(FlowState::Scheduled);
    assert_eq!(log.list(&filter, None, 100).await.unwrap().flows.len(), 51, "an operator can list them");
    worker.shutdown().await;
}

async fn an_idle_worker_asks_nothing(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let trace = Trace::new();
    let process = log.another();
    let worker = mixed(&process, &trace).fallback(FALLBACK).start().await.unwrap();
    let flow = scheduler.schedule(Mixed { number: 1 }).await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    // A flow that waits for long costs nothing either.
    scheduler.schedule(Mixed { number: 2 }).delay(LEASE * 60).await.unwrap();
    process.at_rest().await;
    let before = process.calls();
    process.pass(SOONER).await;
    assert_eq!(process.calls(), before);
    // At the fallback it looks once.
    for looks in 1..=3 {
        process.pass(FALLBACK).await;
        assert_eq!(process.calls()["claim"], before["claim"] + looks);
        assert_eq!(process.calls_in_all(), before.values().sum::<u64>() + looks);
    }
    worker.shutdown().await;
}

/// Waits for the results of flows. What was claimed with an answer that was lost is nobody's until its lease ends, which
/// comes at once when the worker has nothing else to do.
async fn results(
    flows: &[FlowHandle<String, ergon::Error>],
    process: &FaultyLog,
    worker: &WorkerHandle,
    clock: &TestClock,
) {
    for flow in flows {
        let leases_end = async {
            loop {
                // Nothing is claimed meanwhile that would lose its lease too.
                process.hold("claim");
                process.at_rest().await;
                if worker.running() == 0 {
                    clock.skip(LEASE);
                }
                process.free("claim");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let result = async {
            tokio::select! {
                result = flow.result() => result,
                () = leases_end => unreachable!("it never ends"),
            }
        };
        assert_eq!(soon("the result", result).await.unwrap(), "abcde");
    }
}

async fn an_outage_delays_and_corrupts_nothing(place: Place) {
    let clock = TestClock::new(1);
    let log = place.log_at(clock.clone()).await;
    let scheduler = Scheduler::new(log.clone());
    let trace = Trace::new();
    let process = log.another();
    let outages: Vec<_> = (1..=8).map(|outage| outage * 20..outage * 20 + 8).collect();
    process.outages(outages.clone());
    let worker = mixed(&process, &trace).lease(LEASE).start().await.unwrap();
    let flows = scheduler.schedule_all((0..30).map(|number| Mixed { number })).await.unwrap();
    results(&flows, &process, &worker, &clock).await;
    worker.shutdown().await;
    assert!(
        outages.last().is_some_and(|last| process.calls_in_all() >= last.end),
        "there was less to do than expected"
    );
    // Nothing ran twice: no lease was lost while a flow ran.
    let mut ran: BTreeMap<_, u32> = BTreeMap::new();
    trace.take().into_iter().for_each(|label| *ran.entry(label).or_default() += 1);
    assert_eq!(ran.len(), 300);
    assert!(ran.values().all(|times| *times == 1), "{ran:?}");
}

async fn faults_at_random_corrupt_nothing(place: Place) {
    let seed = std::env::var("ERGON_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("seed: ERGON_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let clock = TestClock::new(1);
    let log = place.log_at(clock.clone()).await;
    let scheduler = Scheduler::new(log.clone());
    let trace = Trace::new();
    let process = log.another();
    for write in (1..2_000).filter(|_| rng.random_bool(0.2)).collect::<Vec<_>>() {
        process.order(write, if rng.random() { Fault::LoseAnswer } else { Fault::Refuse });
    }
    let worker = mixed(&process, &trace).lease(LEASE).slots(8).start().await.unwrap();
    let flows = scheduler.schedule_all((0..60).map(|number| Mixed { number })).await.unwrap();
    results(&flows, &process, &worker, &clock).await;
    for flow in &flows {
        let history = log.history(flow.id(), 0, 100).await.unwrap();
        assert_eq!(history.iter().filter(|record| record.phase.is_outcome()).count(), 7, "{history:#?}");
        assert_eq!(history.iter().filter(|record| record.phase == Phase::Attempt).count(), 1, "{history:#?}");
    }
    soon("the shutdown", worker.shutdown()).await;
    let mut ran: BTreeMap<_, u32> = BTreeMap::new();
    trace.take().into_iter().for_each(|label| *ran.entry(label).or_default() += 1);
    assert_eq!(ran.len(), 600);
    assert!(ran.values().all(|times| *times == 1), "{ran:?}");
}

async fn shutdown_ends_though_the_log_is_out_of_order(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let process = log.another();
    let worker = gated(&process, &trace, &gate).grace(Duration::from_millis(50)).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    until("the step to begin", || async { trace.count("b") == 1 }).await;
    process.outage(true);
    gate.open();
    soon("the shutdown", worker.shutdown()).await;
    assert_eq!(flow.status().await.unwrap().state, FlowState::Running, "its lease ends by itself");
    assert_eq!(flow.status().await.unwrap().records, 1);
}

async fn shutdown_ends_though_the_log_does_not_answer(place: Place) {
    for method in ["claim", "heartbeat", "commit", "release"] {
        let place = if place.is_file() { Place::sqlite() } else { Place::memory() };
        let clock = ManualClock::new();
        let log = place.log_at(clock.clone()).await;
        let (trace, gate) = (Trace::new(), Gate::closed());
        let process = log.another();
        let worker = gated(&process, &trace, &gate).grace(Duration::from_millis(20)).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
        until("the step to begin", || async { trace.count("b") == 1 }).await;
        let calls = || process.calls().get(method).copied().unwrap_or_default();
        let before = calls();
        process.hold(method);
        match method {
            "claim" => drop(Scheduler::new(log.clone()).schedule(Gated).await.unwrap()),
            "heartbeat" => clock.advance(LEASE / 3),
            "commit" => gate.open(),
            _ => {}
        }
        if method != "release" {
            until("the call that is not answered", || async { calls() > before }).await;
        }
        soon(&format!("the shutdown while a {method} hangs"), worker.shutdown()).await;
        let left = if method == "release" { FlowState::Running } else { FlowState::Scheduled };
        assert_eq!(flow.status().await.unwrap().state, left, "{method}");
    }
}

async fn what_is_claimed_during_a_shutdown_is_given_back(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let process = log.another();
    let worker = gated(&process, &trace, &gate).start().await.unwrap();
    until("the first look", || async { process.calls().contains_key("claim") }).await;
    process.hold("claim");
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    until("the second look", || async { process.calls()["claim"] > 1 }).await;
    let shutdown = tokio::spawn(worker.shutdown());
    tokio::task::yield_now().await;
    process.free("claim");
    soon("the shutdown", shutdown).await.unwrap();
    let info = flow.status().await.unwrap();
    assert_eq!((info.state, info.epoch, info.deliveries), (FlowState::Scheduled, 1, 0));
    assert!(trace.take().is_empty());
}

/// A flow of many steps, one after the other or at once.
#[flow_type]
struct Large {
    in_sequence: u64,
    at_once: u64,
}

#[flow_type]
impl Large {
    #[flow]
    async fn run(&self) -> ergon::Result<u64> {
        let mut sum = 0;
        for _ in 0..self.in_sequence {
            sum += self.one().await?;
        }
        let joined = futures::future::try_join_all((0..self.at_once).map(|_| self.one())).await?;
        sleep(Duration::from_millis(60)).await;
        Ok(sum + joined.into_iter().sum::<u64>())
    }

    #[step]
    async fn one(&self) -> ergon::Result<u64> {
        Ok(1)
    }
}

async fn large_flows_are_flows_like_others(place: Place) {
    let log = place.log().await;
    let worker = Worker::new(log.clone()).register::<Large>().parked_max(0).start().await.unwrap();
    for (in_sequence, at_once) in [(0, 1_000), (10_000, 0)] {
        let flow = Scheduler::new(log.clone()).schedule(Large { in_sequence, at_once }).await.unwrap();
        assert_eq!(soon("the result", flow.result()).await.unwrap(), in_sequence + at_once);
        let calls = flow.history().await.unwrap().calls().len() as u64;
        assert_eq!(calls, in_sequence + at_once + 1);
    }
    worker.shutdown().await;
}

async fn an_outage_longer_than_the_lease_lets_flows_go(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let (trace, gate) = (Trace::new(), Gate::closed());
    let process = log.another();
    let worker = gated(&process, &trace, &gate).lease(Duration::from_millis(300)).start().await.unwrap();
    let flow = scheduler.schedule(Gated).await.unwrap();
    until("the step to begin", || async { trace.count("b") == 1 }).await;
    process.outage(true);
    until("the worker to let go", || async { worker.running() == 0 }).await;
    // The storage error is not the flow's failure.
    assert_eq!(flow.status().await.unwrap().state, FlowState::Running);
    gate.open();
    process.outage(false);
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "abc");
    assert_eq!(trace.take(), ["a", "b", "b", "b ended", "c"]);
    let history = log.history(flow.id(), 0, 100).await.unwrap();
    assert_eq!(history.len(), 3, "{history:#?}");
    worker.shutdown().await;
}

/// A flow is poison when its workers die over it, not when they lose the log.
async fn an_outage_is_no_delivery(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let process = log.another();
    // While its only slot is taken it claims nothing, so no claim is lost with its answer.
    let worker = gated(&process, &trace, &gate).deliveries_max(3).slots(1).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    for outage in 1..=5 {
        until("the step to begin", || async { trace.count("b") == outage }).await;
        process.outage(true);
        clock.advance(LEASE);
        until("the worker to let go", || async { worker.running() == 0 }).await;
        process.outage(false);
    }
    gate.open();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "abc");
    worker.shutdown().await;
}

async fn a_poison_flow_is_stalled_with_its_reason(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    gate.open();
    let flow = Scheduler::new(log.clone()).schedule(Gated).id("poison").await.unwrap();
    for _ in 0..3 {
        let dies = log.another();
        dies.order(1, Fault::CrashAfter);
        let worker = gated(&dies, &trace, &gate).name("victim").deliveries_max(3).start().await.unwrap();
        soon("the crash", dies.crashed()).await;
        drop(worker);
        clock.advance(LEASE);
    }
    let worker = gated(&log, &trace, &gate).deliveries_max(3).start().await.unwrap();
    let info = state_of(&log, flow.id(), FlowState::Stalled).await;
    expect_test::expect![[
        r#"claimed 3 times without making progress, the last time by "victim"; `retry` offers it again"#
    ]]
    .assert_eq(info.reason.as_deref().unwrap_or_default());
    assert!(trace.take().is_empty());
    // People are told of it, and what to do.
    let attention = Admin::new(log.clone()).attention(&Filter::all(), None, 10).await.unwrap();
    let troubled: Vec<_> = attention.flows.iter().map(|troubled| (&troubled.flow.id, &troubled.problem)).collect();
    assert_eq!(troubled, [(flow.id(), &Problem::Stalled(info.reason.clone().unwrap()))]);
    let text = attention.to_string();
    assert!(
        text.contains("it is stalled: claimed 3 times without making progress, the last time by \"victim\""),
        "{text}"
    );
    assert!(text.contains("to do: do what the reason says, then `retry`"), "{text}");
    // Others are not held up by it, and it can be offered again.
    let other = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    assert_eq!(soon("the result", other.result()).await.unwrap(), "abc");
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "abc");
    assert!(Admin::new(log.clone()).attention(&Filter::all(), None, 10).await.unwrap().is_empty());
    worker.shutdown().await;
}

/// It lets a flow go whose lease it cannot renew, and stops before it has given it back.
async fn what_was_let_go_is_given_back_at_a_shutdown(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    let process = log.another();
    let worker = gated(&process, &trace, &gate).start().await.unwrap();
    until("the step to begin", || async { trace.count("b") == 1 }).await;
    process.break_down("heartbeat", true);
    // In vain during a claim, which the stop cuts short.
    process.hold("release");
    clock.advance(LEASE * 3 / 4);
    until("the worker to let go", || async { worker.running() == 0 }).await;
    Scheduler::new(log.clone()).schedule(Gated).delay(LEASE).await.unwrap();
    until("the worker to give back", || async { process.calls().contains_key("release") }).await;
    let mut shutdown = std::pin::pin!(worker.shutdown());
    assert!(futures::poll!(shutdown.as_mut()).is_pending());
    process.free("release");
    soon("the shutdown", shutdown).await;
    let info = flow.status().await.unwrap();
    assert_eq!((info.state, info.deliveries), (FlowState::Scheduled, 0));
}

/// Neither the end of the flow nor that it is stalled can be written, for whatever reason.
async fn a_flow_whose_end_is_refused_is_poison(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    let process = log.another();
    process.reject("commit");
    let worker = gated(&process, &trace, &gate).deliveries_max(3).fallback(Duration::from_millis(1));
    let worker = worker.start().await.unwrap();
    for delivery in 1..=3 {
        until("the worker to let go", || async { trace.count("a") >= delivery && worker.running() == 0 }).await;
        looks(&process, 3).await;
        assert_eq!(trace.count("a"), delivery, "only the end of its lease delivers it again");
        clock.advance(LEASE);
    }
    let info = state_of(&log, flow.id(), FlowState::Stalled).await;
    let reason = info.reason.as_deref().unwrap_or_default();
    assert!(reason.starts_with("claimed 3 times without making progress"), "{reason}");
    assert_eq!(trace.take(), ["a"; 3]);
    worker.shutdown().await;
}

async fn a_grace_period_may_be_endless(place: Place) {
    let log = place.log_at(ManualClock::new()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Gated).await.unwrap();
    let worker = gated(&log, &trace, &gate).grace(Duration::MAX).start().await.unwrap();
    until("the step to begin", || async { trace.count("b") == 1 }).await;
    let mut shutdown = std::pin::pin!(worker.shutdown());
    assert!(futures::poll!(shutdown.as_mut()).is_pending());
    gate.open();
    soon("the shutdown", shutdown).await;
    let info = flow.status().await.unwrap();
    assert_eq!((info.state, info.records), (FlowState::Scheduled, 2), "the step that ran has ended");
}

async fn two_workers_share_a_queue(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let trace = Trace::new();
    let first = mixed(&log.another(), &trace).start().await.unwrap();
    let second = mixed(&log.another(), &trace).start().await.unwrap();
    let flows = scheduler.schedule_all((0..200).map(|number| Mixed { number })).await.unwrap();
    for flow in &flows {
        assert_eq!(soon("the result", flow.result()).await.unwrap(), "abcde");
        let history = log.history(flow.id(), 0, 100).await.unwrap();
        let outcomes: BTreeSet<_> =
            history.iter().filter(|record| record.phase.is_outcome()).map(|record| record.path.clone()).collect();
        assert_eq!(history.iter().filter(|record| record.phase.is_outcome()).count(), outcomes.len());
        assert_eq!(history.iter().filter(|record| record.phase == Phase::Attempt).count(), 1);
    }
    let mut ran: BTreeMap<_, u32> = BTreeMap::new();
    trace.take().into_iter().for_each(|label| *ran.entry(label).or_default() += 1);
    assert_eq!(ran.len(), 2_000);
    assert!(ran.values().all(|times| *times == 1), "{ran:?}");
    first.shutdown().await;
    second.shutdown().await;
}

/// A parent of three, over as many generations as asked for.
#[flow_type]
struct Family {
    generations: u32,
}

#[flow_type]
impl Family {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        if self.generations == 0 {
            return self.count().await;
        }
        let generations = self.generations - 1;
        let (first, second) = (child(Family { generations }).start(), child(Family { generations }).start());
        let third = child(Family { generations }).await?;
        Ok(1 + first.await? + second.await? + third)
    }

    #[step]
    async fn count(&self) -> ergon::Result<u32> {
        Ok(1)
    }
}

async fn one_slot_is_enough_for_parents_and_children(place: Place) {
    let log = place.log().await;
    for parked in [1_000, 0] {
        let worker = Worker::new(log.clone()).register::<Family>().slots(1).parked_max(parked);
        let worker = worker.start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Family { generations: 3 }).await.unwrap();
        assert_eq!(soon("the result", flow.result()).await.unwrap(), 1 + 3 + 9 + 27);
        worker.shutdown().await;
    }
}

/// Notes its name.
#[flow_type]
struct Named {
    name: String,
}

#[flow_type]
impl Named {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        self.note().await
    }

    #[step]
    async fn note(&self) -> ergon::Result<()> {
        note(&self.name);
        Ok(())
    }
}

async fn priorities_queues_and_delays_are_kept(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let scheduler = Scheduler::new(log.clone());
    let trace = Trace::new();
    let named = |name: &str| Entry::new(Named { name: name.into() }).id(name);
    let entries = [
        named("low").priority(-1),
        named("first"),
        named("second"),
        named("high").priority(7),
        named("elsewhere").queue("elsewhere").priority(100),
        named("later").delay(Duration::from_secs(10)).priority(100),
    ];
    let flows = scheduler.schedule_all(entries).await.unwrap();
    let worker = Worker::new(log.clone()).register::<Named>().with_state(trace.clone()).slots(1);
    let worker = worker.start().await.unwrap();
    soon("the last result", flows[0].result()).await.unwrap();
    assert_eq!(trace.take(), ["high", "first", "second", "low"]);
    clock.advance(Duration::from_secs(10));
    soon("the later result", flows[5].result()).await.unwrap();
    assert_eq!(trace.take(), ["later"]);
    assert_eq!(flows[4].status().await.unwrap().state, FlowState::Scheduled);
    worker.shutdown().await;
    let worker =
        Worker::new(log.clone()).register::<Named>().with_state(trace.clone()).queues(["default", "elsewhere"]);
    let worker = worker.start().await.unwrap();
    soon("the result elsewhere", flows[4].result()).await.unwrap();
    worker.shutdown().await;
}

async fn a_worker_claims_no_more_than_its_slots(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let (trace, gate) = (Trace::new(), Gate::closed());
    let worker = gated(&log, &trace, &gate).slots(3).start().await.unwrap();
    let flows = scheduler.schedule_all(vec![Gated; 10]).await.unwrap();
    until("three to begin", || async { trace.count("b") == 3 }).await;
    log.at_rest().await;
    assert_eq!((worker.running(), trace.count("a")), (3, 3));
    let leased = log.list(&Filter::all().with_state(FlowState::Running), None, 100).await.unwrap();
    assert_eq!(leased.flows.len(), 3);
    gate.open();
    for flow in &flows {
        soon("the result", flow.result()).await.unwrap();
    }
    worker.shutdown().await;
}
