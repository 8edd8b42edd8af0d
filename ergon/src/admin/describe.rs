//! One flow, explained to a person.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ergon_storage::{
    Affinity, CallKind, CallPath, Channel, ErrorKind, ExecutionLog, Filter, FlowId, FlowInfo, FlowState, Message,
    Phase, Record, Timestamp,
};

use super::attention::Problem;
use crate::{
    StorageError,
    timeline::{History, brief, excerpt},
};

/// All that a person needs to know of a flow: what it is, what it did, what it waits for, and what can be done. With
/// `{}` a text to be read. Made by [`Admin::describe`](super::Admin::describe).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Description {
    /// The flow, its value and its records.
    pub history: History,
    /// What it waits for, and what would let it go on; empty when it has ended or needs a person.
    pub waits: Vec<Wait>,
    /// What is wrong with it, if a person must look at it.
    pub problem: Option<Problem>,
    /// The first messages that it has not taken yet, at most [`Description::MESSAGES_MAX`].
    pub messages: Vec<Message>,
    /// True when more messages wait.
    pub more_messages: bool,
    /// The flows that it has started, those that they have, and so on; at most [`Description::CHILDREN_MAX`]
    /// altogether.
    pub children: Vec<FlowTree>,
    /// True when there are more than these.
    pub more_children: bool,
    /// When this was read, by the log's clock.
    pub at: Timestamp,
}

/// A flow and those that it has started.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FlowTree {
    /// The flow.
    pub flow: FlowInfo,
    /// Its children, in the order in which they were accepted.
    pub children: Vec<FlowTree>,
}

/// Something that a flow waits for. With `{}` what it is and what would let the flow go on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// For its start, or for its turn after that: a worker with this type and version, for this queue.
    Worker {
        /// The type.
        flow_type: Arc<str>,
        /// The version.
        version: u32,
        /// The queue.
        queue: Arc<str>,
        /// When it may be claimed, or since when it might have been.
        from: Timestamp,
        /// The worker that may claim it before, for the flow is [bound](crate::Affinity) to where it ran.
        bound_to: Option<Arc<str>>,
    },
    /// For a worker that has it: to get on with it, or to lose its lease at this instant.
    Lease {
        /// The worker.
        worker: Arc<str>,
        /// The end of the lease, if it is not renewed.
        until: Timestamp,
    },
    /// For a timer.
    Timer {
        /// The name of the timer.
        name: Arc<str>,
        /// Its instant.
        at: Timestamp,
    },
    /// For the next attempt of a step.
    Retry {
        /// The name of the step.
        step: Arc<str>,
        /// How many attempts have failed.
        failed: u32,
        /// When the next one begins.
        at: Timestamp,
    },
    /// For a signal, or for a message to a mailbox of this name.
    Signal {
        /// The flow.
        flow: FlowId,
        /// The name.
        name: Arc<str>,
        /// When it waits no longer.
        until: Option<Timestamp>,
    },
    /// For the end of a child.
    Child {
        /// The child.
        flow: FlowId,
        /// Where that one is in its life; `None` when it is not there.
        state: Option<FlowState>,
    },
    /// The flow's time limit: it goes on no longer than until then.
    TimeLimit(Timestamp),
}

impl Description {
    /// How many messages a description has at most.
    pub const MESSAGES_MAX: usize = 100;
    /// How many children, and children of children, a description has at most.
    pub const CHILDREN_MAX: usize = 200;
    /// How deep the tree of children goes at most.
    pub const DEPTH_MAX: usize = 16;
    /// How many events the text tells at most, the last ones.
    const EVENTS_MAX: usize = 50;

    pub(super) async fn read(log: &dyn ExecutionLog, id: &FlowId) -> Result<Self, StorageError> {
        let history = History::read(log, id).await?;
        let mut messages = match log.messages(id, &[], 0, Self::MESSAGES_MAX + 1).await {
            // It was forgotten since.
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            messages => messages?,
        };
        let more_messages = messages.len() > Self::MESSAGES_MAX;
        messages.truncate(Self::MESSAGES_MAX);
        let mut left = Self::CHILDREN_MAX;
        let (children, more_children) = children(log, &history.info, 1, &mut left).await?;
        let now = log.clock().now();
        let mut waits = waits(&history);
        for wait in &mut waits {
            if let Wait::Child { flow, state } = wait {
                *state = log.flow(flow).await?.map(|flow| flow.info.state);
            }
        }
        let problem = Problem::of(&history.info, now);
        Ok(Self { history, waits, problem, messages, more_messages, children, more_children, at: now })
    }

    /// The flow without its payloads.
    pub fn info(&self) -> &FlowInfo {
        &self.history.info
    }
}

