//! What flows and steps tell of themselves while they run, and those who follow it.

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use ergon_storage::{CallPath, ErrorKind, ExecutionLog, Feed, FlowId, Item, Keep, NewItem, Timestamp, Topic};
use futures::{
    Stream,
    stream::{self, BoxStream},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    StorageError, codec,
    context::{Context, invalid},
    error::Result,
    journal::Place,
};

/// The longest name of a stream, in bytes.
pub const STREAM_NAME_BYTES_MAX: usize = Feed::BYTES_MAX - "stream:".len();

/// Says what the flow is at: the value takes the place of the last one. Whoever watches the flow sees it, with
/// [`FlowHandle::status_value`](crate::FlowHandle::status_value) and
/// [`FlowHandle::watch_status`](crate::FlowHandle::watch_status).
///
/// To be called in flows and in steps, as often as you like: it waits for nothing, and is written with the next commit;
/// what a step says becomes visible while its body runs. A replay says nothing again. What a body that fails or starts
/// again has said stays until something else is said. The value outlives the flow's end, and its
/// [runs](crate::continue_as_new).
///
/// # Errors
///
/// When the value cannot be written as JSON or is too large.
///
/// # Panics
///
/// Outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::prelude::*;
///
/// #[flow]
/// async fn import(files: Vec<String>) -> ergon::Result<usize> {
///     for (done, file) in files.iter().enumerate() {
///         set_status(&format!("{done} of {} files", files.len()))?;
///         load(file).await?;
///     }
///     Ok(files.len())
/// }
///
/// #[step]
/// async fn load(file: &str) -> ergon::Result<()> {
///     set_status(&format!("loading {file}"))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<import>().start().await?;
/// let import = Scheduler::new(log).schedule(import(vec!["a".into(), "b".into()])).await?;
/// import.result().await?;
/// let status = import.status_value::<String>().await?.unwrap();
/// assert_eq!((status.value.as_str(), status.version), ("loading b", 4));
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn set_status<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    let context = Context::current("ergon::set_status()");
    tell(&context, Feed::status(), Keep::Last, "the status", value)
}

/// Adds an item to one of the flow's streams, which clients follow live with
/// [`FlowHandle::stream`](crate::FlowHandle::stream): the tokens of an answer, the lines of a report. The name has 1 to
/// [`STREAM_NAME_BYTES_MAX`] bytes.
///
/// To be called in flows and in steps, as often as you like: it waits for nothing. Items are written in their order,
/// those that come while a commit is under way together in the next one, and become visible while the step's body still
/// runs.
///
/// # What comes once
///
/// Items of the flow's own code come exactly once: a replay emits none again. Items of a step are those of its body,
/// which may start again: after a failed attempt, after a crash, and after a wait within it. What the earlier body has
/// emitted stays, and the new one emits its items after it. [`StreamItem::source`] tells them apart.
///
/// # Errors
///
/// When the item cannot be written as JSON or is too large, or for a name that cannot be.
///
/// # Panics
///
/// Outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::prelude::*;
/// use futures::TryStreamExt as _;
///
/// #[flow]
/// async fn answer(question: String) -> ergon::Result<()> {
///     generate(question).await
/// }
///
/// #[step]
/// async fn generate(question: String) -> ergon::Result<()> {
///     for token in question.split(' ') {
///         emit("tokens", token)?;
///     }
///     Ok(())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<answer>().start().await?;
/// let answer = Scheduler::new(log).schedule(answer("to be or not".into())).await?;
/// let tokens: Vec<_> = answer.stream::<String>("tokens").try_collect().await?;
/// let texts: Vec<_> = tokens.iter().map(|token| token.value.as_str()).collect();
/// assert_eq!(texts, ["to", "be", "or", "not"]);
/// // A client that has seen two goes on after them.
/// let rest: Vec<_> = answer.stream::<String>("tokens").after(tokens[1].offset).try_collect().await?;
/// assert_eq!(rest, tokens[2..]);
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn emit<T: Serialize + ?Sized>(stream: &str, item: &T) -> Result<()> {
    let context = Context::current("ergon::emit()");
    if stream.is_empty() || stream.len() > STREAM_NAME_BYTES_MAX {
        let bytes = stream.len();
        return Err(invalid(format!("a stream's name has 1 to {STREAM_NAME_BYTES_MAX} bytes, this one has {bytes}")));
    }
    tell(&context, Feed::stream(stream), Keep::All, format_args!("the item of stream {stream:?}"), item)
}

