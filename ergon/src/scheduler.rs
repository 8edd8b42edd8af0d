//! Putting flows on the queue, and reaching those that are there.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use ergon_storage::{
    Affinity, Cancelled, Enqueued, ErrorKind, ExecutionLog, Filter, FlowId, FlowInfo, Labels, NewFlow, Retried, Start,
    Timestamp,
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    StorageError, admin::Admin, codec, flow::Flow, flow_ref::FlowRef, handle, handle::FlowHandle, mailbox::Mailbox,
    meter::metered, timeline::History,
};

/// Puts flows on the queue. Cheap to clone; needs no worker in the same process.
///
/// # Examples
///
/// ```
/// use ergon::prelude::*;
///
/// #[flow_type]
/// struct Greeting { name: String }
///
/// #[flow_type]
/// impl Greeting {
///     #[flow]
///     async fn run(&self) -> ergon::Result<String> {
///         Ok(format!("hello {}", self.name))
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let scheduler = Scheduler::new(log.clone());
/// let greeting = scheduler.schedule(Greeting { name: "ada".into() }).id("greeting-1").await?;
/// let again = scheduler.schedule(Greeting { name: "ada".into() }).id("greeting-1").await?;
/// assert!(again.existed());
/// let other = scheduler.schedule(Greeting { name: "bob".into() }).id("greeting-1").await;
/// assert!(other.is_err());
///
/// let worker = Worker::new(log).register::<Greeting>().start().await?;
/// assert_eq!(greeting.result().await?, "hello ada");
/// worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Scheduler {
    log: Arc<dyn ExecutionLog>,
    /// The same, with what is measured of it.
    timed: Arc<dyn ExecutionLog>,
}

impl Scheduler {
    /// A scheduler for this log.
    pub fn new(log: impl ExecutionLog) -> Self {
        let log: Arc<dyn ExecutionLog> = Arc::new(log);
        Self { timed: metered(Arc::clone(&log)), log }
    }

    /// Schedules a flow: await what this returns, after adding an id, a queue, a priority or a later start.
    pub fn schedule<F: Flow>(&self, flow: F) -> Scheduling<'_, F> {
        Scheduling { scheduler: self, entry: Entry::new(flow) }
    }

    /// Schedules many flows of one type in one transition, all or none, and returns their handles in the same
    /// order. For ids and the like, give [`Entry`]s.
    ///
    /// # Errors
    ///
    /// As awaiting [`Scheduling`]. When an id belongs to a flow with other content, the flows of the batch that
    /// are new have been accepted all the same.
    pub async fn schedule_all<F, I>(&self, flows: I) -> Result<Vec<FlowHandle<F::Output, F::Error>>, StorageError>
    where
        F: Flow,
        I: IntoIterator,
        I::Item: Into<Entry<F>>,
    {
        let limit = self.timed.limits().payload_bytes_max;
        let new = flows.into_iter().map(|flow| flow.into().into_new_flow(limit)).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<FlowId> = new.iter().map(|flow| flow.id.clone()).collect();
        let answers = self.timed.enqueue(new).await?;
        ids.into_iter().zip(answers).map(|(id, answer)| self.accepted::<F>(id, answer)).collect()
    }

    /// A handle for a flow that was scheduled before, by its id or its [`FlowRef`]. The flow need not exist; using the
    /// handle tells.
    pub fn handle<F: Flow>(&self, flow: impl Into<FlowRef<F>>) -> FlowHandle<F::Output, F::Error> {
        FlowHandle::new(Arc::clone(&self.timed), flow.into().into(), true)
    }

    /// Sends a flow a signal. See [`FlowHandle::signal`].
    ///
    /// # Errors
    ///
    /// As [`FlowHandle::signal`].
    pub async fn signal<S: Serialize + ?Sized>(&self, to: &FlowId, name: &str, value: &S) -> Result<(), StorageError> {
        handle::send(&*self.timed, to, name, value, None).await.map(drop)
    }

    /// Sends a message to a mailbox of a flow. See [`FlowHandle::send`].
    ///
    /// # Errors
    ///
    /// As [`FlowHandle::signal`].
    pub async fn send<M: Serialize>(
        &self,
        to: impl Into<FlowId>,
        mailbox: &Mailbox<M>,
        message: &M,
    ) -> Result<(), StorageError> {
        handle::send(&*self.timed, &to.into(), mailbox.name(), message, None).await.map(drop)
    }

    /// Cancels a flow and its attached children. See [`FlowHandle::cancel`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when there is no such flow.
    pub async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled, StorageError> {
        self.timed.cancel(flow, reason).await
    }

    /// Lets a failed or stalled flow go on where it stopped. See [`FlowHandle::retry`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when there is no such flow.
    pub async fn retry(&self, flow: &FlowId) -> Result<Retried, StorageError> {
        self.timed.retry(flow).await
    }

    /// As [`retry`](Self::retry), for all failed and stalled flows that pass the filter, each once, in the order in
    /// which they were accepted. Of the states that the filter names, others than these count for nothing. Returns how
    /// many flows go on.
    ///
    /// # Errors
    ///
    /// When the log cannot answer; those that come first go on then, and a repeat takes the others.
    pub async fn retry_all(&self, filter: &Filter) -> Result<u64, StorageError> {
        Ok(self.admin().retry_all(filter).await?.done)
    }

    /// Where a flow is in its life; `None` when there is no such flow.
    ///
    /// # Errors
    ///
    /// When the log cannot tell.
    pub async fn status(&self, flow: &FlowId) -> Result<Option<FlowInfo>, StorageError> {
        Ok(self.timed.flow(flow).await?.map(|record| record.info))
    }

    /// What happened in a flow so far.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when there is no such flow.
    pub async fn history(&self, flow: &FlowId) -> Result<History, StorageError> {
        History::read(&*self.timed, flow).await
    }

    /// The same log for those who look after it: lists, counts, repair.
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.timed))
    }

    /// The log itself.
    pub fn log(&self) -> &Arc<dyn ExecutionLog> {
        &self.log
    }

    fn accepted<F: Flow>(&self, id: FlowId, answer: Enqueued) -> Result<FlowHandle<F::Output, F::Error>, StorageError> {
        let existed = match answer {
            Enqueued::Created => false,
            Enqueued::Existing { same: true } => true,
            Enqueued::Existing { same: false } => {
                let message = "there is a flow of this id with another type or value; choose another id, or use \
                               Scheduler::handle to reach the one that is there";
                return Err(StorageError::new(ErrorKind::Conflict, message).with_flow(&id));
            }
        };
        Ok(FlowHandle::new(Arc::clone(&self.timed), id, existed))
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").finish_non_exhaustive()
    }
}

