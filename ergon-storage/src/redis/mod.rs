//! The log on a Redis server.
//!
//! Every transition is one call of a function that runs on the server ([`library`], `lua/`), atomic and fenced by
//! the lease's epoch. [`lanes`] carry the calls, many operations in one; [`link`] is a connection that is made
//! again when it breaks; [`listen`] hears the hints; [`clock`] follows the server's time; [`check`] looks at the
//! server before it is trusted. [`args`], [`wire`] and [`answer`] are what goes over the connection, [`keys`] the
//! names under which it is kept.

mod answer;
mod args;
mod check;
mod clock;
mod error;
mod keys;
mod lanes;
mod library;
mod link;
mod listen;
mod operations;
mod options;
mod wire;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use redis::{Cmd, Value};

pub use self::options::RedisOptions;
use self::{
    args::Args,
    clock::ServerClock,
    error::{from_function, from_redis},
    keys::Prefix,
    lanes::{Lanes, Rows, Time, head_of},
    library::Entry,
    link::{Link, Server},
    listen::Listener,
    operations::Ending,
};
use crate::{
    Cancelled, Channel, ClaimRequest, Claimed, Clock, Commit, Committed, Count, Cursor, Enqueued, ExecutionLog, Extras,
    Feed, Filter, FlowId, FlowPage, FlowRecord, Imported, Item, Lease, LeaseState, Limits, Message, NewFlow,
    NewMessage, PrunePolicy, Record, Reset, Result, Retried, Sent, Snapshot, Timestamp, Topic, Watch,
};

/// An [`ExecutionLog`] on a Redis server, for any number of processes on any number of machines.
///
/// Clones share the same log and its connections.
///
/// # What is lost when
///
/// An answered call is in the server's memory. Whether it survives the server is the server's setting:
///
/// | setting | the server's process dies | its machine dies |
/// |---|---|---|
/// | `appendonly yes`, `appendfsync always` | nothing is lost | nothing is lost |
/// | `appendonly yes`, `appendfsync everysec` | nothing is lost | up to 2 seconds of answered calls |
/// | `appendonly yes`, `appendfsync no` | nothing is lost | what the system had not written, some 30 seconds |
/// | snapshots only (`save …`) | everything since the last one | the same |
/// | neither | everything | everything |
///
/// Replication is asynchronous: when a replica takes over, the calls that had not reached it are lost, whatever
/// the settings above. What is lost is always the latest, as a whole and in order: the log is then as it was a
/// moment earlier. Steps whose outcomes were lost run again, and flows that were scheduled in that moment are gone,
/// although their schedulers were answered. Leases that were granted in that moment are not mistaken for later
/// ones.
///
/// [`warnings`](Self::warnings) tells at connect which of this applies.
///
/// # Cluster
///
/// All keys of a log begin with its namespace as a hash tag, `{ergon}:`, so on a Redis Cluster a log lies on one
/// node, and no call ever touches two slots. That is what lets a child's end and its parent's waking, or a
/// cancellation and all its descendants, be one transition. A log is as fast and as large as one node; use several
/// namespaces to spread work over more. The log follows its slot to another node (`MOVED`). Databases other
/// than 0 do not exist on a cluster.
///
/// # Examples
///
/// ```no_run
/// use ergon_storage::{Enqueued, ExecutionLog, FlowId, NewFlow, RedisExecutionLog};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let log = RedisExecutionLog::connect("redis://localhost").await?;
/// let order = NewFlow::new(FlowId::new("order-7")?, "Order", 1, &b"{}"[..]);
/// assert_eq!(log.enqueue(vec![order]).await?, [Enqueued::Created]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisExecutionLog {
    inner: Arc<Inner>,
}

struct Inner {
    namespace: String,
    time: Time,
    limits: Limits,
    warnings: Vec<String>,
    links: Vec<Arc<Link>>,
    next_link: AtomicUsize,
    lanes: Lanes,
    listener: Listener,
}

impl RedisExecutionLog {
    /// Connects to the log on the server at this URL; see [`RedisOptions`] for more.
    ///
    /// # Errors
    ///
    /// As [`RedisOptions::connect`].
    pub async fn connect(url: impl Into<String>) -> Result<Self> {
        RedisOptions::new(url).connect().await
    }

    /// What of the server's settings can lose flows, as found when the log was connected; empty when nothing can.
    pub fn warnings(&self) -> &[String] {
        &self.inner.warnings
    }