fn tell<T: Serialize + ?Sized>(
    context: &Context,
    feed: Feed,
    keep: Keep,
    what: impl fmt::Display,
    value: &T,
) -> Result<()> {
    let flow = &context.flow;
    let payload = codec::encode(what, value, flow.env.payload_bytes_max)?;
    let step = context.step.as_deref();
    let (call, attempt) = (step.map(|step| step.path.clone()), step.map_or(0, |step| step.attempt));
    let mut journal = flow.journal();
    let at = match context.place {
        Place::Flow => journal.now(),
        Place::Step(_) => flow.env.clock.now(),
    };
    journal.emit(context.place, NewItem { feed, keep, at, call, attempt, payload });
    Ok(())
}

/// What a flow says that it is at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status<T> {
    /// How many values the flow has said so far: it grows with each.
    pub version: u32,
    /// When it was said: in a flow's own code the time that [`now`](crate::now) tells there.
    pub at: Timestamp,
    /// The value.
    pub value: T,
}

/// An item of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamItem<T> {
    /// Its number within the stream, from 1, without gaps: a client that has seen it goes on
    /// [`after`](Items::after) it.
    pub offset: u32,
    /// When it was emitted: in a flow's own code the time that [`now`](crate::now) tells there.
    pub at: Timestamp,
    /// The code that has emitted it.
    pub source: Source,
    /// The item.
    pub value: T,
}

/// The code that has emitted an item. Items of one body of a step, from its beginning to its end, have equal sources; the
/// same call with another attempt or epoch has started again, and what it emitted before is to be set aside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Source {
    /// The number of the flow's run.
    pub run: u32,
    /// The step; `None` for the flow's own code, whose items come once.
    pub call: Option<CallPath>,
    /// The number of the step's attempt, from 1; 0 for the flow's own code.
    pub attempt: u32,
    /// How often the flow had been claimed.
    pub epoch: u64,
}

/// How a client reads items of a feed: in pages, and in between woken by the log.
struct Following {
    log: Arc<dyn ExecutionLog>,
    flow: FlowId,
    feed: Feed,
}

impl Following {
    /// How long a hint is waited for before it is looked without one.
    const FALLBACK: Duration = Duration::from_secs(5);
    /// How many items are read at once.
    const PAGE: usize = 500;

