//! A flow as others see it.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use ergon_storage::{
    Cancelled, Channel, ErrorKind, ExecutionLog, FlowId, FlowInfo, FlowRecord, FlowState, NewMessage, Retried, Sent,
    Topic,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    StorageError, codec,
    error::Error,
    flow::Failure,
    mailbox::Mailbox,
    progress::{self, Items, Status, StatusWatch},
    signal,
    timeline::History,
};

/// How long a waiting handle trusts that a hint will come before it looks by itself.
const FALLBACK: Duration = Duration::from_secs(5);

/// A flow that was scheduled, with the types of its result and error. Cheap to clone; dropping it changes nothing.
///
/// # Examples
///
/// ```
/// use ergon::prelude::*;
///
/// #[flow]
/// async fn order(cents: u64) -> ergon::Result<String> {
///     let by: String = signal("approval").await?;
///     Ok(format!("{cents} cents, approved by {by}"))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<order>().start().await?;
/// let scheduler = Scheduler::new(log);
/// let handle = scheduler.schedule(order(700)).id("order-7").await?;
/// assert!(!handle.existed());
/// assert!(!handle.status().await?.state.is_final());
/// handle.signal("approval", "Ada").await?;
/// assert_eq!(handle.result().await?, "700 cents, approved by Ada");
///
/// // In another process, or another year: the id and the type are enough.
/// let again = scheduler.handle::<order>(handle.id().clone());
/// assert_eq!(again.try_result().await?.as_deref(), Some("700 cents, approved by Ada"));
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FlowHandle<T, E> {
    log: Arc<dyn ExecutionLog>,
    id: FlowId,
    existed: bool,
    types: PhantomData<fn() -> (T, E)>,
}

impl<T, E> FlowHandle<T, E> {
    pub(crate) fn new(log: Arc<dyn ExecutionLog>, id: FlowId, existed: bool) -> Self {
        Self { log, id, existed, types: PhantomData }
    }

    /// The flow's id.
    pub fn id(&self) -> &FlowId {
        &self.id
    }

    /// True when scheduling found that the id was there already, with the same content, and left it alone.
    pub fn existed(&self) -> bool {
        self.existed
    }

    /// Where the flow is in its life, with its reason and times.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when there is no such flow (any more).
    pub async fn status(&self) -> Result<FlowInfo, StorageError> {
        Ok(self.record().await?.info)
    }

    /// What happened in the flow so far.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when there is no such flow (any more).
    pub async fn history(&self) -> Result<History, StorageError> {
        History::read(&*self.log, &self.id).await
    }

    /// The last value that the flow or one of its steps has said with [`set_status`](crate::set_status); `None` when none
    /// has.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when there is no such flow (any more), [`ErrorKind::Corrupt`] when the value cannot be read
    /// as an `S`.
    pub async fn status_value<S: DeserializeOwned>(&self) -> Result<Option<Status<S>>, StorageError> {
        progress::last_status(&*self.log, &self.id).await
    }

    /// The values that the flow and its steps say with [`set_status`](crate::set_status), as they come: woken by the log,
    /// without asking it again and again.
    pub fn watch_status<S: DeserializeOwned>(&self) -> StatusWatch<S> {
        StatusWatch::new(Arc::clone(&self.log), self.id.clone())
    }

    /// The items that the flow and its steps [`emit`](crate::emit) to the stream of this name, as they come: woken by the
    /// log, without asking it again and again.
    pub fn stream<I: DeserializeOwned>(&self, name: &str) -> Items<I> {
        Items::new(Arc::clone(&self.log), self.id.clone(), name)
    }

    /// Sends the flow a signal, and wakes it if it waits for one of this name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] and [`ErrorKind::Finished`] when the flow is unknown or has ended,
    /// [`ErrorKind::Invalid`] and [`ErrorKind::TooLarge`] for a bad name or value. Nothing was sent then.
    pub async fn signal<S: Serialize + ?Sized>(&self, name: &str, value: &S) -> Result<(), StorageError> {
        send(&*self.log, &self.id, name, value, None).await.map(drop)
    }

