//! The replay state machine: no clock, no runtime, no database.
//!
//! A [`Journal`] holds the history of one flow and the calls that its code has made so far. The driver polls the
//! flow's future in *passes*; between two passes it asks the journal to [`seal`](Journal::seal) the calls made in
//! the pass, to [`release`](Journal::release) at most one outcome, and to [`grant`](Journal::grant) the bodies
//! that may start. Everything that must become durable collects in a [`Batch`].
//!
//! Calls live in *scopes*. The flow's own scope is strict: its calls must match the history exactly, and its
//! outcomes are released in the order in which they were recorded. The scope of a step's body is lenient: a body
//! may do anything between its calls, so calls are matched by what they are, and whatever has no record runs.
//!
//! **Invariant:** an outcome is recorded before it is released, and flushed before the next body starts.
//! **Invariant:** the journal never reads a clock; every `now` is an argument.
//! **Invariant:** while recorded outcomes of the flow's scope wait to be released, no body starts, no wait ends
//! and nothing new is recorded.

mod history;
mod scope;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    panic::Location,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use ergon_storage::{CallKind, CallPath, Channel, ChildOutcome, Message, NewFlow, Phase, Record, Timestamp, Wake};
use slab::Slab;

use self::{
    history::{Recorded, RecordedOutcome},
    scope::Scope,
};

/// What makes two calls the same call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CallKey {
    pub(crate) kind: CallKind,
    pub(crate) name: Arc<str>,
    pub(crate) args_hash: u64,
}

/// A call made by the flow or by one of its steps, as long as its future lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CallId(usize);

/// Where a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the flow's own code.
    Flow,
    /// In the body of this step.
    Step(CallId),
}

/// What a call wants, beside its key.
#[derive(Debug)]
pub(crate) enum Spec {
    Step,
    Timer(Due),
    Signal { limit: Option<Duration> },
    Child { flow: Box<NewFlow>, detached: bool },
}

/// When a timer is due.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Due {
    After(Duration),
    At(Timestamp),
}

/// What a call's future gets when it is polled.
#[derive(Debug)]
pub(crate) enum CallPoll {
    /// Nothing yet; the waker will be woken.
    Pending,
    /// The body of a step may run, as this attempt.
    Run { attempt: u32, started_at: Timestamp },
    /// The outcome. The call has ended.
    Ready(Outcome),
}

/// A released outcome.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) phase: Phase,
    pub(crate) payload: Bytes,
}

/// What must become durable together, and before the next effect.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Record>,
    pub(crate) consumed: Vec<u32>,
    pub(crate) children: Vec<NewFlow>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.consumed.is_empty() && self.children.is_empty()
    }
}

/// Where the code of a flow and its history part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Divergence {
    /// The place in question.
    pub(crate) path: CallPath,
    /// What the history holds there; `None` when it holds nothing.
    pub(crate) recorded: Option<CallKey>,
    /// What the code called there; `None` when it called nothing.
    pub(crate) called: Option<CallKey>,
}

/// Why a call cannot be made at all. The flow fails with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) call: CallKey,
    pub(crate) message: String,
}

#[derive(Debug)]
struct Call {
    place: Place,
    key: CallKey,
    spec: Spec,
    location: &'static Location<'static>,
    /// Rises with every call; orders those who wait for the same thing.
    made: u64,
    path: Option<CallPath>,
    state: State,
    polled: bool,
    /// Its future is gone, but it takes effect all the same: a child that was started.
    orphan: bool,
    /// Its body runs, but waits for nothing other than calls of its own.
    quiet: bool,
    /// Failed attempts so far.
    attempts: u32,
    /// The number of the last failed attempt's record; 0 when there is none.
    attempt_seq: u32,
    started_at: Timestamp,
    waker: Option<Waker>,
    /// For a child its flow id.
    reference: Option<Arc<str>>,
}

#[derive(Debug)]
enum State {
    /// Made in this pass; its place is not known yet.
    Made,
    /// Made and dropped in one pass; keeps its place until the seal.
    Abandoned,
    /// Its outcome is recorded and waits for its turn in the replay.
    Replaying { at: Timestamp, outcome: Outcome },
    /// Sealed during the replay without a record; takes effect when the replay is over.
    Unrecorded,
    /// A step whose body may start once it is polled and everything before it is durable.
    Idle,
    /// A step that waits for its next attempt.
    Backoff(Timestamp),
    /// A step whose body runs.
    Running,
    /// A wait, perhaps with an instant at which it ends.
    Waiting { due: Option<Timestamp> },
    /// The outcome is recorded under this number and waits for its release.
    Recorded { seq: u32, at: Timestamp, outcome: Outcome },
    /// The outcome may be taken. A signal taken from the mailbox in this pass is kept until then.
    Released { outcome: Outcome, message: Option<Message> },
}