    /// The next items after this number; none when the flow has ended and there will be no others.
    async fn next(&self, after: u32) -> Result<Vec<Item>, StorageError> {
        // Watch first, then look: whatever comes in between is hinted at.
        let mut watch = self.log.watch(Topic::Flow(self.flow.clone()));
        loop {
            match self.look(after).await {
                Ok(Some(items)) => return Ok(items),
                Ok(None) => {}
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error),
            }
            let _ = tokio::time::timeout(Self::FALLBACK, watch.changed()).await;
        }
    }

    async fn look(&self, after: u32) -> Result<Option<Vec<Item>>, StorageError> {
        let items = self.log.items(&self.flow, &self.feed, after, Self::PAGE).await?;
        if !items.is_empty() {
            return Ok(Some(items));
        }
        let flow = self.log.flow(&self.flow).await?.ok_or_else(|| StorageError::not_found(&self.flow))?;
        if !flow.info.state.is_final() {
            return Ok(None);
        }
        // The last ones came with the end, perhaps since it was looked.
        self.log.items(&self.flow, &self.feed, after, Self::PAGE).await.map(Some)
    }

    /// All items after this number as they come.
    fn items(self, after: u32) -> BoxStream<'static, Result<Item, StorageError>> {
        let page = stream::unfold(Some((self, after)), async |state| {
            let (following, after) = state?;
            match following.next(after).await {
                Ok(items) if items.is_empty() => None,
                Ok(items) => {
                    let after = items.last().map_or(after, |item| item.seq);
                    Some((Ok(items), Some((following, after))))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Box::pin(futures::StreamExt::flat_map(page, |page| {
            stream::iter(match page {
                Ok(items) => items.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(error) => vec![Err(error)],
            })
        }))
    }
}

fn decode<T: DeserializeOwned>(flow: &FlowId, what: &str, item: &Item) -> Result<T, StorageError> {
    codec::decode(format_args!("{what} of flow {flow:?}"), &item.payload)
        .map_err(|error| StorageError::new(ErrorKind::Corrupt, error.to_string()).with_flow(flow))
}

/// The last value that a flow has said.
pub(crate) async fn last_status<T: DeserializeOwned>(
    log: &dyn ExecutionLog,
    flow: &FlowId,
) -> Result<Option<Status<T>>, StorageError> {
    let items = log.items(flow, &Feed::status(), 0, 1).await?;
    items.first().map(|item| status(flow, item)).transpose()
}

fn status<T: DeserializeOwned>(flow: &FlowId, item: &Item) -> Result<Status<T>, StorageError> {
    Ok(Status { version: item.seq, at: item.at, value: decode(flow, "the status", item)? })
}

/// The values that a flow says as they come, the present one first. Values that are soon followed by others may be passed
/// over. Ends with the flow, after the last value.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] when there is no such flow (any more), [`ErrorKind::Corrupt`] for a value that cannot be read
/// as a `T`.
///
/// # Cancel safety
///
/// It may be dropped at any time; the flow is not affected.
#[must_use = "a stream does nothing unless it is polled"]
pub struct StatusWatch<T> {
    flow: FlowId,
    items: BoxStream<'static, Result<Item, StorageError>>,
    value: PhantomData<fn() -> T>,
}

impl<T> StatusWatch<T> {
    pub(crate) fn new(log: Arc<dyn ExecutionLog>, flow: FlowId) -> Self {
        let items = Following { log, flow: flow.clone(), feed: Feed::status() }.items(0);
        Self { flow, items, value: PhantomData }
    }
}

impl<T: DeserializeOwned> Stream for StatusWatch<T> {
    type Item = Result<Status<T>, StorageError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let item = std::task::ready!(this.items.as_mut().poll_next(cx));
        Poll::Ready(item.map(|item| item.and_then(|item| status(&this.flow, &item))))
    }
}

impl<T> fmt::Debug for StatusWatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusWatch").field("flow", &self.flow).finish_non_exhaustive()
    }
}

/// The items of a flow's stream as they come, in their order. Ends with the flow, after the last item.
///
/// # Errors
///
/// As [`StatusWatch`]; the stream goes on after an item that cannot be read.
///
/// # Cancel safety
///
/// It may be dropped at any time; the flow is not affected.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Items<T> {
    log: Arc<dyn ExecutionLog>,
    flow: FlowId,
    feed: Feed,
    after: u32,
    following: Option<BoxStream<'static, Result<Item, StorageError>>>,
    value: PhantomData<fn() -> T>,
}

impl<T> Items<T> {
    pub(crate) fn new(log: Arc<dyn ExecutionLog>, flow: FlowId, stream: &str) -> Self {
        Self { log, flow, feed: Feed::stream(stream), after: 0, following: None, value: PhantomData }
    }

    /// Begins after the item with this offset; 0, the default, begins with the first.
    pub fn after(mut self, offset: u32) -> Self {
        self.after = offset;
        self.following = None;
        self
    }
}

impl<T: DeserializeOwned> Stream for Items<T> {
    type Item = Result<StreamItem<T>, StorageError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { log, flow, feed, after, following, .. } = self.get_mut();
        let items = following.get_or_insert_with(|| {
            Following { log: Arc::clone(log), flow: flow.clone(), feed: feed.clone() }.items(*after)
        });
        let item = std::task::ready!(items.as_mut().poll_next(cx));
        Poll::Ready(item.map(|item| {
            let item = item?;
            let value = decode(flow, "an item", &item)?;
            let Item { seq, at, run, epoch, call, attempt, .. } = item;
            Ok(StreamItem { offset: seq, at, source: Source { run, call, attempt, epoch }, value })
        }))
    }
}

impl<T> fmt::Debug for Items<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flow, feed, after, .. } = self;
        f.debug_struct("Items").field("flow", flow).field("feed", feed).field("after", after).finish_non_exhaustive()
    }
}
