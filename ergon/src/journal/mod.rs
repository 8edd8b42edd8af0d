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

mod call;
mod history;
mod release;
mod scope;
mod seal;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    panic::Location,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use ergon_storage::{CallPath, Channel, Message, Phase, Record, Timestamp, Wake};
use slab::Slab;

pub(crate) use self::call::{Batch, CallId, CallKey, CallPoll, Divergence, Due, Outcome, Place, Refusal, Spec};
use self::{
    call::{Call, State},
    scope::Scope,
};

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
    last: Option<(u32, Timestamp)>,
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
        let last = history.last().map(|record| (record.seq, record.at));
        let seq = last.map_or(0, |(seq, _)| seq);
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
            last,
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
            let State::Released { outcome, message } = call.state else { return CallPoll::Pending };
            // Taken: now, and only now, the message is consumed.
            self.batch.consumed.extend(message.map(|message| message.seq));
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
                // Handed over but never taken: the message goes back, unconsumed. Its record stays, and a replay
                // hands it to the same call, which drops it again.
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

    /// Notes what the body of a running step waits for, by how many clones of its waker are held anywhere: a body
    /// all of whose wakers are held by calls of its own can be left alone until one of those has its outcome.
    pub(crate) fn note_wakers(&mut self, id: CallId, held: usize, waker: &Waker) {
        let known = if self.nested.contains_key(&id) {
            let own = self.calls.iter().map(|(_, call)| call).filter(|call| {
                // A combinator hands out wakers of its own; what else it waits for is not known.
                call.place == Place::Step(id) && call.waker.as_ref().is_some_and(|known| known.will_wake(waker))
            });
            // A quiet body holds its waker once more, to pass on what wakes it.
            own.map(|call| 1 + usize::from(call.quiet)).sum()
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

    /// The number of the last record and when it was made.
    pub(crate) fn last(&self) -> Option<(u32, Timestamp)> {
        self.last
    }

    /// The number of the last record, durable or not.
    pub(crate) fn seq(&self) -> u32 {
        self.seq
    }

    /// The first call that could not be made, if any.
    pub(crate) fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
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
        self.last = Some((record.seq, record.at));
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