/// The children of a flow, as far as there is room for them, and whether there are more.
async fn children(
    log: &dyn ExecutionLog,
    parent: &FlowInfo,
    depth: usize,
    left: &mut usize,
) -> Result<(Vec<FlowTree>, bool), StorageError> {
    let filter = Filter::all().with_parent(parent.id.clone()).created_from(parent.created_at);
    let page = log.list(&filter, None, (*left).max(1)).await?;
    if page.flows.is_empty() || *left == 0 || depth > Description::DEPTH_MAX {
        return Ok((Vec::new(), !page.flows.is_empty()));
    }
    *left -= page.flows.len();
    let mut more = page.next.is_some();
    let mut trees = Vec::with_capacity(page.flows.len());
    for flow in page.flows {
        let (children, more_below) = Box::pin(children(log, &flow, depth + 1, left)).await?;
        more |= more_below;
        trees.push(FlowTree { flow, children });
    }
    Ok((trees, more))
}

/// What a flow waits for, by its row and its open calls.
fn waits(history: &History) -> Vec<Wait> {
    let info = &history.info;
    let mut waits = Vec::new();
    let bound_to = info.worker.clone().filter(|_| Affinity::binding(&info.labels) != Affinity::Anyone);
    let limit = info.deadline_at.filter(|_| !info.is_cleaning_up());
    // One that is due, and kept for the worker that it is bound to, is filed under another instant than its own.
    let is_kept = match info.state {
        FlowState::Suspended => bound_to.is_some() && info.due_at != info.wake.at.into_iter().chain(limit).min(),
        FlowState::Running => info.is_abandoned(),
        _ => false,
    };
    match (info.state, info.due_at) {
        (state, Some(from)) if state == FlowState::Scheduled || is_kept => waits.push(Wait::Worker {
            flow_type: Arc::clone(&info.flow_type),
            version: info.version,
            queue: Arc::clone(&info.queue),
            from,
            bound_to,
        }),
        (FlowState::Running, Some(until)) => {
            waits.push(Wait::Lease { worker: info.worker.clone().unwrap_or_default(), until });
        }
        _ => {}
    }
    if matches!(info.state, FlowState::Running | FlowState::Suspended) {
        let mut open: BTreeMap<&CallPath, &Record> = BTreeMap::new();
        for record in &history.records {
            if record.kind == CallKind::Cancel {
                // What it was about then has ended with that.
                open.clear();
            } else if record.phase.is_outcome() {
                open.remove(&record.path);
            } else {
                open.insert(&record.path, record);
            }
        }
        waits.extend(open.into_values().filter_map(|record| wait(info, record)));
        // A wait without a time limit leaves no record.
        for name in info.wake.channels.iter().filter_map(signal_name) {
            if !waits.iter().any(|wait| matches!(wait, Wait::Signal { name: known, .. } if **known == *name)) {
                waits.push(Wait::Signal { flow: info.id.clone(), name: name.into(), until: None });
            }
        }
    }
    if !info.state.is_final() && info.state != FlowState::Stalled {
        waits.extend(limit.map(Wait::TimeLimit));
    }
    waits
}

/// The name of the signal or mailbox that a channel is for.
fn signal_name(channel: &Channel) -> Option<&str> {
    channel.as_str().strip_prefix("signal:")
}

