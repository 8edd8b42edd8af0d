//! What a person sees.

use std::time::Duration;

use ergon::{
    Flow, FlowState, Scheduler, StorageError,
    storage::{ExecutionLog, Filter},
};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use crate::{file::IndexFile, index::Index, plan::Planned};

/// The name under which the flows are in the log.
const TYPE: &str = <IndexFile as Flow>::NAME;

/// How many flows are where.
#[derive(Default)]
pub(crate) struct Flows {
    /// Waiting or running.
    pub(crate) open: u64,
    pub(crate) running: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
}

pub(crate) async fn flows(log: &dyn ExecutionLog) -> Result<Flows, StorageError> {
    let mut flows = Flows::default();
    for count in log.counts().await?.into_iter().filter(|count| &*count.flow_type == TYPE) {
        match count.state {
            FlowState::Running => (flows.open, flows.running) = (flows.open + count.flows, flows.running + count.flows),
            FlowState::Scheduled | FlowState::Suspended => flows.open += count.flows,
            FlowState::Completed => flows.completed += count.flows,
            FlowState::Failed | FlowState::Cancelled | FlowState::Stalled => flows.failed += count.flows,
        }
    }
    Ok(flows)
}

/// Gives the files that failed in an earlier run another chance. Returns where the flows are then.
pub(crate) async fn retry_failed(scheduler: &Scheduler) -> Result<Flows, StorageError> {
    let failed = Filter::all().with_flow_type(TYPE).with_state(FlowState::Failed).with_state(FlowState::Stalled);
    let mut after = None;
    loop {
        let page = scheduler.log().list(&failed, after, 500).await?;
        for flow in &page.flows {
            scheduler.retry(&flow.id).await?;
        }
        after = page.next;
        if after.is_none() {
            return flows(&**scheduler.log()).await;
        }
    }
}

/// A progress bar; nothing where there is no terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new(0);
        let template = "{bar:40} {human_pos} of {human_len}{msg} files, {per_sec:.0}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }

    pub(crate) fn show(&self, done: u64, total: u64, walking: bool) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(if walking { " or more" } else { "" });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

pub(crate) fn count(number: u64) -> HumanCount {
    HumanCount(number)
}

pub(crate) fn print_run(planned: &Planned, gone: u64, took: Duration) {
    let Planned { changed, same, left_out } = planned;
    println!(
        "{} files new or changed, {} as before, {} gone; {}",
        count(*changed),
        count(*same),
        count(gone),
        HumanDuration(took)
    );
    for why in left_out {
        println!("left out: {why}");
    }
}

pub(crate) fn print_flows(flows: &Flows) {
    let Flows { open, running, completed, failed } = flows;
    println!(
        "flows    {} done, {} running, {} waiting, {} failed",
        count(*completed),
        count(*running),
        count(open - running),
        count(*failed)
    );
}

pub(crate) fn print_index(index: &Index) -> ergon::Result<()> {
    for (state, reason, files, words) in index.summary()? {
        match reason {
            Some(reason) => println!("{state}  {} files: {reason}", count(files)),
            None => println!("{state}  {} files with {} words", count(files), count(words)),
        }
    }
    Ok(())
}

/// Lists the first files that failed, with the reasons.
pub(crate) async fn print_failures(scheduler: &Scheduler, flows: &Flows) -> ergon::Result<()> {
    if flows.failed == 0 {
        return Ok(());
    }
    let failed = Filter::all().with_flow_type(TYPE).with_state(FlowState::Failed).with_state(FlowState::Stalled);
    println!("{} files failed; the next index tries them again:", count(flows.failed));
    for flow in scheduler.log().list(&failed, None, 10).await?.flows {
        println!("  {}: {}", flow.id, flow.reason.as_deref().unwrap_or("no reason given"));
    }
    Ok(())
}
