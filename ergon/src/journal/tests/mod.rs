//! What the journal answers, call by call: small flows that are driven by hand.

mod beats;
mod calls;
mod cleanup;
mod messages;

use std::{panic::Location, task::Waker, time::Duration};

use bytes::Bytes;
use ergon_storage::{CallKind, Channel, Feed, FlowId, Keep, Message, NewFlow, NewItem, Phase, Record, Timestamp};

use super::{Batch, CallId, CallKey, CallPoll, Journal, Place, Repeat, Spec};

/// A flow whose code is the test, with what is durable of it.
struct Flow {
    journal: Journal,
    history: Vec<Record>,
}

/// One for all of them: the address of its table tells wakers apart, and each unit of code may have one of its own.
static WAKER: &Waker = Waker::noop();
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
        self.journal.poll(id, WAKER)
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

fn child(detached: bool) -> Spec {
    Spec::Child { flow: Box::new(NewFlow::new(FlowId::new("child").unwrap(), "Child", 1, Bytes::new())), detached }
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
