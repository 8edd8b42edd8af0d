//! The state of a log and its transitions.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    lanes::{Lane, Lanes},
    mailbox::Mailbox,
    places::Places,
};
use crate::{
    Affinity, Beat, CallPath, Cancelled, Channel, ChildOutcome, ClaimRequest, ClaimTarget, Claimed, ClaimedFlow,
    Cleanup, Clock, Commit, Committed, Count, Cursor, Enqueued, Error, ErrorKind, Feed, Filter, FlowId, FlowInfo,
    FlowPage, FlowRecord, FlowState, Item, Keep, Lease, LeaseState, Limits, Message, NewFlow, NewItem, NewMessage,
    Next, Parent, PrunePolicy, Record, Result, Retried, Sent, Timestamp, Wake,
};

/// Everything in a log. Each method is one transition: it refuses before it changes anything.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The flows by the number under which they were accepted. Boxed, for tree nodes move their values.
    flows: BTreeMap<u64, Box<Flow>>,
    /// The number of the latest flow, also if that one was deleted.
    last: u64,
    ids: HashMap<FlowId, u64>,
    /// The flows that name this one as their parent, which need not exist.
    children: HashMap<FlowId, BTreeSet<u64>>,
    index: Index,
    places: Places,
    /// What the transition has given rise to; taken after each one.
    pub(super) hints: Hints,
}

/// The flows by what their state makes of them.
#[derive(Debug, Default)]
struct Index {
    lanes: Lanes,
    stalled: BTreeSet<u64>,
    finished: BTreeSet<(Timestamp, u64)>,
}

/// Whom to wake after a transition.
#[derive(Debug, Default)]
pub(super) struct Hints {
    pub(super) queue: bool,
    pub(super) flows: Vec<FlowId>,
}

/// A flow with everything that belongs to it.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) info: FlowInfo,
    /// The value of the present run.
    pub(super) input: Bytes,
    /// The value that it was accepted with; `None` in the first run, whose value that is.
    pub(super) accepted: Option<Bytes>,
    /// The greatest number of a flow when the present run began; its children have greater ones.
    pub(super) run_number: u64,
    pub(super) result: Bytes,
    pub(super) history: Vec<Record>,
    pub(super) mailbox: Mailbox,
    pub(super) feeds: BTreeMap<Feed, Vec<Item>>,
    /// The last commit under the latest lease and its answer, for its repeat.
    pub(super) last_commit: Option<(u32, Committed)>,
    /// The build that could not go on; `None` unless stalled by one.
    pub(super) stalled_by: Option<Arc<str>>,
    /// The calls that a retry makes again; empty unless failed.
    pub(super) again: Vec<CallPath>,
}

/// Whether a flow that is cancelled may clean up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    InOrder,
    AtOnce,
}

/// How a flow ends.
struct End {
    outcome: ChildOutcome,
    state: FlowState,
    reason: Option<Arc<str>>,
    result: Bytes,
    /// What the parent hears.
    told: Bytes,
}

impl End {
    fn cancelled(reason: Arc<str>) -> Self {
        Self {
            outcome: ChildOutcome::Cancelled,
            state: FlowState::Cancelled,
            result: Bytes::new(),
            told: Bytes::copy_from_slice(reason.as_bytes()),
            reason: Some(reason),
        }
    }
}

impl Flow {
    fn new(flow: NewFlow, start_at: Timestamp, deadline_at: Option<Timestamp>, now: Timestamp) -> Self {
        let info = FlowInfo {
            id: flow.id,
            flow_type: flow.flow_type,
            version: flow.version,
            queue: flow.queue,
            priority: flow.priority,
            state: FlowState::Scheduled,
            reason: None,
            wake: Wake::default(),
            parent: flow.parent,
            labels: flow.labels,
            created_at: now,
            start_at,
            run: 1,
            started_at: None,
            finished_at: None,
            deadline_at,
            due_at: Some(start_at),
            epoch: 0,
            deliveries: 0,
            records: 0,
            emitted: 0,
            cleanup: Cleanup::None,
            worker: None,
        };
        Self {
            info,
            input: flow.input,
            accepted: None,
            run_number: 0,
            result: Bytes::new(),
            history: Vec::new(),
            mailbox: Mailbox::default(),
            feeds: BTreeMap::new(),
            last_commit: None,
            stalled_by: None,
            again: Vec::new(),
        }
    }

    /// Puts the flow into a state in which it waits for nothing, with its reason if it has one.
    pub(super) fn set(&mut self, state: FlowState, due_at: Option<Timestamp>, reason: Option<Arc<str>>) {
        self.info.state = state;
        self.info.due_at = due_at;
        self.info.reason = reason;
        self.info.wake = Wake::default();
        self.stalled_by = None;
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.info.due_at.is_some_and(|due_at| due_at <= now)
    }

    /// True when this is its latest lease, though it may have ended.
    fn is_leased_by(&self, lease: &Lease) -> bool {
        self.info.epoch == lease.epoch && self.info.id == lease.flow
    }

    /// Adds records to the history, and takes messages out of the mailbox.
    fn append(&mut self, records: Vec<Record>, consumed: &[u32]) {
        if let Some(last) = records.last() {
            self.info.records = last.seq;
            self.info.deliveries = 0;
            if self.history.is_empty() {
                self.history = records;
            } else {
                self.history.extend(records);
            }
        }
        for &seq in consumed {
            self.mailbox.remove(seq);
        }
    }

