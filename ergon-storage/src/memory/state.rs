//! The state of a log and its transitions.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{lanes::Lanes, mailbox::Mailbox, places::Places};
use crate::{
    Beat, CallPath, Cleanup, Committed, Error, Feed, FlowId, FlowInfo, FlowState, Item, Keep, Lease, NewFlow, NewItem,
    Record, Result, Timestamp, Wake,
};

/// Everything in a log. Each method is one transition: it refuses before it changes anything.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The flows by the number under which they were accepted. Boxed, for tree nodes move their values.
    pub(super) flows: BTreeMap<u64, Box<Flow>>,
    /// The number of the latest flow, also if that one was deleted.
    pub(super) last: u64,
    pub(super) ids: HashMap<FlowId, u64>,
    /// The flows that name this one as their parent, which need not exist.
    pub(super) children: HashMap<FlowId, BTreeSet<u64>>,
    pub(super) index: Index,
    pub(super) places: Places,
    /// What the transition has given rise to; taken after each one.
    pub(super) hints: Hints,
}

/// The flows by what their state makes of them.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) lanes: Lanes,
    pub(super) stalled: BTreeSet<u64>,
    pub(super) finished: BTreeSet<(Timestamp, u64)>,
    /// The same by their types.
    pub(super) finished_of: HashMap<Arc<str>, BTreeSet<(Timestamp, u64)>>,
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

impl Flow {
    pub(super) fn new(flow: NewFlow, start_at: Timestamp, deadline_at: Option<Timestamp>, now: Timestamp) -> Self {
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

    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.info.due_at.is_some_and(|due_at| due_at <= now)
    }

    /// True when this is its latest lease, though it may have ended.
    pub(super) fn is_leased_by(&self, lease: &Lease) -> bool {
        self.info.epoch == lease.epoch && self.info.id == lease.flow
    }

    /// Adds records to the history, and takes messages out of the mailbox.
    pub(super) fn append(&mut self, records: Vec<Record>, consumed: &[u32]) {
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
    pub(super) fn amend(&mut self, beats: Vec<Beat>) {
        for Beat { seq, at, payload } in beats {
            if let Some(record) = self.history.get_mut(seq as usize - 1) {
                (record.at, record.payload) = (at, payload);
            }
        }
    }

    /// Adds items to the feeds.
    pub(super) fn emit(&mut self, items: Vec<NewItem>, emitted: Option<u32>) {
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
    pub(super) fn awaits_cleanup(&self) -> bool {
        self.info.cleanup == Cleanup::Underway && self.info.state == FlowState::Scheduled
    }

    pub(super) fn is_running(&self) -> bool {
        self.info.state == FlowState::Running
    }

    /// True when it is the flow that a call asks for.
    pub(super) fn is_what_is_wanted(&self, wanted: &NewFlow) -> bool {
        let info = &self.info;
        (&info.flow_type, info.version, self.accepted()) == (&wanted.flow_type, wanted.version, &wanted.input)
    }

    /// The value that it was accepted with.
    pub(super) fn accepted(&self) -> &Bytes {
        self.accepted.as_ref().unwrap_or(&self.input)
    }
}

impl State {
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
    pub(super) fn leased(&self, lease: &Lease) -> Result<&Flow> {
        let flow = self.flows.get(&lease.key).filter(|flow| flow.is_leased_by(lease));
        flow.map(|flow| &**flow).ok_or_else(|| Error::lease_lost(&lease.flow))
    }

    pub(super) fn insert(&mut self, flow: Flow) {
        self.last += 1;
        self.ids.insert(flow.info.id.clone(), self.last);
        self.file(flow);
    }

    /// Puts the flow with the latest number into all maps but the one of ids.
    pub(super) fn file(&mut self, flow: Flow) {
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
    pub(super) fn insert(&mut self, number: u64, info: &FlowInfo) {
        match info.state {
            FlowState::Scheduled | FlowState::Running | FlowState::Suspended => self.lanes.insert(info, number),
            FlowState::Stalled => _ = self.stalled.insert(number),
            FlowState::Completed | FlowState::Failed | FlowState::Cancelled => {
                let Some(at) = info.finished_at else { return };
                self.finished.insert((at, number));
                self.finished_of.entry(Arc::clone(&info.flow_type)).or_default().insert((at, number));
            }
        }
    }

    pub(super) fn remove(&mut self, number: u64, info: &FlowInfo) {
        match info.state {
            FlowState::Scheduled | FlowState::Running | FlowState::Suspended => self.lanes.remove(info, number),
            FlowState::Stalled => _ = self.stalled.remove(&number),
            FlowState::Completed | FlowState::Failed | FlowState::Cancelled => {
                let Some(at) = info.finished_at else { return };
                self.finished.remove(&(at, number));
                if let Some(flows) = self.finished_of.get_mut(&info.flow_type) {
                    flows.remove(&(at, number));
                    if flows.is_empty() {
                        self.finished_of.remove(&info.flow_type);
                    }
                }
            }
        }
    }
}

impl Hints {
    /// A flow has come to this state.
    pub(super) fn changed(&mut self, info: &FlowInfo) {
        // Also for one that is not due yet: whoever waits may have been told a later instant.
        self.queue |= info.due_at.is_some() && info.state != FlowState::Running;
        self.flows.push(info.id.clone());
    }
}

impl Flow {
    /// Removes the records of the calls that are to be made again.
    pub(super) fn forget_calls_to_be_made_again(&mut self) {
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
    use crate::{
        Channel, ClaimRequest, ClaimTarget, Commit, Limits, ManualClock, NewMessage, Next, Parent, PrunePolicy,
    };

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
                    2 => Next::suspend(Wake { at: Some(now.saturating_add(Duration::from_secs(1))), channels: vec![] }),
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
