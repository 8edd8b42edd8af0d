//! Errors, panics, time limits and cancellation.

// Raw strings are as expect-test writes them, and its macros read best in place.
#![allow(clippy::needless_raw_string_hashes, clippy::needless_pass_by_value)]

use std::time::Duration;

use ergon::{
    ErrorKind, FlowError, Retryable,
    prelude::*,
    storage::{CallKind, Cancelled, ExecutionLog, Filter, FlowState, ManualClock, Phase},
};
use ergon_tests::{FaultyLog, Place, Trace, both, looks, note, soon, state_of, until};
use expect_test::{Expect, expect};
use serde::{Deserialize, Serialize};

const LONG: Duration = Duration::from_secs(1_000_000);

both!(
    errors_reach_the_caller_as_they_are,
    panics_are_failed_attempts,
    attempts_and_backoff_survive_a_crash,
    an_error_says_when_to_try_again,
    a_step_has_a_time_limit_per_attempt,
    a_step_that_waits_holds_no_slot_and_keeps_its_limit,
    a_limit_survives_a_crash,
    what_came_in_time_is_taken_after_the_limit,
    each_attempt_has_a_limit_of_its_own,
    a_flow_has_a_time_limit,
    a_missing_state_is_named,
    cancellation_wins_over_every_wait,
    cancellation_reaches_children_and_parents,
    a_failed_flow_goes_on_after_a_retry,
);

/// An error with fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Typed {
    Declined { cents: u64 },
    Unreachable(String),
    Engine(ergon::Error),
}

impl Retryable for Typed {
    fn is_retryable(&self) -> bool {
        !matches!(self, Self::Declined { .. })
    }
}

impl From<ergon::Error> for Typed {
    fn from(error: ergon::Error) -> Self {
        Self::Engine(error)
    }
}

/// Fails with a typed error.
#[flow_type]
struct Fails {
    how: String,
}

#[flow_type]
impl Fails {
    #[flow]
    async fn run(&self) -> Result<u64, Typed> {
        match self.how.as_str() {
            "panics in the flow" => panic!("in the flow"),
            "caught" => match self.step().await {
                Err(Typed::Engine(error)) => Err(Typed::Unreachable(format!("caught {:?}: {error}", error.kind()))),
                other => other,
            },
            _ => self.step().await,
        }
    }

    #[step(retry(max_attempts = 3, backoff = "1ms"), timeout = "5s")]
    async fn step(&self) -> Result<u64, Typed> {
        note(format!("attempt {}", attempt()));
        match self.how.as_str() {
            "permanent" => Err(Typed::Declined { cents: 7 }),
            "retried" => Err(Typed::Unreachable(format!("attempt {}", attempt()))),
            "panics" | "caught" => panic!("in attempt {}", attempt()),
            "panics once" if attempt() == 1 => panic!("in attempt 1"),
            "hangs" => std::future::pending().await,
            "hangs once" if attempt() == 1 => std::future::pending().await,
            "no state" => Ok(*state::<u64>()),
            _ => Ok(7),
        }
    }
}

async fn fails(log: &FaultyLog, trace: &Trace, how: &str) -> Result<u64, FlowError<Typed>> {
    let worker = Worker::new(log.clone()).register::<Fails>().with_state(trace.clone()).lease(LONG);
    let worker = worker.start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Fails { how: how.into() }).await.unwrap();
    let result = soon("the result", flow.result()).await;
    worker.shutdown().await;
    result
}

async fn errors_reach_the_caller_as_they_are(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let error = fails(&log, &trace, "permanent").await.unwrap_err();
    assert!(matches!(&error, FlowError::Failed(Typed::Declined { cents: 7 })), "{error:?}");
    assert_eq!(trace.take().len(), 1, "a permanent error is not tried again");
    let error = fails(&log, &trace, "retried").await.unwrap_err();
    assert!(matches!(&error, FlowError::Failed(Typed::Unreachable(text)) if text == "attempt 3"), "{error:?}");
    assert_eq!(trace.take().len(), 3);
}

