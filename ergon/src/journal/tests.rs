//! What the journal answers, call by call: small flows that are driven by hand.

use std::{
    panic::Location,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use ergon_storage::{
    CallKind, CallPath, Channel, ChildOutcome, Cleanup, Feed, FlowId, Keep, ManualClock, Message, NewFlow, NewItem,
    Phase, Record, Timestamp,
};

use super::{
    Batch, CallId, CallKey, CallPoll, CleaningUp, Divergence, Due, Journal, Opened, Outcome, Place, Repeat, ScopeId,
    Spec, TimeUp,
};

/// A flow whose code is the test, with what is durable of it.
struct Flow {
    journal: Journal,
    history: Vec<Record>,
}

const NOW: Timestamp = Timestamp::from_micros(1_000_000);

impl Flow {
    fn new() -> Self {
        Self::with(Vec::new())
    }

    /// The flow in its next life.
    fn with(history: Vec<Record>) -> Self {
        Self { journal: Journal::new(history.clone(), Timestamp::EPOCH), history }
    }

    fn made(&mut self, place: Place, kind: CallKind, name: &str, spec: Spec) -> CallId {
        self.journal.call(place, CallKey { kind, name: name.into(), args_hash: 0 }, spec, Location::caller())
    }

    /// A call that is made and awaited.
    fn call(&mut self, place: Place, kind: CallKind, name: &str, spec: Spec) -> CallId {
        let id = self.made(place, kind, name, spec);
        assert!(matches!(self.poll(id), CallPoll::Pending), "nothing is known of a call that was just made");
        id
    }

    fn step_with(&mut self, place: Place, name: &str, repeat: Repeat) -> CallId {
        self.call(place, CallKind::Step, name, Spec::Step { limit: None, silence: None, repeat })
    }

    fn step(&mut self, place: Place, name: &str) -> CallId {
        self.step_with(place, name, Repeat::Allowed)
    }

    fn signal(&mut self, place: Place, name: &str) -> CallId {
        self.call(place, CallKind::Signal, name, Spec::Signal { limit: None })
    }

    fn poll(&mut self, id: CallId) -> CallPoll {
        self.journal.poll(id, Waker::noop())
    }

    /// Writes what has collected.
    fn flush(&mut self) -> Batch {
        let batch = self.journal.take_batch();
        self.history.extend(batch.records.iter().cloned());
        self.journal.flushed();
        batch
    }

    /// Settles what was called, and lets the bodies run that may.
    fn settle(&mut self) {
        self.journal.seal(NOW).unwrap();
        while self.journal.wants_grant(NOW) {
            self.journal.intend(NOW);
            self.journal.grant(NOW);
            if self.journal.has_batch() {
                self.flush();
            }
        }
    }

    /// A step of the flow whose body runs.
    fn running(&mut self, place: Place, name: &str) -> CallId {
        let id = self.step(place, name);
        self.settle();
        assert!(matches!(self.poll(id), CallPoll::Run { attempt: 1, time_is_up: None }));
        id
    }

    fn finish(&mut self, id: CallId, phase: Phase) {
        self.journal.finish(id, phase, Bytes::new(), NOW);
    }

    /// Hands out the next outcome, which is this call's.
    fn take(&mut self, id: CallId) -> Phase {
        self.flush();
        assert!(self.journal.release(NOW), "an outcome");
        match self.poll(id) {
            CallPoll::Ready(outcome) => outcome.phase,
            other => panic!("{other:?}"),
        }
    }

    /// A step that has ended, as the code knows.
    fn ended(&mut self, name: &str, phase: Phase) {
        let id = self.running(Place::Flow, name);
        self.finish(id, phase);
        assert_eq!(self.take(id), phase);
    }

    fn emit(&mut self) {
        let (feed, at, payload) = (Feed::stream("s"), NOW, Bytes::new());
        self.journal.emit(Place::Flow, NewItem { feed, keep: Keep::All, at, call: None, attempt: 0, payload });
    }
}

fn message(seq: u32) -> Message {
    Message::new(seq, Channel::signal("x"), NOW, Bytes::new())
}

#[test]
fn a_change_is_taken_up_where_the_code_has_made_all_its_calls_and_the_answer_stays() {
    let mut first = Flow::new();
    assert!(first.journal.patched("new", NOW));
    first.ended("a", Phase::Completed);
    assert!(first.journal.patched("new", NOW));
    assert_eq!(first.history.iter().map(|record| record.kind).collect::<Vec<_>>(), [CallKind::Patch, CallKind::Step]);

    let mut second = Flow::with(first.history);
    assert!(second.journal.patched("new", NOW), "the history says so");
    assert!(!second.journal.patched("newer", NOW), "there is a call to come that the history has");
    let step = second.step(Place::Flow, "a");
    second.settle();
    assert!(second.journal.release(NOW) && matches!(second.poll(step), CallPoll::Ready(_)));
    assert!(!second.journal.patched("newer", NOW), "it was asked before");
    assert!(second.journal.patched("newest", NOW));
}

#[test]
fn no_two_draws_are_equal() {
    let mut flow = Flow::new();
    assert_eq!([flow.journal.draw(), flow.journal.draw(), flow.journal.draw()], [(0, 0), (0, 1), (0, 2)]);
    flow.ended("a", Phase::Completed);
    assert_eq!([flow.journal.draw(), flow.journal.draw()], [(1, 0), (1, 1)]);
}

#[test]
fn what_was_emitted_before_a_failure_was_known_stands_when_the_flow_is_retried() {
    let mut flow = Flow::new();
    flow.emit();
    assert_eq!((flow.journal.emitted(), flow.journal.emitted_if_retried()), (1, None));
    flow.emit();
    let timer = flow.made(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::After(Duration::from_secs(1))));
    flow.ended("a", Phase::Failed);
    assert_eq!((flow.journal.emitted(), flow.journal.emitted_if_retried()), (2, None), "all of them stand");
    flow.emit();
    assert_eq!((flow.journal.emitted(), flow.journal.emitted_if_retried()), (3, Some(2)));
    flow.poll(timer);
    assert_eq!(flow.journal.emitted_if_retried(), None, "the code has begun to wait since");
    flow.ended("b", Phase::Failed);
    flow.emit();
    assert_eq!(flow.journal.emitted_if_retried(), Some(3));
    flow.made(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::After(Duration::from_secs(1))));
    assert_eq!(flow.journal.emitted_if_retried(), None, "the code has made a call since");
}

#[test]
fn with_a_failed_step_go_those_below_it_that_have_not_completed() {
    let calls = |outer: Phase, inner: Phase| {
        let mut flow = Flow::new();
        let step = flow.running(Place::Flow, "outer");
        let below = flow.running(Place::Step(step), "inner");
        flow.finish(below, inner);
        assert_eq!(flow.take(below), inner);
        assert_eq!(flow.history[0].reference, None, "the first of its kind has no number");
        flow.finish(step, outer);
        assert_eq!(flow.take(step), outer);
        let again = flow.journal.failed_calls();
        let mut next = Flow::with(flow.history);
        let step = next.step(Place::Flow, "outer");
        next.settle();
        assert_eq!(next.take(step), outer);
        assert_eq!(next.journal.failed_calls(), again, "its next life comes to the same");
        again
    };
    let (outer, inner) = (CallPath::top(1), CallPath::top(1).child(1));
    assert_eq!(calls(Phase::Failed, Phase::Failed), [outer.clone(), inner]);
    assert_eq!(calls(Phase::Failed, Phase::Completed), [outer]);
    assert_eq!(calls(Phase::Completed, Phase::Failed), []);
}

