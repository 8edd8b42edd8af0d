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
//! **Invariant:** an outcome is recorded before it is released, and flushed before another body starts.
//! **Invariant:** the journal never reads a clock; every `now` is an argument.
//! **Invariant:** while recorded outcomes of the flow's scope wait to be released, no body starts, no wait ends
//! and nothing new is recorded.

mod ask;
mod beat;
mod call;
mod cleanup;
mod history;
mod mail;
mod release;
mod scope;
mod seal;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    task::Waker,
};

use bytes::Bytes;
use ergon_storage::{CallKind, CallPath, Channel, Clock, Message, NewItem, Phase, Record, Timestamp, Wake};
use slab::Slab;

pub use self::beat::HEARTBEAT_INTERVAL;
pub(crate) use self::call::{
    Batch, CallId, CallKey, CallPoll, Divergence, Due, Outcome, Place, Refusal, Repeat, Spec, TimeUp,
};
pub(crate) use self::cleanup::{CleaningUp, CleanupCause, Opened, ScopeId};
use self::{
    call::{Call, State, TimeLimit, UNCERTAIN, WhenCancelled},
    cleanup::{Cancel, OpenScope},
    mail::{Hold, Reserved, handed},
    scope::Scope,
};
use crate::numbers::NumberMap;

/// The history and the open calls of one flow.
#[derive(Debug)]
pub(crate) struct Journal {
    root: Scope,
    /// The scopes of the bodies that made calls.
    nested: HashMap<CallId, Scope>,
    /// The records of nested calls, by the path of the enclosing one, kept until that one has its outcome.
    nested_records: HashMap<CallPath, Vec<Record>>,
    /// What became last of the calls made by steps that have not completed, by the step's position.
    below: HashMap<u32, HashMap<CallPath, Phase>>,
    calls: Slab<Call>,
    made: u64,

    /// The recorded outcomes of the flow's scope that are still to be released, by number and position.
    replay: VecDeque<(u32, u32)>,
    /// The calls that were matched with them; `None` once such a call was dropped.
    matched: NumberMap<u32, Option<CallId>>,
    /// Calls made during the replay that have no record.
    unrecorded: BTreeSet<CallId>,
    /// Recorded outcomes that wait for their release after the replay, in order. Nearly always one.
    fresh: VecDeque<Fresh>,

    /// Steps whose bodies may start, in the order of their calls. Nearly always one: its place is kept, where a tree
    /// would free it.
    startable: VecDeque<Startable>,
    /// Those of them that run at most once and of which it is recorded that they begin: they may when that is durable.
    intended: Vec<Startable>,
    /// Calls with an instant.
    timers: BTreeSet<(Timestamp, CallId)>,
    /// Signals that are awaited, those who wait in order.
    signals: BTreeMap<Channel, BTreeSet<(u64, CallId)>>,
    /// Waits for signals whose time is up, and for which the mailbox was read since: now they may end without one.
    looked: BTreeSet<u64>,
    /// Children that are awaited, by the path of the call.
    children: HashMap<CallPath, CallId>,
    /// Calls whose children live on their own, and which the log has accepted unless a message says otherwise.
    accepted: Vec<CallPath>,
    /// The messages that the history has handed to waits. Most of them were taken and are gone, but that is not known.
    reserved: NumberMap<u32, Reserved>,
    /// Those of them that were handed to waits inside steps.
    reserved_below: BTreeSet<u32>,
    /// Messages that waits inside steps let go of, by number, with the calls whose records have them. Such a message is
    /// anyone's; until somebody else has it, the same wait finds it again.
    let_go: HashMap<u32, CallPath>,
    /// The calls inside steps whose messages went to others after all: what their records say is void.
    void: HashSet<CallPath>,
    /// Messages that nobody has taken yet.
    mail: BTreeMap<Channel, BTreeMap<u32, Message>>,
    /// The last message that arrived on each channel.
    mail_seen: BTreeMap<Channel, u32>,
    /// Heartbeats that are yet to be written, by when they may be.
    held: BTreeSet<(Timestamp, CallId)>,
    /// Bodies that run and wait for something that the journal does not know.
    busy: usize,