async fn panics_are_failed_attempts(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let error = fails(&log, &trace, "panics").await.unwrap_err();
    let FlowError::Failed(Typed::Engine(error)) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), ErrorKind::Panic);
    assert_eq!(error.to_string(), r#"step "step" panicked: in attempt 3"#);
    assert_eq!(trace.take().len(), 3);
    assert_eq!(fails(&log, &trace, "panics once").await.unwrap(), 7);
    assert_eq!(trace.take().len(), 2);
    let error = fails(&log, &trace, "caught").await.unwrap_err();
    let FlowError::Failed(Typed::Unreachable(text)) = error else { panic!("{error:?}") };
    assert_eq!(text, r#"caught Panic: step "step" panicked: in attempt 3"#);
    let error = fails(&log, &trace, "panics in the flow").await.unwrap_err();
    let FlowError::Fault(error) = error else { panic!("{error:?}") };
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Panic, "the flow panicked: in the flow"));
}

/// Fails three times, an hour apart and more.
#[flow_type]
struct Patient;

#[flow_type]
impl Patient {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        self.step().await
    }

    #[step(retry(max_attempts = 4, backoff = "1h", multiplier = 2.0, max = "10h", jitter = 0.0))]
    async fn step(&self) -> Result<u32, String> {
        note(attempt().to_string());
        if attempt() < 4 { Err(format!("attempt {}", attempt())) } else { Ok(attempt()) }
    }
}

async fn attempts_and_backoff_survive_a_crash(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let flow = Scheduler::new(log.clone()).schedule(Patient).await.unwrap();
    let start = async |log: &FaultyLog| {
        let worker = Worker::new(log.clone()).register::<Patient>().with_state(trace.clone()).lease(LONG);
        worker.fallback(Duration::from_millis(5)).start().await.unwrap()
    };
    for (attempt, hours) in [("1", 1), ("2", 2), ("3", 4)] {
        // Another process each time, and each dies while the flow waits.
        let process = log.another();
        let worker = start(&process).await;
        until("the attempt to be recorded", || async { trace.count(attempt) == 1 }).await;
        let due = state_of(&log, flow.id(), FlowState::Suspended).await.wake.at.expect("an instant");
        process.crash().await;
        drop(worker);
        let next = start(&log).await;
        clock.advance(Duration::from_micros(3_600_000_000 * hours - 1));
        looks(&log, 3).await;
        assert_eq!(trace.notes().last().map(String::as_str), Some(attempt), "not early");
        next.shutdown().await;
        clock.advance(Duration::from_micros(1));
        assert_eq!(log.clock().now(), due);
    }
    let worker = start(&log).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 4);
    assert_eq!(trace.take(), ["1", "2", "3", "4"]);
    let history = log.history(flow.id(), 0, 100).await.unwrap();
    let phases: Vec<_> = history.iter().map(|record| (record.phase, record.attempt)).collect();
    assert_eq!(phases, [(Phase::Attempt, 1), (Phase::Attempt, 2), (Phase::Attempt, 3), (Phase::Completed, 4)]);
    assert_eq!(history[0].payload, r#"{"kind":"failed","message":"\"attempt 1\""}"#);
    worker.shutdown().await;
}

/// Is told each time when to come again.
#[flow_type]
struct Throttled;

/// What a service says that has too much to do.
#[derive(Debug, Serialize, Deserialize)]
enum Busy {
    For(Duration),
    Engine(ergon::Error),
}

impl Retryable for Busy {
    fn is_retryable(&self) -> bool {
        true
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::For(duration) => Some(*duration),
            Self::Engine(error) => error.retry_after(),
        }
    }
}

impl From<ergon::Error> for Busy {
    fn from(error: ergon::Error) -> Self {
        Self::Engine(error)
    }
}

#[flow_type]
impl Throttled {
    #[flow]
    async fn run(&self) -> Result<(), Busy> {
        self.step().await
    }

    /// The policy would wait for a second at most.
    #[step(retry(max_attempts = 9, backoff = "1s", max = "1s"))]
    async fn step(&self) -> Result<(), Busy> {
        note(attempt().to_string());
        match attempt() {
            1 => Err(Busy::For(Duration::from_secs(7_200))),
            2 => Err(Busy::For(Duration::ZERO)),
            3 => Err(Busy::Engine(ergon::Error::new("busy").with_retry_after(Duration::from_micros(500)))),
            _ => Err(Busy::For(Duration::MAX)),
        }
    }
}

