//! Steps that run at most once: what nobody knows the outcome of is not done again.

use std::{collections::BTreeSet, task::Poll, time::Duration};

use ergon::{
    ErrorKind, FlowError, NextStep, StepRun,
    prelude::*,
    storage::{ExecutionLog, FlowState, ManualClock, Phase},
};
use ergon_tests::{Fault, FaultyLog, Gate, Place, Trace, both, note, soon, state_of, until};

const LEASE: Duration = Duration::from_secs(3_600);

both!(
    no_fault_at_any_write_makes_a_body_run_twice,
    a_shutdown_between_the_intent_and_the_body_loses_nothing,
    a_body_that_a_shutdown_drops_is_lost,
    a_body_that_a_middleware_drops_is_lost,
    the_body_of_a_zombie_is_not_repeated,
    a_loser_is_not_lost,
    a_wait_in_the_body_keeps_the_flow_in_memory,
    only_what_the_body_fails_with_is_tried_again,
    what_is_uncertain_stays_so,
    errors_that_cannot_tell_fail_the_flow,
    a_step_does_not_call_one,
);

/// A step at the gate.
#[step(at_most_once)]
async fn pay(label: &str) -> ergon::Result<String> {
    note(label);
    state::<Gate>().pass().await;
    note(format!("{label} ended"));
    Ok(label.into())
}

#[step(at_most_once, blocking)]
fn pay_blocking(label: String) -> ergon::Result<String> {
    note(&label);
    Ok(label)
}

/// The payments of every kind, with other steps between them.
#[flow_type]
#[derive(Clone)]
struct Pays;

#[flow_type]
impl Pays {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let mut done = vec![self.work("a").await?, known(pay("b").await)?, known(pay("c").await)?];
        let (left, middle, right) = tokio::join!(pay("d"), self.work("e"), pay_blocking("f".into()));
        done.extend([known(left)?, middle?, known(right)?, known(self.insists("g").await)?]);
        Ok(done.join(" "))
    }

    #[step]
    async fn work(&self, label: &str) -> ergon::Result<String> {
        note(format!("work {label}"));
        Ok(label.into())
    }

    #[step(at_most_once, retry(max_attempts = 3, backoff = "1ms"))]
    async fn insists(&self, label: &str) -> ergon::Result<String> {
        note(format!("{label}{}", attempt()));
        if attempt() < 3 { Err(ergon::Error::new("not yet")) } else { Ok(label.into()) }
    }
}

/// What became of a payment, as far as it is known.
fn known(outcome: ergon::Result<String>) -> ergon::Result<String> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::UnknownOutcome => Ok("?".into()),
        outcome => outcome,
    }
}

fn worker(log: &FaultyLog, trace: &Trace, gate: &Gate) -> Worker {
    let worker = Worker::new(log.clone()).register::<Pays>().register::<Alone>().register::<Races>();
    let worker = worker.register::<Waits>().register::<Fails>().register::<Untold>().register::<Nests>();
    worker.with_state(trace.clone()).with_state(gate.clone()).lease(LEASE)
}