    seq: u32,
    last: Option<(u32, Timestamp)>,
    batch: Batch,
    /// How many batches were taken to be written, the last of which may be in flight.
    batches: BatchNumber,
    in_flight: bool,
    /// The batch that was taken last, until bodies have started after it; 0 for none. Nothing is released before those have
    /// started that wait for it alone, for they would have to wait again.
    starts_after: BatchNumber,
    /// The batch that has the last outcome that the flow's code was given.
    released_in: BatchNumber,
    /// When the last released outcome was recorded: the time that the flow's code sees.
    now: Timestamp,
    releases: u64,
    /// Random numbers drawn since.
    draws: u64,
    /// The number of the last record that another flow has made, from which this one was forked; 0 when none was.
    inherited: u32,
    /// For each change of the code that the flow was asked about, whether it has taken it up.
    patches: HashMap<Arc<str>, bool>,
    /// Those taken up that the history does not tell of yet: it does from the next record on.
    untold_patches: Vec<Record>,
    /// The call of the flow's scope whose outcome was released last, until it is taken.
    handed_over: Option<CallId>,
    /// How often the flow's own code has made a call, or begun to wait for one.
    beginnings: u64,
    /// The calls of the flow's scope that have failed, as the code has learnt since it last began anything, and how
    /// often it had by then.
    failures: (u64, Vec<CallPath>),
    refusal: Option<Refusal>,
    /// How many items the flow's own code has emitted, and how many of them the log has from before: those are not
    /// emitted again.
    emitted: u32,
    emitted_before: u32,
    /// How many there were when the code learnt of the first of its `failures`: a retry makes those calls again, and what
    /// was emitted after it may be another then.
    emitted_until_failure: u32,
    /// That the flow was cancelled, or that its time is up.
    cancel: Option<Box<Cancel>>,
    /// The scopes of the code that have something to clean up.
    scopes: BTreeMap<ScopeId, OpenScope>,
    scopes_opened: u64,
    /// The innermost scope that the code is within which is polled.
    scope: Option<ScopeId>,
    /// The call that a clean-up awaits in vain, since the last outcome: the cancellation has ended it.
    awaited_over: Option<CallKey>,
    /// The log knows, or is about to, that there is something to clean up.
    is_flagged: bool,
    /// The code that is polled cleans up.
    is_inside: bool,
}

/// How many records may collect, give or take what one pass of the code adds, before they are written.
const BATCH_RECORDS_MAX: usize = 1_024;

/// Which of the batches of a journal, from 1; 0 is what was durable from the beginning.
type BatchNumber = u32;

/// A recorded outcome that waits for its release.
#[derive(Debug)]
struct Fresh {
    seq: u32,
    id: CallId,
    /// The batch with which it is durable.
    after: BatchNumber,
}

/// A step whose body may start.
#[derive(Debug)]
struct Startable {
    /// When the call was made, among all calls.
    made: u64,
    id: CallId,
    /// The batch with which everything is durable that had happened when the code rested: what it called at the same time
    /// is recorded by then. The greatest number until that is known.
    after: BatchNumber,
}

impl Journal {
    /// The journal of a flow with this history (in order and complete), which began at `began_at`.
    pub(crate) fn new(history: Vec<Record>, began_at: Timestamp) -> Self {
        let last = history.last().map(|record| (record.seq, record.at));
        let seq = last.map_or(0, |(seq, _)| seq);
        let loaded = history::load(history);
        let below = loaded.handed.iter().filter(|(_, owner)| owner.parent().is_some());
        let reserved_below = below.map(|(seq, _)| *seq).collect();
        let reserved =
            loaded.handed.into_iter().map(|(seq, owner)| (seq, Reserved { owner, hold: Hold::Untaken(None) }));
        let reserved = reserved.collect();
        Self {
            root: Scope::strict(loaded.root),
            nested: HashMap::new(),
            nested_records: loaded.nested,
            below: loaded.below,
            calls: Slab::new(),
            made: 0,
            replay: loaded.outcomes.into(),
            matched: NumberMap::default(),
            unrecorded: BTreeSet::new(),
            fresh: VecDeque::new(),
            startable: VecDeque::new(),
            intended: Vec::new(),
            timers: BTreeSet::new(),
            signals: BTreeMap::new(),
            looked: BTreeSet::new(),
            children: HashMap::new(),
            accepted: Vec::new(),
            reserved,
            reserved_below,
            let_go: loaded.let_go,
            void: loaded.void,
            mail: BTreeMap::new(),
            mail_seen: BTreeMap::new(),
            held: BTreeSet::new(),
            busy: 0,
            seq,
            last,
            batch: Batch::default(),
            batches: 0,
            in_flight: false,
            starts_after: 0,
            released_in: 0,
            now: began_at,
            releases: 0,
            draws: 0,
            inherited: loaded.inherited,
            patches: loaded.patches.into_iter().map(|id| (id, true)).collect(),
            untold_patches: Vec::new(),
            handed_over: None,
            beginnings: 0,
            failures: (0, Vec::new()),
            refusal: None,
            emitted: 0,
            emitted_before: 0,
            emitted_until_failure: 0,
            cancel: loaded.cancel,
            scopes: BTreeMap::new(),
            scopes_opened: 0,
            scope: None,
            awaited_over: None,
            is_flagged: false,
            is_inside: false,
        }
    }

