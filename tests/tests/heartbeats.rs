//! Heartbeats of steps: what is durable of them, who is told, and what happens when there are none.

use std::time::Duration;

use ergon::{
    ErrorKind, FlowError, HEARTBEAT_INTERVAL, Timestamp, heartbeat, last_heartbeat,
    prelude::*,
    storage::{Clock, ExecutionLog, FlowState, ManualClock, Phase, Record},
};
use ergon_tests::{Fault, FaultyLog, Gate, Place, Trace, both, note, soon, state_of, until};

const LEASE: Duration = Duration::from_secs(3_600);
const SECOND: Duration = Duration::from_secs(1);

both!(
    the_next_attempt_is_told_the_very_last,
    no_fault_at_any_write_loses_what_is_durable,
    a_takeover_is_told_and_the_zombie_writes_nothing,
    a_shutdown_writes_what_was_held,
    silence_fails_an_attempt,
    silence_is_final_with_the_last_attempt,
    heartbeats_keep_an_attempt_alive,
    the_time_limit_counts_beside,
    heartbeats_are_written_at_most_once_an_interval,
    a_value_that_is_the_same_is_not_written_again,
    what_ends_at_once_leaves_no_heartbeat,
    blocking_bodies_beat_and_hear_that_they_are_over,
    the_time_of_inner_calls_does_not_count,
    an_inner_step_has_its_own_and_tells_both,
    a_step_at_most_once_beats_in_its_intent,
    a_value_of_another_type_is_refused,
    the_timeline_shows_how_far_it_came,
    heartbeats_and_timelimits_of_steps_side_by_side,
    only_steps_send_heartbeats,
);

fn worker(log: &FaultyLog, clock: &ManualClock, trace: &Trace, gate: &Gate) -> Worker {
    let worker = Worker::new(log.clone()).register::<Reads>().register::<Does>();
    worker.with_state(trace.clone()).with_state(gate.clone()).with_state(clock.clone()).lease(LEASE)
}

