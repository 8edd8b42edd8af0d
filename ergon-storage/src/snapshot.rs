//! A flow whole, to be put into a log with all that it has been through.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{
    Affinity, CallKind, CallPath, Channel, Cleanup, Error, ErrorKind, ExecutionLog, Feed, FlowId, FlowRecord,
    FlowState, Item, Limits, Message, NewFlow, Record, Result, Timestamp, Wake,
};

/// A flow with its history, its mailbox and its feeds, as one log keeps it and [another](ExecutionLog::import) can.
///
/// What it does not hold is whose lease it is under, and what the user's own transactions have
/// [resulted in](ExecutionLog::transact): those are in the database that they were made in.
///
/// # Examples
///
/// ```
/// use ergon_storage::{ExecutionLog, FlowId, Imported, InMemoryExecutionLog, NewFlow, Snapshot};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let (log, other) = (InMemoryExecutionLog::new(), InMemoryExecutionLog::new());
/// let id = FlowId::new("order-7")?;
/// log.enqueue(vec![NewFlow::new(id.clone(), "Order", 1, &b"{}"[..])]).await?;
/// let order = Snapshot::read(&log, &id).await?.expect("it is there");
/// assert_eq!(other.import(order.clone()).await?, Imported::Created);
/// assert_eq!(Snapshot::read(&other, &id).await?, Some(order.clone()));
/// // An id is taken only once.
/// assert_eq!(other.import(order).await?, Imported::Taken);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The flow.
    pub flow: FlowRecord,
    /// What of it no other question tells.
    pub extras: Extras,
    /// The history of its present run.
    pub records: Vec<Record>,
    /// The messages that wait in its mailbox, in the order of their numbers.
    pub messages: Vec<Message>,
    /// The items of its feeds that are kept, in the order of their numbers, which have no gaps.
    pub items: BTreeMap<Feed, Vec<Item>>,
}

/// What a log keeps of a flow beside the flow, its history, its mailbox and its feeds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extras {
    /// The value that the flow was accepted with, where its present run has another one.
    pub accepted: Option<Bytes>,
    /// The number of the latest message that it has received; 0 when there was none.
    pub received: u32,
    /// The senders' keys of all messages that it has received, in order.
    pub keys: Vec<Arc<str>>,
    /// The feeds to which it has emitted, in order.
    pub feeds: Vec<Feed>,
    /// The calls that a [retry](ExecutionLog::retry) makes again; empty unless it has failed.
    pub again: Vec<CallPath>,
    /// The build that could not go on; `None` unless one has stalled it.
    pub stalled_by: Option<Arc<str>>,
}

/// What became of a flow given to [`ExecutionLog::import`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imported {
    /// It is there now.
    Created,
    /// Its id is taken; nothing was changed.
    Taken,
}

impl Snapshot {
    /// How many records, messages or items are read at once.
    const PAGE: usize = 5_000;
    /// How often it is tried to read a flow that goes on meanwhile.
    const TRIES_MAX: u32 = 20;
    /// The greatest epoch that a log keeps.
    pub const EPOCH_MAX: u64 = (1 << 37) - 1;

