//! The log on a PostgreSQL server.
//!
//! The transitions are statements and functions on the server: `functions.sql` has those that look before they
//! write, [`statements`] the others, and `schema.sql` is what they work on. Here is how they are reached:
//! [`pool`] keeps the connections, [`batch`] collects what waits so that one transaction does it, and the rest is by
//! what it is about: [`queue`], [`run`], [`mailbox`], [`outside`], [`read`], [`upkeep`]. [`news`] tells other
//! processes what has changed, and hears of it; [`clock`] follows the server's time.

mod batch;
mod clock;
mod error;
mod lanes;
mod mailbox;
mod news;
mod options;
mod outside;
mod pool;
mod queue;
mod read;
mod row;
mod run;
mod schema;
mod snapshot;
#[macro_use]
mod statements;
mod target;
mod text;
mod transact;
mod upkeep;

use std::{fmt, hash::BuildHasher, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::task::JoinHandle;

use self::{
    batch::Inbox,
    clock::ServerClock,
    lanes::Lanes,
    news::News,
    outside::Ending,
    pool::{Connector, Pool, Repeat, Role},
    queue::{MESSAGE_BYTES_MAX, NewFlows},
    run::{Ask, CommitLane, LANES},
    statements::Statement,
    transact::Transactions,
};
pub use self::{
    options::{PostgresOptions, SynchronousCommit},
    transact::Transaction,
};
use crate::{
    Cancelled, Channel, ClaimRequest, Claimed, Clock, Commit, Committed, Count, Cursor, Database, Enqueued, Error,
    ErrorKind, ExecutionLog, Extras, Feed, Filter, FlowId, FlowPage, FlowRecord, Imported, Item, Lease, LeaseState,
    Limits, Message, NewFlow, NewMessage, PrunePolicy, Record, Reset, Result, Retried, Sent, Snapshot, SystemClock,
    Timestamp, Topic, Watch, WatchHub, Work, WorkResult, log::no_transactions,
};

/// An [`ExecutionLog`] on a PostgreSQL server, version 14 or later.
///
/// Clones share the same log. Any number of processes on any number of machines may share a log; each hears of what
/// the others do over `LISTEN` and `NOTIFY`. The server's clock decides about time. The log lives in a schema of its
/// own, so that it can share a database with the data that flows work on.
///
/// # Connections
///
/// A log has [`PostgresOptions::CONNECTIONS`] connections, and one that listens. A connection that breaks comes back
/// by itself. Meanwhile calls wait for it, for [`PostgresOptions::connect_timeout`]; one that was under way is
/// repeated where that is safe, as with commits, heartbeats and reads, and otherwise fails as
/// [`Unavailable`](crate::ErrorKind::Unavailable).
///
/// # Examples
///
/// ```no_run
/// use ergon_storage::{Enqueued, ExecutionLog, FlowId, NewFlow, PostgresExecutionLog};
///
/// # async fn enqueue() -> Result<(), Box<dyn std::error::Error>> {
/// let log = PostgresExecutionLog::connect("postgres://worker:secret@db.example/orders").await?;
/// let order = NewFlow::new(FlowId::new("order-7")?, "Order", 1, &b"{}"[..]);
/// assert_eq!(log.enqueue(vec![order]).await?, [Enqueued::Created]);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresExecutionLog {
    inner: Arc<Inner>,
}

struct Inner {
    connector: Arc<Connector>,
    pool: Arc<Pool>,
    lanes: Lanes,
    news: Arc<News>,
    hub: WatchHub,
    server_clock: ServerClock,
    transactions: Transactions,
    commits: Vec<Inbox<Ask, Committed>>,
    enqueues: Inbox<NewFlows, Vec<Enqueued>>,
    sends: Inbox<NewMessage, Sent>,
    tasks: Vec<JoinHandle<()>>,
}

impl PostgresExecutionLog {
    /// Connects to the log in the schema `ergon` of the database at this URL, and makes it if it is missing; see
    /// [`PostgresOptions`] for more.
    ///
    /// # Errors
    ///
    /// As [`PostgresOptions::connect`].
    pub async fn connect(url: impl Into<String>) -> Result<Self> {
        PostgresOptions::new(url).connect().await
    }

