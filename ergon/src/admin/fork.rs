//! A new flow from a part of another one's history, and a flow that is taken back.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    future::IntoFuture,
    sync::Arc,
};

use bytes::Bytes;
use ergon_storage::{
    CallKind, CallPath, Channel, Cleanup, ErrorKind, ExecutionLog, Extras, Feed, Filter, FlowId, FlowRecord, FlowState,
    Imported, Item, Parent, Phase, Record, Reset, Snapshot, Timestamp, Wake,
};
use futures::future::BoxFuture;
use uuid::Uuid;

use super::cut::{Cut, Pieces};
use crate::{StorageError, codec, flow::Flow};

/// A new flow that takes over the recorded outcomes of another one up to some call, and goes on from there with today's
/// code. Made by [`Admin::fork`](super::Admin::fork); await it.
///
/// # Errors
///
/// [`NotFound`](ErrorKind::NotFound) when there is no such flow or no such call in its history;
/// [`Conflict`](ErrorKind::Conflict) when the new id is taken, or the flow goes on faster than it can be read;
/// [`Invalid`](ErrorKind::Invalid) when the id, a label or the value cannot be; [`Unavailable`](ErrorKind::Unavailable)
/// when the log cannot answer.
///
/// # Cancel safety
///
/// Dropping the future leaves open whether the new flow is there. With an [`id`](Self::id) that you choose, a repeat tells.
#[must_use = "nothing is forked until this is awaited"]
pub struct Fork {
    log: Arc<dyn ExecutionLog>,
    of: FlowId,
    cut: Cut,
    id: Option<String>,
    input: Option<Result<Input, StorageError>>,
    version: Option<u32>,
    queue: Option<Arc<str>>,
    labels: Vec<(Arc<str>, Arc<str>)>,
    messages: Messages,
}

struct Input {
    payload: Bytes,
    /// The type that the value is of, where that is known.
    flow_type: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Messages {
    Copied,
    LeftBehind,
}

impl Fork {
    pub(super) fn new(log: Arc<dyn ExecutionLog>, of: FlowId) -> Self {
        Self {
            log,
            of,
            cut: Cut::default(),
            id: None,
            input: None,
            version: None,
            queue: None,
            labels: Vec::new(),
            messages: Messages::Copied,
        }
    }

    /// Up to where the outcomes are taken over; all of them unless this says otherwise.
    pub fn at(mut self, cut: impl Into<Cut>) -> Self {
        self.cut = cut.into();
        self
    }

    /// The id of the new flow; a new UUID unless this says otherwise.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Another value, and with it the version of its type. The recorded outcomes are taken over all the same: cut before
    /// the first call that is to see the new value.
    #[allow(clippy::needless_pass_by_value)] // As everywhere a flow is given: it is made for this.
    pub fn input<F: Flow>(mut self, value: F) -> Self {
        let (what, limit) =
            (format_args!("the value of flow type {:?}", <F as Flow>::NAME), self.log.limits().payload_bytes_max);
        let payload = codec::encode_sorted(what, &value, limit);
        let input = payload.map(|payload| Input { payload, flow_type: Some(<F as Flow>::NAME) });
        self.input = Some(input.map_err(|error| StorageError::new(ErrorKind::Invalid, error.to_string())));
        self.version = Some(<F as Flow>::VERSION);
        self
    }

    /// Another value, as JSON that the flow type can read.
    pub fn input_json(mut self, value: &serde_json::Value) -> Self {
        self.input = Some(Ok(Input { payload: value.to_string().into(), flow_type: None }));
        self
    }

    /// Another version of the flow type.
    pub fn version(mut self, version: u32) -> Self {
        self.version = Some(version);
        self
    }