/// A flow that is about to be scheduled. Await it.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] for an id, queue, label or start that cannot be, [`ErrorKind::TooLarge`] for a value over the
/// log's limit, [`ErrorKind::Conflict`] when the id belongs to a flow with another type or value.
#[derive(Debug)]
#[must_use = "a flow is scheduled when this is awaited"]
pub struct Scheduling<'a, F> {
    scheduler: &'a Scheduler,
    entry: Entry<F>,
}

impl<F: Flow> Scheduling<'_, F> {
    /// Its id, 1 to 255 bytes; otherwise a new UUID version 7. Scheduling an id again finds the first flow.
    ///
    /// The value must be the same then. The order of a `HashMap`'s entries is nothing to it, but a `HashSet` comes in
    /// another order each time and makes another value: use a `BTreeSet`.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.entry = self.entry.id(id);
        self
    }

    /// Its queue; otherwise `default`.
    pub fn queue(mut self, queue: impl Into<Arc<str>>) -> Self {
        self.entry = self.entry.queue(queue);
        self
    }

    /// Its priority; otherwise 0. Higher goes first.
    pub fn priority(mut self, priority: i16) -> Self {
        self.entry = self.entry.priority(priority);
        self
    }

    /// Gives it a label, to be listed and counted by: a customer, a region. At most 16; see
    /// [`Labels::check`](crate::Labels::check) for their bounds. A flow can [set](crate::set_label) more itself.
    pub fn label(mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.entry = self.entry.label(name, value);
        self
    }

    /// Whether it waits for the worker that ran it last; otherwise as its type says, `#[flow(affinity(…))]`. The log refuses
    /// one that is out of range.
    pub fn affinity(mut self, affinity: Affinity) -> Self {
        self.entry = self.entry.affinity(affinity);
        self
    }

    /// Its time limit, counted from its start, waits included; otherwise as its type says, `#[flow(timeout = …)]`. `None`
    /// for no limit. The flow fails when it passes, at once where it is zero, and cleans up first, if it has something to.
    /// A flow of this id that is there already keeps its own.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use ergon::{prelude::*, sleep};
    ///
    /// #[flow(timeout = "30days")]
    /// async fn reminder() -> ergon::Result<()> {
    ///     sleep(Duration::from_secs(24 * 3_600)).await;
    ///     Ok(())
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let log = InMemoryExecutionLog::new();
    /// let worker = Worker::new(log.clone()).register::<reminder>().start().await?;
    /// let urgent = Scheduler::new(log).schedule(reminder()).timeout(Duration::from_millis(5)).await?;
    /// assert!(urgent.result().await.unwrap_err().to_string().contains("time limit"));
    /// # worker.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.entry = self.entry.timeout(limit);
        self
    }

    /// Starts it that much later, by the log's clock.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.entry = self.entry.delay(delay);
        self
    }

    /// Starts it at that instant; at once when it has passed.
    pub fn start_at(mut self, at: impl Into<Timestamp>) -> Self {
        self.entry = self.entry.start_at(at);
        self
    }
}

