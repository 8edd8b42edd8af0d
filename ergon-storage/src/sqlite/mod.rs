//! The log in an SQLite file.
//!
//! [`writer`] is the heart: one thread that owns the writing connection and commits whatever waits in one
//! transaction. The transitions themselves are plain functions on an open transaction, by what they are about:
//! [`queue`], [`run`], [`mailbox`], [`outside`], [`upkeep`]. [`read`] answers questions on connections of its
//! own, [`schema`] is what the file looks like, [`wal_watch`] hears of other processes, [`owners`] knows which
//! of them are gone.

// "SQLite" is a name, not code.
#![allow(clippy::doc_markdown)]

mod error;
mod lanes;
mod mailbox;
mod options;
mod outside;
mod owners;
mod places;
mod queue;
mod read;
mod readers;
mod row;
mod run;
mod schema;
mod snapshot;
#[macro_use]
mod statements;
mod transact;
mod upkeep;
mod wal_watch;
mod writer;

use std::{
    fmt, mem,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    thread::{self, JoinHandle},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use self::{
    error::{Outcome, stopped},
    outside::Ending,
    read::Reading,
    readers::Readers,
    transact::Transacted,
    wal_watch::{Poke, WalWatch},
    writer::{Environment, Request, Tx},
};
pub use self::{
    options::{Durability, SqliteOptions},
    transact::Transaction,
};
use crate::{
    Cancelled, Channel, ClaimRequest, Claimed, Clock, Commit, Committed, Count, Cursor, Database, Enqueued,
    ExecutionLog, Extras, Feed, Filter, FlowId, FlowPage, FlowRecord, Imported, Item, Lease, LeaseState, Limits,
    Message, NewFlow, NewMessage, PrunePolicy, Record, Reset, Result, Retried, Sent, Snapshot, Topic, Watch, WatchHub,
    Work, WorkResult, log::no_transactions,
};

/// An [`ExecutionLog`] in an SQLite file.
///
/// Clones share the same log. Any number of processes may open the same file, on one machine: their commits wait
/// for each other, and each hears of the others' by watching the file's write-ahead log (where the system cannot
/// watch files, by looking at it once a second). Dropping the last handle waits until what was asked is written
/// and the file is closed.
///
/// An answered call survives the end of the process; see [`Durability`] for power cuts.
///
/// # Processes that die
///
/// Flows that ran in a process that was killed or crashed need not wait until their leases end. Beside the file
/// lies one small file for each open log, `orders.db-owner-<id>`, which the log keeps locked; however its process
/// ends, the system lets go of the lock. Another log that gets the lock makes the flows claimable, with the
/// deliveries that were counted and under the epochs they had, and removes the small file. This happens
///
/// - before [`open`](Self::open) answers, so a restarted process goes on at once;
/// - within some milliseconds in other processes that have the file open, where the system tells that a file was
///   closed (Linux);
/// - elsewhere when a claim finds nothing due, at most once a second.
///
/// Closing a log gives up what it still runs in the same way, and removes its small file.
///
/// A process that hangs or was stopped keeps its lock, and its flows wait until their leases end, as they do where
/// nobody can tell: when the small file was removed by hand, when a forked child lives on with the lock, or when
/// the file system has no locks. Opening a log never fails for this; a warning is logged instead.
///
/// # Examples
///
/// ```
/// use ergon_storage::{Enqueued, ExecutionLog, FlowId, NewFlow, SqliteExecutionLog};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("orders.db");
/// let order = NewFlow::new(FlowId::new("order-7")?, "Order", 1, &b"{}"[..]);
///
/// let log = SqliteExecutionLog::open(&path).await?;
/// assert_eq!(log.enqueue(vec![order.clone()]).await?, [Enqueued::Created]);
/// drop(log);
///
/// let log = SqliteExecutionLog::open(&path).await?;
/// assert_eq!(log.enqueue(vec![order]).await?, [Enqueued::Existing { same: true }]);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SqliteExecutionLog {
    inner: Arc<Inner>,
}

struct Inner {
    path: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    limits: Limits,
    hub: WatchHub,
    // Ends in this order: nobody pokes the writer, nobody reads, then the writer closes the file.
    watch: Option<WalWatch>,
    readers: Option<Readers>,
    inbox: mpsc::Sender<Request>,
    writer: Option<JoinHandle<()>>,
}