    /// Another queue.
    pub fn queue(mut self, queue: impl Into<Arc<str>>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// A label, beside those of the flow, which the new one has, too.
    pub fn label(mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.labels.push((name.into(), value.into()));
        self
    }

    /// Leaves the flow's messages to the flow: those that it has not taken, and those that it took after the cut. Unless
    /// this says so, the new one finds copies of them in its mailbox.
    pub fn without_messages(mut self) -> Self {
        self.messages = Messages::LeftBehind;
        self
    }

    pub(super) async fn run(self) -> Result<FlowId, StorageError> {
        let id = FlowId::new(self.id.clone().unwrap_or_else(|| Uuid::now_v7().to_string()))?;
        let log = Arc::clone(&self.log);
        let of = Snapshot::read(&*log, &self.of).await?.ok_or_else(|| StorageError::not_found(&self.of))?;
        let fork = self.apply(&of, id.clone(), log.clock().now())?;
        match log.import(fork).await? {
            Imported::Created => Ok(id),
            Imported::Taken => {
                let message = "there is a flow of this id already; choose another id for the fork";
                Err(StorageError::new(ErrorKind::Conflict, message).with_flow(&id))
            }
        }
    }

    /// The new flow.
    fn apply(self, of: &Snapshot, id: FlowId, now: Timestamp) -> Result<Snapshot, StorageError> {
        let pieces = Pieces::of(of, &self.cut)?;
        let mut records = pieces.records(&of.records);
        let items = items(of, &pieces, &records);
        let is_whole = pieces.call.is_none() && pieces.again.is_empty();
        records.push(mark(of, &pieces, records.len(), now));

        let mut info = of.flow.info.clone();
        let mut input = of.flow.input.clone();
        if let Some(other) = self.input {
            let other = other.map_err(|error| error.with_flow(&id))?;
            if other.flow_type.is_some_and(|flow_type| *flow_type != *info.flow_type) {
                let (wanted, given) = (&info.flow_type, other.flow_type.unwrap_or_default());
                let message = format!("the flow is of type {wanted:?}, the value for its fork is of type {given:?}");
                return Err(StorageError::new(ErrorKind::Invalid, message).with_flow(&self.of));
            }
            input = other.payload;
        }
        info.id = id;
        info.version = self.version.unwrap_or(info.version);
        info.queue = self.queue.unwrap_or(info.queue);
        for (name, value) in self.labels {
            info.labels.set(name, value);
        }
        info.state = FlowState::Scheduled;
        info.reason = None;
        info.wake = Wake::default();
        info.parent = None;
        info.deadline_at = info.deadline_at.map(|deadline_at| now.saturating_add(deadline_at.since(info.start_at)));
        info.created_at = now;
        info.start_at = now;
        info.due_at = Some(now);
        info.finished_at = None;
        // Nobody has run it yet: it is bound to no worker, whatever binds it from now on. But for its code it began when the
        // original did, whose outcomes it is given.
        info.worker = None;
        info.run = 1;
        info.deliveries = 0;
        info.records = u32::try_from(records.len()).unwrap_or(u32::MAX);
        info.cleanup = info.cleanup.min(Cleanup::Needed);
        info.emitted = if is_whole { info.emitted } else { 0 };

        let mut extras = Extras { received: of.extras.received, ..Extras::default() };
        let mut messages = Vec::new();
        if self.messages == Messages::Copied {
            extras.keys.clone_from(&of.extras.keys);
            let waiting = of.messages.iter().filter(|message| message.channel != Channel::children());
            messages.extend(waiting.cloned().chain(pieces.given_back));
            messages.sort_unstable_by_key(|message| message.seq);
        }
        extras.feeds = items.keys().cloned().collect();
        Ok(Snapshot { flow: FlowRecord { info, input, result: Bytes::new() }, extras, records, messages, items })
    }
}

/// The record that says that those before it are another flow's.
fn mark(of: &Snapshot, pieces: &Pieces, before: usize, now: Timestamp) -> Record {
    Record {
        seq: u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1),
        at: now,
        path: CallPath::top(0),
        kind: CallKind::Fork,
        phase: Phase::Completed,
        name: of.flow.info.id.as_str().into(),
        args_hash: 0,
        attempt: 0,
        started_at: now,
        due_at: None,
        reference: pieces.call.as_ref().map(|call| call.to_string().into()),
        payload: Bytes::new(),
    }
}

/// What the flow has told in its present run: all of it if nothing of it is done again, else what the bodies of those
/// steps have told that are not.
fn items(of: &Snapshot, pieces: &Pieces, records: &[Record]) -> BTreeMap<Feed, Vec<Item>> {
    let is_whole = pieces.call.is_none() && pieces.again.is_empty();
    let completed: BTreeSet<&CallPath> =
        records.iter().filter(|record| record.phase.is_outcome()).map(|record| &record.path).collect();
    let is_kept = |item: &&Item| {
        item.run == of.flow.info.run && (is_whole || item.call.as_ref().is_some_and(|call| completed.contains(call)))
    };
    let feeds = of.items.iter().filter_map(|(feed, items)| {
        let items: Vec<Item> =
            items.iter().filter(is_kept).zip(1..).map(|(item, seq)| Item { seq, run: 1, ..item.clone() }).collect();
        (!items.is_empty()).then(|| (feed.clone(), items))
    });
    feeds.collect()
}

impl fmt::Debug for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of, cut, id, .. } = self;
        f.debug_struct("Fork").field("of", of).field("cut", cut).field("id", id).finish_non_exhaustive()
    }
}

