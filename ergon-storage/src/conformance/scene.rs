//! What the laws have in common.

use std::{ops::Deref, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::Harness;
use crate::{
    CallKind, CallPath, Channel, ClaimRequest, ClaimTarget, ClaimedFlow, Commit, Committed, Count, Enqueued, ErrorKind,
    ExecutionLog, Filter, FlowId, FlowInfo, FlowRecord, FlowState, Lease, LeaseState, Message, NewFlow, NewMessage,
    Next, Parent, Phase, Record, Result, Sent, Timestamp, Wake,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MICRO: Duration = Duration::from_micros(1);
/// As long as the lease of a [`request`].
pub(super) const LEASE: Duration = Duration::from_secs(30);

/// A fresh store, and a handle on it.
pub(super) struct Scene<'h, H: Harness> {
    harness: &'h H,
    store: H::Store,
    first: Arc<H::Log>,
    handle: Handle,
    second: OnceCell<Handle>,
}

impl<'h, H: Harness> Scene<'h, H> {
    pub(super) async fn new(harness: &'h H) -> Self {
        let store = harness.create().await;
        let first = harness.open(&store).await;
        let handle = Handle(Arc::clone(&first) as _);
        Self { harness, store, first, handle, second: OnceCell::new() }
    }

    pub(super) async fn advance(&self, by: Duration) {
        self.harness.advance(&self.store, by).await;
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Another handle on the same store, which stays open as long as the first one.
    pub(super) async fn second(&self) -> Handle {
        self.second.get_or_init(async || Handle(self.harness.open(&self.store).await)).await.clone()
    }

    /// The same store, closed and opened again.
    pub(super) async fn reopen(self) -> Self {
        let Self { harness, store, first, handle, second } = self;
        drop((handle, second));
        harness.close(&store, first).await;
        let first = harness.open(&store).await;
        let handle = Handle(Arc::clone(&first) as _);
        Self { harness, store, first, handle, second: OnceCell::new() }
    }
}

impl<H: Harness> Deref for Scene<'_, H> {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

/// A log with what the laws often do with one.
#[derive(Clone)]
pub(super) struct Handle(pub(super) Arc<dyn ExecutionLog>);

impl Deref for Handle {
    type Target = dyn ExecutionLog;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl Handle {
    pub(super) fn now(&self) -> Timestamp {
        self.clock().now()
    }

    /// Enqueues flows that are new.
    pub(super) async fn add(&self, flows: impl IntoIterator<Item = NewFlow>) {
        let flows = Vec::from_iter(flows);
        let created = vec![Enqueued::Created; flows.len()];
        assert_eq!(self.enqueue(flows).await.unwrap(), created);
    }

    /// Claims at most that many of the flows that [`flow`] makes.
    pub(super) async fn take(&self, limit: usize) -> Vec<ClaimedFlow> {
        self.claim(request(limit)).await.unwrap().flows
    }

    /// The names of the flows that such a claim takes.
    pub(super) async fn take_names(&self, limit: usize) -> Vec<String> {
        self.take(limit).await.iter().map(|claimed| claimed.info.id.to_string()).collect()
    }

    /// Claims this flow, which must be due.
    pub(super) async fn take_flow(&self, name: &str) -> ClaimedFlow {
        let mut claimed = self.claim(ClaimRequest::new("worker", ClaimTarget::Flow(id(name)))).await.unwrap();
        assert_eq!(claimed.flows.len(), 1, "{name} is due");
        claimed.flows.remove(0)
    }

    /// Enqueues a flow and claims it.
    pub(super) async fn start(&self, name: &str) -> Lease {
        self.start_flow(flow(name)).await
    }

    /// Enqueues this flow and claims it.
    pub(super) async fn start_flow(&self, flow: NewFlow) -> Lease {
        let name = flow.id.to_string();
        self.add([flow]).await;
        self.take_flow(&name).await.lease
    }

    /// Commits nothing but where the flow goes.
    pub(super) async fn go(&self, lease: &Lease, number: u32, next: Next) -> Committed {
        self.commit(going(lease, number, next)).await.unwrap()
    }

    /// Enqueues a flow and brings it into this state.
    pub(super) async fn bring(&self, name: &str, state: FlowState) -> Option<Lease> {
        if state == FlowState::Scheduled {
            self.add([flow(name)]).await;
            return None;
        }
        let lease = self.start(name).await;
        match state {
            FlowState::Scheduled | FlowState::Running => {}
            FlowState::Suspended => {
                self.suspend(&lease, 1, None, &[signal("go")]).await;
            }
            FlowState::Completed => {
                self.go(&lease, 1, complete()).await;
            }
            FlowState::Failed => {
                self.go(&lease, 1, fail()).await;
            }
            FlowState::Cancelled => {
                self.cancel(&id(name), "enough").await.unwrap();
            }
            FlowState::Stalled => {
                self.go(&lease, 1, stall("build-1")).await;
            }
        }
        assert_eq!(self.state(name).await, state);
        Some(lease)
    }

    /// Suspends a flow that nothing keeps awake.
    pub(super) async fn suspend(&self, lease: &Lease, number: u32, at: Option<Timestamp>, channels: &[Channel]) {
        let next = Next::suspend(Wake { at, channels: channels.to_vec() });
        assert_eq!(self.go(lease, number, next).await, Committed::Suspended);
    }

    /// Sends a message that is accepted.
    pub(super) async fn tell(&self, name: &str, channel: &Channel, payload: &str) {
        let sent = self.send(message(name, channel, payload)).await.unwrap();
        assert_eq!(sent, Sent::Accepted);
    }

    pub(super) async fn read(&self, name: &str) -> FlowRecord {
        self.flow(&id(name)).await.unwrap().unwrap_or_else(|| panic!("{name} is there"))
    }

    pub(super) async fn info(&self, name: &str) -> FlowInfo {
        self.read(name).await.info
    }

    pub(super) async fn state(&self, name: &str) -> FlowState {
        self.info(name).await.state
    }

    /// All records of a flow.
    pub(super) async fn records(&self, name: &str) -> Vec<Record> {
        self.history(&id(name), 0, usize::MAX).await.unwrap()
    }

    /// All messages of a flow.
    pub(super) async fn mail(&self, name: &str) -> Vec<Message> {
        self.messages(&id(name), &[], 0, usize::MAX).await.unwrap()
    }

    /// All messages of a flow, each as its text.
    pub(super) async fn texts(&self, name: &str) -> Vec<String> {
        self.mail(name).await.iter().map(|message| text(&message.payload)).collect()
    }

    pub(super) async fn beat(&self, lease: &Lease) -> LeaseState {
        self.heartbeat(std::slice::from_ref(lease), LEASE).await.unwrap()[0]
    }

    /// Every answer to every read.
    pub(super) async fn snapshot(&self) -> Snapshot {
        let mut flows = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.list(&Filter::all(), cursor, 100).await.unwrap();
            for info in page.flows {
                let flow = self.flow(&info.id).await.unwrap().expect("a listed flow is there");
                assert_eq!(flow.info, info, "both reads answer alike");
                let history = self.history(&info.id, 0, usize::MAX).await.unwrap();
                assert_eq!(history.len(), info.records as usize, "{:?}", info.id);
                assert!(history.iter().zip(1..).all(|(record, seq)| record.seq == seq), "{:?}", info.id);
                let messages = self.messages(&info.id, &[], 0, usize::MAX).await.unwrap();
                flows.push((flow, history, messages));
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Snapshot { flows, counts: self.counts(&Filter::all()).await.unwrap() },
            }
        }
    }

    /// The log refuses this in that way, and nothing changes by it.
    pub(super) async fn refuses<T>(&self, kind: ErrorKind, call: impl Future<Output = Result<T>>) {
        let before = self.snapshot().await;
        refused(kind, call.await);
        self.snapshot().await.assert_is(&before, "a refused call leaves no trace");
    }
}

/// Everything that can be read from a log.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Snapshot {
    pub(super) flows: Vec<(FlowRecord, Vec<Record>, Vec<Message>)>,
    pub(super) counts: Vec<Count>,
}

impl Snapshot {
    /// Fails with the first difference, for the whole may be long.
    pub(super) fn assert_is(&self, expected: &Self, why: &str) {
        for (flow, expected) in self.flows.iter().zip(&expected.flows) {
            assert_eq!(flow.0, expected.0, "{why}");
            for (record, expected) in flow.1.iter().zip(&expected.1) {
                assert_eq!(record, expected, "{why}");
            }
            for (message, expected) in flow.2.iter().zip(&expected.2) {
                assert_eq!(message, expected, "{why}");
            }
            assert_eq!((flow.1.len(), flow.2.len()), (expected.1.len(), expected.2.len()), "{why}");
        }
        assert_eq!(self.flows.len(), expected.flows.len(), "{why}");
        assert_eq!(self.counts, expected.counts, "{why}");
    }
}

pub(super) fn refused<T>(kind: ErrorKind, result: Result<T>) {
    match result {
        Ok(_) => panic!("accepted what is to be refused as {kind:?}"),
        Err(error) => assert_eq!(error.kind(), kind, "{error:?}"),
    }
}

pub(super) fn id(name: &str) -> FlowId {
    FlowId::new(name).unwrap()
}

/// A flow of the type `Order` in the default queue.
pub(super) fn flow(name: &str) -> NewFlow {
    NewFlow::new(id(name), "Order", 1, &b"{}"[..])
}

/// A flow that the call at `path` of `parent` starts.
pub(super) fn child(name: &str, parent: &str, path: u32) -> NewFlow {
    flow(name).with_parent(Parent { id: id(parent), path: CallPath::top(path), detached: false })
}

/// A flow that the call at `path` of `parent` starts and forgets.
pub(super) fn detached(name: &str, parent: &str, path: u32) -> NewFlow {
    flow(name).with_parent(Parent { id: id(parent), path: CallPath::top(path), detached: true })
}

pub(super) fn names(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("flow-{number:06}")).collect()
}

