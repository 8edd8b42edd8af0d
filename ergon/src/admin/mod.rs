//! What operators do with a log.

mod attention;
mod bulk;
mod cut;
mod describe;
mod export;
mod fork;

use std::{fmt, io, sync::Arc};

pub use self::{
    attention::{Attention, Problem, Troubled},
    bulk::{Bulk, BulkReport},
    cut::Cut,
    describe::{Description, FlowTree, Wait},
    export::{ImportError, ImportFailure, ImportReport},
    fork::Fork,
};
#[doc(no_inline)]
pub use ergon_storage::{CallPath, InvalidPath};

use ergon_storage::{Cancelled, Count, Cursor, ExecutionLog, Filter, FlowId, FlowInfo, FlowPage};
use futures::{Stream, TryStreamExt, stream};

use self::{bulk::Action, export::Live};
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
    /// after the cursor, and the kinds of flows that no worker claims: new ones, suspended ones that are due, and running ones
    /// whose worker is gone. Of the states that the filter names, others count
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

    /// A new flow that takes over the recorded outcomes of this one up to some call, and goes on from there with today's
    /// code, perhaps with another value: await what this returns. This one stays as it is, whatever its state.
    ///
    /// ```
    /// # use ergon::{Admin, admin::Cut, prelude::*};
    /// #[flow]
    /// async fn order(address: String) -> ergon::Result<String> {
    ///     charge(100).await?;
    ///     ship(&address).await
    /// }
    ///
    /// #[step]
    /// async fn charge(cents: u32) -> ergon::Result<()> { Ok(()) }
    ///
    /// #[step(retry = none)]
    /// async fn ship(address: &str) -> ergon::Result<String> {
    ///     if address == "nowhere" { Err(ergon::Error::new("no such place")) } else { Ok(format!("sent to {address}")) }
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let log = InMemoryExecutionLog::new();
    /// let scheduler = Scheduler::new(log.clone());
    /// let worker = Worker::new(log.clone()).register::<order>().start().await?;
    /// let failed = scheduler.schedule(order("nowhere".into())).id("order-7").await?;
    /// assert!(failed.result().await.is_err());
    ///
    /// let admin = Admin::new(log);
    /// let fork = admin.fork(failed.id()).at(Cut::first("ship")).input(order("Paris".into())).id("order-7b").await?;
    /// // The charge is not repeated.
    /// assert_eq!(scheduler.handle::<order>(fork).result().await?, "sent to Paris");
    /// # worker.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// What the new flow has of the old one, as the old one had it at the [cut](Cut):
    ///
    /// - The outcomes of its calls. A call takes the outcome at its place if it is of the same kind and name, **whatever
    ///   its arguments**, which may hang on the flow's id or value; where calls of one name are made at the same time, as in
    ///   a `join!`, it must have the same arguments, too. Code that makes other calls than the old one made is found, and
    ///   the new flow [stalls](crate::FlowState::Stalled) with the place: cut before it.
    /// - The failed attempts of steps, and the instants of timers and time limits, even those that have passed.
    /// - Copies of the messages that it had not taken by then, [unless](Fork::without_messages) you say otherwise. A flow
    ///   that has completed or was cancelled has none left that it never took, and their keys count as sent all the same.
    /// - Its type, version, queue, priority, labels, and a time limit of the same length, from now on. Of a flow that has
    ///   [begun again](crate::continue_as_new) it has the present run, as its first.
    /// - What the bodies of completed steps have told in streams and the status; what the flow's own code has told it tells
    ///   anew.
    ///
    /// What it does not have:
    ///
    /// - Children: one whose end was recorded stays what it was, and its outcome is taken over; one whose end was not is
    ///   started anew, as the new flow's own. If you gave the child an [id](crate::Child::id) that does not hang on the
    ///   flow's, it is taken, and the call [fails](crate::ErrorKind::Conflict).
    /// - A parent: whoever waits for the old flow does not hear of the new one.
    /// - The old flow's [idempotency keys](crate::idempotency_key), random numbers and
    ///   [transactions](macro@crate::step#transactions): a step that runs again in the fork is another call of another flow. One that runs
    ///   [at most once](macro@crate::step#at-most-once), had begun and had no outcome yet is of unknown outcome here, too.
    ///
    /// The history says where the new flow comes from, in one line of its own.
    pub fn fork(&self, flow: &FlowId) -> Fork {
        Fork::new(Arc::clone(&self.log), flow.clone())
    }

    /// Takes a flow back to an earlier place in its history: the same flow, of the same id, as it was at the
    /// [cut](Cut), goes on from there with today's code. Whatever its state: one that has ended lives again, and a worker
    /// that runs it is told that it has lost it. All of this is one transition.
    ///
    /// ```
    /// # use ergon::{Admin, admin::Cut, prelude::*};
    /// # #[flow]
    /// # async fn order(id: u32) -> ergon::Result<u32> { charge(id).await?; ship(id).await }
    /// # #[step]
    /// # async fn charge(id: u32) -> ergon::Result<()> { Ok(()) }
    /// # #[step]
    /// # async fn ship(id: u32) -> ergon::Result<u32> { Ok(id) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # let log = InMemoryExecutionLog::new();
    /// # let worker = Worker::new(log.clone()).register::<order>().start().await?;
    /// # let handle = Scheduler::new(log.clone()).schedule(order(7)).id("order-7").await?;
    /// handle.result().await?;
    /// let admin = Admin::new(log);
    /// admin.reset(handle.id(), Cut::first("ship")).await?;
    /// // It is shipped once more; it is not charged again.
    /// assert_eq!(handle.result().await?, 7);
    /// assert!(admin.reset(handle.id(), Cut::first("refund")).await.is_err(), "it has made no such call");
    /// # worker.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// What came after the cut is forgotten:
    ///
    /// - Steps run again, under their former [idempotency keys](crate::idempotency_key), so that a service that has seen
    ///   one does nothing twice. For the same reason a [transaction](macro@crate::step#transactions) that was made is answered with what it
    ///   resulted in. To have them done anew, [fork](Self::fork).
    /// - Messages that were taken since are in the mailbox again. So the flow takes them again. Those that a flow never
    ///   took are gone once it has completed or was cancelled: send them again, under other keys.
    /// - Children that were started since are cancelled, with theirs, and forgotten; those that live on their own stay.
    ///   Started again, they are other flows: their transactions are made again. Where such a child has ended before
    ///   flows of its own, and these are started again under their ids, that call [fails](crate::ErrorKind::Conflict). A
    ///   child that was started before and had not ended by then stays, too: the call finds it, with its end if it has
    ///   ended meanwhile. One that has failed is retried.
    /// - A parent that waits hears of the new end, and not of the former one, if it has not taken that one in.
    /// - What was told in streams stays, and what the flow's own code tells it tells again, under new numbers and a greater
    ///   [epoch](ergon_storage::Item::epoch).
    /// - A cancellation is taken back, with what was done in the clean-up: to be cut before a call of the clean-up is
    ///   refused.
    /// - The time limit begins anew.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ergon_storage::ErrorKind::NotFound) when there is no such flow, or no such call in the history of its
    /// present run; [`Invalid`](ergon_storage::ErrorKind::Invalid) when the call is of the history that a
    /// [fork](Self::fork) has taken over; or of its clean-up; [`Conflict`](ergon_storage::ErrorKind::Conflict) when
    /// a child that would be forgotten has something to clean up: cancel it, and wait for its end;
    /// `Conflict` and [`Unavailable`](ergon_storage::ErrorKind::Unavailable) when the flow goes on faster than it can be read,
    /// or the log cannot answer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves open whether the flow is reset.
    pub async fn reset(&self, flow: &FlowId, cut: impl Into<Cut>) -> Result<(), StorageError> {
        fork::reset(&*self.log, flow, &cut.into()).await
    }

    /// Cancels a flow at once, without its clean-up: the compensations of its sagas and its
    /// [`on_cancel`](crate::on_cancel()) do not run, or go on. For one whose clean-up cannot end, because a step in it fails again
    /// and again, say; what is left to be undone is left to you. A worker that runs it is told that it has lost it. Its children
    /// are cancelled as by [`FlowHandle::cancel`](crate::FlowHandle::cancel), with their clean-up.
    ///
    /// ```
    /// # use ergon::{Admin, prelude::*, saga};
    /// # #[flow]
    /// # async fn order(id: u32) -> ergon::Result<u32> { Ok(saga(async |_| charge(id).await).await?) }
    /// # #[step]
    /// # async fn charge(id: u32) -> ergon::Result<u32> { Ok(id) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # let log = InMemoryExecutionLog::new();
    /// let order = Scheduler::new(log.clone()).schedule(order(7)).id("order-7").await?;
    /// Admin::new(log).abandon(order.id(), "the bank is gone").await?;
    /// assert_eq!(order.result().await.unwrap_err().to_string(), "the flow was cancelled: the bank is gone");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotFound`](ergon_storage::ErrorKind::NotFound) when there is no such flow;
    /// [`TooLarge`](ergon_storage::ErrorKind::TooLarge) for a reason of more than 4 KiB.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves open whether the flow has ended.
    pub async fn abandon(&self, flow: &FlowId, reason: &str) -> Result<Cancelled, StorageError> {
        self.log.abandon(flow, reason).await
    }

    /// All flows that pass the filter, each as one line of JSON with its line break, in the order in which they were
    /// accepted: with its history, its mailbox, its feeds, its value and its result. To be kept, or to be
    /// [put into](Self::import) another log, of whatever kind, where it is the same in every respect. It is read a flow at a
    /// time, each as it was at one moment.
    ///
    /// ```
    /// # use ergon::{Admin, Filter, prelude::*};
    /// # use futures::TryStreamExt;
    /// # #[flow]
    /// # async fn order(customer: u32) -> ergon::Result<u32> { Ok(customer) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # let log = InMemoryExecutionLog::new();
    /// # let worker = Worker::new(log.clone()).register::<order>().start().await?;
    /// # Scheduler::new(log.clone()).schedule(order(7)).id("order-7").await?.result().await?;
    /// # worker.shutdown().await;
    /// let lines: Vec<String> = Admin::new(log).export(Filter::all().with_flow_type("order")).try_collect().await?;
    /// assert!(lines[0].starts_with(r#"{"ergon":1,"id":"order-7","flow_type":"order""#));
    ///
    /// let archive = SqliteExecutionLog::open_in_memory().await?;
    /// let report = Admin::new(archive.clone()).import(lines.iter().map(Ok)).await?;
    /// assert_eq!((report.imported, report.taken), (1, 0));
    /// let order = Scheduler::new(archive).handle::<order>(FlowId::new("order-7")?);
    /// assert_eq!(order.result().await?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # The format
    ///
    /// One flow is one line; lines can be sorted out, joined and split as one likes, but a parent must come before its
    /// children. The field `ergon` is the version of the format, 1. The others are those of
    /// [`FlowInfo`], of its [`Record`](ergon_storage::Record)s in `records`, of its
    /// [`Message`](ergon_storage::Message)s in `messages`, and of the [`Item`](ergon_storage::Item)s in `feeds`;
    /// [`Snapshot`](ergon_storage::Snapshot) has all of them. Instants are microseconds since 1970, UTC. A payload that is JSON
    /// is `{"json": …}`, byte for byte as it was; any other is `{"base64": "…"}`. What is empty is left out.
    ///
    /// # Errors
    ///
    /// When the log cannot tell; [`Conflict`](ergon_storage::ErrorKind::Conflict) at the first flow that has not ended,
    /// for it would go on in two logs: see [`export_live`](Self::export_live).
    pub fn export(&self, filter: Filter) -> impl Stream<Item = Result<String, StorageError>> + Send + use<> {
        export::export(self, filter, Live::Refused)
    }

    /// As [`export`](Self::export), also flows that have not ended. Where they are put in they go on, one that was running
    /// at once; here they go on, too, unless you see to it: stop all workers first, and delete the log afterwards. A parent
    /// and its children are read one after the other, so that nothing may happen in between.
    pub fn export_live(&self, filter: Filter) -> impl Stream<Item = Result<String, StorageError>> + Send + use<> {
        export::export(self, filter, Live::Exported)
    }

    /// Puts the flows of these lines into the log, as [`export`](Self::export) has written them: the lines of a
    /// [`BufRead`](std::io::BufRead), or a list of texts with `.map(Ok)`. Each flow is put in whole or not at all; one whose id is taken is
    /// left out, so that a repeat goes on where it stopped. Empty lines are passed over.
    ///
    /// A flow is in the log as if it had been there all the time, with its instants, so that it may be pruned at once by
    /// its age. What `#[step(transaction)]` has committed is not a part of it.
    ///
    /// # Errors
    ///
    /// [`ImportError`] names the first line that is wrong, or that the log did not take. The flows before it are there.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves open whether the next flow is put in; a repeat tells.
    pub async fn import<L: AsRef<str>>(
        &self,
        lines: impl IntoIterator<Item = io::Result<L>>,
    ) -> Result<ImportReport, ImportError> {
        export::import(&*self.log, lines).await
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
    ///
    /// Flows whose time was up, and which have cleaned up after that, only fail again: [`reset_all`](Self::reset_all) takes
    /// them back to before it.
    pub fn retry_all(&self, filter: &Filter) -> Bulk {
        Bulk::new(Arc::clone(&self.log), filter, Action::Retry)
    }

    /// Forks all flows that pass the filter and have ended or are stalled, as [`fork`](Self::fork): await what this
    /// returns. A fork's id is that of the flow with `/fork-` and the flow's epoch behind it, so that a repeat forks none
    /// twice; one whose history has no such call is left alone.
    ///
    /// ```
    /// # use ergon::{Admin, Filter, admin::Cut, prelude::*};
    /// # #[flow]
    /// # async fn order(customer: u32) -> ergon::Result<()> { ship(customer).await }
    /// # #[step(retry = none)]
    /// # async fn ship(customer: u32) -> ergon::Result<()> { Err(ergon::Error::new("closed")) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # let log = InMemoryExecutionLog::new();
    /// # let worker = Worker::new(log.clone()).register::<order>().start().await?;
    /// # for id in 0..3 { assert!(Scheduler::new(log.clone()).schedule(order(id)).await?.result().await.is_err()); }
    /// # worker.shutdown().await;
    /// let admin = Admin::new(log);
    /// let closed = Filter::all().with_reason("closed");
    /// assert_eq!(admin.fork_all(&closed, Cut::first("ship")).dry_run().await?.done, 3);
    /// assert_eq!(admin.fork_all(&closed, Cut::first("ship")).await?.done, 3);
    /// // They are there already.
    /// assert_eq!(admin.fork_all(&closed, Cut::first("ship")).await?.left_alone, 3);
    /// assert_eq!(admin.reset_all(&closed, Cut::Start).await?.done, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fork_all(&self, filter: &Filter, cut: impl Into<Cut>) -> Bulk {
        // A fork may pass the filter itself, by the time that it is come to.
        let now = self.log.clock().now();
        let mut filter = filter.clone();
        filter.created_before = Some(filter.created_before.map_or(now, |before| before.min(now)));
        Bulk::new(Arc::clone(&self.log), &filter, Action::Fork(cut.into()))
    }

    /// Takes all flows that pass the filter back, as [`reset`](Self::reset): await what this returns. One whose history
    /// has no such call, or goes on faster than it can be read, is left alone.
    pub fn reset_all(&self, filter: &Filter, cut: impl Into<Cut>) -> Bulk {
        Bulk::new(Arc::clone(&self.log), filter, Action::Reset(cut.into()))
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