    /// Replaces what records say of calls that are under way.
    fn amend(&mut self, beats: Vec<Beat>) {
        for Beat { seq, at, payload } in beats {
            if let Some(record) = self.history.get_mut(seq as usize - 1) {
                (record.at, record.payload) = (at, payload);
            }
        }
    }

    /// Adds items to the feeds.
    fn emit(&mut self, items: Vec<NewItem>, emitted: Option<u32>) {
        self.info.emitted = emitted.unwrap_or(self.info.emitted);
        let FlowInfo { run, epoch, .. } = self.info;
        for NewItem { feed, keep, at, call, attempt, payload } in items {
            let items = self.feeds.entry(feed).or_default();
            let seq = items.last().map_or(0, |last| last.seq) + 1;
            if keep == Keep::Last {
                items.clear();
            }
            items.push(Item { seq, at, run, epoch, call, attempt, payload });
        }
    }

    /// True when it was cancelled and nobody has begun to clean up, since it was claimed last.
    fn awaits_cleanup(&self) -> bool {
        self.info.cleanup == Cleanup::Underway && self.info.state == FlowState::Scheduled
    }

    fn is_running(&self) -> bool {
        self.info.state == FlowState::Running
    }

    /// True when it is the flow that a call asks for.
    fn is_what_is_wanted(&self, wanted: &NewFlow) -> bool {
        let info = &self.info;
        (&info.flow_type, info.version, self.accepted()) == (&wanted.flow_type, wanted.version, &wanted.input)
    }

    /// The value that it was accepted with.
    fn accepted(&self) -> &Bytes {
        self.accepted.as_ref().unwrap_or(&self.input)
    }
}

impl State {
    // ---- queue -------------------------------------------------------------------------------------------

    pub(super) fn enqueue(&mut self, flows: Vec<NewFlow>, now: Timestamp, limits: &Limits) -> Result<Vec<Enqueued>> {
        let instants = flows.iter().map(|flow| flow.check(now, limits)).collect::<Result<Vec<_>>>()?;
        let mut answers = Vec::with_capacity(flows.len());
        for (flow, (start_at, deadline_at)) in flows.into_iter().zip(instants) {
            answers.push(match self.ids.entry(flow.id.clone()) {
                Entry::Occupied(taken) => {
                    let taken = &self.flows[taken.get()];
                    Enqueued::Existing {
                        same: taken.info.flow_type == flow.flow_type && *taken.accepted() == flow.input,
                    }
                }
                Entry::Vacant(id) => {
                    self.last += 1;
                    id.insert(self.last);
                    self.file(Flow::new(flow, start_at, deadline_at, now));
                    Enqueued::Created
                }
            });
        }
        Ok(answers)
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest, now: Timestamp) -> Claimed {
        let lanes = Lane::all_of(&request.target);
        let single = match &request.target {
            ClaimTarget::Flow(id) => self.ids.get(id).copied(),
            ClaimTarget::Queues { .. } => None,
        };
        let is_heard = self.places.hear(&request.worker, request.is_place, now);
        self.bring_back(request, &lanes, single);
        let mut chosen = Vec::new();
        let (mut poisonous, mut bound) = (Vec::new(), Vec::new());
        let due_alone = single.filter(|number| self.flows[number].is_due(now));
        for number in due_alone.into_iter().chain(self.index.lanes.due(&lanes, now)) {
            if chosen.len() >= request.limit {
                break;
            }
            if let Some(until) = self.kept_until(&self.flows[&number].info, number, &request.worker, now) {
                bound.push((number, until));
                continue;
            }
            let harmless = self.flows[&number].info.deliveries < request.deliveries_max.max(1);
            if harmless { &mut chosen } else { &mut poisonous }.push(number);
        }
        for number in poisonous {
            self.update(number, |flow| {
                let (times, worker) = (flow.info.deliveries, flow.info.worker.as_deref().unwrap_or("nobody"));
                let reason = format!(
                    "claimed {times} times without making progress, the last time by {worker:?}; `retry` offers it \
                     again"
                );
                flow.set(FlowState::Stalled, None, Some(reason.into()));
            });
        }
        for (number, until) in bound {
            self.keep(number, until, now);
        }
        let flows: Vec<_> = chosen.into_iter().map(|number| self.lease(number, request, now)).collect();
        let is_place = is_heard || self.places.heard_at(&request.worker).is_some();
        let next_due_at = match single {
            Some(number) => self.flows[&number].info.due_at,
            None => self.index.lanes.next_due_at(&lanes),
        };
        Claimed { flows, next_due_at, is_place }
    }

    /// Until when a flow that is due is kept for another worker than this one.
    fn kept_until(&self, info: &FlowInfo, number: u64, worker: &str, now: Timestamp) -> Option<Timestamp> {
        if info.labels.is_empty() {
            return None;
        }
        let bound_to = info.worker.as_ref().filter(|bound_to| ***bound_to != *worker)?;
        let due_at = self.places.due_at(number, info.due_at?);
        let heard_at = self.places.heard_at(bound_to).unwrap_or(now);
        Affinity::binding(&info.labels).kept_until(due_at, heard_at, info.deadline_at, now)
    }