/// Lets a second pass whenever nothing else is to be done.
async fn passes(clock: &ManualClock) {
    loop {
        clock.advance(SECOND);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn pause(by: Duration) {
    let clock = state::<ManualClock>();
    clock.sleep_until(clock.now().saturating_add(by)).await;
}

/// The history as phases, attempts and what is in it.
fn told(history: &[Record]) -> Vec<(Phase, u32, String)> {
    let text = |record: &Record| String::from_utf8(record.payload.to_vec()).unwrap();
    history.iter().map(|record| (record.phase, record.attempt, text(record))).collect()
}

fn row(phase: Phase, attempt: u32, text: &str) -> (Phase, u32, String) {
    (phase, attempt, text.to_owned())
}

fn error<T: std::fmt::Debug>(result: Result<T, FlowError<ergon::Error>>) -> ergon::Error {
    match result {
        Err(FlowError::Failed(error) | FlowError::Fault(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Reads pages, one a second, beside another step.
#[flow_type]
struct Reads {
    pages: u32,
    fails_at: Option<u32>,
}

#[flow_type]
impl Reads {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let (read, beside) = tokio::try_join!(self.read(), self.beside())?;
        Ok(format!("{read} {beside}"))
    }

    #[step(retry(max_attempts = 3, backoff = "1ms"), heartbeat_timeout = "1h")]
    async fn read(&self) -> ergon::Result<u32> {
        let begun: u32 = last_heartbeat()?.unwrap_or(0);
        note(format!("from {begun}"));
        for page in begun + 1..=self.pages {
            pause(SECOND).await;
            heartbeat(&page)?;
            // A second one, for which it is too early.
            heartbeat(&page)?;
            if self.fails_at == Some(page) {
                return Err(ergon::Error::new("torn"));
            }
        }
        Ok(self.pages)
    }

    #[step]
    async fn beside(&self) -> ergon::Result<String> {
        pause(3 * SECOND).await;
        Ok("beside".into())
    }
}

/// Runs one of the steps below.
#[flow_type]
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Bursts,
    Hangs,
    HangsForGood,
    Lives,
    Limited,
    Often,
    Equal,
    Quick,
    Blocks,
    Outer,
    Inner,
    Once,
    Mistyped,
    Both,
    InTheFlow,
}

#[flow_type]
impl Does {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        match self {
            Self::Bursts => self.bursts().await,
            Self::Hangs => self.hangs().await,
            Self::HangsForGood => self.hangs_for_good().await,
            Self::Lives => self.lives().await,
            Self::Limited => self.limited().await,
            Self::Often => self.often().await,
            Self::Equal => self.equal().await,
            Self::Quick => self.quick().await,
            Self::Blocks => self.blocks().await,
            Self::Outer => self.outer().await,
            Self::Inner => self.around().await,
            Self::Once => self.once().await,
            Self::Mistyped => self.mistyped().await,
            Self::Both => self.both().await,
            Self::InTheFlow => heartbeat(&1).map(|()| String::new()),
        }
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"))]
    async fn bursts(&self) -> ergon::Result<String> {
        let begun: Option<u32> = last_heartbeat()?;
        note(format!("{begun:?}"));
        if attempt() == 2 {
            assert_eq!(last_heartbeat()?, begun, "what this body sends is not what it is told");
            return Ok(format!("{begun:?}"));
        }
        for beat in 0..1_000 {
            heartbeat(&beat)?;
            if beat % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        Err(ergon::Error::new("enough"))
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"), heartbeat_timeout = "30s")]
    async fn hangs(&self) -> ergon::Result<String> {
        let begun: u32 = last_heartbeat()?.unwrap_or(0);
        note(format!("from {begun}"));
        if attempt() == 1 {
            heartbeat(&7)?;
            state::<Gate>().pass().await;
        }
        Ok(begun.to_string())
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"), heartbeat_timeout = "30s")]
    async fn hangs_for_good(&self) -> ergon::Result<String> {
        note("hangs");
        std::future::pending().await
    }

    #[step(retry = none, heartbeat_timeout = "30s")]
    async fn lives(&self) -> ergon::Result<String> {
        for beat in 0..20 {
            pause(Duration::from_secs(29)).await;
            heartbeat(&beat)?;
        }
        Ok("alive".into())
    }

    #[step(retry = none, timeout = "60s", heartbeat_timeout = "30s")]
    async fn limited(&self) -> ergon::Result<String> {
        loop {
            pause(SECOND).await;
            heartbeat(&attempt())?;
        }
    }

    #[step]
    async fn often(&self) -> ergon::Result<String> {
        for beat in 0..500 {
            heartbeat(&beat)?;
            tokio::task::yield_now().await;
        }
        note("beaten");
        state::<Gate>().pass().await;
        heartbeat(&"last")?;
        note("last");
        state::<Gate>().pass().await;
        Ok("done".into())
    }

    #[step(retry = none, heartbeat_timeout = "5s")]
    async fn equal(&self) -> ergon::Result<String> {
        for _ in 0..40 {
            heartbeat(&())?;
            pause(4 * SECOND).await;
        }
        Ok("done".into())
    }

    #[step(heartbeat_timeout = "5s")]
    async fn quick(&self) -> ergon::Result<String> {
        heartbeat(&1)?;
        heartbeat(&2)?;
        Ok("quick".into())
    }

    #[step(blocking, retry(max_attempts = 2, backoff = "1ms"), heartbeat_timeout = "30s")]
    fn blocks(&self) -> ergon::Result<String> {
        let begun: u32 = last_heartbeat()?.unwrap_or(0);
        if attempt() == 2 {
            return Ok(begun.to_string());
        }
        let (gate, trace) = (state::<Gate>(), state::<Trace>());
        heartbeat(&3)?;
        trace.add("blocks");
        futures::executor::block_on(gate.pass());
        let late = heartbeat(&4).unwrap_err();
        trace.add(format!("{:?} {late}", late.kind()));
        Err(late)
    }

    #[step(retry = none, heartbeat_timeout = "5s")]
    async fn outer(&self) -> ergon::Result<String> {
        note("outer");
        heartbeat(&"outer")?;
        sleep(Duration::from_secs(600)).await;
        let (left, right) = futures::future::join(slow("left"), slow("right")).await;
        Ok(left? + &right?)
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"), heartbeat_timeout = "30s")]
    async fn around(&self) -> ergon::Result<String> {
        heartbeat(&"outer")?;
        let mut all: futures::stream::FuturesUnordered<_> = [counts("a"), counts("b")].into_iter().collect();
        let mut sum = String::new();
        while let Some(counted) = futures::StreamExt::next(&mut all).await {
            sum += &counted?;
        }
        Ok(sum)
    }

    #[step(at_most_once, heartbeat_timeout = "1h")]
    async fn once(&self) -> ergon::Result<String> {
        heartbeat(&"begun")?;
        note("once");
        state::<Gate>().pass().await;
        Ok("once".into())
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"))]
    async fn mistyped(&self) -> ergon::Result<String> {
        if attempt() == 1 {
            heartbeat(&"text")?;
            return Err(ergon::Error::new("again"));
        }
        last_heartbeat::<u64>().map(|_| String::new())
    }

    async fn both(&self) -> ergon::Result<String> {
        let (left, right) = tokio::join!(self.hangs(), self.lives());
        Ok(left? + &right?)
    }
}

#[step]
async fn slow(label: &str) -> ergon::Result<String> {
    pause(Duration::from_secs(60)).await;
    Ok(label.into())
}

/// Counts in heartbeats, for longer than the step around it may be silent.
#[step]
async fn counts(label: &str) -> ergon::Result<String> {
    let begun: u32 = last_heartbeat()?.unwrap_or(0);
    note(format!("{label}{begun}"));
    for beat in begun + 1..=6 {
        pause(Duration::from_secs(20)).await;
        heartbeat(&beat)?;
    }
    Ok(label.into())
}

async fn the_next_attempt_is_told_the_very_last(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::Bursts).await.unwrap();
    let worker = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    let result = tokio::select! {
        result = soon("the result", flow.result()) => result.unwrap(),
        () = passes(&clock) => unreachable!(),
    };
    assert_eq!((result.as_str(), trace.take()), ("Some(999)", vec!["None".to_owned(), "Some(999)".to_owned()]));
    let history = told(&log.history(flow.id(), 0, 10).await.unwrap());
    // A thousand heartbeats are one record.
    let failed = history[1].2.clone();
    let wanted =
        [row(Phase::Pending, 1, "999"), row(Phase::Attempt, 1, &failed), row(Phase::Completed, 2, "\"Some(999)\"")];
    assert_eq!(history, wanted);
    worker.shutdown().await;
}

async fn no_fault_at_any_write_loses_what_is_durable(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let mut begun = std::collections::BTreeSet::new();
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseAnswer, Fault::Refuse] {
        for write in 1.. {
            let (trace, gate) = (Trace::new(), Gate::closed());
            let reads = Reads { pages: 6, fails_at: Some(4) };
            let flow = Scheduler::new(log.clone()).schedule(reads).await.unwrap();
            let process = log.another();
            process.order(write, fault);
            let first = worker(&process, &clock, &trace, &gate).start().await.unwrap();
            let lived = tokio::select! {
                () = process.crashed() => None,
                result = flow.result() => Some(result.unwrap()),
                () = passes(&clock) => unreachable!(),
            };
            drop(first);
            let came = process.writes() >= write;
            let before = trace.take();
            let history = log.history(flow.id(), 0, 100).await.unwrap();
            let progress =
                history.iter().rev().find(|record| &*record.name == "read" && record.phase == Phase::Pending);
            let progress: u32 = progress.map_or(0, |record| str::from_utf8(&record.payload).unwrap().parse().unwrap());
            let is_read = history.iter().any(|record| &*record.name == "read" && record.phase.is_outcome());
            let what = format!("{fault:?} at write {write}: {before:?}, then {progress}");
            let result = if let Some(result) = lived {
                assert_eq!(before, ["from 0", "from 4"], "{what}");
                result
            } else {
                clock.advance(LEASE);
                let second = worker(&log.another(), &clock, &trace, &gate).start().await.unwrap();
                let result = tokio::select! {
                    result = soon("the result", flow.result()) => result.unwrap(),
                    () = passes(&clock) => unreachable!(),
                };
                second.shutdown().await;
                let after = trace.take();
                assert_eq!(after.first().cloned(), (!is_read).then(|| format!("from {progress}")), "{what}: {after:?}");
                begun.insert(progress);
                result
            };
            assert_eq!(result, "6 beside", "{what}");
            let records = log.history(flow.id(), 0, 100).await.unwrap().len();
            assert!(records <= 6, "{what}: {records} records");
            if !came {
                break;
            }
        }
    }
    assert!(begun.len() > 3, "it was crashed at many places: {begun:?}");
}

async fn a_takeover_is_told_and_the_zombie_writes_nothing(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::Hangs).await.unwrap();
    let paused = log.another();
    let zombie = worker(&paused, &clock, &trace, &gate).start().await.unwrap();
    until("the heartbeat", || async { log.history(flow.id(), 0, 9).await.unwrap().len() == 1 }).await;
    paused.hold("heartbeat");
    paused.hold("commit");
    paused.hold("claim");
    clock.advance(LEASE);
    let second = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    until("the takeover", || async { trace.count("from 7") == 1 }).await;
    // The second body is the same attempt, and sends what is known already: nothing is written.
    assert_eq!(log.history(flow.id(), 0, 9).await.unwrap().len(), 1);
    gate.open();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "7");
    for method in ["heartbeat", "commit", "claim"] {
        paused.free(method);
    }
    until("the zombie to let go", || async { zombie.running() == 0 }).await;
    let history = told(&log.history(flow.id(), 0, 9).await.unwrap());
    assert_eq!(history, [row(Phase::Pending, 1, "7"), row(Phase::Completed, 1, "\"7\"")]);
    zombie.shutdown().await;
    second.shutdown().await;
}

async fn a_shutdown_writes_what_was_held(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::Often).await.unwrap();
    let first = worker(&log, &clock, &trace, &gate).grace(Duration::from_millis(20)).start().await.unwrap();
    until("the body", || async { trace.count("beaten") == 1 }).await;
    soon("the shutdown", first.shutdown()).await;
    assert_eq!(told(&log.history(flow.id(), 0, 9).await.unwrap()), [row(Phase::Pending, 1, "499")]);
    assert_eq!(state_of(&log, flow.id(), FlowState::Scheduled).await.records, 1);
}

async fn silence_fails_an_attempt(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::Hangs).await.unwrap();
    let worker = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    until("the heartbeat", || async { log.history(flow.id(), 0, 9).await.unwrap().len() == 1 }).await;
    clock.advance(Duration::from_secs(29));
    log.at_rest().await;
    assert_eq!(trace.notes(), ["from 0"], "not before its time");
    clock.advance(SECOND);
    log.at_rest().await;
    clock.advance(SECOND);
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "7");
    assert_eq!(trace.take(), ["from 0", "from 7"]);
    let (phase, _, failed) = told(&log.history(flow.id(), 0, 9).await.unwrap()).remove(1);
    let message = r#"{"kind":"timeout","message":"step \"hangs\" sent no heartbeat for 30s: "#;
    assert!(phase == Phase::Attempt && failed.starts_with(message), "{phase:?} {failed}");
    worker.shutdown().await;
}

async fn silence_is_final_with_the_last_attempt(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::HangsForGood).await.unwrap();
    let worker = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    let began = clock.now();
    let error = tokio::select! {
        result = soon("the end", flow.result()) => error(result),
        () = passes(&clock) => unreachable!(),
    };
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().starts_with("step \"hangs_for_good\" sent no heartbeat for 30s"), "{error}");
    assert_eq!(trace.take(), ["hangs", "hangs"]);
    assert!(clock.now().since(began) >= Duration::from_secs(60));
    worker.shutdown().await;
}

