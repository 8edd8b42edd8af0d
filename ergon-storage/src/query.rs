//! Questions about many flows at once.

use std::{sync::Arc, time::Duration};

use crate::{FlowId, FlowInfo, FlowState, Timestamp};

/// Which flows to list. Conditions are joined by *and*; an empty one holds for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Filter {
    /// In one of these states.
    pub states: Vec<FlowState>,
    /// Of this type.
    pub flow_type: Option<Arc<str>>,
    /// In this queue.
    pub queue: Option<Arc<str>>,
    /// Started by this flow.
    pub parent: Option<FlowId>,
}

impl Filter {
    /// All flows.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only flows in this state, or in one of those named by other calls.
    #[must_use]
    pub fn with_state(mut self, state: FlowState) -> Self {
        self.states.push(state);
        self
    }

    /// Only flows of this type.
    #[must_use]
    pub fn with_flow_type(mut self, flow_type: impl Into<Arc<str>>) -> Self {
        self.flow_type = Some(flow_type.into());
        self
    }

    /// Only flows in this queue.
    #[must_use]
    pub fn with_queue(mut self, queue: impl Into<Arc<str>>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Only children of this flow.
    #[must_use]
    pub fn with_parent(mut self, parent: FlowId) -> Self {
        self.parent = Some(parent);
        self
    }

    /// True when the flow passes.
    pub fn accepts(&self, info: &FlowInfo) -> bool {
        (self.states.is_empty() || self.states.contains(&info.state))
            && self.flow_type.as_ref().is_none_or(|flow_type| *flow_type == info.flow_type)
            && self.queue.as_ref().is_none_or(|queue| *queue == info.queue)
            && self.parent.as_ref().is_none_or(|parent| info.parent.as_ref().is_some_and(|p| p.id == *parent))
    }
}

/// A place in a list of flows; opaque, and valid as long as the log exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Cursor(u64);

impl Cursor {
    /// A cursor from a log's own number. For implementations of [`ExecutionLog`](crate::ExecutionLog).
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The log's own number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A page of a list of flows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FlowPage {
    /// The flows, in the order in which they were accepted.
    pub flows: Vec<FlowInfo>,
    /// Where the next page begins; `None` when this one reached the end.
    pub next: Option<Cursor>,
}

/// How many flows of one type, version and queue are in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The queue.
    pub queue: Arc<str>,
    /// The type's name.
    pub flow_type: Arc<str>,
    /// The type's version.
    pub version: u32,
    /// The state.
    pub state: FlowState,
    /// How many; never 0.
    pub flows: u64,
    /// For scheduled flows, since when the longest waiting one could have been claimed; may lie in the future.
    pub oldest_due_at: Option<Timestamp>,
}

/// Which finished flows may be forgotten.
///
/// Never touches a flow that has not ended, nor a child whose parent has not.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrunePolicy {
    /// Only flows that ended at least that long ago.
    pub older_than: Duration,
    /// Only flows in these final states; all three when empty.
    pub states: Vec<FlowState>,
    /// Only flows of this type.
    pub flow_type: Option<Arc<str>>,
    /// At most that many in one call, so that a call stays short.
    pub limit: u32,
}

impl PrunePolicy {
    /// Flows that ended at least that long ago, at most 1,000 in one call.
    #[must_use]
    pub fn older_than(older_than: Duration) -> Self {
        Self { older_than, states: Vec::new(), flow_type: None, limit: 1_000 }
    }

    /// Only flows in this final state, or in one of those named by other calls.
    #[must_use]
    pub fn with_state(mut self, state: FlowState) -> Self {
        self.states.push(state);
        self
    }

    /// Only flows of this type.
    #[must_use]
    pub fn with_flow_type(mut self, flow_type: impl Into<Arc<str>>) -> Self {
        self.flow_type = Some(flow_type.into());
        self
    }

    /// At most `limit` flows in one call.
    #[must_use]
    pub fn with_limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }
}