    async fn start(options: PostgresOptions) -> Result<Self> {
        let connector = Arc::new(Connector::new(options)?);
        schema::migrate(&connector).await?;
        let options = &connector.options;
        let hub = WatchHub::new();
        let news = Arc::new(News::new(hub.clone(), std::hash::RandomState::new().hash_one(0)));
        let channel = News::channel(&options.schema);
        let (heard, deaf) = (Arc::clone(&news), Arc::clone(&news));
        let pool = Pool::keep(&connector, &channel, move |told| heard.heard(told), move || deaf.deaf());
        let pool = Arc::new(pool);

        let mut tasks = vec![news.tell(&pool, channel)];
        let mut commits = Vec::new();
        for number in 0..LANES {
            let (pool, news, clock) = (Arc::clone(&pool), Arc::clone(&news), options.clock.clone());
            let (inbox, task) = Inbox::open(CommitLane { pool, news, clock, number }, options.connect_timeout);
            commits.push(inbox);
            tasks.push(task);
        }
        let (shared_pool, shared_news, clock) = (Arc::clone(&pool), Arc::clone(&news), options.clock.clone());
        let (enqueues, task) =
            Inbox::open(queue::Enqueuer { pool: shared_pool, news: shared_news, clock }, options.connect_timeout);
        tasks.push(task);
        let (shared_pool, shared_news, clock) = (Arc::clone(&pool), Arc::clone(&news), options.clock.clone());
        let (sends, task) =
            Inbox::open(mailbox::Sender { pool: shared_pool, news: shared_news, clock }, options.connect_timeout);
        tasks.push(task);

        let (lanes, server_clock) = (Lanes::default(), ServerClock::default());
        let transactions = Transactions::new(Arc::clone(&connector));
        let inner = Inner {
            connector: Arc::clone(&connector),
            pool,
            lanes,
            news,
            hub,
            server_clock,
            transactions,
            commits,
            enqueues,
            sends,
            tasks,
        };
        inner.pool.check_sessions().await?;
        inner.read_clock().await?;
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    /// The present instant, where a test decides about it.
    fn manual_now(&self) -> Option<i64> {
        self.connector.options.clock.as_ref().map(|clock| clock.now().as_micros())
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.connector.options.clock.clone().unwrap_or_else(|| Arc::new(self.server_clock.clone()))
    }

    /// Takes in what the server's clock has shown between `sent` and now.
    fn observe(&self, sent: Timestamp, server: Timestamp) {
        if self.connector.options.clock.is_none() {
            self.server_clock.observe(sent, server, SystemClock.now());
        }
    }

    async fn read_clock(&self) -> Result<()> {
        // The first one prepares, and takes longer than the way there and back.
        for _ in 0..3 {
            let sent = SystemClock.now();
            let rows = self.pool.query(Role::Queue, Statement::Now, &[], Repeat::Safe).await?;
            self.observe(sent, row::instant(outside::only(&rows)?, 0)?);
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl fmt::Debug for PostgresExecutionLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connector { target, options, .. } = &*self.inner.connector;
        f.debug_struct("PostgresExecutionLog")
            .field("place", &format_args!("{target}"))
            .field("schema", &options.schema)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ExecutionLog for PostgresExecutionLog {
    fn clock(&self) -> Arc<dyn Clock> {
        self.inner.clock()
    }

    fn limits(&self) -> Limits {
        self.inner.connector.options.limits.clone()
    }

    fn watch(&self, topic: Topic) -> Watch {
        self.inner.hub.watch(topic)
    }

    async fn enqueue(&self, flows: Vec<NewFlow>) -> Result<Vec<Enqueued>> {
        let log = &*self.inner;
        let (now, limits) = (log.clock().now(), &log.connector.options.limits);
        let mut bytes = 0;
        for flow in &flows {
            flow.check(now, limits)?;
            bytes += flow.input.len();
        }
        if bytes > MESSAGE_BYTES_MAX {
            let message = format!("{bytes} bytes cannot be put on the queue at once, {MESSAGE_BYTES_MAX} can");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        if flows.is_empty() {
            return Ok(Vec::new());
        }
        let lanes = queue::lanes_of(&log.pool, &log.lanes, &flows).await?;
        log.enqueues.submit(NewFlows { flows, lanes }).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        queue::claim(&self.inner, &request).await
    }

    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        queue::heartbeat(&self.inner, leases, lease).await
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        queue::release(&self.inner, lease).await
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let log = &*self.inner;
        let limits = &log.connector.options.limits;
        limits.check_commit(&commit)?;
        let lost = || Error::lease_lost(&commit.lease.flow);
        let (key, fence) = row::key_and_fence(&commit.lease).ok_or_else(lost)?;
        let bytes = run::size(&commit);
        if bytes > MESSAGE_BYTES_MAX {
            let message = format!("a commit of {bytes} bytes cannot be sent, {MESSAGE_BYTES_MAX} can");
            return Err(Error::new(ErrorKind::TooLarge, message).with_flow(&commit.lease.flow));
        }
        let (mut lanes, mut refusal) = (Vec::new(), None);
        if !commit.children.is_empty() {
            let now = log.clock().now();
            refusal = commit.children.iter().find_map(|child| child.check(now, limits).err());
            if refusal.is_none() {
                lanes = queue::lanes_of(&log.pool, &log.lanes, &commit.children).await?;
            }
        }
        let lane = usize::try_from(key).unwrap_or_default() % log.commits.len();
        log.commits[lane].submit(Ask { commit, key, fence, lanes, refusal }).await
    }

    fn database(&self) -> Option<Database> {
        Some(Database::Postgres)
    }

    async fn transact(&self, lease: &Lease, call: &str, work: Work<'_>) -> Result<WorkResult> {
        match work {
            Work::Postgres(work) => self.inner.transactions.transact(lease, call, &*work).await,
            work => Err(no_transactions(self.database(), work.database()).with_flow(&lease.flow)),
        }
    }

    async fn send(&self, message: NewMessage) -> Result<Sent> {
        self.inner.connector.options.limits.check_message(&message)?;
        self.inner.sends.submit(message).await
    }

    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        outside::cancel(&self.inner, flow, reason, Ending::InOrder).await
    }

    async fn abandon(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        outside::cancel(&self.inner, flow, reason, Ending::AtOnce).await
    }

    async fn retry(&self, flow: &FlowId) -> Result<Retried> {
        outside::retry(&self.inner, flow).await
    }

    async fn reoffer(&self, types: &[(Arc<str>, u32)], build: &str) -> Result<u64> {
        outside::reoffer(&self.inner, types, build).await
    }

    async fn flow(&self, flow: &FlowId) -> Result<Option<FlowRecord>> {
        read::flow(&self.inner, flow).await
    }

    async fn history(&self, flow: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        read::history(&self.inner, flow, after, limit).await
    }

    async fn messages(&self, flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        read::messages(&self.inner, flow, channels, after, limit).await
    }

    async fn items(&self, flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        read::items(&self.inner, flow, feed, after, limit).await
    }

    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
        read::list(&self.inner, filter, after, limit).await
    }

    async fn counts(&self, filter: &Filter) -> Result<Vec<Count>> {
        read::counts(&self.inner, filter).await
    }

    async fn extras(&self, flow: &FlowId) -> Result<Option<Extras>> {
        snapshot::extras(&self.inner, flow).await
    }

    async fn import(&self, snapshot: Snapshot) -> Result<Imported> {
        let snapshot = snapshot.admit(self.inner.clock().now(), &self.inner.connector.options.limits)?;
        snapshot::import(&self.inner, &snapshot).await
    }

    async fn reset(&self, reset: Reset) -> Result<()> {
        reset.check(&self.inner.connector.options.limits)?;
        snapshot::reset(&self.inner, &reset).await
    }

    async fn prune(&self, policy: &PrunePolicy) -> Result<u64> {
        upkeep::prune(&self.inner, policy).await
    }

    async fn delete(&self, flow: &FlowId) -> Result<bool> {
        upkeep::delete(&self.inner, flow).await
    }
}