/// Runs a flow to its end while time passes.
async fn run(
    place: &Place,
    does: Does,
) -> (FaultyLog, FlowHandle<String, ergon::Error>, Result<String, FlowError<ergon::Error>>, Trace) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(does).await.unwrap();
    let worker = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    let result = tokio::select! {
        result = soon("the end", flow.result()) => result,
        () = passes(&clock) => unreachable!(),
    };
    worker.shutdown().await;
    (log, flow, result, trace)
}

async fn heartbeats_keep_an_attempt_alive(place: Place) {
    let (log, flow, result, _) = run(&place, Does::Lives).await;
    assert_eq!(result.unwrap(), "alive");
    let history = told(&log.history(flow.id(), 0, 9).await.unwrap());
    assert_eq!(history[1..], [row(Phase::Completed, 1, "\"alive\"")]);
}

async fn the_time_limit_counts_beside(place: Place) {
    let (_, _, result, _) = run(&place, Does::Limited).await;
    let error = error(result);
    assert_eq!(error.to_string(), "step \"limited\" exceeded its time limit of 1m");
}

async fn heartbeats_are_written_at_most_once_an_interval(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::Often).await.unwrap();
    let worker = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    let progress = async || {
        let history = log.history(flow.id(), 0, 9).await.unwrap();
        assert_eq!(history.len(), 1, "one record, replaced");
        let (_, _, text) = told(&history).remove(0);
        (text, history[0].at)
    };
    until("the body", || async { trace.count("beaten") == 1 }).await;
    log.at_rest().await;
    // The clock stands still: the first one was written, and what had come until then.
    let began: Timestamp = clock.now();
    let (first, at) = progress().await;
    assert!(first.parse::<u32>().unwrap() < 499, "{first}");
    assert_eq!((log.calls()["commit"], at), (1, began));
    clock.advance(HEARTBEAT_INTERVAL / 2);
    log.at_rest().await;
    assert_eq!(log.calls()["commit"], 1);
    clock.advance(HEARTBEAT_INTERVAL / 2);
    until("the second one", || async { progress().await.0 == "499" }).await;
    assert_eq!(log.calls()["commit"], 2);
    gate.let_one_through();
    until("the third one", || async { trace.count("last") == 1 }).await;
    log.at_rest().await;
    assert_eq!(progress().await.0, "499");
    clock.advance(HEARTBEAT_INTERVAL);
    until("the third one", || async { progress().await.0 == "\"last\"" }).await;
    assert_eq!(log.calls()["commit"], 3);
    gate.let_one_through();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "done");
    assert_eq!(log.calls()["commit"], 4);
    worker.shutdown().await;
}

