//! Which flow comes next.

use std::{
    borrow::Borrow,
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    iter,
    sync::Arc,
};

use crate::{ClaimTarget, FlowInfo, Timestamp};

/// A lane holds the flows of one queue, type and version: what a worker has or has not registered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Lane {
    queue: Arc<str>,
    flow_type: Arc<str>,
    version: u32,
}

impl Lane {
    fn of(info: &FlowInfo) -> Self {
        Self { queue: Arc::clone(&info.queue), flow_type: Arc::clone(&info.flow_type), version: info.version }
    }

    /// The lanes of a target, each once; none for a target that is one flow.
    pub(super) fn all_of(target: &ClaimTarget) -> BTreeSet<Self> {
        let ClaimTarget::Queues { queues, types } = target else { return BTreeSet::new() };
        let pairs = queues.iter().flat_map(|queue| types.iter().map(move |entry| (queue, entry)));
        pairs
            .map(|(queue, (flow_type, version))| Self {
                queue: Arc::clone(queue),
                flow_type: Arc::clone(flow_type),
                version: *version,
            })
            .collect()
    }
}

impl Lane {
    /// True when the flow's lane is among these.
    pub(super) fn has(lanes: &BTreeSet<Self>, info: &FlowInfo) -> bool {
        lanes.contains(info as &dyn Named)
    }
}

/// What names a lane: a flow finds its own without making one.
trait Named {
    fn name(&self) -> (&str, &str, u32);
}

impl Named for Lane {
    fn name(&self) -> (&str, &str, u32) {
        (&self.queue, &self.flow_type, self.version)
    }
}

impl Named for FlowInfo {
    fn name(&self) -> (&str, &str, u32) {
        (&self.queue, &self.flow_type, self.version)
    }
}

impl PartialEq for dyn Named + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for dyn Named + '_ {}

impl PartialOrd for dyn Named + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Named + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name().cmp(&other.name())
    }
}

impl<'a> Borrow<dyn Named + 'a> for Lane {
    fn borrow(&self) -> &(dyn Named + 'a) {
        self
    }
}

/// Every flow that becomes due by itself, also while it runs, in the order in which it is claimed.
///
/// The instant comes first within a priority, so that flows that are not due yet lie behind the ones that are
/// and cost a claim nothing.
#[derive(Debug, Default)]
pub(super) struct Lanes(BTreeMap<Lane, Priorities>);

type Priorities = BTreeMap<Reverse<i16>, BTreeSet<(Timestamp, u64)>>;

impl Lanes {
    /// Files a flow under its due instant; one that has none is not filed.
    pub(super) fn insert(&mut self, info: &FlowInfo, number: u64) {
        let Some(due_at) = info.due_at else { return };
        let priorities = match self.0.get_mut(info as &dyn Named) {
            Some(priorities) => priorities,
            None => self.0.entry(Lane::of(info)).or_default(),
        };
        priorities.entry(Reverse(info.priority)).or_default().insert((due_at, number));
    }

    /// Takes a flow out, with the lane if it was the last one in it.
    pub(super) fn remove(&mut self, info: &FlowInfo, number: u64) {
        let Some(due_at) = info.due_at else { return };
        let Some(priorities) = self.0.get_mut(info as &dyn Named) else { return };
        if let Some(flows) = priorities.get_mut(&Reverse(info.priority)) {
            flows.remove(&(due_at, number));
            if flows.is_empty() {
                priorities.remove(&Reverse(info.priority));
            }
        }
        if priorities.is_empty() {
            self.0.remove(info as &dyn Named);
        }
    }

    /// The flows of these lanes that are due, in the order in which they are claimed.
    pub(super) fn due(&self, lanes: &BTreeSet<Lane>, now: Timestamp) -> impl Iterator<Item = u64> {
        let mut sources = Vec::new();
        let mut heads = BinaryHeap::new();
        for (priority, flows) in lanes.iter().filter_map(|lane| self.0.get(lane)).flatten() {
            let mut flows = flows.range(..=(now, u64::MAX));
            if let Some(&(due_at, number)) = flows.next() {
                heads.push(Reverse((*priority, due_at, number, sources.len())));
                sources.push(flows);
            }
        }
        iter::from_fn(move || {
            let Reverse((priority, _, number, source)) = heads.pop()?;
            if let Some(&(due_at, number)) = sources[source].next() {
                heads.push(Reverse((priority, due_at, number, source)));
            }
            Some(number)
        })
    }

    /// The flows that are due between these instants, of which the second is excluded.
    pub(super) fn between(&self, from: Timestamp, before: Timestamp) -> impl Iterator<Item = u64> {
        let all = self.0.values().flat_map(BTreeMap::values);
        let some = all.filter(move |_| from < before).flat_map(move |flows| flows.range((from, 0)..(before, 0)));
        some.map(|(_, number)| *number)
    }

    /// When the first flow of these lanes is due.
    pub(super) fn next_due_at(&self, lanes: &BTreeSet<Lane>) -> Option<Timestamp> {
        let sets = lanes.iter().filter_map(|lane| self.0.get(lane)).flat_map(BTreeMap::values);
        sets.filter_map(|flows| flows.first().map(|(due_at, _)| *due_at)).min()
    }
}