    /// The namespace in which the log lies.
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    async fn start(options: RedisOptions) -> Result<Self> {
        let prefix = Prefix::new(&options.namespace)?;
        let info = options.info()?;
        let server = Server::new(info, options.connect_timeout, options.answer_timeout, prefix.as_str().into());
        let server = Arc::new(server);
        let links: Vec<_> = (0..options.connections).map(|_| Arc::new(Link::new(Arc::clone(&server)))).collect();
        let first = &links[0];
        let mut warnings = Vec::new();
        check::version(first, &mut warnings).await?;
        check::namespace(first, &prefix).await?;
        check::settings(first, &mut warnings).await?;
        for warning in &warnings {
            tracing::warn!(namespace = %options.namespace, "{warning}");
        }
        let time = match options.clock {
            Some(clock) => Time::Given(clock),
            None => Time::Server(Arc::new(server_clock(first).await?)),
        };
        let lanes = Lanes::start(&links, &time);
        Ok(Self {
            inner: Arc::new(Inner {
                namespace: options.namespace,
                time,
                limits: options.limits,
                warnings,
                next_link: AtomicUsize::new(0),
                lanes,
                listener: Listener::new(Arc::clone(&links[0]), prefix),
                links,
            }),
        })
    }

    /// Does an operation together with others.
    async fn write(&self, args: Args, rows: Rows) -> Result<Value> {
        self.inner.lanes.submit(args, rows).await
    }

    async fn end(&self, flow: &FlowId, reason: &str, ending: Ending) -> Result<Cancelled> {
        self.inner.limits.check_reason(flow, reason)?;
        let args = operations::cancel(flow, reason, ending);
        operations::cancelled(&self.write(args, Rows::Unknown).await?, flow)
    }

    /// Does an operation that makes room, also when there is none.
    async fn trim(&self, args: &Args) -> Result<Value> {
        let mut head = self.inner.time.argument();
        head_of(args, &mut head);
        let [_, answer] = answer::tuple(self.call(Entry::Trim, [&head, args]).await?)?;
        accepted(answer)
    }

    /// Asks a question.
    async fn read(&self, args: &Args) -> Result<Value> {
        let mut head = Args::default();
        head.number(0);
        accepted(self.call(Entry::Read, [&head, args]).await?)
    }

    async fn call(&self, entry: Entry, args: [&Args; 2]) -> Result<Value> {
        let link = self.link();
        link.call(entry, args.into_iter()).await.map_err(|error| from_redis(error, link.server()))
    }

    /// One of the connections; they take turns.
    fn link(&self) -> &Link {
        let turn = self.inner.next_link.fetch_add(1, Ordering::Relaxed);
        &self.inner.links[turn % self.inner.links.len()]
    }

    fn now(&self) -> Timestamp {
        self.inner.time.clock().now()
    }
}

/// An answer that is no refusal.
fn accepted(answer: Value) -> Result<Value> {
    answer::refusal(&answer).map_or(Ok(answer), |why| Err(from_function(why)))
}

/// The server's clock, as its first answer tells of it.
async fn server_clock(link: &Link) -> Result<ServerClock> {
    let asked_at = Instant::now();
    let mut time = Cmd::new();
    time.arg("TIME");
    let answer = link.send(&time).await.map_err(|error| from_redis(error, link.server()))?;
    let time = clock::timestamp(&answer).map_or_else(|| error::unreadable("the server's time"), Ok)?;
    Ok(ServerClock::new(time, asked_at))
}

impl fmt::Debug for RedisExecutionLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisExecutionLog").field("namespace", &self.inner.namespace).finish_non_exhaustive()
    }
}

#[async_trait]
impl ExecutionLog for RedisExecutionLog {
    fn clock(&self) -> Arc<dyn Clock> {
        self.inner.time.clock()
    }

    fn limits(&self) -> Limits {
        self.inner.limits.clone()
    }

    fn watch(&self, topic: Topic) -> Watch {
        self.inner.listener.watch(topic)
    }

