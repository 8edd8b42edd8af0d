//! Messages: who is handed them, takes them, and lets go of them.

use std::time::Duration;

use bytes::Bytes;
use ergon_storage::{CallKind, Channel, Message, Phase};

use super::{Flow, NOW, SECOND, after, message};
use crate::journal::{CallId, CallPoll, Due, Outcome, Place, Repeat, Spec};

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