    /// Keeps a flow for its worker until then.
    fn keep(&mut self, number: u64, until: Timestamp, now: Timestamp) {
        let info = &self.flows[&number].info;
        let (Some(worker), Some(filed_at)) = (info.worker.clone(), info.due_at) else { return };
        if matches!(Affinity::binding(&info.labels), Affinity::Require { .. })
            && self.places.heard_at(&worker).is_none()
        {
            self.places.hear(&worker, true, now);
        }
        self.places.keep(number, worker, self.places.due_at(number, filed_at), until);
        self.refile(number, until);
    }

    /// Makes flows claimable that are kept for a worker, as many as it asks for.
    fn bring_back(&mut self, request: &ClaimRequest, lanes: &BTreeSet<Lane>, single: Option<u64>) {
        let (mut missing, mut place) = (request.limit, (Timestamp::from_micros(i64::MIN), 0));
        while missing > 0
            && let Some((next, until)) = self.places.next_of(&request.worker, place)
        {
            place = next;
            let (due_at, number) = next;
            let info = &self.flows[&number].info;
            if info.due_at != Some(until) || info.worker.as_ref() != Some(&request.worker) {
                self.places.forget(number);
            } else if single == Some(number) || Lane::has(lanes, info) {
                self.places.forget(number);
                self.refile(number, due_at);
                missing -= 1;
            }
        }
    }

    /// Files a flow under another instant.
    fn refile(&mut self, number: u64, due_at: Timestamp) {
        let flow = self.flows.get_mut(&number).expect("the caller has found it");
        self.index.remove(number, &flow.info);
        flow.info.due_at = Some(due_at);
        self.index.insert(number, &flow.info);
        self.hints.queue = true;
    }

    fn lease(&mut self, number: u64, request: &ClaimRequest, now: Timestamp) -> ClaimedFlow {
        let labels = &self.flows[&number].info.labels;
        if !labels.is_empty() && matches!(Affinity::binding(labels), Affinity::Require { .. }) {
            self.places.hear(&request.worker, true, now);
        }
        self.places.forget(number);
        self.update(number, |flow| {
            flow.set(FlowState::Running, Some(now.saturating_add(request.lease)), None);
            flow.last_commit = None;
            flow.info.started_at.get_or_insert(now);
            flow.info.epoch += 1;
            flow.info.deliveries += 1;
            flow.info.worker = Some(Arc::clone(&request.worker));
            ClaimedFlow {
                lease: Lease { flow: flow.info.id.clone(), epoch: flow.info.epoch, key: number },
                info: flow.info.clone(),
                input: flow.input.clone(),
                history: flow.history.iter().take(request.history_max).cloned().collect(),
                messages: flow.mailbox.read(&[], 0, request.messages_max),
                more_messages: flow.mailbox.len() > request.messages_max,
            }
        })
    }

    pub(super) fn heartbeat(&mut self, leases: &[Lease], until: Timestamp) -> Vec<LeaseState> {
        leases
            .iter()
            .map(|lease| match self.leased(lease) {
                Ok(flow) if flow.info.state == FlowState::Cancelled || flow.awaits_cleanup() => LeaseState::Cancelled,
                Ok(flow) if flow.is_running() => {
                    let flow = self.flows.get_mut(&lease.key).expect("found above");
                    self.index.lanes.remove(&flow.info, lease.key);
                    flow.info.due_at = Some(until);
                    self.index.lanes.insert(&flow.info, lease.key);
                    LeaseState::Held
                }
                _ => LeaseState::Lost,
            })
            .collect()
    }

    pub(super) fn release(&mut self, lease: &Lease, now: Timestamp) -> Result<()> {
        let flow = self.leased(lease)?;
        if flow.awaits_cleanup() {
            self.update(lease.key, |flow| flow.info.due_at = flow.info.due_at.min(Some(now)));
            return Ok(());
        }
        if !flow.is_running() {
            return Err(Error::lease_lost(&lease.flow));
        }
        self.update(lease.key, |flow| {
            flow.set(FlowState::Scheduled, Some(now), None);
            flow.info.deliveries = flow.info.deliveries.saturating_sub(1);
        });
        Ok(())
    }

    // ---- run ---------------------------------------------------------------------------------------------