#[test]
fn a_message_that_a_body_has_not_asked_for_again_is_anyones_when_the_body_ends() {
    let mut first = Flow::new();
    let step = first.running(Place::Flow, "outer");
    first.signal(Place::Step(step), "x");
    first.settle();
    first.journal.receive([message(1)]);
    assert!(!first.journal.release(NOW), "what a body goes on with must be durable first");
    first.flush();

    let second = || {
        let mut flow = Flow::with(first.history.clone());
        flow.journal.receive([message(1)]);
        let step = flow.running(Place::Flow, "outer");
        let signal = flow.signal(Place::Flow, "x");
        let other = flow.running(Place::Flow, "other");
        flow.journal.attempt_failed(other, Bytes::new(), NOW.saturating_add(Duration::from_secs(1)), NOW);
        assert!(!flow.journal.release(NOW), "the message is the body's");
        (flow, step, signal)
    };
    let (mut flow, step, signal) = second();
    flow.finish(step, Phase::Completed);
    assert_eq!(flow.take(step), Phase::Completed);
    assert_eq!(flow.take(signal), Phase::Completed);
    let (mut flow, step, signal) = second();
    flow.journal.attempt_failed(step, Bytes::new(), NOW.saturating_add(Duration::from_secs(1)), NOW);
    assert_eq!(flow.take(signal), Phase::Completed);
}

#[test]
fn what_is_uncertain_is_not_made_again() {
    let mut flow = Flow::new();
    for (name, uncertain) in [("certain", false), ("uncertain", true)] {
        let step = flow.step_with(Place::Flow, name, Repeat::Never);
        flow.settle();
        if uncertain {
            flow.journal.note_uncertain(step);
        }
        flow.finish(step, Phase::Failed);
        assert_eq!(flow.take(step), Phase::Failed);
        assert_eq!(flow.journal.failed_calls().is_empty(), uncertain);
        assert_eq!(flow.history.last().unwrap().reference.is_some(), uncertain);
    }
}

#[test]
fn a_body_all_of_whose_wakers_are_held_by_its_own_calls_is_not_busy() {
    let clock = ManualClock::new();
    let mut flow = Flow::new();
    let outer = flow.running(Place::Flow, "outer");
    let busy = |flow: &mut Flow, id, held| {
        flow.journal.note_wakers(id, held, Waker::noop(), &clock);
        flow.journal.is_busy()
    };
    assert!(busy(&mut flow, outer, 0) && busy(&mut flow, outer, 1), "it has no calls");
    let inner = flow.running(Place::Step(outer), "inner");
    flow.signal(Place::Step(inner), "x");
    flow.settle();
    assert!(busy(&mut flow, outer, 1), "the inner body is busy");
    assert!(!busy(&mut flow, inner, 1));
    assert!(!busy(&mut flow, outer, 2), "a quiet body holds its waker once more");
    assert!(busy(&mut flow, outer, 3), "somebody else holds one");
    assert!(!busy(&mut flow, outer, 2));

    let mut flow = Flow::new();
    let once = flow.step_with(Place::Flow, "once", Repeat::Never);
    flow.settle();
    flow.signal(Place::Step(once), "x");
    flow.settle();
    assert!(busy(&mut flow, once, 1), "a body that must not start again stays in memory");
}

#[test]
fn a_body_starts_when_all_is_durable_that_led_to_it_and_no_sooner() {
    let mut flow = Flow::new();
    let early = flow.step(Place::Flow, "early");
    flow.journal.seal(NOW).unwrap();
    assert!(flow.journal.wants_grant(NOW));
    flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::After(Duration::from_secs(1))));
    let late = flow.step(Place::Flow, "late");
    flow.journal.seal(NOW).unwrap();
    assert!(flow.journal.wants_grant(NOW) && flow.journal.can_grant());
    flow.journal.grant(NOW);
    assert!(matches!(flow.poll(early), CallPoll::Run { .. }));
    assert!(matches!(flow.poll(late), CallPoll::Pending), "the timer is not durable yet");
    flow.flush();
    flow.settle();
    assert!(matches!(flow.poll(late), CallPoll::Run { .. }));
}

#[test]
fn bodies_that_wait_for_a_batch_alone_start_before_anything_else_is_released() {
    let mut flow = Flow::new();
    flow.step(Place::Flow, "a");
    flow.journal.seal(NOW).unwrap();
    assert!(flow.journal.wants_grant(NOW) && !flow.journal.starts_next(), "it waits for none");

    let mut flow = Flow::new();
    flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::After(Duration::from_secs(1))));
    flow.step(Place::Flow, "a");
    let once = flow.step_with(Place::Flow, "once", Repeat::Never);
    flow.journal.seal(NOW).unwrap();
    assert!(flow.journal.wants_grant(NOW));
    assert!(!flow.journal.starts_next(), "nothing is written yet");
    flow.flush();
    assert!(flow.journal.starts_next() && !flow.journal.starts_intended());
    flow.journal.intend(NOW);
    assert!(flow.journal.starts_next() && !flow.journal.starts_intended(), "that it begins is in the next batch");
    flow.journal.grant(NOW);
    assert!(!flow.journal.starts_next() && !flow.journal.starts_intended(), "those have started");
    flow.flush();
    assert!(flow.journal.starts_next() && flow.journal.starts_intended());
    flow.journal.grant_intended(NOW);
    assert!(!flow.journal.starts_next() && !flow.journal.starts_intended());
    assert!(matches!(flow.poll(once), CallPoll::Run { .. }));

    // While the code has not made all the calls that it made before, nothing starts.
    let mut flow = Flow::new();
    flow.ended("a", Phase::Completed);
    let mut flow = Flow::with(flow.history);
    flow.step_with(Place::Flow, "a", Repeat::Never);
    flow.journal.seal(NOW).unwrap();
    flow.flush();
    assert!(!flow.journal.starts_next() && !flow.journal.starts_intended());
}

#[test]
fn what_collects_is_written_when_it_is_much() {
    let mut flow = Flow::new();
    for count in 1..=1_024 {
        assert!(!flow.journal.is_full(), "{count}");
        flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::At(NOW)));
        flow.journal.seal(NOW).unwrap();
    }
    assert!(flow.journal.is_full());
}

#[test]
fn while_a_history_is_replayed_nothing_new_takes_effect() {
    let mut flow = Flow::new();
    flow.ended("a", Phase::Completed);
    assert_eq!((flow.journal.seq(), flow.journal.last()), (1, Some((1, NOW))));

    let mut flow = Flow::with(flow.history);
    assert_eq!((flow.journal.seq(), flow.journal.last()), (1, Some((1, NOW))));
    assert!(flow.journal.is_behind() && !flow.journal.has_caught_up());
    assert!(flow.journal.missing_call().is_some());
    let step = flow.step(Place::Flow, "a");
    flow.journal.seal(NOW).unwrap();
    flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::At(NOW)));
    flow.step(Place::Flow, "b");
    flow.journal.seal(NOW).unwrap();
    assert_eq!(flow.journal.missing_call(), None);
    assert!(flow.journal.is_replaying() && flow.journal.is_behind() && !flow.journal.has_caught_up());
    assert!(!flow.journal.has_batch() && !flow.journal.wants_grant(NOW));
    assert!(flow.journal.release(NOW) && flow.journal.hands_over());
    assert!(matches!(flow.poll(step), CallPoll::Ready(_)) && !flow.journal.hands_over());
    assert!(!flow.journal.is_replaying() && !flow.journal.is_behind() && flow.journal.has_caught_up());

    // A call that has not ended leaves nothing to be released, but it was made.
    let mut flow = Flow::new();
    flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::At(NOW)));
    flow.journal.seal(NOW).unwrap();
    flow.flush();
    let flow = Flow::with(flow.history);
    assert!(!flow.journal.is_replaying() && flow.journal.is_behind() && !flow.journal.has_caught_up());

    // A cancellation that the code has not come to is of the history too.
    let mut flow = Flow::with(vec![Record::cancel(1, NOW, Record::CANCELLED, "")]);
    flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::At(NOW)));
    flow.journal.seal(NOW).unwrap();
    assert!(flow.journal.is_replaying() && flow.journal.is_behind() && !flow.journal.has_batch());
}

