//! Timers, signals and children, in flows and in steps.

// As expect-test writes them.
#![allow(clippy::needless_raw_string_hashes)]

use std::time::Duration;

use ergon::{
    StorageError,
    prelude::*,
    storage::{ErrorKind, ExecutionLog, FlowState, ManualClock, Phase, Sent},
};
use ergon_tests::{FaultyLog, Place, Trace, both, looks, note, soon, state_of, until, within};

type Outcome<T> = ergon::Result<T>;

both!(
    code_after_waits_in_a_step_runs,
    two_timers_in_one_step_both_wait,
    a_step_goes_on_while_the_flow_waits_for_longer,
    a_timer_is_never_early_and_survives_a_restart,
    a_timer_that_came_due_while_nothing_ran_fires_at_once,
    ten_thousand_short_timers_all_fire,
    one_flow_with_many_short_timers,
    instants_in_the_past_fire_at_once,
    a_signal_before_during_and_after_its_wait_arrives_once,
    signals_come_in_order_each_to_one_wait,
    a_signal_at_the_moment_of_suspension_is_not_lost,
    a_signal_is_accepted_once_per_key,
    a_signal_with_a_time_limit,
    signals_in_steps,
    a_signal_that_is_not_what_was_awaited,
    children_are_started_once_and_heard_of,
    a_child_that_fails_tells_its_parent,
    a_detached_child_goes_its_own_way,
    a_child_whose_id_is_taken,
);

both!(threads:
    ten_thousand_short_timers_all_fire,
    one_flow_with_many_short_timers,
    signals_come_in_order_each_to_one_wait,
    a_signal_at_the_moment_of_suspension_is_not_lost,
    children_are_started_once_and_heard_of,
);

/// Waits inside steps.
#[flow_type]
struct Inner {
    kind: String,
}

#[flow_type]
impl Inner {
    #[flow]
    async fn run(&self) -> Outcome<String> {
        match self.kind.as_str() {
            "one" => self.one().await,
            "two" => self.two().await,
            "beside" => tokio::join!(self.one(), sleep(Duration::from_secs(3600))).0,
            _ => self.signal().await,
        }
    }

    #[step]
    async fn one(&self) -> Outcome<String> {
        sleep(Duration::from_secs(60)).await;
        note("after");
        Ok("one".into())
    }

    #[step]
    async fn two(&self) -> Outcome<String> {
        sleep(Duration::from_secs(60)).await;
        note("first");
        // The same name and duration: still another timer.
        sleep(Duration::from_secs(60)).await;
        note("second");
        Ok("two".into())
    }

    #[step]
    async fn signal(&self) -> Outcome<String> {
        let first: u32 = signal("number").await?;
        note(format!("first {first}"));
        let second: u32 = signal("number").await?;
        note(format!("second {second}"));
        let none: Option<u32> = signal("number").timeout(Duration::from_secs(60)).await?;
        Ok(format!("{first} {second} {none:?}"))
    }
}

fn inner(log: &FaultyLog, trace: &Trace, parked: usize) -> Worker {
    Worker::new(log.clone())
        .register::<Inner>()
        .with_state(trace.clone())
        .parked_max(parked)
        .lease(Duration::from_secs(100_000))
}

async fn code_after_waits_in_a_step_runs(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    for parked in [0, 10] {
        let trace = Trace::new();
        let worker = inner(&log, &trace, parked).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Inner { kind: "one".into() }).await.unwrap();
        state_of(&log, flow.id(), FlowState::Suspended).await;
        clock.advance(Duration::from_secs(60));
        assert_eq!(soon("the result", flow.result()).await.unwrap(), "one");
        assert_eq!(trace.take(), ["after"]);
        worker.shutdown().await;
    }
}

async fn two_timers_in_one_step_both_wait(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    for parked in [0, 10] {
        let trace = Trace::new();
        let worker = inner(&log, &trace, parked).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Inner { kind: "two".into() }).await.unwrap();
        let info = state_of(&log, flow.id(), FlowState::Suspended).await;
        clock.advance(Duration::from_secs(60));
        until("the second timer", || async {
            let next = log.flow(flow.id()).await.unwrap().unwrap().info;
            next.state == FlowState::Suspended && next.wake.at > info.wake.at
        })
        .await;
        assert_eq!(trace.notes().last().map(String::as_str), Some("first"));
        assert_eq!(trace.count("second"), 0);
        clock.advance(Duration::from_secs(60));
        assert_eq!(soon("the result", flow.result()).await.unwrap(), "two");
        assert_eq!(trace.count("second"), 1);
        worker.shutdown().await;
    }
}

