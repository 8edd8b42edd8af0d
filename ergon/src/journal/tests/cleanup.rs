//! What a cancelled flow still does.

use std::{panic::Location, sync::Arc, sync::atomic::AtomicUsize, sync::atomic::Ordering, task::Wake, task::Waker};

use ergon_storage::{CallKind, CallPath, Cleanup, Phase, Record};

use super::{Flow, NOW, WAKER, after, message};
use crate::journal::{CallPoll, CleaningUp, Due, Opened, Place, ScopeId, Spec};

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
    assert!(flow.journal.is_turn_of(scope, WAKER));
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