#[test]
fn an_outcome_is_fresh_until_it_is_released() {
    let mut flow = Flow::new();
    let step = flow.running(Place::Flow, "a");
    assert!(!flow.journal.has_fresh());
    flow.finish(step, Phase::Completed);
    assert!(flow.journal.has_fresh() && !flow.journal.hands_over());
    assert!(flow.journal.release(NOW));
    assert!(!flow.journal.has_fresh() && flow.journal.hands_over());
}

#[test]
fn a_body_is_held_up_by_a_call_whose_body_has_yet_to_begin_or_runs() {
    let clock = ManualClock::new();
    let mut flow = Flow::new();
    let outer = flow.running(Place::Flow, "outer");
    flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::After(Duration::from_secs(1))));
    flow.settle();
    assert!(!flow.journal.is_held_up(), "it has no calls");
    let inner = flow.step(Place::Step(outer), "inner");
    flow.journal.seal(NOW).unwrap();
    assert!(flow.journal.is_held_up());
    flow.settle();
    assert!(!flow.journal.is_held_up(), "the inner body has no calls");
    flow.signal(Place::Step(inner), "x");
    flow.settle();
    flow.journal.note_wakers(inner, 1, Waker::noop(), &clock);
    assert!(flow.journal.is_held_up());
}

#[test]
fn a_flow_waits_for_a_child_to_be_accepted_that_its_own_code_has_started() {
    let record = |path: CallPath, kind: CallKind, phase: Phase| Record {
        path,
        kind,
        phase,
        ..Record::cancel(1, NOW, Record::CANCELLED, "")
    };
    let waits = |history: &[Record]| Journal::waits_for_acceptance(history);
    let (own, below) = (CallPath::top(1), CallPath::top(1).child(1));
    assert!(!waits(&[]));
    assert!(!waits(&[record(own.clone(), CallKind::Timer, Phase::Pending)]));
    assert!(waits(&[record(own.clone(), CallKind::Child, Phase::Pending)]));
    assert!(!waits(&[record(below, CallKind::Child, Phase::Pending)]));
    let ended = [record(own.clone(), CallKind::Child, Phase::Pending), record(own, CallKind::Child, Phase::Completed)];
    assert!(!waits(&ended));
}

#[test]
fn a_timer_past_the_end_of_time_is_refused() {
    let mut flow = Flow::new();
    flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::After(Duration::MAX)));
    flow.journal.seal(NOW).unwrap();
    assert!(flow.journal.take_refusal().unwrap().message.ends_with("past the end of time"));
    assert_eq!(flow.journal.take_refusal(), None);
}

#[test]
fn another_attempt_finds_what_the_one_before_has_completed() {
    let mut flow = Flow::new();
    let outer = flow.running(Place::Flow, "outer");
    let inner = flow.running(Place::Step(outer), "inner");
    flow.finish(inner, Phase::Completed);
    assert_eq!(flow.take(inner), Phase::Completed);
    flow.journal.attempt_failed(outer, Bytes::new(), NOW, NOW);
    flow.flush();
    flow.settle();
    assert!(matches!(flow.poll(outer), CallPoll::Run { attempt: 2, .. }));
    let inner = flow.step(Place::Step(outer), "inner");
    flow.settle();
    assert_eq!(flow.take(inner), Phase::Completed);
    assert_eq!(flow.history.len(), 2, "{:#?}", flow.history);
}

fn child(detached: bool) -> Spec {
    Spec::Child { flow: Box::new(NewFlow::new(FlowId::new("child").unwrap(), "Child", 1, Bytes::new())), detached }
}

#[test]
fn a_child_that_was_started_is_started_even_if_nobody_waits_for_it() {
    let mut flow = Flow::new();
    let kept = flow.made(Place::Flow, CallKind::Child, "Child", child(false));
    assert_eq!(flow.journal.child_id(kept).as_deref(), Some("child"));
    let dropped = flow.made(Place::Flow, CallKind::Child, "Child", child(false));
    flow.journal.drop_call(dropped);
    flow.settle();
    let batch = flow.flush();
    assert_eq!((batch.children.len(), batch.records.len()), (2, 2));
    assert!(batch.records.iter().all(|record| record.reference.as_deref() == Some("child")));
}

#[test]
fn a_wait_counts_when_it_is_awaited() {
    let mut flow = Flow::new();
    flow.made(Place::Flow, CallKind::Step, "a", Spec::Step { limit: None, silence: None, repeat: Repeat::Allowed });
    flow.settle();
    assert!(!flow.journal.is_busy());
    let timer = flow.made(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::At(NOW)));
    let signal = flow.made(Place::Flow, CallKind::Signal, "x", Spec::Signal { limit: None });
    assert!(flow.journal.set_limit(signal, Duration::from_secs(1), 1));
    flow.settle();
    assert!(!flow.journal.set_limit(signal, Duration::from_secs(2), 2), "its place is settled");
    let wake = flow.journal.wake();
    assert_eq!((wake.at, wake.channels), (None, vec![]));
    flow.poll(timer);
    flow.poll(signal);
    let wake = flow.journal.wake();
    assert_eq!((wake.at, wake.channels), (Some(NOW), vec![Channel::signal("x")]));
}

#[test]
fn an_attempt_that_runs_at_most_once_is_lost_when_it_had_begun() {
    let mut flow = Flow::new();
    flow.step_with(Place::Flow, "once", Repeat::Never);
    flow.settle();
    let mut flow = Flow::with(flow.history);
    let once = flow.step_with(Place::Flow, "once", Repeat::Never);
    flow.settle();
    assert!(matches!(flow.poll(once), CallPoll::Lost { attempt: 1 }));
}

/// A flow that has got a message, in its next life: the wait, whose outcome is released, and where it is.
fn handed(below: bool) -> (Flow, CallId, Place) {
    let wait = |flow: &mut Flow| {
        let place = if below { Place::Step(flow.running(Place::Flow, "outer")) } else { Place::Flow };
        let signal = flow.signal(place, "x");
        flow.settle();
        (signal, place)
    };
    let mut first = Flow::new();
    wait(&mut first);
    first.journal.receive([message(1)]);
    assert_eq!(first.journal.release(NOW), !below, "what a body goes on with must be durable first");
    first.flush();
    let mut second = Flow::with(first.history);
    let (signal, place) = wait(&mut second);
    assert!(second.journal.release(NOW));
    (second, signal, place)
}