    async fn enqueue(&self, flows: Vec<NewFlow>) -> Result<Vec<Enqueued>> {
        if flows.is_empty() {
            return Ok(Vec::new());
        }
        let args = operations::enqueue(&flows, self.now(), &self.inner.limits)?;
        operations::enqueued(self.write(args, Rows::Unknown).await?)
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        let args = operations::claim(&request);
        let (claimed, unreadable) = operations::claimed(self.write(args, Rows::Unknown).await?)?;
        for flow in unreadable {
            tracing::warn!(flow = flow.name, reason = flow.reason, "a flow of the Redis log cannot be read");
            // Whoever calls cannot do it: it has no lease. If this fails, the next claim tries again.
            if let Some((args, rows)) = flow.give_up() {
                self.write(args, rows).await?;
            }
        }
        Ok(claimed)
    }

    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        let (args, rows) = operations::heartbeat(leases, lease);
        operations::beaten(self.write(args, rows).await?)
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        let (args, rows) = operations::release(lease);
        operations::released(&self.write(args, rows).await?, lease)
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        self.inner.limits.check_commit(&commit)?;
        let (args, rows, refused) = operations::commit(&commit, self.now(), &self.inner.limits);
        let answer = self.write(args, rows).await?;
        operations::committed(answer, &commit, refused)
    }

    async fn send(&self, message: NewMessage) -> Result<Sent> {
        self.inner.limits.check_message(&message)?;
        let args = operations::send(&message);
        operations::sent(self.write(args, Rows::Unknown).await?, &message.to)
    }

    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.end(flow, reason, Ending::InOrder).await
    }

    async fn abandon(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.end(flow, reason, Ending::AtOnce).await
    }

    async fn retry(&self, flow: &FlowId) -> Result<Retried> {
        let args = operations::retry(flow);
        operations::retried(&self.write(args, Rows::Unknown).await?, flow)
    }

    async fn reoffer(&self, types: &[(Arc<str>, u32)], build: &str) -> Result<u64> {
        let (mut offered, mut from) = (0, operations::ReofferFrom::default());
        loop {
            let args = operations::reoffer(types, build, &from);
            let [some, lane, cursor] = answer::tuple(self.write(args, Rows::Unknown).await?)?;
            offered += answer::number::<u64>(&some)?;
            from = operations::ReofferFrom { lane: answer::number(&lane)?, cursor: answer::text(cursor)? };
            if from.lane == 0 {
                return Ok(offered);
            }
        }
    }

    async fn flow(&self, flow: &FlowId) -> Result<Option<FlowRecord>> {
        operations::flow(self.read(&operations::ask_flow(flow)).await?)
    }

    async fn history(&self, flow: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        loop {
            let after = after.saturating_add(u32::try_from(records.len()).unwrap_or(u32::MAX));
            let part = self.read(&operations::ask_history(flow, after, limit - records.len())).await?;
            if operations::history(part, flow, after, &mut records)? {
                return Ok(records);
            }
        }
    }

    async fn messages(&self, flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        let mut messages: Vec<Message> = Vec::new();
        loop {
            let after = messages.last().map_or(after, |message| message.seq);
            let part = self.read(&operations::ask_messages(flow, channels, after, limit - messages.len())).await?;
            if operations::messages(part, flow, &mut messages)? {
                return Ok(messages);
            }
        }
    }

    async fn items(&self, flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        let mut items: Vec<Item> = Vec::new();
        loop {
            let after = items.last().map_or(after, |item| item.seq);
            let part = self.read(&operations::ask_items(flow, feed, after, limit - items.len())).await?;
            if operations::items(part, flow, &mut items)? {
                return Ok(items);
            }
        }
    }

    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
        if !filter.is_possible() {
            return Ok(FlowPage::default());
        }
        let limit = limit.max(1);
        let mut found = operations::Found::after(after);
        // One more than is asked for tells whether there is a next page.
        while !found.is_all && found.flows.len() <= limit {
            let args = operations::ask_list(filter, &found, limit.saturating_add(1) - found.flows.len());
            found.add(self.read(&args).await?)?;
        }
        Ok(found.into_page(limit))
    }

    async fn counts(&self, filter: &Filter) -> Result<Vec<Count>> {
        if *filter == Filter::all() {
            // The server keeps these numbers.
            return operations::counts(self.read(&operations::ask_counts()).await?);
        }
        if !filter.is_possible() {
            return Ok(Vec::new());
        }
        let mut counted = operations::Counted::default();
        while !counted.is_all {
            counted.add(self.read(&counted.ask(filter)).await?)?;
        }
        Ok(counted.into_counts())
    }

    async fn extras(&self, flow: &FlowId) -> Result<Option<Extras>> {
        operations::extras(self.read(&operations::ask_extras(flow)).await?)
    }

    async fn import(&self, snapshot: Snapshot) -> Result<Imported> {
        let snapshot = snapshot.admit(self.now(), &self.inner.limits)?;
        operations::imported(&self.write(operations::import(&snapshot)?, Rows::Unknown).await?)
    }

    async fn reset(&self, reset: Reset) -> Result<()> {
        reset.check(&self.inner.limits)?;
        let answer = self.write(operations::reset(&reset), Rows::Unknown).await?;
        operations::was_reset(answer, &reset)
    }

    async fn prune(&self, policy: &PrunePolicy) -> Result<u64> {
        let (mut forgotten, mut passed, mut awaited) = (0, String::new(), 0);
        loop {
            let args = operations::prune(policy, &passed, forgotten, awaited);
            let [some, over, is_all, waiting] = answer::tuple(self.trim(&args).await?)?;
            forgotten += answer::number::<u64>(&some)?;
            passed = answer::text(over)?;
            awaited += answer::number::<u64>(&waiting)?;
            if answer::int(&is_all)? == 1 {
                return Ok(forgotten);
            }
        }
    }

    async fn delete(&self, flow: &FlowId) -> Result<bool> {
        operations::deleted(self.trim(&operations::delete(flow)).await?, flow)
    }
}