    /// The flow's own code has emitted so many items before.
    pub(crate) fn has_emitted(&mut self, emitted: u32) {
        self.emitted_before = emitted;
    }

    // ---- called by the flow's code -----------------------------------------------------------------------

    /// The number that the next call of the flow's scope will most likely have.
    pub(crate) fn next_position(&self) -> u32 {
        self.root.next_position + u32::try_from(self.root.group.len()).unwrap_or(u32::MAX)
    }

    /// The path of a call, once it is sealed.
    pub(crate) fn path(&self, id: CallId) -> Option<&CallPath> {
        self.calls.get(id.0)?.path.as_ref()
    }

    /// The path of a sealed step, the hash of its arguments, the how manieth equal call of its body it is, and what its
    /// last heartbeat has reported.
    pub(crate) fn identity(&self, id: CallId) -> (CallPath, u64, u32, Option<Bytes>) {
        let Some(call) = self.calls.get(id.0) else { return (CallPath::top(0), 0, 1, None) };
        let path = call.path.clone().unwrap_or(CallPath::top(0));
        let progress = call.pulse.as_ref().and_then(|pulse| pulse.progress());
        (path, call.key.args_hash, history::ordinal(call.reference.as_deref()), progress)
    }

    /// The flow id of a child, as the history has it.
    pub(crate) fn child_id(&self, id: CallId) -> Option<Arc<str>> {
        self.calls.get(id.0)?.reference.clone()
    }

    /// The time as the flow's code sees it: when the last released outcome was recorded.
    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// Whether the flow goes by a change of its code: when it has done so before, or when the code has made all
    /// the calls that it made when the history was written, so that it is free to choose. The answer stays.
    pub(crate) fn patched(&mut self, id: &str, now: Timestamp) -> bool {
        if let Some(known) = self.patches.get(id) {
            return *known;
        }
        let id = Arc::<str>::from(id);
        // A call made since the last seal may have a record: which ones were made by now can hang on the order in which
        // a combinator polls its branches.
        let free = self.root.recorded.is_empty();
        if free {
            self.untold_patches.push(Record {
                seq: 0,
                at: now,
                path: CallPath::top(0),
                kind: CallKind::Patch,
                phase: Phase::Completed,
                name: Arc::clone(&id),
                args_hash: 0,
                attempt: 0,
                started_at: now,
                due_at: None,
                reference: None,
                payload: Bytes::new(),
            });
        }
        self.patches.insert(id, free);
        free
    }

    /// Two numbers that no other draw of the flow's own code has: how many outcomes were released to it so far,
    /// and how many draws there were since.
    pub(crate) fn draw(&mut self) -> (u64, u64) {
        let draw = self.draws;
        self.draws += 1;
        (self.releases, draw)
    }

    /// Emits an item. What the flow's own code has emitted before it was replayed is not emitted again.
    pub(crate) fn emit(&mut self, place: Place, item: NewItem) {
        match place {
            Place::Flow => {
                self.emitted += 1;
                if self.emitted <= self.emitted_before {
                    return;
                }
                self.batch.emitted = Some(self.emitted);
            }
            // A body may be in the middle of something, or on a thread of its own.
            Place::Step(owner) => {
                if let Some(waker) = self.calls.get(owner.0).and_then(|call| call.waker.as_ref()) {
                    waker.wake_by_ref();
                }
            }
        }
        self.batch.items.push(item);
    }

    /// How many items the flow's own code has emitted.
    pub(crate) fn emitted(&self) -> u32 {
        self.emitted
    }