#[test]
fn a_message_is_consumed_when_it_is_taken_wherever_it_is_then() {
    for below in [false, true] {
        let take = |flow: &mut Flow, signal| {
            assert!(flow.journal.taken().is_empty());
            assert!(matches!(flow.poll(signal), CallPoll::Ready(_)));
            flow.flush().consumed
        };
        // It comes before the outcome is taken …
        let (mut flow, signal, _) = handed(below);
        flow.journal.receive([message(1)]);
        assert_eq!(take(&mut flow, signal), [1]);
        assert_eq!(flow.journal.taken(), [1]);
        // … or after it. The body's history does not tell of it for long.
        let (mut flow, signal, place) = handed(below);
        assert_eq!(take(&mut flow, signal), if below { &[1][..] } else { &[] });
        assert_eq!(flow.journal.taken(), [1]);
        if let Place::Step(outer) = place {
            flow.finish(outer, Phase::Completed);
        }
        flow.journal.receive([message(1)]);
        assert_eq!(flow.flush().consumed, [1]);
        flow.journal.receive([message(1)]);
        assert!(!flow.journal.has_batch(), "it is known");
    }
}

#[test]
fn a_wait_that_was_dropped_at_once_gives_its_message_back() {
    let mut first = Flow::new();
    let signal = first.signal(Place::Flow, "x");
    first.settle();
    first.journal.receive([message(7)]);
    assert_eq!(first.take(signal), Phase::Completed);
    first.flush();
    let mut second = Flow::with(first.history);
    second.journal.receive([message(7)]);
    let dropped = second.signal(Place::Flow, "x");
    second.journal.drop_call(dropped);
    let signal = second.signal(Place::Flow, "x");
    second.settle();
    assert_eq!(second.take(signal), Phase::Completed);
}

#[test]
fn equal_steps_of_a_body_are_numbered() {
    let mut first = Flow::new();
    let outer = first.running(Place::Flow, "outer");
    for ordinal in 1..=3 {
        let inner = first.running(Place::Step(outer), "inner");
        assert_eq!(first.journal.identity(inner).2, ordinal);
        if ordinal == 2 {
            first.finish(inner, Phase::Completed);
            assert_eq!(first.take(inner), Phase::Completed);
        }
    }
    assert_eq!(first.journal.identity(outer).0, CallPath::top(1));
    // The one that has an outcome keeps its number, and that is no message's.
    let mut second = Flow::with(first.history);
    second.journal.receive([message(2)]);
    let outer = second.running(Place::Flow, "outer");
    let inner = second.step(Place::Step(outer), "inner");
    second.settle();
    assert_eq!(second.journal.identity(inner).2, 2);
    assert_eq!(second.take(inner), Phase::Completed);
    for ordinal in [1, 3] {
        let inner = second.running(Place::Step(outer), "inner");
        assert_eq!(second.journal.identity(inner).2, ordinal);
    }
    let signal = second.signal(Place::Flow, "x");
    second.settle();
    assert_eq!(second.take(signal), Phase::Completed);
}

#[test]
fn another_attempt_makes_the_calls_again_that_have_failed() {
    let mut flow = Flow::new();
    let outer = flow.running(Place::Flow, "outer");
    let inner = flow.running(Place::Step(outer), "inner");
    flow.finish(inner, Phase::Failed);
    assert_eq!(flow.take(inner), Phase::Failed);
    flow.journal.attempt_failed(outer, Bytes::new(), NOW, NOW);
    flow.flush();
    for mut flow in [Flow::with(flow.history.clone()), flow] {
        let outer = if flow.journal.is_behind() { flow.step(Place::Flow, "outer") } else { outer };
        flow.settle();
        assert!(matches!(flow.poll(outer), CallPoll::Run { attempt: 2, .. }));
        let inner = flow.running(Place::Step(outer), "inner");
        assert_eq!(*flow.journal.path(inner).unwrap(), CallPath::top(1).child(2), "at a place of its own");
    }
}

#[test]
fn messages_lie_there_until_they_are_taken() {
    let channels = [Channel::signal("x")];
    let mut flow = Flow::new();
    let is_held = |flow: &Flow| {
        assert!(!flow.journal.holds_mail(&[Channel::signal("y")]));
        assert_eq!(flow.journal.heard(&channels), if flow.journal.holds_mail(&channels) { vec![7] } else { vec![] });
        flow.journal.holds_mail(&channels)
    };
    assert!(!is_held(&flow));
    assert_eq!(flow.journal.mail_seen(&channels[0]), 0);
    flow.journal.receive([message(7)]);
    assert_eq!((flow.journal.mail_seen(&channels[0]), flow.journal.mail_seen(&Channel::children())), (7, 0));
    assert!(is_held(&flow), "nobody waits for it");
    let signal = flow.signal(Place::Flow, "x");
    flow.settle();
    assert!(flow.journal.release(NOW) && is_held(&flow), "it is not taken yet");
    flow.poll(signal);
    assert!(!is_held(&flow));
    flow.flush();
    let mut flow = Flow::with(flow.history);
    flow.journal.receive([message(7)]);
    assert!(is_held(&flow), "the code has not come to it");
}

/// A flow whose body has got a message and let go of it.
fn let_go() -> (Flow, CallId) {
    let mut flow = Flow::new();
    let outer = flow.running(Place::Flow, "outer");
    let signal = flow.signal(Place::Step(outer), "x");
    flow.settle();
    flow.journal.receive([message(7)]);
    assert!(!flow.journal.release(NOW), "what a body goes on with must be durable first");
    flow.flush();
    assert!(flow.journal.release(NOW));
    flow.journal.drop_call(signal);
    (flow, outer)
}

/// Another attempt of that body waits again: the wait.
fn attempt(flow: &mut Flow, outer: CallId, attempt: u32) -> CallId {
    flow.settle();
    assert!(matches!(flow.poll(outer), CallPoll::Run { attempt: which, .. } if which == attempt));
    let signal = flow.signal(Place::Step(outer), "x");
    flow.settle();
    signal
}

#[test]
fn a_body_finds_the_message_again_that_it_let_go_of() {
    let (mut flow, outer) = let_go();
    flow.journal.attempt_failed(outer, Bytes::new(), NOW, NOW);
    flow.flush();
    let mut next = Flow::with(flow.history.clone());
    next.journal.receive([message(7)]);
    let again = next.step(Place::Flow, "outer");
    for (mut flow, outer) in [(flow, outer), (next, again)] {
        let signal = attempt(&mut flow, outer, 2);
        assert_eq!(flow.take(signal), Phase::Completed);
        assert_eq!(flow.flush().consumed, [7]);
        flow.finish(outer, Phase::Completed);
        assert!(!flow.journal.holds_mail(&[Channel::signal("x")]), "what was taken is not given back");
    }
}

#[test]
fn a_message_that_a_body_let_go_of_is_anyones() {
    let (mut flow, outer) = let_go();
    let signal = flow.signal(Place::Flow, "x");
    flow.settle();
    assert_eq!(flow.take(signal), Phase::Completed);
    assert_eq!(flow.flush().consumed, [7]);
    let next = Flow::with(flow.history.clone());
    // The record of the body's wait answers nothing any more, neither in this attempt …
    let signal = flow.signal(Place::Step(outer), "x");
    flow.settle();
    flow.flush();
    assert!(!flow.journal.release(NOW));
    assert!(matches!(flow.poll(signal), CallPoll::Pending));
    // … nor in the next life.
    let mut flow = next;
    let outer = flow.step(Place::Flow, "outer");
    let taken = flow.signal(Place::Flow, "x");
    flow.settle();
    assert_eq!(flow.take(taken), Phase::Completed);
    assert!(!flow.journal.release(NOW));
    let signal = attempt(&mut flow, outer, 1);
    assert!(!flow.journal.release(NOW));
    assert!(matches!(flow.poll(signal), CallPoll::Pending));
}