    pub(super) fn commit(&mut self, commit: Commit, clock: &dyn Clock, limits: &Limits) -> Result<Committed> {
        let Commit { lease, number, records, beats, consumed, children, labels, items, emitted, cleanup, next } =
            commit;
        let flow = self.flows.get_mut(&lease.key).filter(|flow| flow.is_leased_by(&lease));
        let flow = flow.ok_or_else(|| Error::lease_lost(&lease.flow))?;
        let last = match flow.last_commit {
            Some((last, answer)) if last == number => return Ok(answer),
            Some((last, _)) => last,
            None => 0,
        };
        if !flow.is_running() {
            return Err(Error::lease_lost(&lease.flow));
        }
        let invalid = |message| Err(Error::new(ErrorKind::Invalid, message).with_flow(&lease.flow));
        if last.checked_add(1) != Some(number) {
            return invalid(format!("commit {number} does not follow on commit {last}"));
        }
        for (record, seq) in records.iter().zip(flow.info.records + 1..) {
            if record.seq != seq {
                return invalid(format!("record {} does not follow on record {}", record.seq, seq - 1));
            }
        }
        Limits::check_beats(&beats, flow.info.records).map_err(|error| error.with_flow(&lease.flow))?;
        if next == Next::Run && children.is_empty() && labels.is_none() {
            // Most commits are such, which no other flow has to do with, and no instant.
            flow.info.cleanup = flow.info.cleanup.max(cleanup);
            flow.amend(beats);
            flow.append(records, &consumed);
            flow.last_commit = Some((number, Committed::Applied));
            if !items.is_empty() || emitted.is_some() {
                flow.emit(items, emitted);
                self.hints.flows.push(lease.flow.clone());
            }
            return Ok(Committed::Applied);
        }
        let now = clock.now();
        let instants = children.iter().map(|child| child.check(now, limits)).collect::<Result<Vec<_>>>()?;

        // From here on nothing is refused.
        let flow = self.flows.get_mut(&lease.key).expect("found above");
        flow.info.cleanup = flow.info.cleanup.max(cleanup);
        flow.amend(beats);
        flow.append(records, &consumed);
        if let Some(labels) = labels {
            flow.info.labels = labels;
        }
        if !items.is_empty() {
            self.hints.flows.push(lease.flow.clone());
        }
        flow.emit(items, emitted);
        for (child, (start_at, deadline_at)) in children.into_iter().zip(instants) {
            self.start_child(lease.key, child, start_at, deadline_at, now);
        }
        let answer = self.go_on(lease.key, next, now);
        self.flows.get_mut(&lease.key).expect("found above").last_commit = Some((number, answer));
        Ok(answer)
    }

    fn go_on(&mut self, number: u64, next: Next, now: Timestamp) -> Committed {
        match next {
            Next::Run => {}
            Next::Suspend(wake) => {
                let flow = &self.flows[&number];
                // A deadline wakes a flow just as its own instant does.
                let deadline_at = flow.info.deadline_at.filter(|_| flow.info.cleanup != Cleanup::Underway);
                let due_at = wake.at.into_iter().chain(deadline_at).min();
                if due_at.is_some_and(|due_at| due_at <= now) || flow.mailbox.has_any(&wake.channels) {
                    return Committed::Awake;
                }
                self.update(number, |flow| {
                    flow.set(FlowState::Suspended, due_at, None);
                    flow.info.wake = wake;
                    flow.info.deliveries = 0;
                });
                return Committed::Suspended;
            }
            Next::Complete { result } => {
                let end = End {
                    outcome: ChildOutcome::Completed,
                    state: FlowState::Completed,
                    reason: None,
                    // Most flows have no parent, and their results no second owner.
                    told: if self.flows[&number].info.parent.is_some() { result.clone() } else { Bytes::new() },
                    result,
                };
                self.end(number, end, now);
            }
            Next::Fail { error, reason, again } => {
                let end = End {
                    outcome: ChildOutcome::Failed,
                    state: FlowState::Failed,
                    reason: Some(reason),
                    told: error.clone(),
                    result: error,
                };
                self.end(number, end, now);
                self.flows.get_mut(&number).expect("the caller has found it").again = again;
            }
            Next::Cancel { reason } => {
                let end = End::cancelled(reason);
                self.end(number, end, now);
            }
            Next::Continue { input } => {
                let run_number = self.last;
                self.update(number, |flow| {
                    flow.set(FlowState::Scheduled, Some(now), None);
                    let former = std::mem::replace(&mut flow.input, input);
                    flow.accepted.get_or_insert(former);
                    flow.history = Vec::new();
                    flow.mailbox.withdraw(|_, _, _| true);
                    flow.run_number = run_number;
                    flow.info.run += 1;
                    flow.info.records = 0;
                    flow.info.emitted = 0;
                    flow.info.cleanup = Cleanup::None;
                    flow.info.deliveries = 0;
                    flow.info.started_at = None;
                    flow.info.worker = None;
                });
            }
            Next::Stall { reason, build } => self.update(number, |flow| {
                flow.set(FlowState::Stalled, None, Some(reason));
                flow.stalled_by = Some(build);
            }),
        }
        Committed::Applied
    }

    fn start_child(
        &mut self,
        parent: u64,
        child: NewFlow,
        start_at: Timestamp,
        deadline_at: Option<Timestamp>,
        now: Timestamp,
    ) {
        let start = |state: &mut Self, child| state.insert(Flow::new(child, start_at, deadline_at, now));
        let run = self.run_number(parent);
        let Some(&number) = self.ids.get(&child.id) else { return start(self, child) };
        let taken = &self.flows[&number];
        let place = |parent: &Option<Parent>| parent.as_ref().map(|parent| (parent.id.clone(), parent.path.clone()));
        let owner = if place(&taken.info.parent) != place(&child.parent) {
            "a flow that this call did not start"
        } else if number > run && taken.is_what_is_wanted(&child) {
            if child.parent.as_ref().is_some_and(|parent| !parent.detached) {
                self.resume_child(number, now);
            }
            return;
        } else if taken.info.state.is_final() {
            self.withdraw_end(number);
            self.forget(number);
            return start(self, child);
        } else if number > run {
            "this call's child, which has not ended and runs with another value"
        } else {
            "a child of an earlier flow or run that has not ended"
        };
        let text = format!("the id {:?} belongs to {owner}", child.id);
        let Some(place) = child.parent else { return };
        let origin = Message::origin(&place.path, &child.id);
        self.deliver(parent, Channel::children(), text.into(), now, |message| {
            message.with_child(ChildOutcome::Refused, &origin)
        });
    }