/// The step's outcome is recorded while the flow has every reason to be suspended.
async fn a_step_goes_on_while_the_flow_waits_for_longer(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    for parked in [0, 10] {
        let trace = Trace::new();
        let worker = inner(&log, &trace, parked).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Inner { kind: "beside".into() }).await.unwrap();
        state_of(&log, flow.id(), FlowState::Suspended).await;
        clock.advance(Duration::from_secs(60));
        until("the step to go on", || async { trace.count("after") == 1 }).await;
        state_of(&log, flow.id(), FlowState::Suspended).await;
        clock.advance(Duration::from_secs(3600));
        assert_eq!(soon("the result", flow.result()).await.unwrap(), "one");
        assert_eq!(trace.take(), ["after"]);
        worker.shutdown().await;
    }
}

/// Two timers around a step.
#[flow_type]
struct Alarm {
    seconds: u64,
}

#[flow_type]
impl Alarm {
    #[flow]
    async fn run(&self) -> Outcome<Vec<ergon::Timestamp>> {
        let before = ergon::now();
        sleep(Duration::from_secs(self.seconds)).await;
        let between = self.time().await?;
        sleep_until(before).await;
        Ok(vec![before, between, ergon::now()])
    }

    #[step]
    async fn time(&self) -> Outcome<ergon::Timestamp> {
        note("rang");
        Ok(ergon::now())
    }
}

fn alarm(log: &FaultyLog, trace: &Trace) -> Worker {
    Worker::new(log.clone()).register::<Alarm>().with_state(trace.clone()).lease(Duration::from_secs(100_000))
}

async fn a_timer_is_never_early_and_survives_a_restart(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let flow = Scheduler::new(log.clone()).schedule(Alarm { seconds: 3600 }).await.unwrap();
    let worker = alarm(&log, &trace).start().await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    worker.shutdown().await;
    clock.advance(Duration::from_secs(1800));
    let worker = alarm(&log, &trace).fallback(Duration::from_millis(5)).start().await.unwrap();
    clock.advance(Duration::from_micros(1_800_000_000 - 1));
    looks(&log, 3).await;
    assert!(trace.notes().is_empty(), "it is an instant, not a remaining duration, and never early");
    clock.advance(Duration::from_micros(1));
    let times = soon("the result", flow.result()).await.unwrap();
    assert_eq!(times[1].since(times[0]), Duration::from_secs(3600));
    worker.shutdown().await;
}

async fn a_timer_that_came_due_while_nothing_ran_fires_at_once(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let flow = Scheduler::new(log.clone()).schedule(Alarm { seconds: 3600 }).await.unwrap();
    let worker = alarm(&log, &trace).start().await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    worker.shutdown().await;
    clock.advance(Duration::from_secs(1_000_000));
    let worker = alarm(&log, &trace).start().await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    worker.shutdown().await;
}

/// Short timers, one after the other, with a step between them; and all at once.
#[flow_type]
struct Short {
    count: u64,
}

#[flow_type]
impl Short {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        for number in 0..self.count {
            sleep(Duration::from_millis(number % 6)).await;
        }
        let timers = (0..self.count).map(|number| sleep(Duration::from_millis(number % 6)));
        futures::future::join_all(timers).await;
        Ok(self.count)
    }
}

async fn ten_thousand_short_timers_all_fire(place: Place) {
    let log = place.log().await;
    // Half of them within the moment in which a flow keeps its slot, half with a suspension each.
    for moment in [Duration::from_millis(50), Duration::ZERO] {
        let worker = Worker::new(log.clone()).register::<Short>().moment(moment).fallback(Duration::from_secs(3600));
        let worker = worker.start().await.unwrap();
        let flows = Scheduler::new(log.clone()).schedule_all((0..250).map(|_| Short { count: 10 })).await.unwrap();
        for flow in &flows {
            within(Duration::from_secs(60), "a flow of short timers", flow.result()).await.unwrap();
        }
        worker.shutdown().await;
    }
}

async fn one_flow_with_many_short_timers(place: Place) {
    let log = place.log().await;
    let worker = Worker::new(log.clone()).register::<Short>().fallback(Duration::from_secs(3600));
    let worker = worker.start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Short { count: 200 }).await.unwrap();
    within(Duration::from_secs(60), "400 timers", flow.result()).await.unwrap();
    worker.shutdown().await;
}