#[test]
fn a_message_that_another_has_taken_is_not_found_again_by_a_later_attempt() {
    for asks_first in [false, true] {
        let (mut flow, outer) = let_go();
        flow.journal.attempt_failed(outer, Bytes::new(), NOW, NOW);
        flow.flush();
        flow.settle();
        if asks_first {
            // The body's calls are matched from its first one on.
            flow.running(Place::Step(outer), "inner");
        }
        let taken = flow.signal(Place::Flow, "x");
        flow.settle();
        assert_eq!(flow.take(taken), Phase::Completed);
        let signal = attempt(&mut flow, outer, 2);
        flow.flush();
        assert!(!flow.journal.release(NOW));
        assert!(matches!(flow.poll(signal), CallPoll::Pending), "{asks_first}");
    }
}

#[test]
fn a_child_that_another_life_has_started_is_not_taken_for_this_one() {
    let mut flow = Flow::new();
    let call = flow.call(Place::Flow, CallKind::Child, "Child", child(false));
    flow.settle();
    let ended = |seq, id: &str| {
        let origin = Message::origin(&CallPath::top(1), &FlowId::new(id).unwrap());
        Message::new(seq, Channel::children(), NOW, Bytes::new()).with_child(ChildOutcome::Completed, &origin)
    };
    flow.journal.receive([ended(1, "other")]);
    assert!(!flow.journal.release(NOW));
    assert_eq!(flow.flush().consumed, [1]);
    flow.journal.receive([ended(2, "child")]);
    assert_eq!(flow.take(call), Phase::Completed);
}