    /// A call that has started a child is made again.
    fn resume_child(&mut self, number: u64, now: Timestamp) {
        let flow = &self.flows[&number];
        let (outcome, told) = match flow.info.state {
            FlowState::Failed => return self.schedule_again(number, now),
            FlowState::Completed => (ChildOutcome::Completed, flow.result.clone()),
            FlowState::Cancelled => {
                let reason = flow.info.reason.as_deref().unwrap_or_default();
                (ChildOutcome::Cancelled, Bytes::copy_from_slice(reason.as_bytes()))
            }
            _ => return,
        };
        // It may have told it before, while its parent had failed.
        self.withdraw_end(number);
        self.tell_parent(number, outcome, told, now);
    }

    /// Ends a flow and tells its parent.
    fn end(&mut self, number: u64, end: End, now: Timestamp) {
        let (outcome, told) = (end.outcome, end.told.clone());
        self.end_silently(number, end, now);
        self.tell_parent(number, outcome, told, now);
    }

    fn end_silently(&mut self, number: u64, end: End, now: Timestamp) {
        self.update(number, |flow| {
            flow.set(end.state, None, end.reason);
            flow.info.finished_at = Some(now);
            flow.result = end.result;
            // Most flows that a log holds have ended.
            flow.history.shrink_to_fit();
            // A failed flow may go on, and finds its messages where they were.
            if end.state != FlowState::Failed {
                flow.mailbox.clear();
            }
        });
    }

    /// Tells the parent of a flow how that one has ended, if it is there and may still want to know.
    fn tell_parent(&mut self, child: u64, outcome: ChildOutcome, told: Bytes, now: Timestamp) {
        let Some((parent, path)) = self.hearer(child) else { return };
        let origin = Message::origin(&path, &self.flows[&child].info.id);
        let state = self.flows[&parent].info.state;
        if !state.is_final() || state == FlowState::Failed {
            self.deliver(parent, Channel::children(), told, now, |message| message.with_child(outcome, &origin));
        }
    }

    /// The parent that hears of a flow's end, and the call that has started it.
    pub(super) fn hearer(&self, child: u64) -> Option<(u64, CallPath)> {
        let parent = self.flows[&child].info.parent.as_ref().filter(|parent| !parent.detached)?;
        // A flow that was accepted later has the id of the parent, and is another; a later run did not start it.
        let number = self.ids.get(&parent.id).copied().filter(|number| self.run_number(*number) < child)?;
        Some((number, parent.path.clone()))
    }

    /// The flow's own number, or the greatest that there was when its present run began: what it starts has a greater one.
    fn run_number(&self, number: u64) -> u64 {
        self.flows[&number].run_number.max(number)
    }

    /// The children whose ends a flow hears of, in the order in which they were accepted.
    fn heard_children(&self, parent: u64) -> impl Iterator<Item = (u64, &Flow)> {
        self.attached_children(parent, self.run_number(parent))
    }

    /// The attached children of a flow that were accepted after this number, in that order.
    fn attached_children(&self, parent: u64, after: u64) -> impl Iterator<Item = (u64, &Flow)> {
        let children = self.children.get(&self.flows[&parent].info.id);
        let children = children.into_iter().flat_map(move |children| children.range(after + 1..));
        let children = children.map(|child| (*child, &*self.flows[child]));
        children.filter(|(_, child)| child.info.parent.as_ref().is_some_and(|parent| !parent.detached))
    }

    /// Takes back what a flow has told its parent of its end.
    pub(super) fn withdraw_end(&mut self, child: u64) {
        let id = self.flows[&child].info.id.clone();
        if let Some((parent, path)) = self.hearer(child)
            && let Some(flow) = self.flows.get_mut(&parent)
        {
            let path = path.to_string();
            flow.mailbox.withdraw(|_, call, ended| call == path && ended == Some(&id));
        }
    }

    /// Puts a message into a mailbox, and wakes the flow if it waits for it.
    fn deliver(
        &mut self,
        number: u64,
        channel: Channel,
        payload: Bytes,
        now: Timestamp,
        finish: impl FnOnce(Message) -> Message,
    ) {
        let flow = self.flows.get_mut(&number).expect("the caller has found it");
        let wakes = flow.info.state == FlowState::Suspended && flow.info.wake.channels.contains(&channel);
        flow.mailbox.push(channel, now, payload, finish);
        if wakes {
            self.update(number, |flow| {
                // A timer may have come before the message, and nobody has claimed the flow since.
                let due_at = flow.info.due_at.map_or(now, |due_at| due_at.min(now));
                flow.set(FlowState::Scheduled, Some(due_at), None);
            });
        } else {
            self.hints.flows.push(flow.info.id.clone());
        }
    }

    // ---- outside -----------------------------------------------------------------------------------------