async fn a_value_that_is_the_same_is_not_written_again(place: Place) {
    let (log, flow, result, _) = run(&place, Does::Equal).await;
    assert_eq!(result.unwrap(), "done");
    let history = told(&log.history(flow.id(), 0, 9).await.unwrap());
    assert_eq!(history, [row(Phase::Pending, 1, "null"), row(Phase::Completed, 1, "\"done\"")]);
    assert_eq!(log.calls()["commit"], 2);
}

async fn what_ends_at_once_leaves_no_heartbeat(place: Place) {
    let (log, flow, result, _) = run(&place, Does::Quick).await;
    assert_eq!(result.unwrap(), "quick");
    let history = told(&log.history(flow.id(), 0, 9).await.unwrap());
    assert_eq!(history, [row(Phase::Completed, 1, "\"quick\"")]);
    assert_eq!(log.calls()["commit"], 1);
}

async fn blocking_bodies_beat_and_hear_that_they_are_over(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::Blocks).await.unwrap();
    let worker = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    until("the heartbeat", || async { log.history(flow.id(), 0, 9).await.unwrap().len() == 1 }).await;
    until("the body", || async { trace.count("blocks") == 1 }).await;
    let result = tokio::select! {
        result = soon("the result", flow.result()) => result.unwrap(),
        () = passes(&clock) => unreachable!(),
    };
    assert_eq!(result, "3", "the second attempt is told, though the first one has not returned");
    gate.open();
    until("the first body's end", || async { trace.notes().len() == 2 }).await;
    let late = trace.take().remove(1);
    assert!(late.starts_with("Cancelled attempt 1 of step \"blocks\" is over, which sends a heartbeat"), "{late}");
    worker.shutdown().await;
}