#[test]
fn a_message_stays_a_bodys_while_its_attempt_goes_on() {
    let mut flow = Flow::new();
    let outer = flow.running(Place::Flow, "outer");
    flow.signal(Place::Step(outer), "x");
    flow.settle();
    flow.journal.receive([message(7)]);
    assert!(!flow.journal.release(NOW));
    flow.beat(outer, "1", NOW);
    let other = flow.running(Place::Flow, "other");
    flow.journal.attempt_failed(other, Bytes::new(), after(1_000), NOW);
    flow.flush();
    for ended in [false, true] {
        if ended {
            flow.journal.attempt_failed(outer, Bytes::new(), after(1_000), NOW);
            flow.flush();
        }
        let mut next = Flow::with(flow.history.clone());
        next.journal.receive([message(7)]);
        next.step(Place::Flow, "outer");
        next.step(Place::Flow, "other");
        next.signal(Place::Flow, "x");
        next.settle();
        assert_eq!(next.journal.release(NOW), ended);
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn after(millis: u64) -> Timestamp {
    NOW.saturating_add(Duration::from_millis(millis))
}

impl Flow {
    /// A step of the flow with these limits whose body runs.
    fn limited(&mut self, limit: Option<Duration>, silence: Option<Duration>) -> CallId {
        let id = self.call(Place::Flow, CallKind::Step, "a", Spec::Step { limit, silence, repeat: Repeat::Allowed });
        self.settle();
        id
    }

    /// Its body sends a heartbeat.
    fn beat(&mut self, id: CallId, progress: &'static str, now: Timestamp) {
        let path = self.journal.path(id).unwrap().clone();
        assert!(self.journal.beat(Place::Step(id), &path, 1, Bytes::from(progress), now));
    }
}

#[test]
fn only_the_attempt_that_runs_sends_heartbeats() {
    let mut flow = Flow::new();
    let step = flow.step(Place::Flow, "a");
    flow.journal.seal(NOW).unwrap();
    let (own, other) = (CallPath::top(1), CallPath::top(2));
    let beat = |flow: &mut Flow, place, path, attempt| flow.journal.beat(place, path, attempt, Bytes::new(), NOW);
    assert!(!beat(&mut flow, Place::Step(step), &own, 1), "it does not run yet");
    flow.settle();
    assert!(!beat(&mut flow, Place::Flow, &own, 1));
    assert!(!beat(&mut flow, Place::Step(step), &other, 1));
    assert!(!beat(&mut flow, Place::Step(step), &own, 2));
    assert!(beat(&mut flow, Place::Step(step), &own, 1));
}

#[test]
fn heartbeats_are_written_an_interval_apart() {
    let mut flow = Flow::new();
    let step = flow.limited(None, None);
    assert_eq!(flow.journal.beats_due(), None);
    flow.beat(step, "1", NOW);
    assert_eq!(flow.journal.beats_due(), Some(NOW));
    flow.journal.write_beats(NOW);
    assert!(flow.journal.has_batch());
    let batch = flow.flush();
    let [record] = &batch.records[..] else { panic!("{batch:?}") };
    assert_eq!((record.phase, record.attempt, &record.payload[..]), (Phase::Pending, 1, &b"1"[..]));
    // The next ones take its place, later.
    flow.beat(step, "2", after(100));
    flow.beat(step, "3", after(200));
    flow.journal.write_beats(after(900));
    assert!(!flow.journal.has_batch());
    assert_eq!(flow.journal.beats_due(), Some(after(1_000)));
    flow.journal.write_beats(after(1_001));
    assert_eq!(flow.journal.last(), Some((1, after(200))));
    flow.beat(step, "4", after(1_050));
    assert_eq!(flow.journal.beats_due(), Some(after(2_000)));
    // One that comes along with something else does not make the next one late.
    let batch = flow.flush();
    let [beat] = &batch.beats[..] else { panic!("{batch:?}") };
    assert_eq!((beat.seq, beat.at, &beat.payload[..]), (1, after(1_050), &b"4"[..]));
    flow.beat(step, "5", after(1_100));
    assert_eq!(flow.journal.beats_due(), Some(after(2_050)));
}

#[test]
fn bodies_beat_side_by_side() {
    let mut flow = Flow::new();
    let steps = [flow.limited(None, None), flow.limited(None, None)];
    for (progress, at) in [("1", NOW), ("2", after(2_000))] {
        for step in steps {
            flow.beat(step, progress, at);
        }
        flow.journal.write_beats(at);
        let batch = flow.flush();
        assert_eq!(batch.records.len() + batch.beats.len(), 2, "{batch:?}");
    }
}

#[test]
fn the_last_heartbeat_of_a_failed_attempt_is_written_and_that_of_a_completed_one_is_not() {
    let mut flow = Flow::new();
    let begun = |flow: &mut Flow| {
        let step = flow.limited(None, Some(SECOND * 10));
        flow.beat(step, "1", NOW);
        flow.flush();
        flow.beat(step, "2", after(100));
        step
    };
    let step = begun(&mut flow);
    flow.finish(step, Phase::Completed);
    assert_eq!(flow.journal.beats_due(), None);
    assert!(flow.flush().beats.is_empty());
    let step = begun(&mut flow);
    flow.journal.attempt_failed(step, Bytes::new(), after(200), after(200));
    assert_eq!(flow.journal.beats_due(), None);
    let batch = flow.flush();
    assert_eq!((batch.beats.len(), &batch.beats[0].payload[..]), (1, &b"2"[..]));
    // The first one of the next attempt is written at once.
    assert!(flow.journal.wants_grant(after(300)));
    flow.journal.grant(after(300));
    let path = flow.journal.path(step).unwrap().clone();
    assert!(flow.journal.beat(Place::Step(step), &path, 2, Bytes::from("3"), after(400)));
    assert_eq!(flow.journal.beats_due(), Some(after(400)));
}

#[test]
fn a_heartbeat_leaves_the_time_limit_in_the_history() {
    let mut first = Flow::new();
    let step = first.limited(Some(SECOND), None);
    first.signal(Place::Step(step), "x");
    first.settle();
    first.flush();
    assert_eq!(first.history[0].due_at, Some(after(1_000)));
    let mut second = Flow::with(first.history);
    let step = second.limited(Some(SECOND), None);
    second.beat(step, "1", after(500));
    assert_eq!(second.flush().records[0].due_at, Some(after(1_000)));
}

#[test]
fn a_body_without_a_sign_of_life_is_told_so() {
    let mut flow = Flow::new();
    let step = flow.limited(None, Some(SECOND * 10));
    assert!(matches!(flow.poll(step), CallPoll::Run { time_is_up: None, .. }));
    assert_eq!(flow.journal.wake().at, Some(after(10_000)));
    let inner = flow.running(Place::Step(step), "inner");
    let path = flow.journal.path(inner).unwrap().clone();
    assert!(flow.journal.beat(Place::Step(inner), &path, 1, Bytes::new(), after(5_000)), "a sign of both");
    flow.journal.drop_call(inner);
    assert!(!flow.journal.release(after(10_000)));
    assert_eq!(flow.journal.wake().at, Some(after(15_000)));
    assert!(flow.journal.release(after(15_000)));
    assert!(matches!(flow.poll(step), CallPoll::Run { time_is_up: Some(TimeUp::Silence), .. }));
}

#[test]
fn silence_is_told_from_a_limit() {
    let mut flow = Flow::new();
    let step = flow.limited(Some(SECOND * 60), Some(SECOND * 10));
    assert!(flow.journal.release(after(10_000)));
    assert!(matches!(flow.poll(step), CallPoll::Run { time_is_up: Some(TimeUp::Silence), .. }));
}

#[test]
fn a_body_may_be_silent_while_it_waits_for_calls_of_its_own() {
    let clock = ManualClock::new();
    let mut flow = Flow::new();
    let step = flow.limited(Some(SECOND * 60), Some(SECOND * 10));
    flow.signal(Place::Step(step), "x");
    flow.settle();
    flow.journal.note_wakers(step, 1, Waker::noop(), &clock);
    assert_eq!(flow.journal.wake().at, Some(after(60_000)));
    clock.set(after(30_000));
    flow.journal.note_wakers(step, 2, Waker::noop(), &clock);
    assert_eq!(flow.journal.wake().at, Some(after(40_000)));
    assert!(!flow.journal.release(after(40_000)), "one of its own calls is open");
    assert_eq!(flow.journal.wake().at, Some(after(50_000)));
    assert!(!flow.journal.release(after(50_000)));
    assert!(flow.journal.release(after(60_000)));
    assert!(matches!(flow.poll(step), CallPoll::Run { time_is_up: Some(TimeUp::Limit), .. }));
}

#[test]
fn a_body_that_was_dropped_before_it_began_does_not_begin() {
    let mut flow = Flow::new();
    let steps = ["a", "b"].map(|name| flow.step_with(Place::Flow, name, Repeat::Never));
    flow.journal.seal(NOW).unwrap();
    assert!(flow.journal.wants_grant(NOW));
    flow.journal.intend(NOW);
    flow.journal.drop_call(steps[0]);
    flow.flush();
    flow.journal.grant(NOW);
    assert!(matches!(flow.poll(steps[1]), CallPoll::Run { .. }));
    assert!(!flow.journal.has_intended());
}

#[test]
fn calls_made_at_once_have_the_same_places_in_whatever_order_they_were_made() {
    let step = |flow: &mut Flow, name: &str| flow.step(Place::Flow, name);
    let mut first = Flow::new();
    let calls = ["b", "a", "c"].map(|name| step(&mut first, name));
    first.settle();
    let paths = calls.map(|call| first.journal.path(call).cloned());
    assert_eq!(paths, [2, 1, 3].map(|position| Some(CallPath::top(position))));
    first.finish(calls[2], Phase::Completed);
    first.flush();
    let history = first.history;

    // The code rested between two calls then, and does not now.
    let mut first = Flow::new();
    first.ended("b", Phase::Completed);
    first.ended("a", Phase::Completed);
    let mut next = Flow::with(first.history);
    let calls = ["a", "b"].map(|name| step(&mut next, name));
    next.settle();
    assert_eq!(next.journal.path(calls[0]), Some(&CallPath::top(2)));
    assert_eq!(next.journal.path(calls[1]), Some(&CallPath::top(1)));

    // Arguments differ, but this one is where the history has another call.
    let mut other = Flow::with(history);
    let calls = ["b", "a", "d"].map(|name| step(&mut other, name));
    assert_eq!(other.journal.first_made().map(|key| key.name), Some("b".into()));
    let divergence = other.journal.seal(NOW).unwrap_err();
    assert_eq!((divergence.path, divergence.called.map(|key| key.name)), (CallPath::top(3), Some("d".into())));
    assert_eq!(other.journal.path(calls[0]), None, "nothing takes effect");
}

#[test]
fn a_fork_takes_over_what_its_original_has_called_with_other_arguments() {
    let mut original = Flow::new();
    original.ended("a", Phase::Completed);
    original.ended("b", Phase::Completed);
    assert_eq!(original.journal.seq(), 2);
    let with_arguments = |flow: &mut Flow, name: &str, args_hash| {
        let spec = Spec::Step { limit: None, silence: None, repeat: Repeat::Allowed };
        let key = CallKey { kind: CallKind::Step, name: name.into(), args_hash };
        flow.journal.call(Place::Flow, key, spec, Location::caller())
    };
    let fork = |seq| Record { kind: CallKind::Fork, ..Record::cancel(seq, NOW, "original", "") };
    let forked = |records: &[Record], seq| Flow::with([records, &[fork(seq)]].concat());
    let mut flow = forked(&original.history, 3);
    with_arguments(&mut flow, "a", 1);
    assert_eq!(flow.journal.seal(NOW), Ok(()));
    with_arguments(&mut flow, "c", 0);
    assert!(flow.journal.seal(NOW).is_err(), "it is another call");
    let mut flow = forked(&original.history, 3);
    with_arguments(&mut flow, "a", 1);
    with_arguments(&mut flow, "a", 2);
    assert!(flow.journal.seal(NOW).is_err(), "which of them is it?");
    let mut flow = Flow::with(original.history.clone());
    with_arguments(&mut flow, "a", 1);
    assert!(flow.journal.seal(NOW).is_err(), "it is no fork");
}

#[test]
fn steps_alone_do_not_mind_the_time() {
    let mut flow = Flow::new();
    assert!(!flow.journal.minds_time());
    let step = flow.step(Place::Flow, "a");
    assert!(!flow.journal.minds_time());
    flow.settle();
    assert!(!flow.journal.minds_time());
    let signal = flow.made(Place::Step(step), CallKind::Signal, "x", Spec::Signal { limit: None });
    assert!(flow.journal.minds_time(), "a body has made a call");
    flow.journal.drop_call(signal);
    flow.finish(step, Phase::Completed);
    assert!(!flow.journal.minds_time());
    let timer = flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::At(NOW)));
    assert!(flow.journal.minds_time(), "an instant is reckoned from it");
    flow.journal.seal(NOW).unwrap();
    assert!(flow.journal.minds_time(), "a timer may be due");
    flow.journal.drop_call(timer);
    assert!(!flow.journal.minds_time());
    flow.journal.receive([message(1)]);
    assert!(flow.journal.minds_time(), "a message has come");

    let mut flow = Flow::new();
    flow.journal.patched("new", NOW);
    assert!(flow.journal.minds_time(), "a record is to be made");
    let mut flow = Flow::new();
    flow.call(Place::Flow, CallKind::Child, "Child", child(false));
    flow.settle();
    assert!(flow.journal.minds_time(), "a child may end");
}