    pub(super) fn send(&mut self, message: NewMessage, now: Timestamp) -> Result<Sent> {
        let number = self.find(&message.to)?;
        let flow = self.flows.get_mut(&number).expect("found above");
        if message.key.as_deref().is_some_and(|key| flow.mailbox.knows(key)) {
            return Ok(Sent::Duplicate);
        }
        if flow.info.state.is_final() {
            return Err(Error::finished(&message.to, flow.info.state));
        }
        if let Some(key) = message.key {
            flow.mailbox.remember(key);
        }
        self.deliver(number, message.channel, message.payload, now, |message| message);
        Ok(Sent::Accepted)
    }

    pub(super) fn cancel(&mut self, id: &FlowId, reason: &str, ending: Ending, now: Timestamp) -> Result<Cancelled> {
        let number = self.find(id)?;
        let info = &self.flows[&number].info;
        if info.state.is_final() {
            return Ok(Cancelled::Already(info.state));
        }
        if info.is_cleaning_up() && ending == Ending::InOrder {
            return Ok(Cancelled::Already(FlowState::Cancelled));
        }
        let reason: Arc<str> = reason.into();
        let mut pending = vec![number];
        while let Some(next) = pending.pop() {
            let flow = self.flows.get_mut(&next).expect("children are flows");
            let at_once = next == number && ending == Ending::AtOnce;
            if flow.info.state.is_final() || flow.info.is_cleaning_up() && !at_once {
                continue;
            }
            flow.last_commit = None;
            let cleans_up = flow.info.cleanup == Cleanup::Needed && flow.info.records < Record::SEQ_MAX && !at_once;
            pending.extend(self.attached_children(next, next).map(|(child, _)| child));
            if cleans_up {
                self.update(next, |flow| {
                    // Whoever runs it may be in the middle of something.
                    let due_at = if flow.is_running() { flow.info.due_at } else { Some(now) };
                    flow.set(FlowState::Scheduled, due_at, None);
                    let record = Record::cancel(flow.info.records + 1, now, Record::CANCELLED, &reason);
                    flow.append(vec![record], &[]);
                    flow.info.cleanup = Cleanup::Underway;
                });
                continue;
            }
            // What goes with its parent has nobody to tell.
            let end = End::cancelled(Arc::clone(&reason));
            if next == number {
                self.end(next, end, now);
            } else {
                self.end_silently(next, end, now);
            }
        }
        Ok(Cancelled::Now)
    }

    pub(super) fn retry(&mut self, id: &FlowId, now: Timestamp) -> Result<Retried> {
        let number = self.find(id)?;
        let state = self.flows[&number].info.state;
        if !matches!(state, FlowState::Failed | FlowState::Stalled) {
            return Ok(Retried::Not(state));
        }
        self.schedule_again(number, now);
        Ok(Retried::Scheduled)
    }

    /// Schedules a flow that has failed or come to a standstill, and with it the descendants that it would fail of.
    fn schedule_again(&mut self, number: u64, now: Timestamp) {
        self.withdraw_end(number);
        let mut pending = vec![number];
        while let Some(number) = pending.pop() {
            pending.extend(self.withdraw_failures(number));
            self.update(number, |flow| {
                flow.forget_calls_to_be_made_again();
                flow.set(FlowState::Scheduled, Some(now), None);
                flow.info.deliveries = 0;
                flow.info.finished_at = None;
                flow.info.deadline_at =
                    flow.info.deadline_at.map(|deadline_at| now.saturating_add(deadline_at.since(flow.info.start_at)));
                flow.result = Bytes::new();
            });
        }
    }

    /// Takes out of a failed flow's mailbox the ends of children that it is to hear anew: of the calls that it makes
    /// again, and of those that have failed and are scheduled again, which are returned.
    fn withdraw_failures(&mut self, number: u64) -> BTreeSet<u64> {
        let flow = &self.flows[&number];
        let mut failed = BTreeSet::new();
        if flow.info.state != FlowState::Failed || !flow.mailbox.has_any(&[Channel::children()]) {
            return failed;
        }
        let again: HashSet<String> = flow.again.iter().map(CallPath::to_string).collect();
        // The last child of a call is the one that it waits for.
        let last: HashMap<String, (u64, FlowState, FlowId)> = (self.heard_children(number))
            .filter_map(|(child, flow)| {
                let path = flow.info.parent.as_ref()?.path.to_string();
                Some((path, (child, flow.info.state, flow.info.id.clone())))
            })
            .collect();
        let flow = self.flows.get_mut(&number).expect("found above");
        flow.mailbox.withdraw(|outcome, call, ended| {
            if again.contains(call) {
                return true;
            }
            // Without the child, its end is all there is of it.
            match last.get(call) {
                Some((child, FlowState::Failed, id)) if outcome == ChildOutcome::Failed && ended == Some(id) => {
                    failed.insert(*child);
                    true
                }
                _ => false,
            }
        });
        failed
    }

    pub(super) fn reoffer(&mut self, types: &[(Arc<str>, u32)], build: &str, now: Timestamp) -> u64 {
        let offered: Vec<u64> = (self.index.stalled.iter().copied())
            .filter(|number| {
                let flow = &self.flows[number];
                flow.stalled_by.as_deref().is_some_and(|stalled_by| stalled_by != build)
                    && types.iter().any(|(name, version)| (name, *version) == (&flow.info.flow_type, flow.info.version))
            })
            .collect();
        for &number in &offered {
            self.update(number, |flow| flow.set(FlowState::Scheduled, Some(now), None));
        }
        offered.len() as u64
    }

