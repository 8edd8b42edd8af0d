//! What operators do with a log.

mod attention;
mod bulk;
mod describe;

use std::{fmt, sync::Arc};

pub use self::{
    attention::{Attention, Problem, Troubled},
    bulk::{Bulk, BulkReport},
    describe::{Description, FlowTree, Wait},
};

use ergon_storage::{Count, Cursor, ExecutionLog, Filter, FlowId, FlowInfo, FlowPage};
use futures::{Stream, TryStreamExt, stream};

use self::bulk::Action;
use crate::StorageError;

/// The log as those see it who look after its flows: what is there, how it is, and what can be done about it. Cheap to
/// clone; needs no worker in the same process, and no flow types.
///
/// # Examples
///
/// ```
/// use ergon::{Admin, Filter, FlowState, prelude::*};
///
/// #[flow]
/// async fn order(customer: u32) -> ergon::Result<()> { Ok(()) }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let scheduler = Scheduler::new(log.clone());
/// for customer in [7, 7, 8] {
///     scheduler.schedule(order(customer)).label("customer", customer.to_string()).await?;
/// }
/// let admin = Admin::new(log);
/// let of_seven = Filter::all().with_label("customer", "7").with_state(FlowState::Scheduled);
/// assert_eq!(admin.count(&of_seven).await?, 2);
/// let page = admin.list(&of_seven, None, 100).await?;
/// assert!(page.flows.iter().all(|flow| flow.labels.get("customer") == Some("7")));
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Admin {
    log: Arc<dyn ExecutionLog>,
}

impl Admin {
    /// How many flows [`flows`](Self::flows) and the calls for many flows read at once.
    const PAGE: usize = 500;

    /// For this log.
    pub fn new(log: impl ExecutionLog) -> Self {
        Self { log: Arc::new(log) }
    }

    /// The log itself.
    pub fn log(&self) -> &Arc<dyn ExecutionLog> {
        &self.log
    }

    /// A page of at most `limit` flows that pass the filter, after the cursor, in the order in which they were
    /// accepted. Pages stay correct while flows move: none is skipped or told twice for it. A cursor can be kept, also
    /// as JSON, as long as the log exists.
    ///
    /// # Errors
    ///
    /// When the log cannot tell.
    pub async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage, StorageError> {
        self.log.list(filter, after, limit).await
    }

    /// All flows that pass the filter, in the order in which they were accepted, read a page at a time. Those that are
    /// accepted meanwhile come, too.
    pub fn flows(&self, filter: Filter) -> impl Stream<Item = Result<FlowInfo, StorageError>> + Send + use<> {
        let from = Some((Arc::clone(&self.log), filter, None));
        let pages = stream::try_unfold(from, async |from| {
            let Some((log, filter, after)) = from else { return Ok(None) };
            let page = log.list(&filter, after, Self::PAGE).await?;
            let next = page.next.map(|next| (log, filter, Some(next)));
            Ok::<_, StorageError>(Some((stream::iter(page.flows.into_iter().map(Ok)), next)))
        });
        pages.try_flatten()
    }

    /// How many flows pass the filter.
    ///
    /// # Errors
    ///
    /// When the log cannot tell.
    pub async fn count(&self, filter: &Filter) -> Result<u64, StorageError> {
        Ok(self.counts(filter).await?.iter().map(|count| count.flows).sum())
    }

    /// How many flows pass the filter, by queue, type, version and state, in that order, and of those that wait in
    /// their queue since when.
    ///
    /// # Errors
    ///
    /// When the log cannot tell.
    pub async fn counts(&self, filter: &Filter) -> Result<Vec<Count>, StorageError> {
        self.log.counts(filter).await
    }

    /// A flow with its history, its waiting messages and its children as a tree, what it waits for and what would let
    /// it go on, and what to do if it needs a person. With `{}` a text to be read:
    ///
    /// ```
    /// # use ergon::{Admin, prelude::*};
    /// # #[flow]
    /// # async fn order(customer: u32) -> ergon::Result<()> { let _: u32 = signal("approval").await?; Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # let log = InMemoryExecutionLog::new();
    /// # let handle = Scheduler::new(log.clone()).schedule(order(7)).id("order-7").await?;
    /// # let worker = Worker::new(log.clone()).register::<order>().start().await?;
    /// # while handle.status().await?.state != ergon::FlowState::Suspended { tokio::task::yield_now().await; }
    /// let order = Admin::new(log).describe(handle.id()).await?;
    /// assert!(order.to_string().contains("scheduler.signal(\"order-7\", \"approval\", …) wakes it"));
    /// # worker.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// It is put together from several reads: of a flow that goes on meanwhile, parts may be from one moment or another.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ergon_storage::ErrorKind::NotFound) when there is no such flow.
    pub async fn describe(&self, flow: &FlowId) -> Result<Description, StorageError> {
        Description::read(&*self.log, flow).await
    }

    /// Everything that needs a person, and what to do: the flows that have failed or are stalled, at most `limit`
    /// after the cursor, and the kinds of flows that no worker claims. Of the states that the filter names, others count
    /// for nothing.
    ///
    /// # Errors
    ///
    /// When the log cannot tell.
    pub async fn attention(
        &self,
        filter: &Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Attention, StorageError> {
        Attention::read(&*self.log, filter, after, limit).await
    }

    /// Cancels all flows that pass the filter and have not ended, with their attached children: await what this
    /// returns.
    ///
    /// ```
    /// # use ergon::{Admin, Filter, prelude::*};
    /// # #[flow]
    /// # async fn order(customer: u32) -> ergon::Result<()> { Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # let log = InMemoryExecutionLog::new();
    /// # for _ in 0..3 { Scheduler::new(log.clone()).schedule(order(7)).label("customer", "7").await?; }
    /// let admin = Admin::new(log);
    /// let of_seven = Filter::all().with_label("customer", "7");
    /// assert_eq!(admin.cancel_all(&of_seven, "closed the account").dry_run().await?.done, 3);
    /// assert_eq!(admin.cancel_all(&of_seven, "closed the account").await?.done, 3);
    /// assert_eq!(admin.delete_all(&of_seven).await?.done, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cancel_all(&self, filter: &Filter, reason: impl Into<String>) -> Bulk {
        Bulk::new(Arc::clone(&self.log), filter, Action::Cancel(reason.into()))
    }

    /// Lets all failed and stalled flows that pass the filter go on where they stopped, as
    /// [`FlowHandle::retry`](crate::FlowHandle::retry): await what this returns.
    pub fn retry_all(&self, filter: &Filter) -> Bulk {
        Bulk::new(Arc::clone(&self.log), filter, Action::Retry)
    }

    /// Forgets all flows that pass the filter and have ended, but those that a live parent waits for: await what this
    /// returns.
    pub fn delete_all(&self, filter: &Filter) -> Bulk {
        Bulk::new(Arc::clone(&self.log), filter, Action::Delete)
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}