    /// How many items of the flow's own code stand if the flow, which has failed, is retried, where that is not all.
    pub(crate) fn emitted_if_retried(&self) -> Option<u32> {
        let (began, failures) = &self.failures;
        let is_learnt = *began == self.beginnings && !failures.is_empty();
        (is_learnt && self.emitted_until_failure < self.emitted).then_some(self.emitted_until_failure)
    }

    // ---- called by a step's future while its body runs ---------------------------------------------------

    /// Records the outcome of a running step, whose future keeps it until it is released.
    pub(crate) fn finish(&mut self, id: CallId, phase: Phase, payload: Bytes, now: Timestamp) {
        debug_assert!(phase.is_outcome(), "a step ends with an outcome");
        self.unwatch(id);
        if self.calls[id.0].pulse.is_some() {
            self.end_pulse(id, phase);
        }
        let call = &mut self.calls[id.0];
        debug_assert!(matches!(call.state, State::Running), "only a running step ends");
        self.busy -= usize::from(!call.quiet);
        // The waker that a quiet body holds once more is gone with it.
        call.quiet = false;
        self.close_scope(id);
        // With its outcome recorded, nothing below the step is ever asked for again.
        if !self.nested_records.is_empty()
            && let Some(path) = self.calls[id.0].path.clone()
        {
            self.give_back_below(&path);
            self.nested_records.remove(&path);
            if phase == Phase::Completed && path.parent().is_none() {
                self.below.remove(&path.position());
            }
        }
        let attempt = self.calls[id.0].attempts + 1;
        let record = Record { attempt, payload, ..self.record(id, phase, now) };
        let seq = self.append(record);
        let outcome = Outcome { phase, payload: Bytes::new() };
        self.calls[id.0].state = State::Recorded { seq, at: now, outcome };
        self.keep(seq, id);
    }

    /// Records a failed attempt of a running step; the next one may begin at `retry_at`.
    pub(crate) fn attempt_failed(&mut self, id: CallId, error: Bytes, retry_at: Timestamp, now: Timestamp) {
        self.unwatch(id);
        if self.calls[id.0].pulse.is_some() {
            self.end_pulse(id, Phase::Attempt);
        }
        let call = &mut self.calls[id.0];
        debug_assert!(matches!(call.state, State::Running), "only a running step fails");
        self.busy -= usize::from(!call.quiet);
        call.quiet = false;
        self.close_scope(id);
        if let Some(path) = self.calls[id.0].path.clone().filter(|_| !self.reserved_below.is_empty()) {
            self.give_back_below(&path);
        }
        let attempt = self.calls[id.0].attempts + 1;
        let record = Record { attempt, payload: error, due_at: Some(retry_at), ..self.record(id, Phase::Attempt, now) };
        let seq = self.append(record);
        let call = &mut self.calls[id.0];
        call.attempts = attempt;
        call.attempt_seq = seq;
        call.begun_seq = 0;
        call.limit = None;
        call.state = State::Backoff(retry_at);
        self.timers.insert((retry_at, id));
    }

    /// Notes that the running step, which runs at most once, fails with something that its body does not tell of: what
    /// the body has done is uncertain, and the call is not made again when the flow is retried.
    pub(crate) fn note_uncertain(&mut self, id: CallId) {
        self.calls[id.0].reference = Some(UNCERTAIN.into());
    }

    /// Notes what the body of a running step waits for, by how many clones of its waker are held anywhere: a body
    /// all of whose wakers are held by calls of its own can be left alone until one of those has its outcome.
    pub(crate) fn note_wakers(&mut self, id: CallId, held: usize, waker: &Waker, clock: &dyn Clock) {
        let own = self.nested.get(&id).into_iter().flat_map(|scope| &scope.open).map(|own| &self.calls[own.0]);
        // A combinator hands out wakers of its own; what else it waits for is not known.
        let own = own.filter(|call| call.waker.as_ref().is_some_and(|known| known.will_wake(waker)));
        // A quiet body holds its waker once more, to pass on what wakes it.
        let known = own.map(|call| 1 + usize::from(call.quiet)).sum();
        let call = &mut self.calls[id.0];
        let rests = known > 0 && held <= known;
        if call.pulse.is_some() {
            self.rest(id, rests, clock);
        }
        let call = &mut self.calls[id.0];
        // A body that must not start again stays in memory.
        let quiet = rests && !call.never_repeats();
        if quiet != call.quiet {
            call.quiet = quiet;
            if quiet { self.busy -= 1 } else { self.busy += 1 }
        }
    }