/// Lets a second pass whenever nothing else is to be done, so that backoffs and time limits end.
async fn passes(clock: &ManualClock) {
    loop {
        clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Runs the payments with a fault at this write of the first process. Returns the result, and whether the process came
/// to write so much.
async fn pays(log: &FaultyLog, clock: &ManualClock, trace: &Trace, write: u64, fault: Fault) -> (String, bool) {
    let gate = Gate::closed();
    gate.open();
    let flow = Scheduler::new(log.clone()).schedule(Pays).await.unwrap();
    let process = log.another();
    process.order(write, fault);
    let first = worker(&process, trace, &gate).start().await.unwrap();
    let lived = tokio::select! {
        () = process.crashed() => None,
        result = flow.result() => Some(result.unwrap()),
        () = passes(clock) => unreachable!(),
    };
    let came = process.writes() >= write;
    drop(first);
    if let Some(result) = lived {
        return (result, came);
    }
    clock.advance(LEASE);
    let second = worker(&log.another(), trace, &gate).start().await.unwrap();
    let result = tokio::select! {
        result = soon("the result", flow.result()) => result.unwrap(),
        () = passes(clock) => unreachable!(),
    };
    second.shutdown().await;
    (result, came)
}

async fn no_fault_at_any_write_makes_a_body_run_twice(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let mut unknown = BTreeSet::new();
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseAnswer, Fault::Refuse] {
        for write in 1.. {
            let trace = Trace::new();
            let (result, came) = pays(&log, &clock, &trace, write, fault).await;
            let what = format!("{fault:?} at write {write}: {result}, {:?}", trace.notes());
            let mut ran = trace.take();
            ran.retain(|label| !label.starts_with("work"));
            ran.sort();
            assert!(ran.windows(2).all(|two| two[0] != two[1]), "{what}");
            let crashed = matches!(fault, Fault::CrashBefore | Fault::CrashAfter);
            for (wanted, got) in ["a", "b", "c", "d", "e", "f", "g"].into_iter().zip(result.split(' ')) {
                assert!(got == wanted || (got == "?" && crashed), "{what}");
                if got == "?" {
                    unknown.insert(wanted);
                }
            }
            if !came {
                break;
            }
        }
    }
    assert_eq!(unknown, ["b", "c", "d", "f", "g"].into(), "each of them was lost in some run");
}

/// One payment, between two steps.
#[flow_type]
#[derive(Clone)]
struct Alone;

#[flow_type]
impl Alone {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let paid = pay("paid").await?;
        Ok(paid + &sent().await?)
    }
}

#[step]
async fn sent() -> ergon::Result<String> {
    note("sent");
    Ok(" and sent".into())
}

/// What kind of trouble a flow ended with.
fn trouble<T: std::fmt::Debug>(result: Result<T, FlowError<ergon::Error>>) -> (ErrorKind, String) {
    match result {
        Err(FlowError::Failed(error) | FlowError::Fault(error)) => (error.kind(), error.to_string()),
        other => panic!("{other:?}"),
    }
}

async fn a_shutdown_between_the_intent_and_the_body_loses_nothing(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    gate.open();
    let flow = Scheduler::new(log.clone()).schedule(Alone).await.unwrap();
    let process = log.another();
    process.hold("commit");
    let first = worker(&process, &trace, &gate).start().await.unwrap();
    until("the intent", || async { process.calls().contains_key("commit") }).await;
    let shutdown = tokio::spawn(first.shutdown());
    log.at_rest().await;
    assert_eq!(trace.notes(), Vec::<String>::new(), "not before it is written");
    process.free("commit");
    soon("the shutdown", shutdown).await.unwrap();
    assert_eq!(trace.take(), ["paid", "paid ended"]);
    let second = worker(&log, &trace, &gate).start().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "paid and sent");
    assert_eq!(trace.take(), ["sent"]);
    second.shutdown().await;
}