async fn an_error_says_when_to_try_again(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let flow = Scheduler::new(log.clone()).schedule(Throttled).await.unwrap();
    let start = async |log: &FaultyLog| {
        let worker = Worker::new(log.clone()).register::<Throttled>().with_state(trace.clone()).lease(LONG);
        worker.fallback(Duration::from_millis(5)).start().await.unwrap()
    };
    // The process dies while the flow waits, and another one waits no less and no longer.
    let process = log.another();
    let worker = start(&process).await;
    let due = state_of(&log, flow.id(), FlowState::Suspended).await.wake.at.expect("an instant");
    process.crash().await;
    drop(worker);
    assert_eq!(due, log.clock().now().saturating_add(Duration::from_secs(7_200)));
    let worker = start(&log).await;
    clock.advance(Duration::from_micros(7_200_000_000 - 1));
    looks(&log, 3).await;
    assert_eq!(trace.notes(), ["1"], "not early");
    clock.advance(Duration::from_micros(1));
    until("the third attempt", || async { trace.count("3") == 1 }).await;
    let third = async || log.history(flow.id(), 0, 10).await.unwrap().get(2).cloned();
    until("its record", || async { third().await.is_some() }).await;
    clock.advance(Duration::from_micros(500));
    let error = soon("the end", flow.result()).await.unwrap_err();
    let FlowError::Failed(Busy::Engine(error)) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let text = error.to_string();
    assert!(text.starts_with(r#"the error of step "step" asks for another attempt in 18446744073709551615"#), "{text}");
    assert_eq!(trace.take(), ["1", "2", "3", "4"]);
    let history = log.history(flow.id(), 0, 10).await.unwrap();
    let waits: Vec<_> = history.iter().filter_map(|record| Some(record.due_at?.since(record.at).as_micros())).collect();
    assert_eq!(waits, [7_200_000_000, 0, 500]);
    worker.shutdown().await;
}

async fn a_step_has_a_time_limit_per_attempt(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let (result, ()) = tokio::join!(fails(&log, &trace, "hangs"), async {
        for attempt in 1..=3 {
            until("the attempt", || async { trace.notes().len() == attempt }).await;
            clock.advance(Duration::from_secs(5));
            if attempt < 3 {
                failed_attempts(&log, attempt).await;
                clock.advance(Duration::from_millis(10));
            }
        }
    });
    let FlowError::Failed(Typed::Engine(error)) = result.unwrap_err() else { panic!("not the engine's") };
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Timeout, r#"step "step" exceeded its time limit of 5s"#)
    );
    trace.take().clear();
    let (result, ()) = tokio::join!(fails(&log, &trace, "hangs once"), async {
        until("the attempt", || async { trace.notes().len() == 1 }).await;
        clock.advance(Duration::from_secs(5));
        failed_attempts(&log, 1).await;
        clock.advance(Duration::from_millis(10));
    });
    assert_eq!(result.unwrap(), 7);
}

/// Waits until the flow that goes on has so many failed attempts in its history.
async fn failed_attempts(log: &FaultyLog, attempts: usize) {
    until("the failed attempt to be recorded", || async {
        let flows = log.list(&Filter::all(), None, 10).await.unwrap().flows;
        flows.iter().any(|flow| !flow.state.is_final() && flow.records as usize == attempts)
    })
    .await;
}

/// A step with a minute, which waits inside.
#[flow_type]
struct Hurried {
    how: String,
}

#[flow_type]
impl Hurried {
    #[flow]
    async fn run(&self) -> Result<String, Typed> {
        match self.how.as_str() {
            "timers" => self.two_timers().await,
            "timer" => self.timer_and_work().await,
            "tried again" => self.signal_again().await,
            _ => self.signal().await,
        }
    }

    #[step(retry = none, timeout = "60s")]
    async fn two_timers(&self) -> Result<String, Typed> {
        note("began");
        sleep(Duration::from_secs(40)).await;
        note("half");
        sleep(Duration::from_secs(40)).await;
        Ok("in time".into())
    }

    #[step(retry = none, timeout = "60s")]
    async fn timer_and_work(&self) -> Result<String, Typed> {
        sleep(Duration::from_secs(40)).await;
        note("half");
        std::future::pending().await
    }

    #[step(retry = none, timeout = "60s")]
    async fn signal(&self) -> Result<String, Typed> {
        note("began");
        Ok(signal("word").await?)
    }

    #[step(retry(max_attempts = 2, backoff = "10s", jitter = 0.0), timeout = "60s")]
    async fn signal_again(&self) -> Result<String, Typed> {
        note(format!("began {}", attempt()));
        Ok(signal("word").await?)
    }
}

async fn hurried(log: &FaultyLog, trace: &Trace, parked: usize) -> ergon::WorkerHandle {
    let worker = Worker::new(log.clone()).register::<Hurried>().with_state(trace.clone());
    worker.slots(1).parked_max(parked).lease(LONG).start().await.unwrap()
}

/// Waits until the flow is suspended until then.
async fn suspended_until(log: &FaultyLog, id: &ergon::FlowId, at: ergon::Timestamp) {
    until("the flow to wait for the right instant", || async {
        let info = log.flow(id).await.unwrap().unwrap().info;
        info.state == FlowState::Suspended && info.wake.at == Some(at)
    })
    .await;
}

fn is_timeout<T: std::fmt::Debug>(result: Result<T, FlowError<Typed>>) -> bool {
    matches!(&result, Err(FlowError::Failed(Typed::Engine(error))) if error.kind() == ErrorKind::Timeout)
}

async fn a_step_that_waits_holds_no_slot_and_keeps_its_limit(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    for parked in [0, 10] {
        let trace = Trace::new();
        let worker = hurried(&log, &trace, parked).await;
        let began = log.clock().now();
        let after = |seconds| began.saturating_add(Duration::from_secs(seconds));
        let scheduler = Scheduler::new(log.clone());
        let flow = scheduler.schedule(Hurried { how: "timers".into() }).await.unwrap();
        suspended_until(&log, flow.id(), after(40)).await;
        until("the slot to be free", || async { worker.running() == 0 }).await;
        clock.advance(Duration::from_secs(40));
        // The second timer would end after 80 seconds, the limit comes first.
        suspended_until(&log, flow.id(), after(60)).await;
        assert!(flow.try_result().await.unwrap().is_none());
        clock.advance(Duration::from_secs(20));
        assert!(is_timeout(soon("the limit", flow.result()).await));
        let ended =
            log.history(flow.id(), 0, 100).await.unwrap().into_iter().find(|record| record.phase == Phase::Failed);
        assert_eq!(ended.map(|record| (record.started_at, record.at)), Some((began, after(60))));
        assert_eq!(trace.count("half"), if parked == 0 { 2 } else { 1 });
        worker.shutdown().await;
    }
}

async fn a_limit_survives_a_crash(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let began = log.clock().now();
    let after = |seconds| began.saturating_add(Duration::from_secs(seconds));
    let process = log.another();
    let worker = hurried(&process, &trace, 10).await;
    let flow = Scheduler::new(log.clone()).schedule(Hurried { how: "timer".into() }).await.unwrap();
    suspended_until(&log, flow.id(), after(40)).await;
    clock.advance(Duration::from_secs(40));
    until("the body to work", || async { trace.count("half") == 1 }).await;
    process.crash().await;
    drop(worker);
    // The lease ends long after the limit. The body starts again, but it has no time left.
    clock.advance(LONG);
    let worker = hurried(&log, &trace, 10).await;
    assert!(is_timeout(soon("the limit", flow.result()).await));
    let history = log.history(flow.id(), 0, 100).await.unwrap();
    assert_eq!((history[0].phase, history[0].due_at), (Phase::Pending, Some(after(60))));
    worker.shutdown().await;
}

async fn what_came_in_time_is_taken_after_the_limit(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let worker = hurried(&log, &trace, 0).await;
    let flow = Scheduler::new(log.clone()).schedule(Hurried { how: "signal".into() }).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    worker.shutdown().await;
    clock.advance(Duration::from_secs(59));
    flow.signal("word", "in time").await.unwrap();
    clock.advance(Duration::from_secs(3600));
    let worker = hurried(&log, &trace, 0).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "in time");
    worker.shutdown().await;
}