async fn the_time_of_inner_calls_does_not_count(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::Outer).await.unwrap();
    let worker = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    // It leaves memory, and nothing but its timer wakes it.
    let info = state_of(&log, flow.id(), FlowState::Suspended).await;
    assert_eq!(info.due_at, Some(clock.now().saturating_add(Duration::from_secs(600))));
    clock.advance(Duration::from_secs(300));
    log.at_rest().await;
    assert_eq!(flow.status().await.unwrap().state, FlowState::Suspended);
    let result = tokio::select! {
        result = soon("the result", flow.result()) => result.unwrap(),
        () = passes(&clock) => unreachable!(),
    };
    assert_eq!(result, "leftright");
    worker.shutdown().await;
}

async fn an_inner_step_has_its_own_and_tells_both(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::Inner).await.unwrap();
    let process = log.another();
    let first = worker(&process, &clock, &trace, &gate).start().await.unwrap();
    let inner = async || {
        let history = log.history(flow.id(), 0, 99).await.unwrap();
        let inner = history.into_iter().filter(|record| &*record.name == "counts");
        inner.map(|record| (record.path.to_string(), record.payload)).collect::<Vec<_>>()
    };
    tokio::select! {
        () = until("heartbeats of both", || async {
            let inner = inner().await;
            inner.len() == 2 && inner.iter().all(|(_, progress)| &progress[..] == b"3")
        }) => {}
        () = passes(&clock) => unreachable!(),
    }
    assert_eq!(trace.take(), ["a0", "b0"]);
    process.crash().await;
    drop(first);
    clock.advance(LEASE);
    let second = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    let result = tokio::select! {
        result = soon("the result", flow.result()) => result.unwrap(),
        () = passes(&clock) => unreachable!(),
    };
    assert!(["ab", "ba"].contains(&result.as_str()), "{result}");
    assert_eq!(trace.take(), ["a3", "b3"], "within the attempt that went on");
    second.shutdown().await;
}