    // ---- read --------------------------------------------------------------------------------------------

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn flow(&self, id: &FlowId) -> Option<FlowRecord> {
        let flow = self.get(id)?;
        Some(FlowRecord { info: flow.info.clone(), input: flow.input.clone(), result: flow.result.clone() })
    }

    pub(super) fn history(&self, id: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        let flow = &self.flows[&self.find(id)?];
        let after = usize::try_from(after).unwrap_or(usize::MAX);
        Ok(flow.history.iter().skip(after).take(limit).cloned().collect())
    }

    pub(super) fn messages(&self, id: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        Ok(self.flows[&self.find(id)?].mailbox.read(channels, after, limit))
    }

    pub(super) fn items(&self, id: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        let items = self.flows[&self.find(id)?].feeds.get(feed).map_or(&[][..], Vec::as_slice);
        let from = items.partition_point(|item| item.seq <= after);
        Ok(items[from..].iter().take(limit).cloned().collect())
    }

    pub(super) fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> FlowPage {
        let from = after.map_or(0, |cursor| cursor.number().saturating_add(1));
        let mut page = FlowPage::default();
        let mut last = None;
        for (&number, flow) in self.flows.range(from..).filter(|(_, flow)| filter.accepts(&flow.info)) {
            if page.flows.len() >= limit.max(1) {
                page.next = last.map(Cursor::from_number);
                break;
            }
            page.flows.push(flow.info.clone());
            last = Some(number);
        }
        page
    }

    pub(super) fn counts(&self, filter: &Filter) -> Vec<Count> {
        let mut counts: BTreeMap<_, Count> = BTreeMap::new();
        for info in self.flows.values().map(|flow| &flow.info).filter(|info| filter.accepts(info)) {
            let key = (&info.queue, &info.flow_type, info.version, info.state);
            let count = counts.entry(key).or_insert_with(|| Count {
                queue: Arc::clone(&info.queue),
                flow_type: Arc::clone(&info.flow_type),
                version: info.version,
                state: info.state,
                flows: 0,
                oldest_due_at: None,
            });
            count.flows += 1;
            if info.state == FlowState::Scheduled {
                count.oldest_due_at = count.oldest_due_at.into_iter().chain(info.due_at).min();
            }
        }
        counts.into_values().collect()
    }

    // ---- upkeep ------------------------------------------------------------------------------------------

    pub(super) fn prune(&mut self, policy: &PrunePolicy, now: Timestamp) -> u64 {
        let is_meant = |&&(_, number): &&(Timestamp, u64)| {
            let info = &self.flows[&number].info;
            (policy.states.is_empty() || policy.states.contains(&info.state))
                && policy.flow_type.as_ref().is_none_or(|flow_type| *flow_type == info.flow_type)
        };
        let finished = &self.index.finished;
        // The newest of those that do not stay by their number.
        let newest = match policy.keep as usize {
            0 => finished.last(),
            keep => finished.iter().rev().filter(is_meant).nth(keep),
        };
        let Some(&newest) = newest else { return 0 };
        let forgotten: Vec<u64> = (finished.range(..=newest))
            .take_while(|(finished_at, _)| finished_at.saturating_add(policy.older_than) <= now)
            .filter(is_meant)
            .map(|&(_, number)| number)
            .filter(|number| !self.is_awaited(*number))
            .take(policy.limit as usize)
            .collect();
        for &number in &forgotten {
            self.forget(number);
        }
        forgotten.len() as u64
    }

    pub(super) fn delete(&mut self, id: &FlowId) -> Result<bool> {
        let Some(&number) = self.ids.get(id) else { return Ok(false) };
        let info = &self.flows[&number].info;
        let conflict = |message| Err(Error::new(ErrorKind::Conflict, message).with_flow(id));
        if !info.state.is_final() {
            return conflict(format!("the flow is {}, only one that has ended can be deleted", info.state));
        }
        if self.is_awaited(number) {
            return conflict("the flow's parent has not ended".into());
        }
        self.forget(number);
        Ok(true)
    }

    /// True when the flow has a parent that hears of its end and has not ended itself.
    fn is_awaited(&self, number: u64) -> bool {
        self.hearer(number).is_some_and(|(parent, _)| !self.flows[&parent].info.state.is_final())
    }

    pub(super) fn forget(&mut self, number: u64) {
        let Some(flow) = self.flows.remove(&number) else { return };
        self.places.forget(number);
        self.index.remove(number, &flow.info);
        self.ids.remove(&flow.info.id);
        if let Some(parent) = &flow.info.parent
            && let Some(siblings) = self.children.get_mut(&parent.id)
        {
            siblings.remove(&number);
            if siblings.is_empty() {
                self.children.remove(&parent.id);
            }
        }
        self.hints.flows.push(flow.info.id);
    }

    // ---- the maps ----------------------------------------------------------------------------------------

    pub(super) fn get(&self, id: &FlowId) -> Option<&Flow> {
        self.ids.get(id).map(|number| &*self.flows[number])
    }

    pub(super) fn find(&self, id: &FlowId) -> Result<u64> {
        self.ids.get(id).copied().ok_or_else(|| Error::not_found(id))
    }

    /// The flow with this number, which the caller has found.
    pub(super) fn flow_at(&self, number: u64) -> &Flow {
        &self.flows[&number]
    }