async fn each_attempt_has_a_limit_of_its_own(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    for parked in [0, 10] {
        let trace = Trace::new();
        let worker = hurried(&log, &trace, parked).await;
        let began = log.clock().now();
        let after = |seconds| began.saturating_add(Duration::from_secs(seconds));
        let flow = Scheduler::new(log.clone()).schedule(Hurried { how: "tried again".into() }).await.unwrap();
        // The limit, the backoff, the limit of the second attempt.
        for (passed, next) in [(0, 60), (60, 70), (10, 130)] {
            clock.advance(Duration::from_secs(passed));
            suspended_until(&log, flow.id(), after(next)).await;
        }
        clock.advance(Duration::from_secs(59));
        flow.signal("word", "at last").await.unwrap();
        assert_eq!(soon("the result", flow.result()).await.unwrap(), "at last");
        assert!(trace.count("began 2") > 0);
        worker.shutdown().await;
    }
}

/// A flow with a day to live.
#[flow_type]
struct Mortal {
    how: String,
}

#[flow_type]
impl Mortal {
    #[flow(timeout = "24h")]
    async fn run(&self) -> Result<(), String> {
        match self.how.as_str() {
            "sleeps" => sleep(Duration::from_secs(1_000_000)).await,
            "waits" => drop(signal::<()>("never").await),
            "backs off" => self.fails().await?,
            _ => self.hangs().await?,
        }
        Ok(())
    }