/// The history and the open calls of one flow.
#[derive(Debug)]
pub(crate) struct Journal {
    root: Scope,
    /// The scopes of the bodies that made calls.
    nested: HashMap<CallId, Scope>,
    /// The records of nested calls, by the path of the enclosing one, kept until that one has its outcome.
    nested_records: HashMap<CallPath, Vec<Record>>,
    calls: Slab<Call>,
    made: u64,

    /// The recorded outcomes of the flow's scope that are still to be released, by number and position.
    replay: VecDeque<(u32, u32)>,
    /// The calls that were matched with them; `None` once such a call was dropped.
    matched: HashMap<u32, Option<CallId>>,
    /// Calls made during the replay that have no record.
    unrecorded: BTreeSet<CallId>,
    /// Recorded outcomes that wait for their release after the replay, in order.
    fresh: BTreeMap<u32, CallId>,

    /// Steps whose bodies may start.
    startable: BTreeSet<CallId>,
    /// Calls with an instant.
    timers: BTreeSet<(Timestamp, CallId)>,
    /// Signals that are awaited, those who wait in order.
    signals: BTreeMap<Channel, BTreeSet<(u64, CallId)>>,
    /// Children that are awaited, by the path of the call.
    children: HashMap<CallPath, CallId>,
    /// Messages that nobody has taken yet.
    mail: BTreeMap<Channel, BTreeMap<u32, Message>>,
    /// The last message that arrived on each channel.
    mail_seen: BTreeMap<Channel, u32>,
    /// Bodies that run and wait for something that the journal does not know.
    busy: usize,

    seq: u32,
    batch: Batch,
    in_flight: bool,
    /// When the last released outcome was recorded: the time that the flow's code sees.
    now: Timestamp,
    releases: u64,
    /// Random numbers drawn since.
    draws: u64,
    refusal: Option<Refusal>,
}

impl Journal {
    /// The journal of a flow with this history (in order and complete), which began at `began_at`.
    pub(crate) fn new(history: Vec<Record>, began_at: Timestamp) -> Self {
        let seq = history.last().map_or(0, |record| record.seq);
        let loaded = history::load(history);
        Self {
            root: Scope::strict(loaded.root),
            nested: HashMap::new(),
            nested_records: loaded.nested,
            calls: Slab::new(),
            made: 0,
            replay: loaded.outcomes.into(),
            matched: HashMap::new(),
            unrecorded: BTreeSet::new(),
            fresh: BTreeMap::new(),
            startable: BTreeSet::new(),
            timers: BTreeSet::new(),
            signals: BTreeMap::new(),
            children: HashMap::new(),
            mail: BTreeMap::new(),
            mail_seen: BTreeMap::new(),
            busy: 0,
            seq,
            batch: Batch::default(),
            in_flight: false,
            now: began_at,
            releases: 0,
            draws: 0,
            refusal: None,
        }
    }

    // ---- called by the flow's code -----------------------------------------------------------------------

    /// Makes a call. Its place is settled at the next [`seal`](Self::seal).
    pub(crate) fn call(
        &mut self,
        place: Place,
        key: CallKey,
        spec: Spec,
        location: &'static Location<'static>,
    ) -> CallId {
        self.made += 1;
        let reference = match &spec {
            Spec::Child { flow, .. } => Some(Arc::from(flow.id.as_str())),
            _ => None,
        };
        let id = CallId(self.calls.insert(Call {
            place,
            key,
            spec,
            location,
            made: self.made,
            path: None,
            state: State::Made,
            polled: false,
            orphan: false,
            quiet: false,
            attempts: 0,
            attempt_seq: 0,
            started_at: self.now,
            waker: None,
            reference,
        }));
        match place {
            Place::Flow => self.root.group.push(id),
            Place::Step(owner) => self.open_scope(owner).group.push(id),
        }
        id
    }

    /// The number that the next call of the flow's scope will most likely have.
    pub(crate) fn next_position(&self) -> u32 {
        self.root.next_position + u32::try_from(self.root.group.len()).unwrap_or(u32::MAX)
    }