async fn a_body_that_a_shutdown_drops_is_lost(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Alone).await.unwrap();
    let first = worker(&log, &trace, &gate).grace(Duration::from_millis(20)).start().await.unwrap();
    until("the step to begin", || async { trace.count("paid") == 1 }).await;
    soon("the shutdown", first.shutdown()).await;
    let second = worker(&log, &trace, &gate).start().await.unwrap();
    let (kind, text) = trouble(soon("the end", flow.result()).await);
    assert_eq!(kind, ErrorKind::UnknownOutcome);
    assert!(text.starts_with(r#"the outcome of step "pay" is unknown: "#), "{text}");
    // To retry the flow does not repeat what may have happened.
    flow.retry().await.unwrap();
    assert_eq!(trouble(soon("the end", flow.result()).await), (kind, text));
    assert_eq!(trace.take(), ["paid"]);
    let history = log.history(flow.id(), 0, 10).await.unwrap();
    let phases: Vec<_> = history.iter().map(|record| (record.phase, record.attempt)).collect();
    assert_eq!(phases, [(Phase::Pending, 1), (Phase::Failed, 1)]);
    let text = flow.history().await.unwrap().to_string();
    assert!(text.contains("1 pay                 attempt 1 begins"), "{text}");
    second.shutdown().await;
}

/// Gives the body one turn.
struct Impatient;

impl Middleware for Impatient {
    async fn step(&self, _: &StepRun, next: NextStep<'_>) -> ergon::Result<()> {
        let mut body = std::pin::pin!(next.run());
        match futures::poll!(body.as_mut()) {
            Poll::Ready(said) => said,
            Poll::Pending => Err(ergon::Error::new("enough")),
        }
    }
}

async fn a_body_that_a_middleware_drops_is_lost(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Alone).await.unwrap();
    let worker = worker(&log, &trace, &gate).middleware(Impatient).start().await.unwrap();
    assert_eq!(trouble(soon("the end", flow.result()).await).1, "enough");
    flow.retry().await.unwrap();
    assert_eq!(trouble(soon("the end", flow.result()).await).1, "enough");
    assert_eq!(trace.take(), ["paid"]);
    worker.shutdown().await;
}

async fn the_body_of_a_zombie_is_not_repeated(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Alone).await.unwrap();
    let paused = log.another();
    let zombie = worker(&paused, &trace, &gate).start().await.unwrap();
    until("the step to begin", || async { trace.count("paid") == 1 }).await;
    paused.hold("heartbeat");
    paused.hold("claim");
    clock.advance(LEASE);
    let other = worker(&log, &trace, &gate).start().await.unwrap();
    assert_eq!(trouble(soon("the end", flow.result()).await).0, ErrorKind::UnknownOutcome);
    gate.open();
    until("the zombie to let go", || async { zombie.running() == 0 }).await;
    assert_eq!(trace.count("paid"), 1);
    assert_eq!(flow.status().await.unwrap().state, FlowState::Failed);
    for method in ["heartbeat", "claim"] {
        paused.free(method);
    }
    zombie.shutdown().await;
    other.shutdown().await;
}

/// A payment that loses against a signal.
#[flow_type]
#[derive(Clone)]
struct Races;

#[flow_type]
impl Races {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let won = tokio::select! {
            paid = pay("paid") => paid?,
            stop = signal::<String>("stop") => stop?,
        };
        let go: String = signal("go").await?;
        Ok(won + &go)
    }
}

async fn a_loser_is_not_lost(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Races).await.unwrap();
    let first = worker(&log, &trace, &gate).parked_max(0).start().await.unwrap();
    until("the step to begin", || async { trace.count("paid") == 1 }).await;
    flow.signal("stop", "stopped").await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    // The replay drops the call where it was dropped.
    flow.signal("go", " and went").await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "stopped and went");
    assert_eq!(trace.take(), ["paid"]);
    first.shutdown().await;
}

/// Waits inside the body for longer than a flow stays in memory.
#[flow_type]
#[derive(Clone)]
struct Waits;

#[flow_type]
impl Waits {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        self.waits().await
    }

    #[step(at_most_once)]
    async fn waits(&self) -> ergon::Result<String> {
        note("waits");
        sleep(Duration::from_secs(3_000)).await;
        let go: String = signal("go").await?;
        note("waited");
        Ok(go)
    }
}

async fn a_wait_in_the_body_keeps_the_flow_in_memory(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Waits).await.unwrap();
    let worker = worker(&log, &trace, &gate).parked_max(0).start().await.unwrap();
    until("the wait", || async { flow.status().await.unwrap().records >= 2 }).await;
    log.at_rest().await;
    assert_eq!(flow.status().await.unwrap().state, FlowState::Running);
    clock.advance(Duration::from_secs(3_000));
    flow.signal("go", "went").await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "went");
    assert_eq!(trace.take(), ["waits", "waited"]);
    worker.shutdown().await;
}