    #[step]
    async fn hangs(&self) -> Result<(), String> {
        note("hangs");
        std::future::pending().await
    }

    #[step(retry(max_attempts = 3, backoff = "100h", max = "200h"))]
    async fn fails(&self) -> Result<(), String> {
        note("fails");
        Err("again".into())
    }
}

const WAYS: [&str; 4] = ["sleeps", "waits", "backs off", "hangs"];

async fn mortals(log: &FaultyLog, trace: &Trace) -> (ergon::WorkerHandle, Vec<FlowHandle<(), String>>) {
    let worker = Worker::new(log.clone()).register::<Mortal>().with_state(trace.clone()).lease(LONG);
    let worker = worker.fallback(Duration::from_millis(5)).start().await.unwrap();
    let flows = WAYS.map(|how| Mortal { how: how.into() });
    let flows = Scheduler::new(log.clone()).schedule_all(flows).await.unwrap();
    for flow in &flows[..3] {
        state_of(log, flow.id(), FlowState::Suspended).await;
    }
    until("the step to hang", || async { trace.count("hangs") == 1 }).await;
    (worker, flows)
}

async fn a_flow_has_a_time_limit(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let (worker, flows) = mortals(&log, &trace).await;
    clock.advance(Duration::from_secs(24 * 3600) - Duration::from_micros(1));
    looks(&log, 3).await;
    for flow in &flows {
        assert!(flow.try_result().await.unwrap().is_none());
    }
    clock.advance(Duration::from_micros(1));
    for flow in &flows {
        let error = soon("the limit", flow.result()).await.unwrap_err();
        let FlowError::Fault(error) = error else { panic!("{error:?}") };
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::Timeout, "the flow exceeded its time limit")
        );
    }
    worker.shutdown().await;
}

async fn a_missing_state_is_named(place: Place) {
    let log = place.log().await;
    let error = fails(&log, &Trace::new(), "no state").await.unwrap_err();
    let FlowError::Failed(Typed::Engine(error)) = error else { panic!("{error:?}") };
    expect![[
        r#"step "step" panicked: no state of type u64 was given to this worker; add .with_state(…) to it; it has ["ergon_tests::trace::Trace"]"#
    ]]
    .assert_eq(&error.to_string());
}

async fn cancellation_wins_over_every_wait(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let (worker, flows) = mortals(&log, &trace).await;
    for flow in &flows {
        assert_eq!(flow.cancel("no longer wanted").await.unwrap(), Cancelled::Now);
        assert_eq!(flow.cancel("again").await.unwrap(), Cancelled::Already(FlowState::Cancelled));
        let error = soon("the end", flow.result()).await.unwrap_err();
        assert!(matches!(&error, FlowError::Cancelled(reason) if reason == "no longer wanted"), "{error:?}");
    }
    // The one that runs hears of it with the next heartbeat; the others are not woken any more.
    clock.advance(LONG / 3);
    until("the worker to let go", || async { worker.running() == 0 }).await;
    clock.advance(LONG);
    looks(&log, 3).await;
    assert_eq!(trace.take().len(), 2);
    for flow in &flows {
        assert_eq!(flow.status().await.unwrap().state, FlowState::Cancelled);
    }
    worker.shutdown().await;
}

/// A parent that waits for a child that waits for its own.
#[flow_type]
struct Family {
    generations: u32,
}

#[flow_type]
impl Family {
    #[flow]
    async fn run(&self) -> Result<String, Typed> {
        if self.generations == 0 {
            sleep(LONG).await;
            return Ok("grown up".into());
        }
        match child(Family { generations: self.generations - 1 }).id(format!("g{}", self.generations - 1)).await {
            Err(Typed::Engine(error)) => Ok(format!("heard {:?}: {error}", error.kind())),
            other => other,
        }
    }
}