    /// Reads a flow whole, as it was at one moment; `None` when the id is unknown.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] when the flow goes on faster than it can be read.
    pub async fn read(log: &dyn ExecutionLog, flow: &FlowId) -> Result<Option<Self>> {
        for _ in 0..Self::TRIES_MAX {
            match Self::read_once(log, flow).await {
                Ok(Some(snapshot)) => return Ok(snapshot),
                Ok(None) => {}
                // It was forgotten meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let message = "the flow goes on faster than it can be read; try again when it rests";
        Err(Error::new(ErrorKind::Conflict, message).with_flow(flow))
    }

    /// `None` when the flow has changed while it was read.
    async fn read_once(log: &dyn ExecutionLog, flow: &FlowId) -> Result<Option<Option<Self>>> {
        let Some(extras) = log.extras(flow).await? else { return Ok(Some(None)) };
        let Some(record) = log.flow(flow).await? else { return Ok(Some(None)) };
        let mut records: Vec<Record> = Vec::new();
        loop {
            let after = records.last().map_or(0, |record| record.seq);
            let page = log.history(flow, after, Self::PAGE).await?;
            let is_last = page.len() < Self::PAGE;
            records.extend(page);
            if is_last {
                break;
            }
        }
        let mut messages: Vec<Message> = Vec::new();
        loop {
            let after = messages.last().map_or(0, |message| message.seq);
            let page = log.messages(flow, &[], after, Self::PAGE).await?;
            let is_last = page.len() < Self::PAGE;
            messages.extend(page);
            if is_last {
                break;
            }
        }
        let mut items = BTreeMap::new();
        for feed in &extras.feeds {
            let mut kept: Vec<Item> = Vec::new();
            loop {
                let after = kept.last().map_or(0, |item| item.seq);
                let page = log.items(flow, feed, after, Self::PAGE).await?;
                let is_last = page.len() < Self::PAGE;
                kept.extend(page);
                if is_last {
                    break;
                }
            }
            items.insert(feed.clone(), kept);
        }
        let now = (log.flow(flow).await?, log.extras(flow).await?);
        let (Some(then), Some(extras_then)) = now else { return Ok(None) };
        let moment = |flow: &FlowRecord| {
            let info = &flow.info;
            let counts = (info.run, info.epoch, info.records, info.emitted, info.deliveries);
            (info.state, info.cleanup, counts, info.finished_at)
        };
        let same = moment(&record) == moment(&then)
            && record.info.created_at == then.info.created_at
            && record.info.labels == then.info.labels
            && extras == extras_then
            && records.len() == record.info.records as usize;
        Ok(same.then(|| Some(Self { flow: record, extras, records, messages, items })))
    }

    /// Checks everything against the bounds of a log, and answers with the flow as it is put in at the instant `now`:
    /// one that somebody runs elsewhere is due at once, and so is one that is scheduled and bound to a worker; a bound one that is
    /// suspended, when it wakes by itself. Every log calls this before it changes anything.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] and [`ErrorKind::TooLarge`], naming what is wrong.
    pub fn admit(mut self, now: Timestamp, limits: &Limits) -> Result<Self> {
        let id = self.flow.info.id.clone();
        self.check(now, limits).map_err(|error| error.with_flow(&id))?;
        let info = &mut self.flow.info;
        if info.state == FlowState::Running {
            info.state = FlowState::Scheduled;
            info.due_at = Some(now);
            info.wake = Wake::default();
        } else if info.worker.is_some() && Affinity::binding(&info.labels) != Affinity::Anyone {
            // It may have been kept for its worker, and is due since some instant that nobody knows here.
            let deadline_at = info.deadline_at.filter(|_| info.cleanup != Cleanup::Underway);
            match info.state {
                FlowState::Scheduled => info.due_at = info.due_at.min(Some(now)),
                FlowState::Suspended => info.due_at = info.wake.at.into_iter().chain(deadline_at).min(),
                _ => {}
            }
        }
        Ok(self)
    }

    fn check(&self, now: Timestamp, limits: &Limits) -> Result<()> {
        let Self { flow, extras, records, messages, items } = self;
        let info = &flow.info;
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        // Names, version, labels and input are as those of any flow.
        NewFlow::new(info.id.clone(), Arc::clone(&info.flow_type), info.version, flow.input.clone())
            .with_queue(Arc::clone(&info.queue))
            .with_labels(info.labels.clone())
            .check(now, limits)?;
        limits.check_payload("the flow's result", flow.result.len())?;
        limits.check_payload(
            "the value that the flow was accepted with",
            extras.accepted.as_ref().map_or(0, Bytes::len),
        )?;
        let state = info.state;
        if state.is_final() != info.finished_at.is_some() {
            return invalid(format!("a flow that is {state} has an instant of its end if it has ended, and else none"));
        }
        if state == FlowState::Scheduled && info.due_at.is_none() {
            return invalid("a scheduled flow has an instant from which on it is due".into());
        }
        if (state.is_final() || state == FlowState::Stalled) && info.due_at.is_some() {
            return invalid(format!("a flow that is {state} is never due"));
        }
        if info.reason.is_some() != matches!(state, FlowState::Failed | FlowState::Cancelled | FlowState::Stalled) {
            return invalid(format!(
                "a flow has a reason if it has failed, was cancelled or is stalled; it is {state}"
            ));
        }
        if state != FlowState::Suspended && info.wake != Wake::default() {
            return invalid(format!("a flow that is {state} waits for nothing"));
        }
        if !matches!(state, FlowState::Completed | FlowState::Failed) && !flow.result.is_empty() {
            return invalid(format!("a flow that is {state} has no result"));
        }
        if info.worker.is_some() && info.started_at.is_none() {
            return invalid("a run that has a worker has begun".into());
        }
        if info.run == 0 || (info.run > 1) != extras.accepted.is_some() {
            return invalid("a run after the first comes with the value that the flow was accepted with".into());
        }
        let counts = [info.run, info.deliveries, info.emitted];
        if counts.iter().any(|count| i32::try_from(*count).is_err()) || info.epoch > Self::EPOCH_MAX {
            return invalid("a count of the flow is out of range".into());
        }
        if !extras.again.is_empty() && state != FlowState::Failed {
            return invalid("only a flow that has failed makes calls again".into());
        }
        let cancelled = records.iter().filter(|record| record.kind == CallKind::Cancel).count();
        if cancelled != usize::from(info.cleanup == Cleanup::Underway) {
            return invalid("a flow whose clean-up is under way has one record of that, and no other has".into());
        }
        if extras.stalled_by.is_some() && state != FlowState::Stalled {
            return invalid("only a stalled flow was stalled by a build".into());
        }
        check_records(info.records, records, limits)?;
        check_mail(extras, messages, limits)?;
        if !extras.feeds.iter().eq(items.keys()) {
            return invalid("the feeds are not those that have items".into());
        }
        for (feed, items) in items {
            check_name("feed", feed.as_str())?;
            let numbers = (items.first().map_or(0, |item| item.seq), items.last().map_or(0, |item| item.seq));
            let (first, last) = numbers;
            if i32::try_from(last).is_err() || items.iter().any(|item| item.run == 0 || item.run > info.run) {
                return invalid(format!("a number of an item of feed {:?} is out of range", feed.as_str()));
            }
            if first == 0
                || items.iter().zip(first..).any(|(item, seq)| item.seq != seq || item.epoch > Self::EPOCH_MAX)
            {
                return invalid(format!("the items of feed {:?} do not follow on each other", feed.as_str()));
            }
            for item in items {
                limits.check_payload(format_args!("an item of feed {:?}", feed.as_str()), item.payload.len())?;
            }
        }
        Ok(())
    }
}

/// Checks the messages that wait, and the keys of all.
fn check_mail(extras: &Extras, messages: &[Message], limits: &Limits) -> Result<()> {
    let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
    if extras.received > Record::SEQ_MAX {
        return invalid(format!("a flow can receive {} messages", Record::SEQ_MAX));
    }
    let mut last = 0;
    for message in messages {
        if message.seq <= last || message.seq > extras.received {
            return invalid(format!("message {} does not follow on message {last}", message.seq));
        }
        last = message.seq;
        check_name("channel", message.channel.as_str())?;
        limits.check_payload(format_args!("message {last}"), message.payload.len())?;
    }
    for (key, next) in extras.keys.iter().zip(extras.keys.iter().skip(1)) {
        if key >= next {
            return invalid(format!("the keys {key:?} and {next:?} are not in order"));
        }
    }
    extras.keys.iter().try_for_each(|key| check_name("idempotency key", key))
}

fn check_records(count: u32, records: &[Record], limits: &Limits) -> Result<()> {
    let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
    if records.len() != count as usize || count > Record::SEQ_MAX {
        return invalid(format!("the flow has {count} records, and {} come with it", records.len()));
    }
    for (record, seq) in records.iter().zip(1..) {
        if record.seq != seq {
            return invalid(format!("record {} does not follow on record {}", record.seq, seq - 1));
        }
        if record.name.len() > Record::NAME_BYTES_MAX {
            return invalid(format!("a {} name exceeds {} bytes", record.kind, Record::NAME_BYTES_MAX));
        }
        limits.check_payload(format_args!("the payload of record {seq}"), record.payload.len())?;
    }
    Ok(())
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > Channel::BYTES_MAX {
        let message = format!("a {what} has 1 to {} bytes, this one has {}", Channel::BYTES_MAX, name.len());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(())
}

/// How a flow is to be [reset](ExecutionLog::reset).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// The flow.
    pub flow: FlowId,
    /// The flow's [run](crate::FlowInfo::run) as the caller has seen it.
    pub run: u32,
    /// The flow's [epoch](crate::FlowInfo::epoch) as the caller has seen it.
    pub epoch: u64,
    /// The flow's number of [records](crate::FlowInfo::records) as the caller has seen it.
    pub records: u32,
    /// How many records stay, the first ones; all others are removed.
    pub keep: u32,
    /// Calls whose records are removed, too, wherever they are.
    pub again: Vec<CallPath>,
    /// Messages that are put back into the mailbox, under their numbers. One that is there already is left alone. The end
    /// of a child cannot be put back.
    pub messages: Vec<Message>,
    /// Children that are cancelled if they live, with theirs, and forgotten. One that is none, or lives on its own, is left
    /// alone.
    pub children: Vec<FlowId>,
}

impl Reset {
    /// Nothing but the flow as it was seen, with all its records.
    #[must_use]
    pub fn new(info: &crate::FlowInfo) -> Self {
        Self {
            flow: info.id.clone(),
            run: info.run,
            epoch: info.epoch,
            records: info.records,
            keep: info.records,
            again: Vec::new(),
            messages: Vec::new(),
            children: Vec::new(),
        }
    }

    /// What the cancelled children give as their reason.
    pub const REASON: &'static str = "the parent was reset";

    /// The error for a child that would have to clean up.
    #[must_use]
    pub fn child_cleans_up(&self, child: &FlowId) -> Error {
        let message = format!(
            "the child {child:?} would be forgotten before it has cleaned up; cancel it, wait for its end, and look again"
        );
        Error::new(ErrorKind::Conflict, message).with_flow(&self.flow)
    }

    /// The error for a flow that is no longer as it was seen.
    #[must_use]
    pub fn conflict(&self) -> Error {
        let message = "the flow has gone on since it was looked at; look again";
        Error::new(ErrorKind::Conflict, message).with_flow(&self.flow)
    }

    /// Checks it against the bounds of a log. Every log calls this before it looks at the flow.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] and [`ErrorKind::TooLarge`].
    pub fn check(&self, limits: &Limits) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::Invalid, message).with_flow(&self.flow));
        if self.keep > self.records {
            return invalid("a reset cannot keep more records than there are");
        }
        for message in &self.messages {
            check_name("channel", message.channel.as_str()).map_err(|error| error.with_flow(&self.flow))?;
            if message.child.is_some() || !(1..=Record::SEQ_MAX).contains(&message.seq) {
                return invalid("a message that is put back has a number in range, and is not the end of a child");
            }
            limits.check_payload("the message", message.payload.len()).map_err(|error| error.with_flow(&self.flow))?;
        }
        Ok(())
    }
}