    /// The flow whose latest lease this is, though it may have ended.
    fn leased(&self, lease: &Lease) -> Result<&Flow> {
        let flow = self.flows.get(&lease.key).filter(|flow| flow.is_leased_by(lease));
        flow.map(|flow| &**flow).ok_or_else(|| Error::lease_lost(&lease.flow))
    }

    pub(super) fn insert(&mut self, flow: Flow) {
        self.last += 1;
        self.ids.insert(flow.info.id.clone(), self.last);
        self.file(flow);
    }

    /// Puts the flow with the latest number into all maps but the one of ids.
    fn file(&mut self, flow: Flow) {
        if let Some(parent) = &flow.info.parent {
            self.children.entry(parent.id.clone()).or_default().insert(self.last);
        }
        self.index.insert(self.last, &flow.info);
        self.hints.changed(&flow.info);
        self.flows.insert(self.last, Box::new(flow));
    }

    /// Changes the state of a flow: the only way, so that the index always agrees with it.
    pub(super) fn update<T>(&mut self, number: u64, change: impl FnOnce(&mut Flow) -> T) -> T {
        let flow = self.flows.get_mut(&number).expect("the caller has found it");
        self.index.remove(number, &flow.info);
        let answer = change(flow);
        self.index.insert(number, &flow.info);
        self.hints.changed(&flow.info);
        answer
    }
}

impl Index {
    fn insert(&mut self, number: u64, info: &FlowInfo) {
        match info.state {
            FlowState::Scheduled | FlowState::Running | FlowState::Suspended => self.lanes.insert(info, number),
            FlowState::Stalled => _ = self.stalled.insert(number),
            FlowState::Completed | FlowState::Failed | FlowState::Cancelled => {
                self.finished.extend(info.finished_at.map(|at| (at, number)));
            }
        }
    }

    fn remove(&mut self, number: u64, info: &FlowInfo) {
        match info.state {
            FlowState::Scheduled | FlowState::Running | FlowState::Suspended => self.lanes.remove(info, number),
            FlowState::Stalled => _ = self.stalled.remove(&number),
            FlowState::Completed | FlowState::Failed | FlowState::Cancelled => {
                info.finished_at.inspect(|at| _ = self.finished.remove(&(*at, number)));
            }
        }
    }
}

impl Hints {
    /// A flow has come to this state.
    fn changed(&mut self, info: &FlowInfo) {
        // Also for one that is not due yet: whoever waits may have been told a later instant.
        self.queue |= info.due_at.is_some() && info.state != FlowState::Running;
        self.flows.push(info.id.clone());
    }
}

impl Flow {
    /// Removes the records of the calls that are to be made again.
    fn forget_calls_to_be_made_again(&mut self) {
        if self.again.is_empty() {
            return;
        }
        let again: HashSet<CallPath> = std::mem::take(&mut self.again).into_iter().collect();
        self.history.retain(|record| !again.contains(&record.path));
        for (record, seq) in self.history.iter_mut().zip(1..) {
            record.seq = seq;
        }
        self.info.records = self.history.last().map_or(0, |record| record.seq);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{ClaimTarget, ManualClock};

    /// Flows that are gone leave nothing behind in any map.
    #[test]
    fn forgotten_flows_leave_nothing_behind() {
        let mut state = State::default();
        let now = Timestamp::EPOCH;
        let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
        let mut request = ClaimRequest::new("worker", target);
        request.limit = usize::MAX;
        for round in 0_i16..10 {
            let id = |number: u32| FlowId::new(format!("flow-{number}")).unwrap();
            let flow = |number: u32| {
                let parent =
                    Parent { id: id(number / 2), path: CallPath::top(number), detached: number.is_multiple_of(3) };
                NewFlow::new(id(number), "Order", 1, "{}").with_priority(round).with_parent(parent)
            };
            state.enqueue((0..100).map(flow).collect(), now, &Limits::default()).unwrap();
            for (claimed, number) in state.claim(&request, now).flows.into_iter().zip(0..) {
                let message = NewMessage::new(claimed.lease.flow.clone(), Channel::signal("go"), "").with_key("k");
                state.send(message, now).unwrap();
                let mut commit = Commit::new(claimed.lease, 1);
                commit.next = match number % 4 {
                    0 => Next::Complete { result: Bytes::new() },
                    1 => Next::Fail { error: Bytes::new(), reason: "".into(), again: vec![CallPath::top(1)] },
                    2 => Next::Suspend(Wake { at: Some(now.saturating_add(Duration::from_secs(1))), channels: vec![] }),
                    _ => Next::Stall { reason: "".into(), build: "".into() },
                };
                state.commit(commit, &ManualClock::starting_at(now), &Limits::default()).unwrap();
            }
            for number in 0..100 {
                state.cancel(&id(number), "", Ending::InOrder, now).unwrap();
            }
            assert_eq!(state.prune(&PrunePolicy::older_than(Duration::ZERO).with_limit(50), now), 50);
            let deleted = (0..100).filter(|number| state.delete(&id(*number)).unwrap()).count();
            assert_eq!(deleted, 50);
        }
        state.hints = Hints::default();
        assert_eq!(format!("{state:?}"), format!("{:?}", State { last: 1_000, ..State::default() }));
    }
}