async fn cancellation_reaches_children_and_parents(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let scheduler = Scheduler::new(log.clone());
    let worker = Worker::new(log.clone()).register::<Family>().lease(2 * LONG).start().await.unwrap();
    let flow = scheduler.schedule(Family { generations: 3 }).id("g3").await.unwrap();
    let id = |number: u32| ergon::FlowId::new(format!("g{number}")).unwrap();
    until("the youngest to sleep", || async {
        log.flow(&id(0)).await.unwrap().is_some_and(|flow| flow.info.state == FlowState::Suspended)
    })
    .await;
    scheduler.cancel(&id(1), "grounded").await.unwrap();
    assert_eq!(scheduler.status(&id(0)).await.unwrap().unwrap().state, FlowState::Cancelled);
    // Its parent hears of it, and goes on as it likes.
    let result = soon("the result", flow.result()).await.unwrap();
    assert_eq!(result, "heard Cancelled: the child flow was cancelled: grounded");
    assert_eq!(scheduler.status(&id(2)).await.unwrap().unwrap().state, FlowState::Completed);
    worker.shutdown().await;
}

async fn a_failed_flow_goes_on_after_a_retry(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let worker = Worker::new(log.clone()).register::<Repaired>().with_state(trace.clone()).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Repaired).await.unwrap();
    let error = soon("the failure", flow.result()).await.unwrap_err();
    assert!(matches!(&error, FlowError::Failed(text) if text == "broken"), "{error:?}");
    worker.shutdown().await;
    let worker = Worker::new(log.clone()).register::<Repaired>().with_state(trace.clone()).with_state(7_u64);
    let worker = worker.start().await.unwrap();
    assert_eq!(flow.try_result().await.unwrap_err().to_string(), r#"the flow failed: "broken""#);
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 7);
    assert_eq!(trace.take(), ["good", "broken", "broken"], "what succeeded is not repeated");
    let history = log.history(flow.id(), 0, 10).await.unwrap();
    assert!(history.iter().all(|record| record.kind == CallKind::Step && record.phase == Phase::Completed));
    worker.shutdown().await;
}

/// Works once the world has been put right.
#[flow_type]
struct Repaired;

#[flow_type]
impl Repaired {
    #[flow]
    async fn run(&self) -> Result<u64, String> {
        self.good().await?;
        self.broken().await
    }

    #[step]
    async fn good(&self) -> Result<(), String> {
        note("good");
        Ok(())
    }

    #[step(retry = none)]
    async fn broken(&self) -> Result<u64, String> {
        note("broken");
        let repaired = std::panic::catch_unwind(state::<u64>);
        repaired.map(|number| *number).map_err(|_| "broken".into())
    }
}

fn check<T>(result: Result<T, FlowError<String>>, expect: Expect) {
    let Err(error) = result else { panic!("there is a result") };
    expect.assert_eq(&error.to_string());
}

/// Flows whose error type cannot be made from the engine's errors.
#[tokio::test]
async fn without_a_conversion_the_flow_fails_with_the_reason() {
    let clock = ManualClock::new();
    let log = Place::memory().log_at(clock.clone()).await;
    let trace = Trace::new();
    let worker = Worker::new(log.clone()).register::<Plain>().with_state(trace.clone()).lease(LONG);
    let worker = worker.start().await.unwrap();
    let scheduler = Scheduler::new(log.clone());
    let flow = scheduler.schedule(Plain { how: "panics".into() }).await.unwrap();
    check(soon("the panic", flow.result()).await, expect![[r#"the flow failed: step "step" panicked: no conversion"#]]);
    let flow = scheduler.schedule(Plain { how: "hangs".into() }).await.unwrap();
    until("the step", || async { trace.count("began") == 1 }).await;
    clock.advance(Duration::from_secs(1));
    check(
        soon("the limit", flow.result()).await,
        expect![[r#"the flow failed: step "step" exceeded its time limit of 1s"#]],
    );
    worker.shutdown().await;
}

/// Uses `String` as its error.
#[flow_type]
struct Plain {
    how: String,
}

#[flow_type]
impl Plain {
    #[flow]
    async fn run(&self) -> Result<(), String> {
        self.step().await.map_err(|error| format!("caught {error}"))
    }

    #[step(retry = none, timeout = "1s")]
    async fn step(&self) -> Result<(), String> {
        assert!(self.how != "panics", "no conversion");
        note("began");
        std::future::pending().await
    }
}