#[test]
fn a_child_that_was_started_while_the_history_was_replayed_is_started_at_the_end() {
    let mut first = Flow::new();
    first.ended("a", Phase::Completed);
    let mut flow = Flow::with(first.history);
    flow.step(Place::Flow, "a");
    flow.call(Place::Flow, CallKind::Child, "Child", child(false));
    flow.journal.seal(NOW).unwrap();
    assert!(!flow.journal.has_batch());
    flow.journal.start_orphans(NOW);
    assert_eq!(flow.flush().children.len(), 1);
}

#[test]
fn a_wait_ends_by_what_comes_first() {
    let wait = |limit, name: &str, at, timer| {
        let mut flow = Flow::new();
        let timer = flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::At(timer)));
        let signal = flow.call(Place::Flow, CallKind::Signal, name, Spec::Signal { limit });
        flow.settle();
        flow.flush();
        flow.journal.receive([Message::new(1, Channel::signal(name), at, Bytes::new())]);
        assert!(flow.journal.release(after(10_000)));
        let last = flow.flush().records.pop().unwrap();
        assert_eq!(last.due_at.is_some(), last.kind == CallKind::Timer);
        assert_eq!(last.phase, Phase::Completed);
        let released = [timer, signal].map(|call| matches!(flow.poll(call), CallPoll::Ready(_)));
        assert!(released[0] != released[1]);
        released[1]
    };
    assert!(wait(None, "x", after(1_000), after(2_000)));
    assert!(wait(None, "x", after(1_000), after(1_000)), "a message goes first");
    assert!(!wait(None, "x", after(2_000), after(1_000)));
    assert!(wait(None, "ergon.x", after(2_000), after(1_000)), "unless it is the engine's own");
    assert!(wait(Some(Duration::ZERO), "x", after(2_000), after(1_000)), "who asks for what is there takes it");
}

#[test]
fn a_wait_ends_without_a_message_when_the_mailbox_was_read_since() {
    let mut flow = Flow::new();
    let signal = flow.call(Place::Flow, CallKind::Signal, "x", Spec::Signal { limit: Some(SECOND) });
    flow.settle();
    assert!(flow.journal.overdue(|| after(999)).is_empty());
    assert!(!flow.journal.release(after(1_000)), "one that came in time may be unread");
    let overdue = flow.journal.overdue(|| after(1_000));
    assert_eq!(overdue.len(), 1);
    flow.journal.looked(overdue);
    assert!(flow.journal.overdue(|| after(1_000)).is_empty());
    assert!(flow.journal.release(after(1_000)));
    assert!(matches!(flow.poll(signal), CallPoll::Ready(Outcome { phase: Phase::Failed, .. })));
}

#[test]
fn calls_nest_so_deep() {
    let mut flow = Flow::new();
    let mut place = Place::Flow;
    for _ in 0..CallPath::DEPTH_MAX {
        place = Place::Step(flow.running(place, "a"));
    }
    flow.step(place, "a");
    flow.journal.seal(NOW).unwrap();
    assert!(flow.journal.take_refusal().unwrap().message.starts_with("calls nest at most"));
}

// ---- cancellations ---------------------------------------------------------------------------------------