impl IntoFuture for Fork {
    type Output = Result<FlowId, StorageError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// Takes a flow back.
pub(super) async fn reset(log: &dyn ExecutionLog, flow: &FlowId, cut: &Cut) -> Result<(), StorageError> {
    /// How often it is tried to reset a flow that goes on meanwhile.
    const TRIES_MAX: u32 = 100;
    let mut tries = 1;
    loop {
        let snapshot = Snapshot::read(log, flow).await?.ok_or_else(|| StorageError::not_found(flow))?;
        let pieces = Pieces::of(&snapshot, cut)?;
        if pieces.is_inherited {
            let message = "the flow is a fork, and this part of its history is that of the flow that it was forked of; \
                fork that one once more";
            return Err(StorageError::new(ErrorKind::Invalid, message).with_flow(flow));
        }
        let children = cut_off(log, &snapshot, cut, &pieces).await?;
        let mut reset = Reset::new(&snapshot.flow.info);
        reset.keep = pieces.keep;
        reset.again = pieces.again;
        reset.messages = pieces.given_back;
        reset.children = children;
        match log.reset(reset).await {
            Err(error) if error.kind() == ErrorKind::Conflict && tries < TRIES_MAX => {
                let info = log.flow(flow).await?.ok_or_else(|| StorageError::not_found(flow))?.info;
                // It has not gone on: a child has something to clean up.
                if Reset::new(&info) == Reset::new(&snapshot.flow.info) {
                    return Err(error);
                }
                tries += 1;
            }
            done => return done,
        }
    }
}

/// The attached children that calls have started which are cut off. The history does not tell of all: a call that was to be
/// made again after an earlier reset has no record until it is, though its child lives. Such a child is cut off where the call
/// comes after the cut.
async fn cut_off(
    log: &dyn ExecutionLog,
    snapshot: &Snapshot,
    cut: &Cut,
    pieces: &Pieces,
) -> Result<Vec<FlowId>, StorageError> {
    const PAGE: usize = 500;
    let (kept, gone) = snapshot.records.split_at(pieces.keep as usize);
    let paths = |records: &'_ [Record]| -> HashSet<CallPath> {
        records.iter().filter(|record| record.kind == CallKind::Child).map(|record| record.path.clone()).collect()
    };
    let (kept, gone) = (paths(kept), paths(gone));
    let is_after = |path: &CallPath| {
        *cut == Cut::Start || pieces.call.as_ref().is_some_and(|call| path.positions() >= call.positions())
    };
    let is_cut_off = |parent: &Parent| {
        !parent.detached && !kept.contains(&parent.path) && (gone.contains(&parent.path) || is_after(&parent.path))
    };
    let filter = Filter::all().with_parent(snapshot.flow.info.id.clone());
    let (mut children, mut after) = (Vec::new(), None);
    loop {
        let page = log.list(&filter, after, PAGE).await?;
        let flows = page.flows.into_iter().filter(|info| info.parent.as_ref().is_some_and(is_cut_off));
        children.extend(flows.map(|info| info.id));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(children),
        }
    }
}