    /// As [`signal`](Self::signal), at most once: a second signal to the flow with the same key is dropped, also
    /// after the first one was taken.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub async fn signal_once<S>(&self, name: &str, value: &S, key: &str) -> Result<Sent, StorageError>
    where
        S: Serialize + ?Sized,
    {
        send(&*self.log, &self.id, name, value, Some(key)).await
    }

    /// Sends a message to one of the flow's mailboxes, and wakes the flow if it waits for one there.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub async fn send<M: Serialize>(&self, mailbox: &Mailbox<M>, message: &M) -> Result<(), StorageError> {
        send(&*self.log, &self.id, mailbox.name(), message, None).await.map(drop)
    }

    /// As [`send`](Self::send), at most once: a second message to the flow with the same key is dropped, also after the
    /// first one was taken.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub async fn send_once<M>(&self, mailbox: &Mailbox<M>, message: &M, key: &str) -> Result<Sent, StorageError>
    where
        M: Serialize,
    {
        send(&*self.log, &self.id, mailbox.name(), message, Some(key)).await
    }

    /// Cancels the flow and its attached children, whatever they are doing. Their steps are dropped; one that watches
    /// for it is told first, see [`cancelled`](crate::cancelled()). What has something to clean up does so before it has ended:
    /// [`saga`](crate::saga), [`on_cancel`](crate::on_cancel()).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when there is no such flow; [`ErrorKind::TooLarge`] for a reason of more than 4 KiB.
    pub async fn cancel(&self, reason: &str) -> Result<Cancelled, StorageError> {
        self.log.cancel(&self.id, reason).await
    }

    /// Lets a failed or stalled flow go on where it stopped, with its messages and a time limit that begins anew.
    ///
    /// A flow that has failed makes those calls again whose failure it ended with: all that failed and were
    /// followed by no other call. A child that failed runs again too, also one whose failure the flow has not heard of
    /// yet; if the call wants another value for it by now, another child takes its place. What succeeded is not
    /// repeated, and what the flow has dealt with, by doing something else, stays as it is: a flow that fails of its
    /// own accord fails again, unless its code is another one by now.
    ///
    /// A flow whose time was up, and which has cleaned up after that, fails again in the same way: that its time was up is
    /// in its history. [`Admin::reset`](crate::Admin::reset) takes it back to before that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when there is no such flow.
    pub async fn retry(&self) -> Result<Retried, StorageError> {
        self.log.retry(&self.id).await
    }

    async fn record(&self) -> Result<FlowRecord, StorageError> {
        self.log.flow(&self.id).await?.ok_or_else(|| StorageError::not_found(&self.id))
    }
}

impl<T: DeserializeOwned, E: DeserializeOwned> FlowHandle<T, E> {
    /// Waits for the flow's end and returns its result.
    ///
    /// # Errors
    ///
    /// [`FlowError`] tells how else it ended, or why it cannot be told.
    ///
    /// # Cancel safety
    ///
    /// Waiting again starts afresh; the flow is not affected.
    pub async fn result(&self) -> Result<T, FlowError<E>> {
        let mut watch = self.log.watch(Topic::Flow(self.id.clone()));
        loop {
            match self.record().await {
                Ok(record) => {
                    if let Some(result) = self.open(&record) {
                        return result;
                    }
                }
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(FlowError::Log(error)),
            }
            let _ = tokio::time::timeout(FALLBACK, watch.changed()).await;
        }
    }

    /// The result of the flow, if it has ended.
    ///
    /// # Errors
    ///
    /// As [`result`](Self::result).
    pub async fn try_result(&self) -> Result<Option<T>, FlowError<E>> {
        let record = self.record().await.map_err(FlowError::Log)?;
        self.open(&record).transpose()
    }

