//! Questions about many flows at once.

use std::{sync::Arc, time::Duration};

use crate::{FlowId, FlowInfo, FlowState, Timestamp};

/// Which flows to list or count. Conditions are joined by *and*; an empty one holds for all.
///
/// # Examples
///
/// ```
/// use ergon_storage::{Filter, FlowState};
///
/// let stuck = Filter::all()
///     .with_state(FlowState::Failed)
///     .with_state(FlowState::Stalled)
///     .with_label("customer", "7")
///     .with_reason("card declined");
/// assert_eq!(stuck.states.len(), 2);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Filter {
    /// In one of these states.
    pub states: Vec<FlowState>,
    /// Of this type.
    pub flow_type: Option<Arc<str>>,
    /// In this queue.
    pub queue: Option<Arc<str>>,
    /// Naming this flow as their parent, also those that an earlier flow of its id has started.
    pub parent: Option<FlowId>,
    /// Having all of these labels, each with this value.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// With this text in the reason for which they failed, were cancelled or are stalled; compared byte for byte.
    pub reason: Option<Arc<str>>,
    /// Accepted at this instant or later.
    pub created_from: Option<Timestamp>,
    /// Accepted before this instant.
    pub created_before: Option<Timestamp>,
    /// Ended at this instant or later.
    pub finished_from: Option<Timestamp>,
    /// Ended before this instant.
    pub finished_before: Option<Timestamp>,
    /// [Due](FlowInfo::due_at) at this instant or later: scheduled, running, or suspended and waking by themselves.
    pub due_from: Option<Timestamp>,
    /// [Due](FlowInfo::due_at) before this instant.
    pub due_before: Option<Timestamp>,
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

    /// Only flows that name this one as their parent, also those that an earlier flow of its id has started.
    #[must_use]
    pub fn with_parent(mut self, parent: FlowId) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Only flows that have this label with this value, and those that other calls name.
    #[must_use]
    pub fn with_label(mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.labels.push((name.into(), value.into()));
        self
    }

    /// Only flows with this text in the reason for which they failed, were cancelled or are stalled.
    #[must_use]
    pub fn with_reason(mut self, text: impl Into<Arc<str>>) -> Self {
        self.reason = Some(text.into());
        self
    }

    /// Only flows that were accepted at this instant or later.
    #[must_use]
    pub fn created_from(mut self, at: Timestamp) -> Self {
        self.created_from = Some(at);
        self
    }

    /// Only flows that were accepted before this instant.
    #[must_use]
    pub fn created_before(mut self, at: Timestamp) -> Self {
        self.created_before = Some(at);
        self
    }

    /// Only flows that ended at this instant or later.
    #[must_use]
    pub fn finished_from(mut self, at: Timestamp) -> Self {
        self.finished_from = Some(at);
        self
    }

    /// Only flows that ended before this instant.
    #[must_use]
    pub fn finished_before(mut self, at: Timestamp) -> Self {
        self.finished_before = Some(at);
        self
    }

    /// Only flows that are [due](FlowInfo::due_at) at this instant or later.
    #[must_use]
    pub fn due_from(mut self, at: Timestamp) -> Self {
        self.due_from = Some(at);
        self
    }

    /// Only flows that are [due](FlowInfo::due_at) before this instant: with the present one, those that somebody could claim.
    /// A log finds them without looking at the others, as far as they are not very many.
    #[must_use]
    pub fn due_before(mut self, at: Timestamp) -> Self {
        self.due_before = Some(at);
        self
    }

    /// True when it asks for when flows are due.
    #[cfg(any(feature = "memory", feature = "sqlite", feature = "postgres"))]
    pub(crate) fn is_about_due(&self) -> bool {
        self.due_from.is_some() || self.due_before.is_some()
    }

    /// False when it asks for labels that no flow can have.
    #[cfg(feature = "redis")]
    pub(crate) fn is_possible(&self) -> bool {
        self.labels
            .iter()
            .all(|(name, value)| crate::Labels::from([(Arc::clone(name), Arc::clone(value))]).check().is_ok())
    }

    /// True when the flow passes.
    pub fn accepts(&self, info: &FlowInfo) -> bool {
        (self.states.is_empty() || self.states.contains(&info.state))
            && self.flow_type.as_ref().is_none_or(|flow_type| *flow_type == info.flow_type)
            && self.queue.as_ref().is_none_or(|queue| *queue == info.queue)
            && self.parent.as_ref().is_none_or(|parent| info.parent.as_ref().is_some_and(|p| p.id == *parent))
            && self.labels.iter().all(|(name, value)| info.labels.get(name) == Some(value))
            && self.reason.as_ref().is_none_or(|text| info.reason.as_ref().is_some_and(|has| has.contains(&**text)))
            && self.created_from.is_none_or(|from| info.created_at >= from)
            && self.created_before.is_none_or(|before| info.created_at < before)
            && self.finished_from.is_none_or(|from| info.finished_at.is_some_and(|at| at >= from))
            && self.finished_before.is_none_or(|before| info.finished_at.is_some_and(|at| at < before))
            && self.due_from.is_none_or(|from| info.due_at.is_some_and(|at| at >= from))
            && self.due_before.is_none_or(|before| info.due_at.is_some_and(|at| at < before))
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
    /// Since when the longest waiting one could have been claimed: a scheduled one since its start, a suspended one since its
    /// instant, a running one since the end of its lease. May lie in the future; `None` when none becomes due by itself.
    pub oldest_due_at: Option<Timestamp>,
}

/// Which finished flows may be forgotten: those for which all conditions hold.
///
/// Never touches a flow that has not ended, nor a child whose parent has not.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ergon_storage::{FlowState, PrunePolicy};
///
/// let day = Duration::from_secs(24 * 3600);
/// let old_orders = PrunePolicy::older_than(30 * day).with_flow_type("Order").with_state(FlowState::Completed);
/// let all_but_the_last_hundred = PrunePolicy::all_but(100).with_flow_type("Import");
/// assert_eq!((old_orders.keep, all_but_the_last_hundred.keep), (0, 100));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrunePolicy {
    /// Only flows that ended at least that long ago.
    pub older_than: Duration,
    /// Only flows in these final states; all three when empty.
    pub states: Vec<FlowState>,
    /// Only flows of this type.
    pub flow_type: Option<Arc<str>>,
    /// So many stay, whatever their age: those that ended last, of all in these states and of this type.
    pub keep: u32,
    /// At most that many in one call, so that a call stays short.
    pub limit: u32,
}

impl PrunePolicy {
    /// Flows that ended at least that long ago, at most 1,000 in one call.
    #[must_use]
    pub fn older_than(older_than: Duration) -> Self {
        Self { older_than, states: Vec::new(), flow_type: None, keep: 0, limit: 1_000 }
    }

    /// All flows that ended but so many, those that ended last; at most 1,000 in one call.
    #[must_use]
    pub fn all_but(keep: u32) -> Self {
        Self::older_than(Duration::ZERO).with_keep(keep)
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

    /// So many stay, whatever their age: those that ended last, of all that are in the policy's states and of its type.
    #[must_use]
    pub fn with_keep(mut self, keep: u32) -> Self {
        self.keep = keep;
        self
    }

    /// At most `limit` flows in one call.
    #[must_use]
    pub fn with_limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }
}