impl<'a, F: Flow> IntoFuture for Scheduling<'a, F> {
    type Output = Result<FlowHandle<F::Output, F::Error>, StorageError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        let scheduler = self.scheduler;
        // The value is encoded here, so that the future need not be bound to its type.
        let new = self.entry.into_new_flow(scheduler.timed.limits().payload_bytes_max);
        Box::pin(async move {
            let new = new?;
            let id = new.id.clone();
            let answer = scheduler.timed.enqueue(vec![new]).await?.first().copied().unwrap_or(Enqueued::Created);
            scheduler.accepted::<F>(id, answer)
        })
    }
}

/// A flow for [`Scheduler::schedule_all`], with the same settings as [`Scheduling`].
///
/// # Examples
///
/// ```
/// use ergon::{Entry, prelude::*};
///
/// #[flow]
/// async fn square(number: u64) -> ergon::Result<u64> {
///     Ok(number * number)
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<square>().start().await?;
/// let entries = (1..=3).map(|number| Entry::new(square(number)).id(format!("square-{number}")).priority(1));
/// let handles = Scheduler::new(log).schedule_all(entries).await?; // in one write
/// assert_eq!(handles[2].result().await?, 9);
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "an entry does nothing unless it is scheduled"]
pub struct Entry<F> {
    flow: F,
    id: Option<String>,
    queue: Option<Arc<str>>,
    priority: i16,
    start: Start,
    timeout: Option<Duration>,
    labels: Labels,
}

impl<F: Flow> Entry<F> {
    /// A flow with a new id, in the default queue, that starts now.
    pub fn new(flow: F) -> Self {
        let timeout = <F as Flow>::TIMEOUT;
        Self { flow, id: None, queue: None, priority: 0, start: Start::Now, timeout, labels: Labels::new() }
            .affinity(F::AFFINITY)
    }

    /// See [`Scheduling::id`].
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// See [`Scheduling::queue`].
    pub fn queue(mut self, queue: impl Into<Arc<str>>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// See [`Scheduling::priority`].
    pub fn priority(mut self, priority: i16) -> Self {
        self.priority = priority;
        self
    }

    /// See [`Scheduling::label`].
    pub fn label(mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.labels.set(name, value);
        self
    }

    /// See [`Scheduling::affinity`].
    pub fn affinity(mut self, affinity: Affinity) -> Self {
        put_affinity(&mut self.labels, affinity);
        self
    }

    /// See [`Scheduling::timeout`].
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.timeout = limit.into();
        self
    }

    /// See [`Scheduling::delay`].
    pub fn delay(mut self, delay: Duration) -> Self {
        self.start = Start::After(delay);
        self
    }

    /// See [`Scheduling::start_at`].
    pub fn start_at(mut self, at: impl Into<Timestamp>) -> Self {
        self.start = Start::At(at.into());
        self
    }

    pub(crate) fn into_new_flow(self, payload_bytes_max: usize) -> Result<NewFlow, StorageError> {
        let id = match self.id {
            Some(id) => FlowId::new(id)?,
            None => FlowId::new(Uuid::now_v7().to_string())?,
        };
        let name = <F as Flow>::NAME;
        let input =
            codec::encode_sorted(format_args!("the value of flow type {name:?}"), &self.flow, payload_bytes_max)
                .map_err(|error| {
                    let kind = if error.is_retryable() { ErrorKind::Invalid } else { ErrorKind::TooLarge };
                    StorageError::new(kind, error.to_string()).with_flow(&id)
                })?;
        let labels = self.labels;
        #[cfg(feature = "opentelemetry")]
        let labels = {
            let mut labels = labels;
            crate::spans::scheduled(id.as_str(), name, &mut labels);
            labels
        };
        let mut new = NewFlow::new(id, name, <F as Flow>::VERSION, input)
            .with_priority(self.priority)
            .with_start(self.start)
            .with_timeout(self.timeout)
            .with_labels(labels);
        if let Some(queue) = self.queue {
            new = new.with_queue(queue);
        }
        Ok(new)
    }
}

impl<F: Flow> From<F> for Entry<F> {
    fn from(flow: F) -> Self {
        Self::new(flow)
    }
}

/// Puts an affinity among labels.
pub(crate) fn put_affinity(labels: &mut Labels, affinity: Affinity) {
    match affinity.to_label() {
        Some(label) => labels.set(Affinity::LABEL, label),
        None => _ = labels.remove(Affinity::LABEL),
    }
}