    fn open(&self, record: &FlowRecord) -> Option<Result<T, FlowError<E>>> {
        let reason = || record.info.reason.as_deref().unwrap_or("no reason given").to_owned();
        let what = || format!("the result of flow {:?}", self.id);
        Some(match record.info.state {
            FlowState::Completed => codec::decode(what(), &record.result).map_err(FlowError::Fault),
            FlowState::Failed => Err(match codec::decode::<Failure<E>>(what(), &record.result) {
                Ok(Failure::Error(error)) => FlowError::Failed(error),
                Ok(Failure::Fault(error)) | Err(error) => FlowError::Fault(error),
            }),
            FlowState::Cancelled => Err(FlowError::Cancelled(reason())),
            FlowState::Stalled => Err(FlowError::Stalled(reason())),
            FlowState::Scheduled | FlowState::Running | FlowState::Suspended => return None,
        })
    }
}

/// Sends a signal.
pub(crate) async fn send<S: Serialize + ?Sized>(
    log: &dyn ExecutionLog,
    to: &FlowId,
    name: &str,
    value: &S,
    key: Option<&str>,
) -> Result<Sent, StorageError> {
    let refuse = |kind, error: Error| StorageError::new(kind, error.to_string()).with_flow(to);
    signal::check_name(name).map_err(|error| refuse(ErrorKind::Invalid, error))?;
    let payload = codec::encode(format_args!("the signal {name:?}"), value, log.limits().payload_bytes_max)
        .map_err(|error| refuse(if error.is_retryable() { ErrorKind::Invalid } else { ErrorKind::TooLarge }, error))?;
    let mut message = NewMessage::new(to.clone(), Channel::signal(name), payload);
    if let Some(key) = key {
        message = message.with_key(key);
    }
    log.send(message).await
}

impl<T, E> Clone for FlowHandle<T, E> {
    fn clone(&self) -> Self {
        Self { log: Arc::clone(&self.log), id: self.id.clone(), existed: self.existed, types: PhantomData }
    }
}

impl<T, E> fmt::Debug for FlowHandle<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FlowHandle").field(&self.id).finish()
    }
}

/// Why a flow has no result.
///
/// # Examples
///
/// ```
/// use ergon::{FlowError, prelude::*};
///
/// #[flow]
/// async fn charge(cents: u64) -> Result<u64, String> {
///     if cents == 0 { Err("nothing to pay".into()) } else { Ok(cents) }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<charge>().start().await?;
/// let scheduler = Scheduler::new(log);
/// match scheduler.schedule(charge(0)).await?.result().await {
///     Err(FlowError::Failed(error)) => assert_eq!(error, "nothing to pay"), // what its code returned
///     other => unreachable!("{other:?}"),
/// }
/// let later = scheduler.schedule(charge(5)).delay(Duration::from_secs(3_600)).await?;
/// later.cancel("no longer wanted").await?;
/// match later.result().await {
///     Err(FlowError::Cancelled(reason)) => assert_eq!(reason, "no longer wanted"),
///     other => unreachable!("{other:?}"),
/// }
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum FlowError<E> {
    /// It returned this error.
    Failed(E),
    /// It failed for a reason that its code did not return: a panic, a time limit, a value that cannot be
    /// recorded or read.
    Fault(Error),
    /// It was cancelled, for this reason.
    Cancelled(String),
    /// It is stalled, for this reason. Nothing is lost: it can be retried.
    Stalled(String),
    /// The log cannot tell.
    Log(StorageError),
}

impl<E: fmt::Debug> fmt::Display for FlowError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "the flow failed: {error:?}"),
            Self::Fault(error) => write!(f, "the flow failed: {error}"),
            Self::Cancelled(reason) => write!(f, "the flow was cancelled: {reason}"),
            Self::Stalled(reason) => write!(f, "the flow is stalled: {reason}"),
            Self::Log(_) => f.write_str("the execution log cannot tell the flow's result"),
        }
    }
}

impl<E: fmt::Debug> std::error::Error for FlowError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Log(error) => Some(error),
            _ => None,
        }
    }
}

impl<E> From<StorageError> for FlowError<E> {
    fn from(error: StorageError) -> Self {
        Self::Log(error)
    }
}