async fn instants_in_the_past_fire_at_once(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let worker = alarm(&log, &Trace::new()).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Alarm { seconds: 0 }).await.unwrap();
    let times = soon("the result", flow.result()).await.unwrap();
    assert_eq!(times[0], times[2]);
    // The past can be long ago.
    let flow =
        Scheduler::new(log.clone()).schedule(Alarm { seconds: 0 }).start_at(ergon::Timestamp::EPOCH).await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    let before = ergon::Timestamp::from_micros(-1_000_000);
    let flow = Scheduler::new(log.clone()).schedule(Alarm { seconds: 0 }).start_at(before).await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    worker.shutdown().await;
}

/// Takes words as long as they come.
#[flow_type]
struct Listens {
    words: usize,
    step_first: bool,
}

#[flow_type]
impl Listens {
    #[flow]
    async fn run(&self) -> Outcome<Vec<String>> {
        let mut words = Vec::new();
        for _ in 0..self.words {
            if self.step_first {
                self.step().await?;
            }
            words.push(signal("word").await?);
        }
        Ok(words)
    }

    #[step]
    async fn step(&self) -> Outcome<()> {
        tokio::task::yield_now().await;
        Ok(())
    }
}

async fn a_signal_before_during_and_after_its_wait_arrives_once(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let scheduler = Scheduler::new(log.clone());
    let flow = scheduler.schedule(Listens { words: 3, step_first: true }).await.unwrap();
    flow.signal("word", "before").await.unwrap();
    let worker = Worker::new(log.clone()).register::<Listens>().start().await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    flow.signal("word", "during").await.unwrap();
    until("the next wait", || async {
        let info = flow.status().await.unwrap();
        info.state == FlowState::Suspended && info.records >= 5
    })
    .await;
    worker.shutdown().await;
    flow.signal("word", "while nothing runs").await.unwrap();
    let worker = Worker::new(log.clone()).register::<Listens>().start().await.unwrap();
    let words = soon("the result", flow.result()).await.unwrap();
    assert_eq!(words, ["before", "during", "while nothing runs"]);
    let error = flow.signal("word", "after").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Finished);
    worker.shutdown().await;
}

async fn signals_come_in_order_each_to_one_wait(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let flow = scheduler.schedule(Listens { words: 300, step_first: false }).await.unwrap();
    let sent: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    // More than one claim carries, before and while it runs.
    for word in &sent[..150] {
        flow.signal("word", word).await.unwrap();
    }
    let worker = Worker::new(log.clone()).register::<Listens>().start().await.unwrap();
    for word in &sent[150..] {
        flow.signal("word", word).await.unwrap();
    }
    assert_eq!(soon("the result", flow.result()).await.unwrap(), sent);
    worker.shutdown().await;
}

async fn a_signal_at_the_moment_of_suspension_is_not_lost(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    for parked in [1_000, 0] {
        let worker = Worker::new(log.clone()).register::<Listens>().parked_max(parked);
        let worker = worker.fallback(Duration::from_secs(3600)).start().await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..100_u64 {
            let scheduler = scheduler.clone();
            tasks.spawn(async move {
                let flow = scheduler.schedule(Listens { words: 5, step_first: true }).await.unwrap();
                for word in 0..5 {
                    for _ in 0..number % 13 {
                        tokio::task::yield_now().await;
                    }
                    flow.signal("word", &word.to_string()).await.unwrap();
                }
                within(Duration::from_secs(20), "a flow whose signals came in time", flow.result()).await.unwrap()
            });
        }
        while let Some(words) = tasks.join_next().await {
            assert_eq!(words.unwrap(), ["0", "1", "2", "3", "4"]);
        }
        worker.shutdown().await;
    }
}

async fn a_signal_is_accepted_once_per_key(place: Place) {
    let log = place.log().await;
    let flow = Scheduler::new(log.clone()).schedule(Listens { words: 2, step_first: false }).await.unwrap();
    assert_eq!(flow.signal_once("word", "first", "key").await.unwrap(), Sent::Accepted);
    assert_eq!(flow.signal_once("word", "again", "key").await.unwrap(), Sent::Duplicate);
    let worker = Worker::new(log.clone()).register::<Listens>().start().await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    // Also after the first one was taken.
    assert_eq!(flow.signal_once("word", "again", "key").await.unwrap(), Sent::Duplicate);
    assert_eq!(flow.signal_once("word", "second", "other").await.unwrap(), Sent::Accepted);
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["first", "second"]);
    worker.shutdown().await;
}

