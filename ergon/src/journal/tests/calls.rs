//! Calls: what they wait for, what they come to, and what another life finds of them.

use std::{panic::Location, time::Duration};

use bytes::Bytes;
use ergon_storage::{CallKind, CallPath, Channel, ChildOutcome, FlowId, ManualClock, Message, Phase, Record};

use super::{Flow, NOW, WAKER, child, message};
use crate::journal::{CallKey, CallPoll, Divergence, Due, Journal, Place, Repeat, Spec};

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
        flow.journal.note_wakers(id, held, WAKER, &clock);
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
    flow.journal.note_wakers(inner, 1, WAKER, &clock);
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
fn an_attempt_that_runs_at_most_once_is_lost_when_it_had_begun() {
    let mut flow = Flow::new();
    flow.step_with(Place::Flow, "once", Repeat::Never);
    flow.settle();
    let mut flow = Flow::with(flow.history);
    let once = flow.step_with(Place::Flow, "once", Repeat::Never);
    flow.settle();
    assert!(matches!(flow.poll(once), CallPoll::Lost { attempt: 1 }));
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
