//! The log as a process reaches it: over a network that delays, loses and reorders.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use ergon::{
    FlowId, StorageError,
    storage::{
        Cancelled, Channel, ClaimRequest, Claimed, Clock, Commit, CommitNow, Committed, Count, Cursor, Database,
        Enqueued, ErrorKind, ExecutionLog, Extras, Feed, Filter, FlowPage, FlowRecord, Imported, Item, Lease,
        LeaseState, Limits, Message, NewFlow, NewMessage, PrunePolicy, Record, Reset, Result, Retried, Sent, Snapshot,
        Topic, Watch, Work, WorkResult,
    },
};
use futures::{FutureExt, future::pending};
use tokio::sync::oneshot;

use crate::{
    code,
    process::{Process, ProcessClock},
    world::World,
};

/// A transition of the log, as it travels.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    Enqueue(Vec<NewFlow>),
    Claim(ClaimRequest),
    Heartbeat(Vec<Lease>, Duration),
    Release(Lease),
    /// With what the flow's code had seen.
    Commit(Box<Commit>, Option<Vec<code::Item>>),
    Send(NewMessage),
    Cancel(FlowId, String),
    Retry(FlowId),
    Reoffer(Vec<(Arc<str>, u32)>, String),
    Import(Box<Snapshot>),
    Reset(Reset),
}

/// What the log answers.
#[derive(Debug)]
pub(crate) enum Reply {
    Enqueued(Vec<Enqueued>),
    Claimed(Claimed),
    Leases(Vec<LeaseState>),
    Released,
    Committed(Committed),
    Sent(Sent),
    Cancelled(Cancelled),
    Retried(Retried),
    Reoffered(u64),
    Imported(Imported),
    IsReset,
}

/// What the network does to a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) before_ms: u64,
    pub(crate) after_ms: u64,
    pub(crate) mishap: Option<Mishap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mishap {
    Refused,
    AnswerLost,
    DiesBefore,
    DiesAfter,
}

impl Write {
    /// Does it, at once.
    pub(crate) fn apply(self, log: &impl ExecutionLog) -> Result<Reply> {
        match self {
            Self::Enqueue(flows) => at_once(log.enqueue(flows)).map(Reply::Enqueued),
            Self::Claim(request) => at_once(log.claim(request)).map(Reply::Claimed),
            Self::Heartbeat(leases, lease) => at_once(log.heartbeat(&leases, lease)).map(Reply::Leases),
            Self::Release(lease) => at_once(log.release(&lease)).map(|()| Reply::Released),
            Self::Commit(commit, _) => at_once(log.commit(*commit)).map(Reply::Committed),
            Self::Send(message) => at_once(log.send(message)).map(Reply::Sent),
            Self::Cancel(flow, reason) => at_once(log.cancel(&flow, &reason)).map(Reply::Cancelled),
            Self::Retry(flow) => at_once(log.retry(&flow)).map(Reply::Retried),
            Self::Reoffer(types, build) => at_once(log.reoffer(&types, &build)).map(Reply::Reoffered),
            Self::Import(snapshot) => at_once(log.import(*snapshot)).map(Reply::Imported),
            Self::Reset(reset) => at_once(log.reset(reset)).map(|()| Reply::IsReset),
        }
    }
}

/// The answer of the log in memory, which never waits.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the log in memory answers at once")
}

pub(crate) fn unavailable() -> StorageError {
    StorageError::new(ErrorKind::Unavailable, "the log does not answer, as planned")
}

/// The log as one process reaches it.
#[derive(Clone)]
pub(crate) struct Network {
    world: Arc<World>,
    process: Arc<Process>,
}

impl Network {
    pub(crate) fn new(world: Arc<World>, process: Arc<Process>) -> Self {
        Self { world, process }
    }

    async fn write(&self, write: Write) -> Result<Reply> {
        self.process.awake().await;
        let fate = self.world.draw_fate(&self.process, &write);
        if fate.mishap == Some(Mishap::DiesBefore) {
            self.process.die();
            return pending().await;
        }
        let answer = if fate == Fate::default() {
            self.world.arrives(&self.process, write)
        } else {
            let (tell, told) = oneshot::channel();
            // What is under way goes on, whatever becomes of who sent it.
            tokio::spawn(travel(Arc::clone(&self.world), Arc::clone(&self.process), write, fate, tell));
            told.await.unwrap_or_else(|_| Err(unavailable()))
        };
        if fate.mishap == Some(Mishap::DiesAfter) {
            self.process.die();
        }
        self.process.awake().await;
        answer
    }

    async fn read<T>(&self, what: &'static str, read: impl Fn() -> Result<T>) -> Result<T> {
        self.process.awake().await;
        let fate = self.world.draw_fate_of_a_read();
        pause(fate.before_ms).await;
        let outage = self.world.outage();
        let answer = if fate.mishap.is_some() || outage.is_none() { Err(unavailable()) } else { read() };
        self.world.trace(|| format!("{} reads {what}: {}", self.process.name, ok(&answer)));
        pause(fate.after_ms).await;
        self.process.awake().await;
        if outage == self.world.outage() { answer } else { Err(unavailable()) }
    }
}