pub(super) fn queues(queues: &[&str], types: &[(&str, u32)]) -> ClaimTarget {
    ClaimTarget::Queues {
        queues: queues.iter().map(|queue| Arc::from(*queue)).collect(),
        types: types.iter().map(|(name, version)| (Arc::from(*name), *version)).collect(),
    }
}

/// A claim of the flows that [`flow`] makes.
pub(super) fn request(limit: usize) -> ClaimRequest {
    let mut request = ClaimRequest::new("worker", queues(&["default"], &[("Order", 1)]));
    request.limit = limit;
    request.lease = LEASE;
    request
}

/// A completed step, the `seq`th call of its flow.
pub(super) fn record(seq: u32) -> Record {
    Record {
        seq,
        at: Timestamp::from_micros(1_735_689_600_000_000 + i64::from(seq)),
        path: CallPath::top(seq),
        kind: CallKind::Step,
        phase: Phase::Completed,
        name: "charge".into(),
        args_hash: 7,
        attempt: 1,
        started_at: Timestamp::from_micros(1_735_689_600_000_000),
        due_at: None,
        reference: None,
        payload: format!("{seq}").into(),
    }
}

/// A commit of that many steps, after the first `before` ones.
pub(super) fn steps(lease: &Lease, number: u32, before: u32, count: u32) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.records = (before + 1..=before + count).map(record).collect();
    commit
}