#[track_caller]
fn open(flow: &mut Flow) -> ScopeId {
    match flow.journal.open_cleanup_scope(Location::caller()) {
        Opened::Scope(id) => id,
        other => panic!("{other:?}"),
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn the_log_is_told_once_that_there_is_something_to_clean_up() {
    let mut flow = Flow::new();
    assert!(!flow.journal.is_flagged() && !flow.journal.has_scopes());
    let scope = open(&mut flow);
    assert!(flow.journal.is_flagged() && flow.journal.has_scopes());
    assert_eq!(flow.flush().cleanup, Cleanup::Needed);
    let other = open(&mut flow);
    assert!(!flow.journal.has_batch());
    flow.journal.close_cleanup_scope(scope);
    flow.journal.close_cleanup_scope(other);
    assert!(!flow.journal.has_scopes());

    let mut flow = Flow::new();
    flow.journal.knows_cleanup(Cleanup::None);
    assert!(!flow.journal.is_flagged());
    flow.journal.knows_cleanup(Cleanup::Needed);
    assert!(flow.journal.is_flagged());
    open(&mut flow);
    assert!(!flow.journal.has_batch());
}

#[test]
fn a_scope_comes_after_the_one_that_it_is_within() {
    let early = |flow: &mut Flow| open(flow);
    let open = |flow: &mut Flow| {
        let scopes = [(); 2].map(|()| open(flow));
        assert!(scopes[0] < scopes[1], "of one place, in the order in which they were opened");
        scopes[1]
    };
    let mut flow = Flow::new();
    let inner = open(&mut flow);
    assert!(inner.place().starts_with(file!()), "{}", inner.place());
    let outer = open(&mut flow);
    // The inner one was opened before, at an earlier place; as early as the outer one, and earlier.
    assert_eq!(flow.journal.put_within(inner), inner, "it is within none");
    assert_eq!(flow.journal.set_scope(Some(inner)), None);
    assert_eq!(flow.journal.put_within(inner), inner);
    assert_eq!(flow.journal.put_within(outer), outer, "it comes after it anyway");
    assert_eq!(flow.journal.set_scope(Some(outer)), Some(inner));
    let inner = flow.journal.put_within(inner);
    assert!(inner > outer);
    assert!(open(&mut flow) > outer);

    let mut flow = Flow::new();
    let inner = open(&mut flow);
    flow.ended("a", Phase::Completed);
    let outer = open(&mut flow);
    flow.journal.set_scope(Some(outer));
    assert!(early(&mut flow) > outer, "wherever it is opened");
    let inner = flow.journal.put_within(inner);
    assert!(inner > outer);
}

#[test]
fn a_cancelled_flow_makes_the_calls_of_its_clean_up_and_no_others() {
    let mut first = Flow::new();
    first.ended("a", Phase::Completed);
    let cancel = Record::cancel(2, after(1_000), Record::TIME_IS_UP, "too long");
    let records = [first.history, vec![cancel]].concat();

    let cancelled = |records: Vec<Record>| {
        let mut flow = Flow::with(records);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let scope = open(&mut flow);
        flow.flush();
        assert!(!flow.journal.is_turn_of(scope, &waker) && !flow.journal.begin_cleanup());
        assert!(flow.journal.missing_call().is_some(), "the code has not come to the cancellation");
        let step = flow.step(Place::Flow, "a");
        flow.settle();
        assert!(!flow.journal.begin_cleanup());
        assert!(flow.journal.release(NOW));
        flow.poll(step);
        assert_eq!(flow.journal.missing_call(), None);
        let over = flow.step(Place::Flow, "b");
        flow.settle();
        assert!(flow.journal.begin_cleanup() && flow.journal.is_cleaning_up());
        assert_eq!((woken.0.load(Ordering::Relaxed), flow.journal.now()), (1, after(1_000)));
        flow.settle();
        assert!(!flow.journal.is_turn_of(scope, &waker));
        assert!(flow.journal.begin_cleanup() && flow.journal.is_turn_of(scope, &waker));
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        // What was called before comes to nothing, and what is called outside of the clean-up as well.
        let position = flow.journal.next_position();
        flow.call(Place::Flow, CallKind::Timer, "", Spec::Timer(Due::At(NOW)));
        flow.settle();
        assert!(matches!(flow.poll(over), CallPoll::Pending) && !flow.journal.has_batch());
        assert_eq!(flow.journal.next_position(), position);
        assert!(!flow.journal.set_inside(true));
        flow
    };
    let mut flow = cancelled(records.clone());
    let cause = flow.journal.cleanup_cause().unwrap();
    assert!(cause.is_time_limit && &*cause.reason == "too long");
    flow.ended("undo", Phase::Completed);
    assert_eq!(flow.history.last().unwrap().path, CallPath::top(3));

    // In its next life it has the outcome, and it does not differ from its history before it comes to that.
    let mut flow = cancelled(flow.history);
    assert!(flow.journal.missing_call().is_some());
    let step = flow.step(Place::Flow, "undo");
    flow.settle();
    assert!(flow.journal.release(NOW) && matches!(flow.poll(step), CallPoll::Ready(_)));
}

#[test]
fn a_flow_has_come_to_its_clean_up_when_it_has_opened_what_the_log_knows_of() {
    let cancelled = |cleanup| {
        let mut flow = Flow::with(vec![Record::cancel(1, NOW, Record::CANCELLED, "")]);
        flow.journal.knows_cleanup(cleanup);
        flow
    };
    let mut flow = cancelled(Cleanup::Needed);
    assert!(flow.journal.misses_scopes() && !flow.journal.begin_cleanup());
    open(&mut flow);
    assert!(!flow.journal.misses_scopes() && flow.journal.begin_cleanup());
    let mut flow = cancelled(Cleanup::Needed);
    flow.step(Place::Flow, "a");
    assert!(!flow.journal.misses_scopes(), "it waits for a call, which the cancellation ends");
    assert!(!cancelled(Cleanup::None).journal.misses_scopes());
    let mut flow = Flow::new();
    flow.journal.knows_cleanup(Cleanup::Needed);
    assert!(!flow.journal.misses_scopes());
}

#[test]
fn a_clean_up_that_waits_for_an_ended_call_and_nothing_else_is_told_of() {
    let mut flow = Flow::with(vec![Record::cancel(1, NOW, Record::CANCELLED, "")]);
    assert!(matches!(flow.journal.cleaning_up(), CleaningUp::No));
    let scope = open(&mut flow);
    let over = flow.step(Place::Flow, "over");
    flow.settle();
    flow.flush();
    let drawn = flow.journal.draw();
    assert!(flow.journal.begin_cleanup() && flow.journal.begin_cleanup());
    assert_ne!(flow.journal.draw(), drawn, "a clean-up draws numbers of its own");
    assert!(matches!(flow.journal.cleaning_up(), CleaningUp::Unpolled(id) if id == scope));
    assert!(flow.journal.is_turn_of(scope, Waker::noop()));
    assert!(matches!(flow.journal.cleaning_up(), CleaningUp::Goes));
    flow.journal.set_inside(true);
    flow.poll(over);
    let is_stuck = |flow: &Flow| match flow.journal.cleaning_up() {
        CleaningUp::AwaitsOver(id, call) => id == scope && &*call.name == "over",
        _ => false,
    };
    assert!(is_stuck(&flow));
    let step = flow.step(Place::Flow, "undo");
    flow.journal.seal(NOW).unwrap();
    assert!(!is_stuck(&flow), "a body may start");
    flow.settle();
    assert!(!is_stuck(&flow), "a body runs");
    flow.journal.drop_call(step);
    assert!(is_stuck(&flow));
    let signal = flow.signal(Place::Flow, "x");
    flow.settle();
    assert!(!is_stuck(&flow), "a message may come");
    flow.journal.drop_call(signal);
    flow.journal.take_batch();
    assert!(!is_stuck(&flow), "a commit is under way");
    flow.journal.flushed();
    assert!(is_stuck(&flow));
    flow.journal.close_cleanup_scope(scope);
    assert!(matches!(flow.journal.cleaning_up(), CleaningUp::Done));
}

#[test]
fn a_message_that_a_body_was_handed_is_there_for_the_clean_up() {
    let mut first = Flow::new();
    let outer = first.running(Place::Flow, "outer");
    first.signal(Place::Step(outer), "x");
    first.settle();
    first.journal.receive([message(1)]);
    assert!(!first.journal.release(NOW));
    first.flush();

    let mut flow = Flow::with([first.history, vec![Record::cancel(2, NOW, Record::CANCELLED, "")]].concat());
    flow.journal.receive([message(1)]);
    open(&mut flow);
    flow.step(Place::Flow, "outer");
    flow.settle();
    assert!(flow.journal.begin_cleanup());
    flow.journal.set_inside(true);
    let signal = flow.signal(Place::Flow, "x");
    flow.settle();
    assert_eq!(flow.take(signal), Phase::Completed);
}

#[test]
fn a_message_that_was_released_and_not_taken_is_there_for_the_clean_up() {
    let mut first = Flow::new();
    let signal = first.signal(Place::Flow, "x");
    first.settle();
    first.journal.receive([message(1)]);
    assert_eq!(first.take(signal), Phase::Completed);
    first.flush();

    let mut flow = Flow::with([first.history, vec![Record::cancel(2, NOW, Record::CANCELLED, "")]].concat());
    flow.journal.receive([message(1)]);
    open(&mut flow);
    flow.signal(Place::Flow, "x");
    flow.settle();
    assert!(flow.journal.release(NOW) && flow.journal.hands_over());
    assert!(flow.journal.begin_cleanup() && !flow.journal.hands_over());
    flow.journal.set_inside(true);
    let signal = flow.signal(Place::Flow, "x");
    flow.settle();
    assert_eq!(flow.take(signal), Phase::Completed);
}

// ---- what it says ----------------------------------------------------------------------------------------

#[test]
fn a_divergence_tells_both_sides() {
    let key = |kind, name: &str, args_hash| Some(CallKey { kind, name: name.into(), args_hash });
    let check = |recorded, called, expected: &str| {
        let divergence = Divergence { path: CallPath::top(7), recorded, called };
        let text = divergence.to_string();
        let expected = format!("the code and the history part at call 7: {expected}; nothing is lost: undo");
        assert!(text.starts_with(&expected), "{text}");
    };
    let (a, b) = (|| key(CallKind::Step, "a", 1), || key(CallKind::Step, "b", 1));
    check(
        a(),
        b(),
        "the history has step \"a\" (arguments 0000000000000001), the code called step \"b\" (arguments 0000000000000001)",
    );
    check(
        a(),
        key(CallKind::Timer, "a", 1),
        "the history has step \"a\" (arguments 0000000000000001), the code called timer \"a\" (arguments 0000000000000001)",
    );
    check(
        a(),
        key(CallKind::Step, "a", 2),
        "the history has step \"a\" (arguments 0000000000000001), the code made the same call with other arguments, \
         step \"a\" (arguments 0000000000000002)",
    );
    check(
        key(CallKind::Child, "a", 1),
        key(CallKind::Child, "a", 2),
        "the history has child \"a\" (arguments 0000000000000001), the code made the same call with other arguments, \
         child \"a\" (arguments 0000000000000002) (if its value holds a HashSet: that has another order each time, take a \
         BTreeSet)",
    );
    check(a(), None, "the history has step \"a\" (arguments 0000000000000001), the code does not make that call");
    check(None, a(), "the history has nothing, the code called step \"a\" (arguments 0000000000000001)");
}