    /// Asks for the outcome of a call, or whether its body may run.
    pub(crate) fn poll(&mut self, id: CallId, waker: &Waker) -> CallPoll {
        let Some(call) = self.calls.get_mut(id.0) else { return CallPoll::Pending };
        if let State::Released { .. } = call.state {
            let call = self.remove(id);
            let State::Released { outcome, .. } = call.state else { return CallPoll::Pending };
            return CallPoll::Ready(outcome);
        }
        if !call.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            call.waker = Some(waker.clone());
        }
        if let State::Running = call.state {
            return CallPoll::Run { attempt: call.attempts + 1, started_at: call.started_at };
        }
        if !call.polled {
            call.polled = true;
            self.watch_for(id);
        }
        CallPoll::Pending
    }

    /// Forgets a call whose future was dropped. What it would have consumed stays where it is.
    pub(crate) fn drop_call(&mut self, id: CallId) {
        if !self.calls.contains(id.0) {
            return;
        }
        let call = &mut self.calls[id.0];
        match (&call.state, &call.spec) {
            (State::Made | State::Unrecorded, Spec::Child { .. }) => {
                call.orphan = true;
                return;
            }
            // A call counts from the moment it is made, even when nothing ever comes of it.
            (State::Made, _) => {
                call.state = State::Abandoned;
                return;
            }
            _ => {}
        }
        self.unwatch(id);
        let call = self.remove(id);
        match call.state {
            State::Replaying { .. } => {
                if let Some(path) = &call.path {
                    self.matched.insert(path.position(), None);
                }
            }
            State::Unrecorded => {
                self.unrecorded.remove(&id);
            }
            State::Running => self.busy -= usize::from(!call.quiet),
            State::Recorded { seq, .. } => {
                self.fresh.remove(&seq);
            }
            State::Released { message: Some(message), .. } => {
                // Handed over but never taken, within one pass: the message goes back unconsumed. Its record
                // stays, and a replay hands it to the same call, which drops it again.
                self.batch.consumed.retain(|seq| *seq != message.seq);
                self.mail.entry(message.channel.clone()).or_default().insert(message.seq, message);
            }
            State::Made
            | State::Abandoned
            | State::Idle
            | State::Backoff(_)
            | State::Waiting { .. }
            | State::Released { .. } => {}
        }
    }

    /// The path of a call, once it is sealed.
    pub(crate) fn path(&self, id: CallId) -> Option<&CallPath> {
        self.calls.get(id.0)?.path.as_ref()
    }

    /// Gives a signal that was made in this pass a time limit, which is part of its identity. False when its
    /// place is settled already.
    pub(crate) fn set_limit(&mut self, id: CallId, limit: Duration, args_hash: u64) -> bool {
        match self.calls.get_mut(id.0) {
            Some(call) if matches!(call.state, State::Made) => {
                call.spec = Spec::Signal { limit: Some(limit) };
                call.key.args_hash = args_hash;
                true
            }
            _ => false,
        }
    }

    /// The flow id of a child, as the history has it.
    pub(crate) fn child_id(&self, id: CallId) -> Option<Arc<str>> {
        self.calls.get(id.0)?.reference.clone()
    }

    /// The time as the flow's code sees it: when the last released outcome was recorded.
    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// Two numbers that no other draw of the flow's own code has: how many outcomes were released to it so far,
    /// and how many draws there were since.
    pub(crate) fn draw(&mut self) -> (u64, u64) {
        let draw = self.draws;
        self.draws += 1;
        (self.releases, draw)
    }

    // ---- called by a step's future while its body runs ---------------------------------------------------

    /// Records the outcome of a running step.
    pub(crate) fn finish(&mut self, id: CallId, phase: Phase, payload: Bytes, now: Timestamp) {
        debug_assert!(phase.is_outcome(), "a step ends with an outcome");
        let call = &mut self.calls[id.0];
        debug_assert!(matches!(call.state, State::Running), "only a running step ends");
        self.busy -= usize::from(!call.quiet);
        self.close_scope(id);
        // With its outcome recorded, nothing below the step is ever asked for again.
        if let Some(path) = &self.calls[id.0].path {
            self.nested_records.remove(path);
        }
        let attempt = self.calls[id.0].attempts + 1;
        let record = Record { attempt, payload: payload.clone(), ..self.record(id, phase, now) };
        let seq = self.append(record);
        self.calls[id.0].state = State::Recorded { seq, at: now, outcome: Outcome { phase, payload } };
        self.fresh.insert(seq, id);
    }

    /// Records a failed attempt of a running step; the next one may begin at `retry_at`.
    pub(crate) fn attempt_failed(&mut self, id: CallId, error: Bytes, retry_at: Timestamp, now: Timestamp) {
        let call = &mut self.calls[id.0];
        debug_assert!(matches!(call.state, State::Running), "only a running step fails");
        self.busy -= usize::from(!call.quiet);
        self.close_scope(id);
        let attempt = self.calls[id.0].attempts + 1;
        let record = Record { attempt, payload: error, due_at: Some(retry_at), ..self.record(id, Phase::Attempt, now) };
        let seq = self.append(record);
        let call = &mut self.calls[id.0];
        call.attempts = attempt;
        call.attempt_seq = seq;
        call.state = State::Backoff(retry_at);
        self.timers.insert((retry_at, id));
    }

    /// Notes what the body of a running step waits for, by how many wakers of it are held anywhere: a body all of
    /// whose wakers are held by calls of its own can be left alone until one of those has its outcome.
    pub(crate) fn note_wakers(&mut self, id: CallId, held: usize) {
        let known = if self.nested.contains_key(&id) {
            let own = self.calls.iter().map(|(_, call)| call).filter(|call| call.place == Place::Step(id));
            // A quiet body holds its waker once more, to pass on what wakes it.
            own.map(|call| usize::from(call.waker.is_some()) + usize::from(call.quiet)).sum()
        } else {
            0
        };
        let quiet = known > 0 && held <= known;
        let call = &mut self.calls[id.0];
        if quiet != call.quiet {
            call.quiet = quiet;
            if quiet { self.busy -= 1 } else { self.busy += 1 }
        }
    }

    // ---- called by the driver between two passes ---------------------------------------------------------

    /// Settles the places of the calls made since the last time, and lets those take effect that may.
    ///
    /// Returns the first call of the flow's own scope, if one was made.
    pub(crate) fn seal(&mut self, now: Timestamp) -> Result<Option<CallKey>, Divergence> {
        let group = std::mem::take(&mut self.root.group);
        let first = group.iter().find_map(|id| self.calls.get(id.0)).map(|call| call.key.clone());
        if !group.is_empty() {
            self.seal_strict(group, now)?;
        }
        if !self.nested.is_empty() {
            self.seal_nested(now);
        }
        Ok(first)
    }

    /// Releases the next outcome, if there is one, and wakes the call that awaits it.
    pub(crate) fn release(&mut self, now: Timestamp) -> bool {
        while let Some(&(_, position)) = self.replay.front() {
            match self.matched.get(&position) {
                None => return false,
                Some(None) => {
                    self.replay.pop_front();
                    self.matched.remove(&position);
                }
                Some(Some(id)) => {
                    let id = *id;
                    self.replay.pop_front();
                    self.matched.remove(&position);
                    if let State::Replaying { at, outcome } = self.take_state(id) {
                        self.hand_over(id, at, outcome, None);
                    }
                    return true;
                }
            }
        }
        for id in std::mem::take(&mut self.unrecorded) {
            self.activate(id, now);
        }
        self.take_children(now);
        if let Some((_, id)) = self.fresh.pop_first() {
            if let State::Recorded { at, outcome, .. } = self.take_state(id) {
                self.hand_over(id, at, outcome, None);
            }
            return true;
        }
        self.fire(now)
    }

    /// Lets the bodies start that may, now that everything before them is durable. False when there is none.
    pub(crate) fn grant(&mut self, now: Timestamp) -> bool {
        debug_assert!(!self.must_flush(), "effects come after the flush");
        let startable = std::mem::take(&mut self.startable);
        for id in &startable {
            let call = &mut self.calls[id.0];
            call.state = State::Running;
            call.started_at = now;
            call.quiet = false;
            self.busy += 1;
            if let Some(waker) = &call.waker {
                waker.wake_by_ref();
            }
        }
        !startable.is_empty()
    }

    /// True when a body could start.
    pub(crate) fn wants_grant(&mut self, now: Timestamp) -> bool {
        // A backoff that is over turns into a step that may start.
        while let Some(&(due, id)) = self.timers.first() {
            if due > now || !matches!(self.calls[id.0].state, State::Backoff(_)) {
                break;
            }
            self.timers.pop_first();
            self.calls[id.0].state = State::Idle;
            self.startable.insert(id);
        }
        !self.is_replaying() && !self.startable.is_empty()
    }

    /// True while something is not durable yet.
    pub(crate) fn must_flush(&self) -> bool {
        self.in_flight || !self.batch.is_empty()
    }

    /// True when there is something to be written that is not being written.
    pub(crate) fn has_batch(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Takes what is to be written; until [`flushed`](Self::flushed), nothing else may be taken.
    pub(crate) fn take_batch(&mut self) -> Batch {
        debug_assert!(!self.in_flight, "one commit at a time");
        self.in_flight = true;
        std::mem::take(&mut self.batch)
    }

    /// What was taken is durable.
    pub(crate) fn flushed(&mut self) {
        self.in_flight = false;
    }

    /// True while recorded outcomes of the flow's scope wait for their release.
    pub(crate) fn is_replaying(&self) -> bool {
        !self.replay.is_empty()
    }

    /// How the code and the history differ, judged when the flow can go no further: everything that left a
    /// record must have been called by now.
    pub(crate) fn missing_call(&self) -> Option<Divergence> {
        let recorded = self.root.recorded.first_key_value()?.1;
        Some(Divergence { path: recorded.path.clone(), recorded: Some(recorded.key.clone()), called: None })
    }

    /// True while bodies run that wait for something of their own.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy > 0
    }

    /// What would let the flow go on: the earliest instant and the channels that it waits for.
    pub(crate) fn wake(&self) -> Wake {
        let mut channels: Vec<_> = self.signals.keys().cloned().collect();
        if !self.children.is_empty() {
            channels.push(Channel::children());
        }
        Wake { at: self.timers.first().map(|(due, _)| *due), channels }
    }

    /// Adds messages from the mailbox, in the order of their numbers. Those known already are passed over.
    pub(crate) fn receive(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            let seen = self.mail_seen.entry(message.channel.clone()).or_default();
            if message.seq > *seen {
                *seen = message.seq;
                self.mail.entry(message.channel.clone()).or_default().insert(message.seq, message);
            }
        }
    }

    /// The number of the last message that arrived on this channel.
    pub(crate) fn mail_seen(&self, channel: &Channel) -> u32 {
        self.mail_seen.get(channel).copied().unwrap_or(0)
    }

    /// The number of the last record, durable or not.
    pub(crate) fn seq(&self) -> u32 {
        self.seq
    }

    /// The first call that could not be made, if any.
    pub(crate) fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
    }

    // ---- sealing -----------------------------------------------------------------------------------------

    fn seal_strict(&mut self, mut group: Vec<CallId>, now: Timestamp) -> Result<(), Divergence> {
        self.sort_group(&mut group);
        let first = self.root.next_position;
        let count = u32::try_from(group.len()).unwrap_or(u32::MAX);
        self.root.next_position = first.saturating_add(count);
        // First the calls that are where the history has them. Then, for each record that is left, a call that is
        // the same but was made at another place of the group, for a combinator may have polled its branches in
        // another order …
        let mut places: Vec<Option<u32>> = vec![None; group.len()];
        let recorded: Vec<u32> = self.root.recorded.range(first..first + count).map(|(at, _)| *at).collect();
        let mut taken = BTreeSet::new();
        if !recorded.is_empty() {
            let same = |id: CallId, at: u32| self.root.recorded[&at].key == self.calls[id.0].key;
            for at in &recorded {
                let index = (at - first) as usize;
                if same(group[index], *at) {
                    places[index] = Some(*at);
                    taken.insert(*at);
                }
            }
            for at in recorded.iter().filter(|at| !taken.contains(*at)).copied().collect::<Vec<_>>() {
                let moved = (0..group.len()).find(|index| places[*index].is_none() && same(group[*index], at));
                if let Some(index) = moved {
                    places[index] = Some(at);
                    taken.insert(at);
                }
            }
        }
        // … then by position.
        let mut free = (first..first + count).filter(|position| !taken.contains(position));
        for (id, place) in group.into_iter().zip(places) {
            let Some(place) = place.or_else(|| free.next()) else { break };
            let recorded = self.root.recorded.remove(&place);
            if let Some(recorded) = recorded.as_ref().filter(|recorded| recorded.key != self.calls[id.0].key) {
                return Err(Divergence {
                    path: CallPath::top(place),
                    recorded: Some(recorded.key.clone()),
                    called: Some(self.calls[id.0].key.clone()),
                });
            }
            self.settle(id, CallPath::top(place), recorded, now);
        }
        Ok(())
    }

    fn seal_nested(&mut self, now: Timestamp) {
        let owners: Vec<CallId> =
            self.nested.iter().filter(|(_, scope)| !scope.group.is_empty()).map(|(owner, _)| *owner).collect();
        for owner in owners {
            let Some(enclosing) = self.path(owner).cloned() else { continue };
            let Some(scope) = self.nested.get_mut(&owner) else { continue };
            let mut group = std::mem::take(&mut scope.group);
            self.sort_group(&mut group);
            for id in group {
                let key = self.calls[id.0].key.clone();
                let Some(scope) = self.nested.get_mut(&owner) else { break };
                let (position, recorded) = scope.place(&key);
                self.settle(id, enclosing.child(position), recorded, now);
            }
        }
    }

    /// Puts a group into an order that does not depend on the order in which a combinator polled its branches:
    /// by the place in the source, then as made.
    fn sort_group(&self, group: &mut [CallId]) {
        if group.len() > 1 {
            group.sort_by_key(|id| {
                let location = self.calls[id.0].location;
                (location.file(), location.line(), location.column())
            });
        }
    }

    fn settle(&mut self, id: CallId, path: CallPath, recorded: Option<Recorded>, now: Timestamp) {
        let strict = self.calls[id.0].place == Place::Flow;
        let replaying = self.is_replaying();
        let call = &mut self.calls[id.0];
        if matches!(call.state, State::Abandoned) || (call.orphan && recorded.is_some()) {
            if strict && recorded.is_some_and(|recorded| recorded.outcome.is_some()) {
                self.matched.insert(path.position(), None);
            }
            self.calls.remove(id.0);
            return;
        }
        call.path = Some(path);
        call.started_at = now;
        let Some(recorded) = recorded else {
            if replaying {
                call.state = State::Unrecorded;
                self.unrecorded.insert(id);
            } else {
                self.activate(id, now);
            }
            return;
        };
        call.started_at = recorded.started_at;
        call.attempts = recorded.attempts;
        call.attempt_seq = recorded.attempt_seq;
        if recorded.reference.is_some() {
            call.reference = recorded.reference;
        }
        match recorded.outcome {
            Some(RecordedOutcome { at, phase, payload, .. }) if strict => {
                let position = call.path.as_ref().map_or(0, CallPath::position);
                call.state = State::Replaying { at, outcome: Outcome { phase, payload } };
                self.matched.insert(position, Some(id));
            }
            Some(RecordedOutcome { seq, at, phase, payload }) => {
                call.state = State::Recorded { seq, at, outcome: Outcome { phase, payload } };
                self.fresh.insert(seq, id);
            }
            None => {
                call.state = match (&call.spec, recorded.retry_at) {
                    (Spec::Step, Some(retry_at)) => State::Backoff(retry_at),
                    (Spec::Step, None) => State::Idle,
                    _ => State::Waiting { due: recorded.due_at },
                };
                self.watch_for(id);
            }
        }
    }

    /// Lets a call without a record take effect.
    fn activate(&mut self, id: CallId, now: Timestamp) {
        let call = &mut self.calls[id.0];
        call.started_at = now;
        let wait = match &call.spec {
            Spec::Step => {
                call.state = State::Idle;
                self.watch_for(id);
                return;
            }
            Spec::Timer(Due::At(at)) => Ok((Some(*at), true)),
            Spec::Timer(Due::After(after)) => now.checked_add(*after).map(|at| (Some(at), true)).ok_or(*after),
            Spec::Signal { limit: None } => Ok((None, false)),
            Spec::Signal { limit: Some(limit) } => now.checked_add(*limit).map(|at| (Some(at), true)).ok_or(*limit),
            Spec::Child { flow, detached } => {
                let mut flow = flow.clone();
                if let (Some(parent), Some(path)) = (&mut flow.parent, &call.path) {
                    parent.path = path.clone();
                }
                self.batch.children.push(*flow);
                if *detached || call.orphan {
                    let (orphan, phase) = (call.orphan, if *detached { Phase::Completed } else { Phase::Pending });
                    let record = self.record(id, phase, now);
                    let seq = self.append(record);
                    if orphan {
                        self.remove(id);
                        return;
                    }
                    let outcome = Outcome { phase: Phase::Completed, payload: Bytes::new() };
                    self.calls[id.0].state = State::Recorded { seq, at: now, outcome };
                    self.fresh.insert(seq, id);
                    return;
                }
                Ok((None, true))
            }
        };
        match wait {
            Ok((due, durable)) => {
                self.calls[id.0].state = State::Waiting { due };
                if durable {
                    let record = Record { due_at: due, ..self.record(id, Phase::Pending, now) };
                    self.append(record);
                }
                self.watch_for(id);
            }
            Err(duration) => {
                self.calls[id.0].state = State::Waiting { due: None };
                let call = self.calls[id.0].key.clone();
                let message = format!("{duration:?} from now is past the end of time");
                self.refusal.get_or_insert(Refusal { call, message });
            }
        }
    }

    // ---- releasing ---------------------------------------------------------------------------------------

    fn hand_over(&mut self, id: CallId, at: Timestamp, outcome: Outcome, message: Option<Message>) {
        let call = &mut self.calls[id.0];
        // Time within a step's body is the real one; only the flow's own code lives on recorded time.
        if call.place == Place::Flow {
            self.now = self.now.max(at);
            self.releases += 1;
            self.draws = 0;
        }
        call.state = State::Released { outcome, message };
        if let Some(waker) = call.waker.take() {
            waker.wake();
        }
    }

    /// Ends the wait whose time has come first, by an instant or by a message.
    fn fire(&mut self, now: Timestamp) -> bool {
        let due = self.timers.iter().find(|(_, id)| !matches!(self.calls[id.0].state, State::Backoff(_)));
        let due = due.copied().filter(|(due, _)| *due <= now);
        let message = self
            .signals
            .iter()
            .filter_map(|(channel, waiting)| {
                let message = self.mail.get(channel)?.first_key_value()?.1;
                Some((message.at, message.seq, channel.clone(), waiting.first()?.1))
            })
            .min_by_key(|(at, seq, ..)| (*at, *seq));
        let message = message.filter(|(at, ..)| due.is_none_or(|(due, _)| *at <= due));
        if let Some((_, seq, channel, id)) = message {
            self.unwatch(id);
            let Some(mail) = self.mail.get_mut(&channel) else { return false };
            let Some(message) = mail.remove(&seq) else { return false };
            if mail.is_empty() {
                self.mail.remove(&channel);
            }
            self.batch.consumed.push(seq);
            let payload = message.payload.clone();
            let record = Record { payload: payload.clone(), ..self.record(id, Phase::Completed, now) };
            self.append(record);
            let outcome = Outcome { phase: Phase::Completed, payload };
            self.hand_over(id, now, outcome, Some(message));
            return true;
        }
        let Some((due, id)) = due else { return false };
        self.unwatch(id);
        // A timer that fires has completed; a wait for something else has failed to get it.
        let phase = match self.calls[id.0].spec {
            Spec::Timer(_) => Phase::Completed,
            _ => Phase::Failed,
        };
        let record = Record { due_at: Some(due), ..self.record(id, phase, now) };
        self.append(record);
        self.hand_over(id, now, Outcome { phase, payload: Bytes::new() }, None);
        true
    }

    /// Takes in what the mailbox says about children. A child whose call was dropped is heard of in vain.
    fn take_children(&mut self, now: Timestamp) {
        let Some(mail) = self.mail.remove(&Channel::children()) else { return };
        for (seq, message) in mail {
            self.batch.consumed.push(seq);
            let path = message.reference.as_deref().and_then(|path| path.parse::<CallPath>().ok());
            let Some(id) = path.and_then(|path| self.children.get(&path).copied()) else { continue };
            self.unwatch(id);
            let phase = match message.child {
                Some(ChildOutcome::Completed) => Phase::Completed,
                _ => Phase::Failed,
            };
            let payload = crate::child::outcome_payload(&message);
            let record = Record { payload: payload.clone(), ..self.record(id, phase, now) };
            let seq = self.append(record);
            self.calls[id.0].state = State::Recorded { seq, at: now, outcome: Outcome { phase, payload } };
            self.fresh.insert(seq, id);
        }
    }

    // ---- small parts -------------------------------------------------------------------------------------

    /// Puts a call that waits for something into the index where that something is found.
    fn watch_for(&mut self, id: CallId) {
        let call = &self.calls[id.0];
        let wants = call.polled;
        match (&call.state, &call.spec) {
            (State::Idle, _) if wants => {
                self.startable.insert(id);
            }
            (State::Backoff(due), _) => {
                self.timers.insert((*due, id));
            }
            (State::Waiting { .. }, Spec::Child { .. }) => {
                if let Some(path) = &call.path {
                    self.children.insert(path.clone(), id);
                }
            }
            (State::Waiting { due }, spec) if wants => {
                if let Some(due) = due {
                    self.timers.insert((*due, id));
                }
                if let Spec::Signal { .. } = spec {
                    let channel = Channel::signal(&call.key.name);
                    self.signals.entry(channel).or_default().insert((call.made, id));
                }
            }
            _ => {}
        }
    }

    fn unwatch(&mut self, id: CallId) {
        let call = &self.calls[id.0];
        self.startable.remove(&id);
        match &call.state {
            State::Backoff(due) => {
                self.timers.remove(&(*due, id));
            }
            State::Waiting { due } => {
                if let Some(due) = due {
                    self.timers.remove(&(*due, id));
                }
                if let (Spec::Child { .. }, Some(path)) = (&call.spec, &call.path) {
                    self.children.remove(path);
                }
                if let Spec::Signal { .. } = call.spec {
                    let channel = Channel::signal(&call.key.name);
                    if let Some(waiting) = self.signals.get_mut(&channel) {
                        waiting.remove(&(call.made, id));
                        if waiting.is_empty() {
                            self.signals.remove(&channel);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn record(&self, id: CallId, phase: Phase, now: Timestamp) -> Record {
        let call = &self.calls[id.0];
        Record {
            seq: 0,
            at: now,
            path: call.path.clone().unwrap_or(CallPath::top(0)),
            kind: call.key.kind,
            phase,
            name: Arc::clone(&call.key.name),
            args_hash: call.key.args_hash,
            attempt: 0,
            started_at: call.started_at,
            due_at: None,
            reference: call.reference.clone(),
            payload: Bytes::new(),
        }
    }

    fn append(&mut self, mut record: Record) -> u32 {
        self.seq += 1;
        record.seq = self.seq;
        if let Some(enclosing) = record.path.parent() {
            self.nested_records.entry(enclosing).or_default().push(record.clone());
        }
        self.batch.records.push(record);
        self.seq
    }

    fn open_scope(&mut self, owner: CallId) -> &mut Scope {
        let (records, attempt_seq) = match self.calls.get(owner.0) {
            Some(Call { path: Some(path), attempt_seq, .. }) => (self.nested_records.get(path), *attempt_seq),
            _ => (None, 0),
        };
        self.nested.entry(owner).or_insert_with(|| {
            let (recorded, last_position) = history::load_nested(records.map_or(&[], Vec::as_slice), attempt_seq);
            Scope::lenient(recorded, last_position)
        })
    }

    /// Ends the scope of a body whose future is gone. A later attempt starts with what succeeded.
    fn close_scope(&mut self, owner: CallId) {
        for id in self.nested.remove(&owner).into_iter().flat_map(|scope| scope.group) {
            if matches!(self.calls.get(id.0), Some(Call { state: State::Abandoned, .. })) {
                self.calls.remove(id.0);
            }
        }
    }

    /// Takes the state out of a call that is about to get another one.
    fn take_state(&mut self, id: CallId) -> State {
        std::mem::replace(&mut self.calls[id.0].state, State::Idle)
    }

    fn remove(&mut self, id: CallId) -> Call {
        self.close_scope(id);
        self.calls.remove(id.0)
    }
}

impl std::fmt::Display for CallKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} (arguments {:016x})", self.kind, self.name, self.args_hash)
    }
}

impl std::fmt::Display for Divergence {
    /// Both sides, and what to do.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the code and the history part at call {}: ", self.path)?;
        match (&self.recorded, &self.called) {
            (Some(recorded), Some(called)) if recorded.kind == called.kind && recorded.name == called.name => {
                write!(f, "the history has {recorded}, the code made the same call with other arguments, {called}")?;
            }
            (Some(recorded), Some(called)) => write!(f, "the history has {recorded}, the code called {called}")?,
            (Some(recorded), None) => write!(f, "the history has {recorded}, the code does not make that call")?,
            (None, called) => match called {
                Some(called) => write!(f, "the history has nothing, the code called {called}")?,
                None => write!(f, "neither has a call")?,
            },
        }
        f.write_str(
            "; nothing is lost: undo the change, or give the flow a new version for the changed code and let a \
             worker with the old code finish this one, then retry the flow",
        )
    }
}
