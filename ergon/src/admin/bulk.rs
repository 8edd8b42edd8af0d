//! The same for many flows.

use std::{fmt, future::IntoFuture, sync::Arc};

use ergon_storage::{Cancelled, ErrorKind, ExecutionLog, Filter, FlowId, FlowInfo, FlowState, Retried};
use futures::future::BoxFuture;
use xxhash_rust::xxh3::xxh3_128;

use super::{
    cut::Cut,
    fork::{self, Fork},
};
use crate::StorageError;

/// Something that is to be done to all flows that pass a filter, each by itself. Await it to do it; after
/// [`dry_run`](Self::dry_run), to be told what would be done.
///
/// Flows are taken in the order in which they were accepted, each once, in bounded batches: the log is never held up
/// for long. Those that are accepted meanwhile are taken, too.
///
/// # Errors
///
/// When the log cannot answer. It is done for the flows that come first then, and a repeat takes the others.
///
/// # Cancel safety
///
/// As after an error.
#[derive(Debug)]
#[must_use = "nothing is done until this is awaited"]
pub struct Bulk {
    log: Log,
    filter: Filter,
    action: Action,
    limit: u64,
    mode: Mode,
}

/// What became of a [`Bulk`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BulkReport {
    /// How many flows it was done to; after a dry run how many it would be tried on.
    pub done: u64,
    /// How many flows passed the filter and were left alone: they had changed meanwhile, or a live parent waits for
    /// them, so that they cannot be deleted, or there is no such call to fork them at or to reset them to, or the fork is
    /// there already.
    pub left_alone: u64,
    /// The first of the flows of `done`, at most [`BulkReport::FLOWS_MAX`].
    pub flows: Vec<FlowId>,
}

impl BulkReport {
    /// How many flows a report names at most.
    pub const FLOWS_MAX: usize = 100;
}

/// With the ids, and what was not done.
impl fmt::Display for BulkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} flows", self.done)?;
        if self.left_alone > 0 {
            write!(f, ", {} left alone", self.left_alone)?;
        }
        for (place, id) in self.flows.iter().enumerate() {
            write!(f, "{} {id}", if place == 0 { ":" } else { "," })?;
        }
        if self.done > self.flows.len() as u64 { f.write_str(", …") } else { Ok(()) }
    }
}

struct Log(Arc<dyn ExecutionLog>);

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}

#[derive(Debug)]
pub(super) enum Action {
    Cancel(String),
    Retry,
    Delete,
    Fork(Cut),
    Reset(Cut),
}

impl Action {
    /// The states in which a flow can be acted upon.
    fn states(&self) -> &'static [FlowState] {
        match self {
            Self::Cancel(_) => &[FlowState::Scheduled, FlowState::Running, FlowState::Suspended, FlowState::Stalled],
            Self::Retry => &[FlowState::Failed, FlowState::Stalled],
            Self::Delete => &[FlowState::Completed, FlowState::Failed, FlowState::Cancelled],
            Self::Fork(_) => &[FlowState::Completed, FlowState::Failed, FlowState::Cancelled, FlowState::Stalled],
            Self::Reset(_) => &FlowState::ALL,
        }
    }

    /// False when there was nothing to do.
    async fn apply(&self, log: &Arc<dyn ExecutionLog>, flow: &FlowInfo) -> Result<bool, StorageError> {
        let id = &flow.id;
        let done = match self {
            Self::Cancel(reason) => log.cancel(id, reason).await.map(|cancelled| cancelled == Cancelled::Now),
            Self::Retry => log.retry(id).await.map(|retried| retried == Retried::Scheduled),
            Self::Delete => log.delete(id).await,
            Self::Fork(cut) => {
                let mut name = format!("{id}/fork-{}", flow.epoch);
                if name.len() > FlowId::BYTES_MAX {
                    name = format!("{:032x}/fork-{}", xxh3_128(id.as_str().as_bytes()), flow.epoch);
                }
                Fork::new(Arc::clone(log), id.clone()).at(cut.clone()).id(name).run().await.map(|_| true)
            }
            Self::Reset(cut) => fork::reset(&**log, id, cut).await.map(|()| true),
        };
        match done {
            // It went on with its parent, was forgotten meanwhile, or must stay; it has no such call; its fork is there.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => Ok(false),
            // A part of its history is that of another flow.
            Err(error) if error.kind() == ErrorKind::Invalid && matches!(self, Self::Reset(_)) => Ok(false),
            done => done,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Do,
    DryRun,
}

impl Bulk {
    /// How many flows are looked at in one batch.
    const PAGE: usize = 500;

    pub(super) fn new(log: Arc<dyn ExecutionLog>, filter: &Filter, action: Action) -> Self {
        let mut filter = filter.clone();
        let named = std::mem::take(&mut filter.states);
        let states = action.states().iter().filter(|state| named.is_empty() || named.contains(state));
        filter.states.extend(states);
        Self { log: Log(log), filter, action, limit: u64::MAX, mode: Mode::Do }
    }

    /// At most `limit` flows, the first ones.
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    /// Does nothing, and reports what would be done.
    pub fn dry_run(mut self) -> Self {
        self.mode = Mode::DryRun;
        self
    }

    async fn run(self) -> Result<BulkReport, StorageError> {
        let Self { log: Log(log), filter, action, limit, mode } = self;
        let mut report = BulkReport::default();
        if filter.states.is_empty() {
            return Ok(report);
        }
        if mode == Mode::DryRun {
            let page = log.list(&filter, None, BulkReport::FLOWS_MAX).await?;
            let counts = log.counts(&filter).await?;
            report.done = counts.iter().map(|count| count.flows).sum::<u64>().min(limit);
            let flows = page.flows.into_iter().map(|flow| flow.id);
            report.flows = flows.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect();
            return Ok(report);
        }
        let mut after = None;
        loop {
            let page = log.list(&filter, after, Self::PAGE).await?;
            for flow in page.flows {
                if report.done == limit {
                    return Ok(report);
                }
                if !action.apply(&log, &flow).await? {
                    report.left_alone += 1;
                    continue;
                }
                report.done += 1;
                if report.flows.len() < BulkReport::FLOWS_MAX {
                    report.flows.push(flow.id);
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(report);
            }
        }
    }
}

impl IntoFuture for Bulk {
    type Output = Result<BulkReport, StorageError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