impl SqliteExecutionLog {
    /// Opens the log in this file, or makes it; see [`SqliteOptions`] for more.
    ///
    /// # Errors
    ///
    /// As [`SqliteOptions::open`].
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        SqliteOptions::new(path).open().await
    }

    /// Opens an empty log in the memory of this process.
    ///
    /// # Errors
    ///
    /// As [`SqliteOptions::open`].
    pub async fn open_in_memory() -> Result<Self> {
        SqliteOptions::in_memory().open().await
    }

    /// The file; `None` for a log in memory.
    pub fn path(&self) -> Option<&Path> {
        self.inner.path.as_deref()
    }

    /// Does some work of yours in a transaction on the log's file: all of it, or nothing when it returns an error or
    /// panics. When this has returned `Ok(Ok(_))` it is as durable as a commit of the log. To make the tables that
    /// steps use, for instance.
    ///
    /// The work runs on the thread that writes the log, and everything else that is to be written waits for it: keep
    /// it short. It may be run again when the transaction that it was a part of has failed. See [`Transaction`] for
    /// what it must leave alone.
    ///
    /// # Errors
    ///
    /// As the trait's methods; the inner error is that of the work.
    ///
    /// # Panics
    ///
    /// When the work does.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves open whether the work is done.
    ///
    /// # Examples
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let log = ergon_storage::SqliteExecutionLog::open_in_memory().await?;
    /// log.transaction(|tx| tx.execute_batch("CREATE TABLE accounts (name TEXT PRIMARY KEY, cents INTEGER) STRICT")).await??;
    /// let rows = log.transaction(|tx| tx.execute("INSERT INTO accounts VALUES ('ada', 100), ('bob', 0)", [])).await??;
    /// assert_eq!(rows, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn transaction<T, E, F>(&self, work: F) -> Result<std::result::Result<T, E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: Fn(&Transaction<'_>) -> std::result::Result<T, E> + Send + 'static,
    {
        let done = self.write(move |tx| transact::transact(tx, &work)).await?;
        Ok(settled(done))
    }

    async fn start(mut options: SqliteOptions) -> Result<Self> {
        // The readers open the file later, when the working directory may be another. What is no path is refused
        // by the writer.
        options.path = options.path.map(|path| std::path::absolute(&path).unwrap_or(path));
        let (inbox, requests) = mpsc::channel(writer::INBOX_JOBS_MAX);
        let (opened, outcome) = oneshot::channel();
        let (looking, closed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let hub = WatchHub::new();
        let SqliteOptions { path, clock, limits, busy_timeout, .. } = options.clone();
        let environment = Environment {
            clock: Arc::clone(&clock),
            limits: limits.clone(),
            hub: hub.clone(),
            looking: Arc::clone(&looking),
            closed: Arc::clone(&closed),
        };
        let thread = thread::Builder::new().name("ergon-sqlite-write".into());
        let writer = thread.spawn(move || writer::run(&options, &environment, requests, opened));
        let writer = writer.map_err(readers::no_thread)?;
        outcome.await.unwrap_or_else(|_| Err(stopped()))?;
        let (readers, watch) = match &path {
            Some(path) => {
                let poke = Poke { inbox: inbox.downgrade(), looking, closed };
                (Some(Readers::start(path, busy_timeout)?), WalWatch::start(path, &poke))
            }
            None => (None, None),
        };
        Ok(Self { inner: Arc::new(Inner { path, clock, limits, hub, watch, readers, inbox, writer: Some(writer) }) })
    }

    async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx<'_, '_>) -> Outcome<T> + Send + 'static,
    {
        writer::submit(&self.inner.inbox, work).await
    }

    async fn end(&self, flow: &FlowId, reason: &str, ending: Ending) -> Result<Cancelled> {
        self.inner.limits.check_reason(flow, reason)?;
        let (flow, reason) = (flow.clone(), reason.to_owned());
        self.write(move |tx| outside::cancel(tx, &flow, &reason, ending)).await
    }

    async fn read<T, F>(&self, question: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Reading<'_>) -> Outcome<T> + Send + 'static,
    {
        match &self.inner.readers {
            Some(readers) => readers.ask(question).await,
            // A log in memory has one connection only.
            None => self.write(move |tx| question(&mut Reading { conn: tx.conn, lanes: tx.lanes })).await,
        }
    }
}

/// What the work has resulted in; a panic goes on where it was asked for.
fn settled<T, E>(done: Transacted<T, E>) -> std::result::Result<T, E> {
    match done {
        Transacted::Applied(value) => Ok(value),
        Transacted::Failed(error) => Err(error),
        Transacted::Panicked(panic) => std::panic::resume_unwind(panic),
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.watch.take());
        drop(self.readers.take());
        // The writer ends when all senders are gone: this is the last.
        drop(mem::replace(&mut self.inbox, mpsc::channel(1).0));
        // The work of a transaction may hold the last handle, and is dropped by the writer itself.
        let writer = self.writer.take().filter(|writer| writer.thread().id() != thread::current().id());
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of the execution log has panicked");
        }
    }
}