/// A payment that goes wrong.
#[flow_type]
#[derive(Clone)]
struct Fails {
    how: String,
}

#[flow_type]
impl Fails {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        match self.how.as_str() {
            "once" => self.once().await,
            _ => self.fails().await,
        }
    }

    #[step(at_most_once)]
    async fn once(&self) -> ergon::Result<String> {
        note("once");
        Err(ergon::Error::new("declined"))
    }

    #[step(at_most_once, retry(max_attempts = 3, backoff = "1s"), timeout = "5s")]
    async fn fails(&self) -> ergon::Result<String> {
        note(&self.how);
        match self.how.as_str() {
            "panics" => panic!("halfway"),
            "hangs" => std::future::pending().await,
            "returns too much" => Ok("x".repeat(17 << 20)),
            _ => Err(ergon::Error::new("declined")),
        }
    }
}

/// Runs it, retries the flow, and tells how it ended each time and how often the body ran.
async fn failed(place: &Place, how: &str) -> ([ErrorKind; 2], usize) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let worker = worker(&log, &trace, &gate).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Fails { how: how.into() }).await.unwrap();
    let end = async || {
        tokio::select! {
            result = soon("the end", flow.result()) => trouble(result).0,
            () = passes(&clock) => unreachable!(),
        }
    };
    let first = end().await;
    flow.retry().await.unwrap();
    let second = end().await;
    worker.shutdown().await;
    ([first, second], trace.take().len())
}

async fn only_what_the_body_fails_with_is_tried_again(place: Place) {
    // For the flow and for its retry: an error that the body returned is no secret.
    for (how, runs) in [("once", 2), ("declines", 6)] {
        assert_eq!(failed(&place, how).await, ([ErrorKind::Failed; 2], runs), "{how}");
    }
}

async fn what_is_uncertain_stays_so(place: Place) {
    use ErrorKind::{Panic, Payload, Timeout};
    for (how, kind) in [("panics", Panic), ("hangs", Timeout), ("returns too much", Payload)] {
        assert_eq!(failed(&place, how).await, ([kind; 2], 1), "{how}");
    }
}

/// Its error cannot be made from one of the engine's.
#[flow_type]
#[derive(Clone)]
struct Untold;

#[flow_type]
impl Untold {
    #[flow]
    async fn run(&self) -> Result<(), String> {
        self.pays().await
    }

    #[step(at_most_once)]
    async fn pays(&self) -> Result<(), String> {
        note("pays");
        state::<Gate>().pass().await;
        Ok(())
    }
}

async fn errors_that_cannot_tell_fail_the_flow(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Untold).await.unwrap();
    let process = log.another();
    let first = worker(&process, &trace, &gate).start().await.unwrap();
    until("the step to begin", || async { trace.count("pays") == 1 }).await;
    process.crash().await;
    drop(first);
    clock.advance(LEASE);
    let second = worker(&log, &trace, &gate).start().await.unwrap();
    for _ in 0..2 {
        let Err(FlowError::Fault(error)) = soon("the end", flow.result()).await else { panic!("not the engine's") };
        assert_eq!(error.kind(), ErrorKind::UnknownOutcome);
        flow.retry().await.unwrap();
    }
    assert_eq!(trace.take(), ["pays"]);
    second.shutdown().await;
}

/// Calls a payment from a step.
#[flow_type]
#[derive(Clone)]
struct Nests;

#[flow_type]
impl Nests {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        self.outer().await
    }

    #[step(retry = none)]
    async fn outer(&self) -> ergon::Result<String> {
        pay("inner").await
    }
}

async fn a_step_does_not_call_one(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let worker = worker(&log, &trace, &gate).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Nests).await.unwrap();
    let (kind, text) = trouble(soon("the end", flow.result()).await);
    assert_eq!(kind, ErrorKind::Panic);
    assert!(text.contains(r#"the step "pay" runs at most once: a flow calls it, not a step"#), "{text}");
    assert_eq!(trace.take(), Vec::<String>::new());
    worker.shutdown().await;
}