/// A commit of nothing but where the flow goes.
pub(super) fn going(lease: &Lease, number: u32, next: Next) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.next = next;
    commit
}

/// A commit of nothing but the children that it starts.
pub(super) fn starting(lease: &Lease, number: u32, children: impl IntoIterator<Item = NewFlow>) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.children = children.into_iter().collect();
    commit
}

pub(super) fn complete() -> Next {
    Next::Complete { result: "done".into() }
}

pub(super) fn fail() -> Next {
    fail_of([])
}

pub(super) fn fail_of(again: impl IntoIterator<Item = CallPath>) -> Next {
    Next::Fail { error: "{broken}".into(), reason: "broken".into(), again: again.into_iter().collect() }
}

/// On to the next run, with this input.
pub(super) fn again(input: &str) -> Next {
    Next::Continue { input: input.to_owned().into() }
}

pub(super) fn stall(build: &str) -> Next {
    Next::Stall { reason: "diverged".into(), build: build.into() }
}

pub(super) fn suspend(at: Option<Timestamp>, channels: &[Channel]) -> Next {
    Next::suspend(Wake { at, channels: channels.to_vec() })
}

pub(super) fn signal(name: &str) -> Channel {
    Channel::signal(name)
}

pub(super) fn message(name: &str, channel: &Channel, payload: &str) -> NewMessage {
    NewMessage::new(id(name), channel.clone(), payload.to_owned())
}

pub(super) fn text(payload: &Bytes) -> String {
    String::from_utf8(payload.to_vec()).unwrap()
}