impl fmt::Debug for SqliteExecutionLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteExecutionLog").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl ExecutionLog for SqliteExecutionLog {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.inner.clock)
    }

    fn limits(&self) -> Limits {
        self.inner.limits.clone()
    }

    fn watch(&self, topic: Topic) -> Watch {
        self.inner.hub.watch(topic)
    }

    async fn enqueue(&self, flows: Vec<NewFlow>) -> Result<Vec<Enqueued>> {
        self.write(move |tx| queue::enqueue(tx, &flows)).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        self.write(move |tx| queue::claim(tx, &request)).await
    }

    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        let leases = leases.to_vec();
        self.write(move |tx| queue::heartbeat(tx, &leases, lease)).await
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        let lease = lease.clone();
        self.write(move |tx| queue::release(tx, &lease)).await
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        self.inner.limits.check_commit(&commit)?;
        self.write(move |tx| run::commit(tx, &commit)).await
    }

    fn database(&self) -> Option<Database> {
        Some(Database::Sqlite)
    }

    async fn transact(&self, lease: &Lease, call: &str, work: Work<'_>) -> Result<WorkResult> {
        match work {
            Work::Sqlite(work) => {
                let (lease, call) = (lease.clone(), call.to_owned());
                let done = self.write(move |tx| transact::transact_once(tx, &lease, &call, &work)).await?;
                Ok(settled(done))
            }
            work => Err(no_transactions(self.database(), work.database()).with_flow(&lease.flow)),
        }
    }

    async fn send(&self, message: NewMessage) -> Result<Sent> {
        self.inner.limits.check_message(&message)?;
        self.write(move |tx| mailbox::send(tx, &message)).await
    }

    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.end(flow, reason, Ending::InOrder).await
    }

    async fn abandon(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.end(flow, reason, Ending::AtOnce).await
    }

    async fn retry(&self, flow: &FlowId) -> Result<Retried> {
        let flow = flow.clone();
        self.write(move |tx| outside::retry(tx, &flow)).await
    }

    async fn reoffer(&self, types: &[(Arc<str>, u32)], build: &str) -> Result<u64> {
        let (types, build) = (types.to_vec(), build.to_owned());
        self.write(move |tx| outside::reoffer(tx, &types, &build)).await
    }

    async fn flow(&self, flow: &FlowId) -> Result<Option<FlowRecord>> {
        let flow = flow.clone();
        self.read(move |on| read::flow(on, &flow)).await
    }

    async fn history(&self, flow: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        let flow = flow.clone();
        self.read(move |on| read::history(on, &flow, after, limit)).await
    }

    async fn messages(&self, flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        let (flow, channels) = (flow.clone(), channels.to_vec());
        self.read(move |on| read::messages(on, &flow, &channels, after, limit)).await
    }

    async fn items(&self, flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        let (flow, feed) = (flow.clone(), feed.clone());
        self.read(move |on| read::items(on, &flow, &feed, after, limit)).await
    }

    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
        let filter = filter.clone();
        self.read(move |on| read::list(on, &filter, after, limit)).await
    }

    async fn counts(&self, filter: &Filter) -> Result<Vec<Count>> {
        let filter = filter.clone();
        self.read(move |on| read::counts(on, &filter)).await
    }

    async fn extras(&self, flow: &FlowId) -> Result<Option<Extras>> {
        let flow = flow.clone();
        self.read(move |on| snapshot::extras(on, &flow)).await
    }

    async fn import(&self, snapshot: Snapshot) -> Result<Imported> {
        let snapshot = snapshot.admit(self.inner.clock.now(), &self.inner.limits)?;
        self.write(move |tx| snapshot::import(tx, &snapshot)).await
    }

    async fn reset(&self, reset: Reset) -> Result<()> {
        reset.check(&self.inner.limits)?;
        self.write(move |tx| snapshot::reset(tx, &reset)).await
    }

    async fn prune(&self, policy: &PrunePolicy) -> Result<u64> {
        let policy = policy.clone();
        self.write(move |tx| upkeep::prune(tx, &policy)).await
    }

    async fn delete(&self, flow: &FlowId) -> Result<bool> {
        let flow = flow.clone();
        self.write(move |tx| upkeep::delete(tx, &flow)).await
    }
}