    // ---- called by the driver between two passes ---------------------------------------------------------

    /// Records of the bodies that may start, and run at most once, that they begin.
    pub(crate) fn intend(&mut self, now: Timestamp) {
        let begins = |call: &Call| call.never_repeats() && !call.is_lost();
        if !self.startable.iter().any(|startable| begins(&self.calls[startable.id.0])) {
            return;
        }
        for startable in std::mem::take(&mut self.startable) {
            let id = startable.id;
            if begins(&self.calls[id.0]) {
                self.calls[id.0].started_at = now;
                let attempt = self.calls[id.0].attempts + 1;
                let record = Record { attempt, ..self.record(id, Phase::Pending, now) };
                self.calls[id.0].begun_seq = self.append(record);
                self.intended.push(Startable { after: self.present(), ..startable });
            } else {
                self.startable.push_back(startable);
            }
        }
    }

    /// Lets the bodies start before which everything is durable.
    pub(crate) fn grant(&mut self, now: Timestamp) {
        self.grant_intended(now);
        self.starts_after = 0;
        for _ in 0..self.startable.len() {
            match self.startable.pop_front() {
                Some(startable) if self.may_start(&startable) => self.run(startable.id, now),
                later => self.startable.extend(later),
            }
        }
    }

    /// Lets the bodies start that run at most once and of which it is durable that they begin.
    pub(crate) fn grant_intended(&mut self, now: Timestamp) {
        if self.intended.is_empty() {
            return;
        }
        let (ready, later): (Vec<_>, _) =
            std::mem::take(&mut self.intended).into_iter().partition(|intended| self.may_start(intended));
        self.intended = later;
        for Startable { id, .. } in ready {
            self.run(id, now);
        }
    }