/// A wait for an approval.
#[flow_type]
struct Approval {
    days: u64,
}

#[flow_type]
impl Approval {
    #[flow]
    async fn run(&self) -> Outcome<Option<String>> {
        signal("approval").timeout(Duration::from_secs(86_400 * self.days)).await
    }
}

async fn a_signal_with_a_time_limit(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let scheduler = Scheduler::new(log.clone());
    let worker =
        Worker::new(log.clone()).register::<Approval>().lease(Duration::from_secs(1_000_000)).start().await.unwrap();
    let approved = scheduler.schedule(Approval { days: 1 }).await.unwrap();
    let late = scheduler.schedule(Approval { days: 1 }).await.unwrap();
    let none = scheduler.schedule(Approval { days: 0 }).await.unwrap();
    assert_eq!(soon("no time", none.result()).await.unwrap(), None);
    for flow in [&approved, &late] {
        state_of(&log, flow.id(), FlowState::Suspended).await;
    }
    clock.advance(Duration::from_secs(86_399));
    approved.signal("approval", "ada").await.unwrap();
    assert_eq!(soon("the approval", approved.result()).await.unwrap(), Some("ada".into()));
    clock.advance(Duration::from_secs(1));
    assert_eq!(soon("the limit", late.result()).await.unwrap(), None);
    worker.shutdown().await;

    // A signal that came in time is taken by a flow that comes back late.
    let flow = scheduler.schedule(Approval { days: 1 }).await.unwrap();
    let worker = Worker::new(log.clone()).register::<Approval>().start().await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    worker.shutdown().await;
    flow.signal("approval", "bob").await.unwrap();
    clock.advance(Duration::from_secs(86_400 * 3));
    let worker = Worker::new(log.clone()).register::<Approval>().start().await.unwrap();
    assert_eq!(soon("the approval", flow.result()).await.unwrap(), Some("bob".into()));
    worker.shutdown().await;
}

async fn signals_in_steps(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    for parked in [0, 10] {
        let trace = Trace::new();
        let worker = inner(&log, &trace, parked).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Inner { kind: "signal".into() }).await.unwrap();
        state_of(&log, flow.id(), FlowState::Suspended).await;
        flow.signal("number", &1).await.unwrap();
        until("the first number", || async { trace.count("first 1") > 0 }).await;
        state_of(&log, flow.id(), FlowState::Suspended).await;
        flow.signal("number", &2).await.unwrap();
        until("the second number", || async { trace.count("second 2") > 0 }).await;
        until("the third wait", || async { flow.status().await.unwrap().wake.at.is_some() }).await;
        clock.advance(Duration::from_secs(60));
        assert_eq!(soon("the result", flow.result()).await.unwrap(), "1 2 None");
        worker.shutdown().await;
    }
}

async fn a_signal_that_is_not_what_was_awaited(place: Place) {
    let log = place.log().await;
    let worker = Worker::new(log.clone()).register::<Approval>().start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Approval { days: 1 }).await.unwrap();
    flow.signal("approval", &[1, 2, 3]).await.unwrap();
    let error = soon("the result", flow.result()).await.unwrap_err();
    expect_test::expect![[
        r#"the flow failed: the signal "approval" cannot be read as alloc::string::String: invalid type: sequence, expected a string at line 1 column 0"#
    ]]
    .assert_eq(&error.to_string());
    worker.shutdown().await;
}

/// A parent of some children.
#[flow_type]
struct Parent {
    kind: String,
}

#[flow_type]
impl Parent {
    #[flow]
    async fn run(&self) -> Outcome<String> {
        match self.kind.as_str() {
            "many" => {
                let started: Vec<_> = (0..20).map(|number| child(Kid { number }).start()).collect();
                let mut sum = 0;
                for kid in started {
                    sum += kid.await?;
                }
                Ok(sum.to_string())
            }
            "failing" => match child(Kid { number: 13 }).await {
                Ok(number) => Ok(number.to_string()),
                Err(error) => Ok(format!("heard: {error}")),
            },
            "detached" => {
                let id = child(Kid { number: 13 }).id("on-its-own").start_detached().await?;
                Ok(id.to_string())
            }
            _ => Ok(child(Kid { number: 1 }).id("taken").await?.to_string()),
        }
    }
}