/// The wait that a record without an outcome tells of; none when the flow has turned away from it.
fn wait(info: &FlowInfo, record: &Record) -> Option<Wait> {
    let wake = &info.wake;
    let is_suspended = info.state == FlowState::Suspended;
    // A call that lost a race leaves its record behind, and the log waits for something else.
    let awaits = |channel: &Channel| !is_suspended || wake.channels.contains(channel);
    let at = record.due_at.filter(|at| !is_suspended || wake.at.is_some_and(|first| *at >= first));
    let name = Arc::clone(&record.name);
    match (record.kind, record.phase) {
        (CallKind::Timer, Phase::Pending) => Some(Wait::Timer { name, at: at? }),
        (CallKind::Step, Phase::Attempt) => Some(Wait::Retry { step: name, failed: record.attempt, at: at? }),
        (CallKind::Signal, Phase::Pending) if awaits(&Channel::signal(&name)) => {
            Some(Wait::Signal { flow: info.id.clone(), name, until: record.due_at })
        }
        (CallKind::Child, Phase::Pending) if awaits(&Channel::children()) => {
            Some(Wait::Child { flow: FlowId::new(record.reference.as_deref()?).ok()?, state: None })
        }
        _ => None,
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker { bound_to: Some(worker), from: Timestamp::MAX, .. } => {
                write!(f, "for worker {worker:?}, where it ran and alone may go on")
            }
            Self::Worker { flow_type, version, queue, from, bound_to } => {
                if let Some(worker) = bound_to {
                    write!(f, "for worker {worker:?}, where it ran, or ")?;
                }
                write!(
                    f,
                    "for a worker that registers {flow_type:?} version {version} and claims from the queue {queue:?}, \
                     from {from} on"
                )
            }
            Self::Lease { worker, until } => {
                write!(f, "for worker {worker:?}, which runs it; its lease ends at {until} unless it renews it")
            }
            Self::Timer { name, at } => write!(f, "for the timer {name:?}, until {at}"),
            Self::Retry { step, failed, at } => {
                write!(f, "for attempt {} of step {step:?}, which begins at {at}", failed.saturating_add(1))
            }
            Self::Signal { flow, name, until } => {
                write!(f, "for the signal {name:?}: scheduler.signal(\"{flow}\", {name:?}, …) wakes it")?;
                until.map_or(Ok(()), |until| write!(f, ", and so does its time limit at {until}"))
            }
            Self::Child { flow, state: Some(state) } => write!(f, "for the end of child {flow}, which is {state}"),
            Self::Child { flow, state: None } => {
                write!(
                    f,
                    "for the end of child {flow}, which is not there; cancel the flow, or retry it once it failed"
                )
            }
            Self::TimeLimit(at) => write!(f, "at most until {at}, when its time is up"),
        }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info();
        let FlowInfo { id, flow_type, version, state, queue, .. } = info;
        let cancelling = if info.is_cleaning_up() { ", cancelling" } else { "" };
        writeln!(f, "{flow_type} {id:?} (version {version}): {state}{cancelling}")?;
        let ago = |at: Timestamp| brief(self.at.since(at));
        write!(
            f,
            "  queue {queue:?}, priority {}, accepted {} ({} ago)",
            info.priority,
            info.created_at,
            ago(info.created_at)
        )?;
        if let Some(at) = info.finished_at {
            write!(f, ", ended {at} ({} ago)", ago(at))?;
        }
        writeln!(f)?;
        if !info.labels.is_empty() {
            writeln!(f, "  labels: {}", info.labels)?;
        }
        if let Some(parent) = &info.parent {
            let how = if parent.detached { "started on its own by" } else { "child of" };
            writeln!(f, "  {how} {:?}, call {}", parent.id, parent.path)?;
        }
        if let Some(worker) = &info.worker {
            let (claims, deliveries) = (info.epoch, info.deliveries);
            writeln!(f, "  claimed {claims} times, last by {worker:?}, {deliveries} times since it made progress")?;
        }
        if let Some(problem) = &self.problem {
            writeln!(f, "\nneeds a person: {problem}")?;
        }
        if !self.waits.is_empty() {
            writeln!(f, "\nwaits")?;
            self.waits.iter().try_for_each(|wait| writeln!(f, "  {wait}"))?;
        }
        if !self.messages.is_empty() {
            writeln!(f, "\nmessages that it has not taken")?;
            for message in &self.messages {
                let name = signal_name(&message.channel).unwrap_or(message.channel.as_str());
                let from = message.ended.as_ref().map(|child| format!(" of {child}")).unwrap_or_default();
                writeln!(f, "  {:>4}  {name}{from}  {}", message.seq, excerpt(&message.payload))?;
            }
            more(f, self.more_messages)?;
        }
        if !self.children.is_empty() {
            writeln!(f, "\nchildren")?;
            self.children.iter().try_for_each(|tree| tree.write(f, 1))?;
            more(f, self.more_children)?;
        }
        writeln!(f, "\nhistory")?;
        let earlier = self.history.records.len().saturating_sub(Self::EVENTS_MAX);
        if earlier > 0 {
            writeln!(f, "  the last {} of {} events", Self::EVENTS_MAX, self.history.records.len())?;
        }
        let records = self.history.records[earlier..].to_vec();
        write!(f, "{}", History { records, ..self.history.clone() })
    }
}

fn more(f: &mut fmt::Formatter<'_>, more: bool) -> fmt::Result {
    if more { writeln!(f, "  … and more") } else { Ok(()) }
}

impl FlowTree {
    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let FlowInfo { id, flow_type, state, reason, .. } = &self.flow;
        let detached = self.flow.parent.as_ref().is_some_and(|parent| parent.detached);
        let detached = if detached { " (on its own)" } else { "" };
        let reason = reason.as_ref().map(|reason| format!(": {}", excerpt(reason.as_bytes()))).unwrap_or_default();
        let cancelling = if self.flow.is_cleaning_up() { ", cancelling" } else { "" };
        writeln!(f, "{:width$}{flow_type} {id:?} {state}{cancelling}{detached}{reason}", "", width = 2 * depth)?;
        self.children.iter().try_for_each(|child| child.write(f, depth + 1))
    }
}

/// The tree, two more spaces before each generation.
impl fmt::Display for FlowTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}