    fn run(&mut self, id: CallId, now: Timestamp) {
        {
            let call = &mut self.calls[id.0];
            call.state = State::Running;
            call.quiet = false;
            // A body that starts again within an attempt that is recorded has the time that is left of it.
            if call.limit.is_none() && !call.is_lost() {
                call.started_at = now;
                if let Spec::Step { limit: Some(limit), .. } = call.spec {
                    let at = now.saturating_add(limit);
                    call.limit = Some(TimeLimit { at, recorded: false, passed: false });
                }
            }
            self.timers.extend(call.limit.map(|limit| (limit.at, id)));
            if let Spec::Step { silence: Some(silence), .. } = call.spec
                && !call.is_lost()
            {
                let pulse = call.pulse.get_or_insert_default();
                self.timers.extend(pulse.begin(silence, now).map(|at| (at, id)));
            }
            self.busy += 1;
            if let Some(waker) = &call.waker {
                waker.wake_by_ref();
            }
        }
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
            self.add_startable(id);
        }
        let present = self.present();
        for startable in self.startable.iter_mut().filter(|startable| startable.after == BatchNumber::MAX) {
            startable.after = present;
        }
        !self.is_replaying() && (!self.startable.is_empty() || self.has_intended())
    }

    /// True when it is recorded of bodies that they begin, and they have not.
    pub(crate) fn has_intended(&self) -> bool {
        !self.intended.is_empty()
    }

    /// True when [`grant`](Self::grant) would let a body start.
    pub(crate) fn can_grant(&self) -> bool {
        self.can_grant_intended() || self.startable.iter().any(|startable| self.may_start(startable))
    }

    /// True when [`grant_intended`](Self::grant_intended) would let a body start.
    pub(crate) fn can_grant_intended(&self) -> bool {
        self.intended.iter().any(|intended| self.may_start(intended))
    }

    /// True when everything is durable that has led to this call, and everything that the code was given since.
    fn may_start(&self, startable: &Startable) -> bool {
        startable.after.max(self.released_in) <= self.durable()
    }

    /// True when bodies are to start before anything else is released.
    pub(crate) fn starts_next(&self) -> bool {
        let starts = |startable: &Startable| startable.after <= self.starts_after;
        self.starts_intended() || self.starts_after > 0 && !self.is_behind() && self.startable.iter().any(starts)
    }

    /// True when bodies of which it is recorded that they begin are to start before anything else is released.
    pub(crate) fn starts_intended(&self) -> bool {
        let starts = |intended: &Startable| intended.after <= self.starts_after;
        self.starts_after > 0 && !self.is_behind() && self.intended.iter().any(starts)
    }

    /// The batch that has, or will have, everything that has happened by now.
    fn present(&self) -> BatchNumber {
        self.batches + BatchNumber::from(!self.batch.is_empty())
    }

    /// The last batch that is durable.
    fn durable(&self) -> BatchNumber {
        self.batches - BatchNumber::from(self.in_flight)
    }

    /// True when there is something to be written that is not being written.
    pub(crate) fn has_batch(&self) -> bool {
        !self.batch.is_empty()
    }

    /// True when so much is to be written that this should be done before anything else happens.
    pub(crate) fn is_full(&self) -> bool {
        self.batch.records.len() >= BATCH_RECORDS_MAX
    }

    /// Takes what is to be written; until [`flushed`](Self::flushed), nothing else may be taken.
    pub(crate) fn take_batch(&mut self) -> Batch {
        debug_assert!(!self.in_flight, "one commit at a time");
        // What waits for its turn may as well come along.
        self.write_beats(Timestamp::MAX);
        self.batches += 1;
        self.in_flight = true;
        self.starts_after = self.batches;
        std::mem::take(&mut self.batch)
    }

    /// What was taken is durable.
    pub(crate) fn flushed(&mut self) {
        self.in_flight = false;
    }

    /// True while recorded outcomes of the flow's scope wait for their release.
    pub(crate) fn is_replaying(&self) -> bool {
        !self.replay.is_empty() || self.awaits_cancel()
    }

    /// How the code and the history differ, judged when the flow can go no further: everything that left a
    /// record must have been called by now.
    pub(crate) fn missing_call(&self) -> Option<Divergence> {
        let recorded = self.root.recorded.first_key_value()?.1;
        if self.is_behind_cancel(recorded.seq) {
            return None;
        }
        Some(Divergence { path: recorded.path.clone(), recorded: Some(recorded.key.clone()), called: None })
    }

    /// True while bodies run that wait for something of their own.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy > 0
    }

    /// True when each body that runs, and waits for something of its own, has made a call whose body has yet to begin,
    /// or runs: it may go on without that one, in another branch, but need not.
    pub(crate) fn is_held_up(&self) -> bool {
        let running = |id: CallId| matches!(self.calls[id.0].state, State::Running);
        let waits = |id: CallId| running(id) || self.startable.iter().any(|startable| startable.id == id);
        let mut busy = self.calls.iter().filter(|(_, call)| matches!(call.state, State::Running) && !call.quiet);
        busy.all(|(id, _)| self.nested.get(&CallId(id)).is_some_and(|scope| scope.open.iter().any(|own| waits(*own))))
    }

    /// True while an outcome is recorded that the code has not been given: it goes on as soon as that is durable,
    /// whatever else it waits for.
    pub(crate) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// What would let the flow go on: the earliest instant and the channels that it waits for.
    pub(crate) fn wake(&self) -> Wake {
        let mut channels: Vec<_> = self.signals.keys().cloned().collect();
        if !self.children.is_empty() {
            channels.push(Channel::children());
        }
        Wake { at: self.timers.first().map(|(due, _)| *due), channels }
    }

    /// True when an outcome was released that the code has not taken yet.
    pub(crate) fn hands_over(&self) -> bool {
        self.handed_over.is_some()
    }

    /// The log has taken these calls' children in, or has put a message into the mailbox that was received before.
    pub(crate) fn started(&mut self, calls: Vec<CallPath>) {
        self.accepted.extend(calls);
    }

    /// True when the code has not been given all that the history has for it.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_replaying() || !self.root.recorded.is_empty()
    }

    /// True when the code has been given all that is recorded of its calls: what it has set since counts, also where it is
    /// only now told that it was cancelled.
    pub(crate) fn has_caught_up(&self) -> bool {
        self.replay.is_empty() && self.root.recorded.is_empty()
    }

    /// True when the flow's own code has started a child and this history does not tell what became of it: one that
    /// lives on its own, perhaps.
    pub(crate) fn waits_for_acceptance(history: &[Record]) -> bool {
        let children = || history.iter().filter(|record| record.kind == CallKind::Child);
        let ended: HashSet<_> =
            children().filter(|record| record.phase.is_outcome()).map(|record| &record.path).collect();
        children().any(|record| record.path.parent().is_none() && !ended.contains(&record.path))
    }

    /// The number of the last record and when it was made.
    pub(crate) fn last(&self) -> Option<(u32, Timestamp)> {
        self.last
    }

    /// The number of the last record, durable or not.
    pub(crate) fn seq(&self) -> u32 {
        self.seq
    }

    /// The calls to make again when the flow, which has failed, is retried: those whose failure it may have ended
    /// with. The code has begun nothing since it learnt of them, so that nothing in the history hangs on their
    /// outcomes. With a step go those below it that have not completed.
    pub(crate) fn failed_calls(&self) -> Vec<CallPath> {
        let (began, failures) = &self.failures;
        let learnt = failures.iter().filter(|_| *began == self.beginnings);
        let untaken = self.calls.iter().filter_map(|(_, call)| failed_path(call));
        let mut again: Vec<CallPath> = learnt.chain(untaken).cloned().collect();
        for top in 0..again.len() {
            let Some(below) = self.below.get(&again[top].position()) else { continue };
            let completed = |path: &CallPath| below.get(path) == Some(&Phase::Completed);
            // What lies below a call that has completed is not asked for again.
            let goes = |path: &CallPath| {
                !std::iter::successors(Some(path.clone()), CallPath::parent).any(|path| completed(&path))
            };
            let mut go: Vec<_> = below.keys().filter(|path| goes(path)).cloned().collect();
            go.sort_unstable();
            again.append(&mut go);
        }
        again
    }

    /// The first call that could not be made, if any.
    pub(crate) fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
    }

    // ---- small parts -------------------------------------------------------------------------------------

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

    fn append(&mut self, record: Record) -> u32 {
        // A crash before this record lets the code choose again, and it chooses the same.
        for patch in std::mem::take(&mut self.untold_patches) {
            self.append_one(patch);
        }
        self.append_one(record)
    }

    fn append_one(&mut self, mut record: Record) -> u32 {
        self.seq += 1;
        record.seq = self.seq;
        self.last = Some((record.seq, record.at));
        if let Some(enclosing) = record.path.parent() {
            let below = self.below.entry(record.path.positions()[0]).or_default();
            below.insert(record.path.clone(), record.phase);
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
        let void = &self.void;
        self.nested.entry(owner).or_insert_with(|| {
            let (recorded, used) = history::load_nested(records.map_or(&[], Vec::as_slice), attempt_seq, void);
            Scope::lenient(recorded, used)
        })
    }

    /// Ends the scope of a body whose future is gone. A later attempt starts with what succeeded.
    fn close_scope(&mut self, owner: CallId) {
        // Most flows have no nested calls: then there is nothing to be hashed.
        if self.nested.is_empty() {
            return;
        }
        for id in self.nested.remove(&owner).into_iter().flat_map(|scope| scope.group) {
            if matches!(self.calls.get(id.0), Some(Call { state: State::Abandoned, .. })) {
                self.calls.remove(id.0);
            }
        }
    }

    /// Keeps an outcome that was just recorded for its release.
    fn keep(&mut self, seq: u32, id: CallId) {
        let after = self.present();
        self.keep_in_order(Fresh { seq, id, after });
    }

    /// Keeps a recorded outcome for its release, in the order of the records.
    fn keep_in_order(&mut self, fresh: Fresh) {
        let place = self.fresh.partition_point(|kept| kept.seq < fresh.seq);
        self.fresh.insert(place, fresh);
    }

    /// Takes the state out of a call that is about to get another one.
    fn take_state(&mut self, id: CallId) -> State {
        std::mem::replace(&mut self.calls[id.0].state, State::Idle)
    }
}

/// The place of a call of the flow's scope that has failed, unless it must not be made again.
fn failed_path(call: &Call) -> Option<&CallPath> {
    let (State::Replaying { outcome, .. } | State::Recorded { outcome, .. } | State::Released { outcome, .. }) =
        &call.state
    else {
        return None;
    };
    // Of a step that runs at most once only what its body has failed with is made again.
    let uncertain = matches!(call.spec, Spec::Step { .. }) && call.reference.as_deref() == Some(UNCERTAIN);
    call.path.as_ref().filter(|_| call.place == Place::Flow && outcome.phase == Phase::Failed && !uncertain)
}