/// A child that does not like 13.
#[flow_type]
struct Kid {
    number: u64,
}

#[flow_type]
impl Kid {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        self.work().await
    }

    #[step(retry = none)]
    async fn work(&self) -> Outcome<u64> {
        note(format!("kid {}", self.number));
        if self.number == 13 { Err(ergon::Error::new("not 13")) } else { Ok(self.number) }
    }
}

async fn parents(log: &FaultyLog, trace: &Trace) -> ergon::WorkerHandle {
    let worker =
        Worker::new(log.clone()).register::<Parent>().register::<Kid>().with_state(trace.clone()).parked_max(0);
    worker.start().await.unwrap()
}

async fn children_are_started_once_and_heard_of(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let worker = parents(&log, &trace).await;
    let flow = Scheduler::new(log.clone()).schedule(Parent { kind: "many".into() }).id("p").await.unwrap();
    let sum: u64 = (0..20).filter(|number| *number != 13).sum();
    let result = soon("the result", flow.result()).await;
    // One of them fails, the parent with it.
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "the flow failed: not 13", "{sum}");
    // All were started, and end by themselves.
    until("all children to run", || async { trace.notes().len() == 20 }).await;
    let info = log.flow(&ergon::FlowId::new("p/1").unwrap()).await.unwrap().expect("children are named after the call");
    assert_eq!(info.info.parent.unwrap().id.as_str(), "p");
    worker.shutdown().await;
}

async fn a_child_that_fails_tells_its_parent(place: Place) {
    let log = place.log().await;
    let worker = parents(&log, &Trace::new()).await;
    let flow = Scheduler::new(log.clone()).schedule(Parent { kind: "failing".into() }).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "heard: not 13");
    worker.shutdown().await;
}

async fn a_detached_child_goes_its_own_way(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let worker = parents(&log, &Trace::new()).await;
    let flow = scheduler.schedule(Parent { kind: "detached".into() }).await.unwrap();
    let id = soon("the result", flow.result()).await.unwrap();
    assert_eq!(id, "on-its-own");
    let kid = scheduler.handle::<Kid>(ergon::FlowId::new(id).unwrap());
    let error = soon("the child's result", kid.result()).await.unwrap_err();
    assert_eq!(error.to_string(), "the flow failed: not 13");
    worker.shutdown().await;
}

async fn a_child_whose_id_is_taken(place: Place) {
    let log = place.log().await;
    let scheduler = Scheduler::new(log.clone());
    let taken = scheduler.schedule(Kid { number: 1 }).id("taken").delay(Duration::from_secs(3600)).await.unwrap();
    let worker = parents(&log, &Trace::new()).await;
    let flow = scheduler.schedule(Parent { kind: "taken".into() }).await.unwrap();
    let error = soon("the result", flow.result()).await.unwrap_err();
    expect_test::expect![[
        r#"the flow failed: the child flow was not started: the id "taken" belongs to a flow that this call did not start"#
    ]]
    .assert_eq(&error.to_string());
    assert_eq!(taken.status().await.unwrap().state, FlowState::Scheduled);
    worker.shutdown().await;
}

/// What the history says of a timer that fired.
#[tokio::test]
async fn the_history_tells_of_waits() {
    let clock = ManualClock::new();
    let log = Place::memory().log_at(clock.clone()).await;
    let worker = alarm(&log, &Trace::new()).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Alarm { seconds: 90 }).id("alarm").await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    clock.advance(Duration::from_secs(90));
    soon("the result", flow.result()).await.unwrap();
    let history = flow.history().await.unwrap();
    assert_eq!(history.calls().len(), 3);
    assert!(history.calls().iter().all(|call| call.phase == Phase::Completed));
    expect_test::expect![[r#"
        Alarm "alarm" (version 1): completed
                 0  accepted  {"seconds":90}
               0us  timer    1 sleep               waits until 90.00s
            90.00s  timer    1 sleep               fired
            90.00s  step     2 time                ok in 0us  1735689690000000
            90.00s  timer    3 sleep_until         waits until 0us
            90.00s  timer    3 sleep_until         fired
            90.00s  completed  [1735689600000000,1735689690000000,1735689690000000]"#]]
    .assert_eq(&history.to_string());
    worker.shutdown().await;
    let unknown: Result<_, StorageError> = Scheduler::new(log).history(&ergon::FlowId::new("nobody").unwrap()).await;
    assert_eq!(unknown.unwrap_err().kind(), ErrorKind::NotFound);
}
