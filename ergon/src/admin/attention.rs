//! What a person must look at.

use std::{fmt, sync::Arc, time::Duration};

use ergon_storage::{Count, Cursor, ExecutionLog, Filter, FlowInfo, FlowState, Timestamp};

use crate::{StorageError, timeline::brief};

/// For how long a flow that is due may wait for a worker before people are told.
const NEGLECTED_AFTER: Duration = Duration::from_secs(60);

/// What a worker may claim when it is due: a running flow, too, when its lease has ended.
const LIVE: [FlowState; 3] = [FlowState::Scheduled, FlowState::Running, FlowState::Suspended];

/// Why a flow needs a person. With `{}` what happened and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// It has failed, for this reason.
    Failed(Arc<str>),
    /// It has come to a standstill, for this reason: its code does not match its history, its value cannot be read,
    /// or the workers that had it died over it. Nothing is lost.
    Stalled(Arc<str>),
    /// It has been due for that long, and no worker has claimed it: a new flow, one that wakes by itself, or one whose worker is
    /// gone.
    Neglected(Duration),
    /// It is due and must not move (see [`Takeover::Never`](ergon_storage::Takeover::Never)), and the log has not heard of this worker of late, which it is
    /// bound to.
    Abandoned(Arc<str>),
}

impl Problem {
    /// What is wrong with a flow at this instant; `None` when it goes its way.
    pub(super) fn of(info: &FlowInfo, now: Timestamp) -> Option<Self> {
        let reason = || info.reason.clone().unwrap_or_else(|| "no reason given".into());
        if info.is_abandoned() {
            return info.worker.clone().map(Self::Abandoned);
        }
        match info.state {
            FlowState::Failed => Some(Self::Failed(reason())),
            FlowState::Stalled => Some(Self::Stalled(reason())),
            FlowState::Scheduled | FlowState::Running | FlowState::Suspended => {
                let since = now.since(info.due_at?);
                (since > NEGLECTED_AFTER).then_some(Self::Neglected(since))
            }
            _ => None,
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Failed(_) => {
                "mend the cause, then `retry`: the calls it failed with are made again, and nothing that succeeded is \
                 repeated; or let it be, and `delete` it or have it pruned"
            }
            Self::Stalled(_) => {
                "do what the reason says, then `retry`: it goes on where it stopped; a worker of another build is \
                 offered what differs from its code when it starts; or `cancel` it"
            }
            Self::Neglected(_) => {
                "start a worker that registers its type and version and claims from its queue, or more slots for those \
                 that do; or `cancel` it"
            }
            Self::Abandoned(_) => {
                "start a worker of that name where it was; or, if what it had there is given up, anywhere; or `cancel` it, and \
                 `abandon` it if it has something to clean up"
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(reason) => write!(f, "it failed: {reason}")?,
            Self::Stalled(reason) => write!(f, "it is stalled: {reason}")?,
            Self::Neglected(since) => write!(f, "no worker has claimed it for {}", brief(*since))?,
            Self::Abandoned(worker) => write!(f, "it is bound to worker {worker:?}, which is gone")?,
        }
        write!(f, "\n  to do: {}", self.remedy())
    }
}

/// A flow that needs a person.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Troubled {
    /// The flow.
    pub flow: FlowInfo,
    /// What is wrong, and what to do.
    pub problem: Problem,
}

/// What needs a person. With `{}` a text to be read. Made by [`Admin::attention`](super::Admin::attention).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Attention {
    /// The flows that have failed or are stalled, in the order in which they were accepted; after those of the first page
    /// the ones that wait for workers that are gone.
    pub flows: Vec<Troubled>,
    /// Where the next page of them begins; `None` when this one reached the end.
    pub next: Option<Cursor>,
    /// The flows that have been due for more than a minute, and no worker has claimed them, by their kinds and states.
    pub neglected: Vec<Count>,
    /// When this was read, by the log's clock.
    pub at: Timestamp,
}

impl Attention {
    pub(super) async fn read(
        log: &dyn ExecutionLog,
        filter: &Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Self, StorageError> {
        let now = log.clock().now();
        let of = |states: &[FlowState]| {
            let mut filter = filter.clone();
            let named = std::mem::take(&mut filter.states);
            filter.states.extend(states.iter().filter(|state| named.is_empty() || named.contains(state)));
            (!filter.states.is_empty()).then_some(filter)
        };
        let mut attention = Self { at: now, ..Self::default() };
        if let Some(filter) = of(&[FlowState::Failed, FlowState::Stalled]) {
            let page = log.list(&filter, after, limit).await?;
            let troubled = |flow: FlowInfo| Problem::of(&flow, now).map(|problem| Troubled { flow, problem });
            attention.flows = page.flows.into_iter().filter_map(troubled).collect();
            attention.next = page.next;
        }
        if let Some(filter) = of(&LIVE) {
            if after.is_none() {
                attention.add_abandoned(log, filter.clone(), limit).await?;
            }
            let long_ago = Timestamp::EPOCH.saturating_add(now.since(Timestamp::EPOCH).saturating_sub(NEGLECTED_AFTER));
            let before = filter.due_before.map_or(long_ago, |before| before.min(long_ago));
            attention.neglected = log.counts(&filter.due_before(before)).await?;
        }
        Ok(attention)
    }

    /// Adds flows that wait for workers that are gone, at most so many.
    async fn add_abandoned(
        &mut self,
        log: &dyn ExecutionLog,
        filter: Filter,
        limit: usize,
    ) -> Result<(), StorageError> {
        /// How many flows are read at once.
        const PAGE: usize = 500;
        // Such a flow is never due.
        let filter = filter.due_from(Timestamp::MAX);
        let (mut found, mut after) = (Vec::new(), None);
        while found.len() < limit {
            let page = log.list(&filter, after, PAGE).await?;
            for flow in page.flows.into_iter().filter(FlowInfo::is_abandoned) {
                found.extend(Problem::of(&flow, self.at).map(|problem| Troubled { flow, problem }));
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        found.truncate(limit);
        self.flows.extend(found);
        Ok(())
    }

    /// True when nothing needs a person.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.neglected.is_empty()
    }
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing needs a person");
        }
        for Troubled { flow, problem } in &self.flows {
            writeln!(f, "{} {:?} (version {}): {problem}", flow.flow_type, flow.id, flow.version)?;
        }
        if self.next.is_some() {
            writeln!(f, "… and more")?;
        }
        for count in &self.neglected {
            let Count { flows, flow_type, version, queue, state, .. } = count;
            let since = count.oldest_due_at.map(|at| self.at.since(at)).unwrap_or_default();
            let problem = Problem::Neglected(since);
            writeln!(
                f,
                "{flows} of {flow_type} (version {version}) in queue {queue:?}, {state}, the first of them: {problem}"
            )?;
        }
        Ok(())
    }
}