async fn a_step_at_most_once_beats_in_its_intent(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::Once).await.unwrap();
    let process = log.another();
    let first = worker(&process, &clock, &trace, &gate).start().await.unwrap();
    let history = async || told(&log.history(flow.id(), 0, 9).await.unwrap());
    until("the heartbeat", || async { history().await == [row(Phase::Pending, 1, "\"begun\"")] }).await;
    process.crash().await;
    drop(first);
    clock.advance(LEASE);
    let second = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    assert_eq!(error(soon("the end", flow.result()).await).kind(), ErrorKind::UnknownOutcome);
    assert_eq!(trace.take(), ["once"]);
    let history = flow.history().await.unwrap();
    assert_eq!(history.calls()[0].progress.as_deref(), Some(&b"\"begun\""[..]), "people may look how far it came");
    second.shutdown().await;
}

async fn a_value_of_another_type_is_refused(place: Place) {
    let (_, _, result, _) = run(&place, Does::Mistyped).await;
    let error = error(result);
    assert_eq!(error.kind(), ErrorKind::Payload);
    assert!(error.to_string().starts_with("the last heartbeat of step \"mistyped\" cannot be read as u64"), "{error}");
}

async fn the_timeline_shows_how_far_it_came(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let flow = Scheduler::new(log.clone()).schedule(Does::Hangs).await.unwrap();
    let worker = worker(&log, &clock, &trace, &gate).start().await.unwrap();
    until("the heartbeat", || async { log.history(flow.id(), 0, 9).await.unwrap().len() == 1 }).await;
    let history = flow.history().await.unwrap();
    let text = history.to_string();
    assert!(text.contains("1 hangs               attempt 1 has come to 7\n"), "{text}");
    assert_eq!(history.calls()[0].progress.as_deref(), Some(&b"7"[..]));
    gate.open();
    soon("the result", flow.result()).await.unwrap();
    worker.shutdown().await;
}

async fn heartbeats_and_timelimits_of_steps_side_by_side(place: Place) {
    let (_, _, result, trace) = run(&place, Does::Both).await;
    assert_eq!(result.unwrap(), "7alive");
    assert_eq!(trace.take(), ["from 0", "from 7"]);
}

async fn only_steps_send_heartbeats(place: Place) {
    let (_, _, result, _) = run(&place, Does::InTheFlow).await;
    let error = error(result);
    assert_eq!(error.kind(), ErrorKind::Panic);
    assert!(error.to_string().contains("ergon::heartbeat() was called in a flow's own code"), "{error}");
}