fn ok<T>(answer: &Result<T>) -> &'static str {
    if answer.is_ok() { "ok" } else { "no" }
}

async fn pause(millis: u64) {
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

async fn travel(
    world: Arc<World>,
    process: Arc<Process>,
    write: Write,
    fate: Fate,
    tell: oneshot::Sender<Result<Reply>>,
) {
    let cuts = world.cuts();
    pause(fate.before_ms).await;
    let outage = world.outage();
    // A power cut takes what is under way.
    let mut answer = if fate.mishap == Some(Mishap::Refused) || cuts != world.cuts() {
        Err(unavailable())
    } else {
        world.arrives(&process, write)
    };
    pause(fate.after_ms).await;
    if fate.mishap == Some(Mishap::AnswerLost) || outage != world.outage() {
        answer = Err(unavailable());
    }
    // Nobody may wait for it any more.
    let _ = tell.send(answer);
}

macro_rules! reply {
    ($answer:expr, $kind:ident) => {
        match $answer? {
            Reply::$kind(answer) => Ok(answer),
            reply => Err(StorageError::new(ErrorKind::Corrupt, format!("the answer to another call: {reply:?}"))),
        }
    };
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ExecutionLog for Network {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(ProcessClock { world: Arc::clone(&self.world), process: Arc::clone(&self.process) })
    }

    fn limits(&self) -> Limits {
        self.world.log().limits()
    }

    fn watch(&self, topic: Topic) -> Watch {
        self.process.watch(topic)
    }

    async fn enqueue(&self, flows: Vec<NewFlow>) -> Result<Vec<Enqueued>> {
        reply!(self.write(Write::Enqueue(flows)).await, Enqueued)
    }

    async fn claim(&self, mut request: ClaimRequest) -> Result<Claimed> {
        request.history_max = request.history_max.min(self.world.plan.fleet.history_max);
        reply!(self.write(Write::Claim(request)).await, Claimed)
    }

    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        reply!(self.write(Write::Heartbeat(leases.to_vec(), lease)).await, Leases)
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        self.write(Write::Release(lease.clone())).await.map(drop)
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let seen = self.process.seen_at(&commit.lease, commit.number);
        reply!(self.write(Write::Commit(Box::new(commit), seen)).await, Committed)
    }

    fn commit_now(&self, commit: Commit) -> CommitNow {
        if !self.world.is_prompt() {
            return CommitNow::NotNow(commit);
        }
        let seen = self.process.seen_at(&commit.lease, commit.number);
        let answer = self.world.arrives(&self.process, Write::Commit(Box::new(commit), seen));
        CommitNow::Answered((|| reply!(answer, Committed))())
    }

    fn database(&self) -> Option<Database> {
        None
    }

    async fn transact(&self, _: &Lease, _: &str, _: Work<'_>) -> Result<WorkResult> {
        Err(StorageError::new(ErrorKind::Unsupported, "there is no database"))
    }

    async fn send(&self, message: NewMessage) -> Result<Sent> {
        reply!(self.write(Write::Send(message)).await, Sent)
    }

    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        reply!(self.write(Write::Cancel(flow.clone(), reason.into())).await, Cancelled)
    }

    async fn abandon(&self, _: &FlowId, _: &str) -> Result<Cancelled> {
        Err(StorageError::new(ErrorKind::Unsupported, "the simulation gives no flow up"))
    }

    async fn retry(&self, flow: &FlowId) -> Result<Retried> {
        reply!(self.write(Write::Retry(flow.clone())).await, Retried)
    }

    async fn reoffer(&self, types: &[(Arc<str>, u32)], build: &str) -> Result<u64> {
        reply!(self.write(Write::Reoffer(types.to_vec(), build.into())).await, Reoffered)
    }

    async fn flow(&self, flow: &FlowId) -> Result<Option<FlowRecord>> {
        self.read("a flow", || at_once(self.world.log().flow(flow))).await
    }

    async fn history(&self, flow: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        self.read("a history", || at_once(self.world.log().history(flow, after, limit))).await
    }

    async fn messages(&self, flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        self.read("messages", || at_once(self.world.log().messages(flow, channels, after, limit))).await
    }

    async fn items(&self, flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        self.read("items", || at_once(self.world.log().items(flow, feed, after, limit))).await
    }

    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
        self.read("a list", || at_once(self.world.log().list(filter, after, limit))).await
    }

    async fn counts(&self, filter: &Filter) -> Result<Vec<Count>> {
        self.read("counts", || at_once(self.world.log().counts(filter))).await
    }

    async fn extras(&self, flow: &FlowId) -> Result<Option<Extras>> {
        self.read("extras", || at_once(self.world.log().extras(flow))).await
    }

    async fn import(&self, snapshot: Snapshot) -> Result<Imported> {
        reply!(self.write(Write::Import(Box::new(snapshot))).await, Imported)
    }

    async fn reset(&self, reset: Reset) -> Result<()> {
        self.write(Write::Reset(reset)).await.map(drop)
    }

    async fn prune(&self, _: &PrunePolicy) -> Result<u64> {
        Ok(0)
    }

    async fn delete(&self, _: &FlowId) -> Result<bool> {
        Ok(false)
    }
}
