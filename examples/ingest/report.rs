//! What a person sees.

use std::{
    fmt::{self, Display},
    io::{self, Write},
    time::Duration,
};

use ergon::{
    Flow, FlowState, Scheduler, StorageError,
    storage::{ExecutionLog, Filter},
};
use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};

use crate::{
    file::IndexFile,
    index::{Group, Index},
    plan::Planned,
};

/// The name under which the flows are in the log.
const TYPE: &str = <IndexFile as Flow>::NAME;

/// Prints a line. Whoever does not want to read it, as `head`, need not.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// How many flows are where.
#[derive(Default)]
pub(crate) struct Flows {
    /// Waiting or running.
    pub(crate) open: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
}

pub(crate) async fn flows(log: &dyn ExecutionLog) -> Result<Flows, StorageError> {
    let mut flows = Flows::default();
    for count in log.counts(&Filter::all()).await?.into_iter().filter(|count| &*count.flow_type == TYPE) {
        match count.state {
            FlowState::Scheduled | FlowState::Running | FlowState::Suspended => flows.open += count.flows,
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
        let template = "{bar:40} {human_pos} of {human_len}{msg} files, {rate} a second, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.with_key("rate", |state: &ProgressState, text: &mut dyn fmt::Write| {
                let _ = write!(text, "{:.0}", state.per_sec());
            }));
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

pub(crate) fn print_run(planned: &Planned, done: u64, gone: u64, took: Duration) {
    let Planned { changed, same, left_out, left_out_first } = planned;
    let (changed, same, gone) = (count(*changed), count(*same), count(gone));
    say(format_args!("files      {changed} new or changed, {same} as before, {gone} gone"));
    let rate = u128::from(done) * 1_000 / took.as_millis().max(1);
    let rate = count(u64::try_from(rate).unwrap_or(u64::MAX));
    if done > 0 {
        say(format_args!("done       {} in {:.1} s, {rate} a second", count(done), took.as_secs_f64()));
    }
    for why in left_out_first {
        say(format_args!("left out   {why}"));
    }
    let more = left_out - left_out_first.len() as u64;
    if more > 0 {
        say(format_args!("left out   {} more", count(more)));
    }
}

pub(crate) async fn print_flows(log: &dyn ExecutionLog, flows: &Flows) -> Result<(), StorageError> {
    let Flows { open, completed, failed, .. } = flows;
    let running = alive(log).await?;
    let waiting = count(open.saturating_sub(running));
    let (done, running, failed) = (count(*completed), count(running), count(*failed));
    say(format_args!("flows      {done} done, {running} running, {waiting} waiting, {failed} failed"));
    Ok(())
}

/// How many flows are running, but for those whose process is gone: their leases end and they wait for another.
async fn alive(log: &dyn ExecutionLog) -> Result<u64, StorageError> {
    let running = Filter::all().with_flow_type(TYPE).with_state(FlowState::Running);
    let (mut alive, mut after) = (0, None);
    loop {
        let page = log.list(&running, after, 500).await?;
        let now = log.clock().now();
        alive += page.flows.iter().filter(|flow| flow.due_at.is_some_and(|lease_ends| lease_ends > now)).count();
        after = page.next;
        if after.is_none() {
            return Ok(alive as u64);
        }
    }
}

pub(crate) fn print_index(index: &Index) -> ergon::Result<()> {
    for Group { state, reason, files, words } in index.summary()? {
        let files = count(files);
        match reason {
            Some(reason) => say(format_args!("{state:<10} {files}: {reason}")),
            None => say(format_args!("{state:<10} {files}, with {} words", count(words))),
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
    say(format_args!("failed     {}; the next index tries again:", count(flows.failed)));
    for flow in scheduler.log().list(&failed, None, 10).await?.flows {
        say(format_args!("           {}: {}", flow.id, flow.reason.as_deref().unwrap_or("no reason given")));
    }
    Ok(())
}
