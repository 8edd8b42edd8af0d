//! A log behind a codec keeps the laws of a log, and shows the other log nothing.

#![cfg(feature = "conformance")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ergon_storage::{
    CallKind, CallPath, Channel, ClaimRequest, ClaimTarget, ClaimedFlow, CodecError, CodecExecutionLog, Commit,
    Enqueued, ErrorKind, ExecutionLog, Feed, FlowId, FlowState, InMemoryExecutionLog, Item, Keep, ManualClock, NewFlow,
    NewItem, NewMessage, Next, Parent, PayloadCodec, PayloadContext, PayloadKind, Phase, Record, Timestamp, Wake,
    conformance::{Harness, Lifetime, block_on, random_script},
};

/// Hides payloads by a key, and notices when one is decoded by another key, or in another context than it was encoded in.
#[derive(Clone)]
struct Veil {
    id: &'static str,
    key: u8,
    /// Inputs come out otherwise each time, as all other payloads do.
    fickle: bool,
    number: Arc<AtomicU64>,
}

impl Veil {
    fn new(id: &'static str, key: u8) -> Self {
        Self { id, key, fickle: false, number: Arc::default() }
    }

    fn sum(&self, context: &PayloadContext<'_>, payload: &[u8]) -> [u8; 8] {
        let bytes = context.associated_data().into_iter().chain([0, self.key]).chain(payload.iter().copied());
        bytes
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
            .to_be_bytes()
    }
}

impl PayloadCodec for Veil {
    fn id(&self) -> &str {
        self.id
    }

    fn encode(&self, context: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        if payload == b"refuse" {
            return Err("it may not be told".into());
        }
        let is_fixed = context.kind() == PayloadKind::Input && !self.fickle;
        let number = if is_fixed { 0 } else { self.number.fetch_add(1, Ordering::Relaxed) + 1 };
        let mut encoded = number.to_be_bytes().to_vec();
        encoded.extend(self.sum(context, payload));
        encoded.extend(payload.iter().map(|byte| byte ^ self.key));
        Ok(encoded)
    }

    fn decode(&self, context: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        let (head, body) = payload.split_at_checked(16).ok_or("it is too short")?;
        let decoded: Vec<u8> = body.iter().map(|byte| byte ^ self.key).collect();
        if self.sum(context, &decoded) != head[8..] {
            return Err("it is not what was encoded here".into());
        }
        Ok(decoded)
    }

    fn overhead_bytes_max(&self) -> usize {
        16
    }
}

struct VeiledMemory;

struct VeiledStore {
    clock: ManualClock,
    log: Mutex<InMemoryExecutionLog>,
    veil: Veil,
}

impl Harness for VeiledMemory {
    type Log = CodecExecutionLog;
    type Store = VeiledStore;
    const LIFETIME: Lifetime = Lifetime::Handle;

    async fn create(&self) -> VeiledStore {
        let clock = ManualClock::new();
        let log = InMemoryExecutionLog::new().with_clock(Arc::new(clock.clone()));
        VeiledStore { log: Mutex::new(log), clock, veil: Veil::new("veil", 0x5a) }
    }

    async fn open(&self, store: &VeiledStore) -> Arc<CodecExecutionLog> {
        Arc::new(CodecExecutionLog::new(store.log.lock().unwrap().clone(), store.veil.clone()))
    }

    async fn close(&self, store: &VeiledStore, log: Arc<CodecExecutionLog>) {
        drop(log);
        *store.log.lock().unwrap() = InMemoryExecutionLog::new().with_clock(Arc::new(store.clock.clone()));
    }

    async fn advance(&self, store: &VeiledStore, by: Duration) {
        store.clock.advance(by);
    }
}

ergon_storage::conformance_tests!(VeiledMemory);

/// With a codec and without one, a script ends the same.
#[test]
fn scripts_agree_with_the_model() {
    block_on(async {
        for seed in 20_000..20_100 {
            random_script(&VeiledMemory, seed, 80).await;
        }
    });
}

fn id(name: &str) -> FlowId {
    FlowId::new(name).unwrap()
}

fn flow(name: &str, input: &'static str) -> NewFlow {
    NewFlow::new(id(name), "T", 1, input)
}

fn request() -> ClaimRequest {
    let target =
        ClaimTarget::Queues { queues: Arc::new([NewFlow::DEFAULT_QUEUE.into()]), types: Arc::new([("T".into(), 1)]) };
    ClaimRequest { limit: 10, ..ClaimRequest::new("w", target) }
}

async fn claim_one(log: &impl ExecutionLog) -> ClaimedFlow {
    let mut flows = log.claim(request()).await.unwrap().flows;
    assert_eq!(flows.len(), 1);
    flows.remove(0)
}

fn record(seq: u32, phase: Phase, payload: &'static str) -> Record {
    let at = Timestamp::from_micros(1);
    Record {
        seq,
        at,
        path: CallPath::top(seq),
        kind: CallKind::Step,
        phase,
        name: "s".into(),
        args_hash: 0,
        attempt: 1,
        started_at: at,
        due_at: None,
        reference: None,
        payload: payload.into(),
    }
}

async fn end(log: &impl ExecutionLog, claimed: &ClaimedFlow, next: Next) {
    let mut commit = Commit::new(claimed.lease.clone(), 1);
    commit.next = next;
    log.commit(commit).await.unwrap();
}

fn fail(error: &'static str) -> Next {
    Next::Fail { error: error.into(), reason: "reason".into(), again: vec![CallPath::top(1)] }
}

/// All payloads that a log has of a flow.
async fn payloads(log: &impl ExecutionLog, name: &str) -> Vec<bytes::Bytes> {
    let id = id(name);
    let flow = log.flow(&id).await.unwrap().unwrap();
    let mut all = vec![flow.input, flow.result];
    all.extend(log.history(&id, 0, 100).await.unwrap().into_iter().map(|record| record.payload));
    all.extend(log.messages(&id, &[], 0, 100).await.unwrap().into_iter().map(|message| message.payload));
    let items = log.items(&id, &Feed::stream("f"), 0, 100).await.unwrap();
    all.extend(items.into_iter().map(|Item { payload, .. }| payload));
    all.retain(|payload| !payload.is_empty());
    all
}

#[tokio::test]
async fn the_other_log_sees_nothing_of_a_payload() {
    let inner = InMemoryExecutionLog::new();
    let log = CodecExecutionLog::new(inner.clone(), Veil::new("k1", 7));
    log.enqueue(vec![flow("parent", "secret value")]).await.unwrap();
    log.send(NewMessage::new(id("parent"), Channel::signal("s"), "secret message")).await.unwrap();
    let parent = claim_one(&log).await;
    assert_eq!((&parent.input[..], &parent.messages[0].payload[..]), (&b"secret value"[..], &b"secret message"[..]));
    let mut commit = Commit::new(parent.lease.clone(), 1);
    commit.records = vec![
        record(1, Phase::Attempt, "secret trouble"),
        record(2, Phase::Failed, "secret failure"),
        record(3, Phase::Completed, "secret outcome"),
        record(4, Phase::Pending, ""),
    ];
    let item = |payload: &'static str| NewItem {
        feed: Feed::stream("f"),
        keep: Keep::All,
        at: Timestamp::from_micros(1),
        call: None,
        attempt: 0,
        payload: payload.into(),
    };
    commit.items = vec![item("secret item")];
    let child = |name, at| {
        flow(name, "secret child").with_parent(Parent { id: id("parent"), path: CallPath::top(at), detached: false })
    };
    commit.children = vec![child("child", 3), child("other", 4)];
    commit.next = Next::suspend(Wake { at: None, channels: vec![Channel::children()] });
    log.commit(commit).await.unwrap();
    let claimed = log.claim(request()).await.unwrap().flows;
    for child in &claimed {
        assert_eq!(child.input, "secret child");
        let next = match child.info.id.as_str() {
            "child" => Next::Complete { result: "secret result".into() },
            _ => fail("secret error"),
        };
        end(&log, child, next).await;
    }
    for name in ["parent", "child", "other"] {
        let (clear, stored) = (payloads(&log, name).await, payloads(&inner, name).await);
        assert_eq!(clear.len(), stored.len());
        for (clear, stored) in clear.iter().zip(&stored) {
            assert!(clear.starts_with(b"secret "), "{clear:?}");
            assert!(!stored.windows(6).any(|part| part == b"secret"), "{stored:?}");
            assert_eq!(&stored[..4], b"\x01\x02k1");
        }
    }
    // Both ends are in the mailbox of the parent, as the children's own.
    assert_eq!(payloads(&log, "parent").await.len(), 1 + 3 + 3 + 1);
}

#[tokio::test]
async fn reasons_are_hidden_on_demand() {
    let inner = InMemoryExecutionLog::new();
    let log = CodecExecutionLog::new(inner.clone(), Veil::new("k1", 7)).hiding_reasons();
    log.enqueue(vec![flow("a", "[1]")]).await.unwrap();
    let claimed = claim_one(&log).await;
    end(&log, &claimed, fail("\"secret\"")).await;
    let reason = async |log: &dyn ExecutionLog| log.flow(&id("a")).await.unwrap().unwrap().info.reason.unwrap();
    assert_eq!(&*reason(&inner).await, CodecExecutionLog::HIDDEN_REASON);
    assert_eq!(&*reason(&log).await, "\"secret\"");
}

#[tokio::test]
async fn what_is_from_before_the_codec_is_read_or_refused() {
    let inner = InMemoryExecutionLog::new();
    inner.enqueue(vec![flow("a", "[1]")]).await.unwrap();
    let log = CodecExecutionLog::new(inner.clone(), Veil::new("k1", 7));
    assert_eq!(log.enqueue(vec![flow("a", "[1]")]).await.unwrap(), [Enqueued::Existing { same: true }]);
    assert_eq!(log.enqueue(vec![flow("a", "[2]")]).await.unwrap(), [Enqueued::Existing { same: false }]);
    let strict = log.clone().refusing_plain();
    assert_eq!(strict.claim(request()).await.unwrap().flows.len(), 0);
    let stalled = log.flow(&id("a")).await.unwrap().unwrap().info;
    assert_eq!(stalled.state, FlowState::Stalled);
    assert!(stalled.reason.unwrap().contains("the input is not encoded, and this log refuses what is not"));
    log.retry(&id("a")).await.unwrap();
    assert_eq!(claim_one(&log).await.input, "[1]");
}

#[tokio::test]
async fn a_flow_that_cannot_be_decoded_is_stalled_and_hides_no_other() {
    let inner = InMemoryExecutionLog::new();
    let old = CodecExecutionLog::new(inner.clone(), Veil::new("k1", 7));
    let new = CodecExecutionLog::new(inner.clone(), Veil::new("k2", 9));
    let wrong = CodecExecutionLog::new(inner.clone(), Veil::new("k1", 8));
    old.enqueue(vec![flow("a", "[1]")]).await.unwrap();
    new.enqueue(vec![flow("b", "[2]")]).await.unwrap();
    let claimed = claim_one(&new).await;
    assert_eq!(claimed.info.id, id("b"));
    let stalled = new.flow(&id("a")).await.unwrap().unwrap();
    assert_eq!(stalled.info.state, FlowState::Stalled);
    let reason = stalled.info.reason.unwrap();
    assert!(reason.contains("codec \"k1\", which this log does not have"), "{reason}");
    assert!(reason.contains("flow \"a\""), "{reason}");
    // A worker that starts is offered it again, whatever its build.
    let types = [("T".into(), 1)];
    assert_eq!(wrong.reoffer(&types, "some build").await.unwrap(), 1);
    assert_eq!(wrong.claim(request()).await.unwrap().flows.len(), 0);
    let reason = wrong.flow(&id("a")).await.unwrap().unwrap().info.reason.unwrap();
    assert!(reason.contains("codec \"k1\": it is not what was encoded here"), "{reason}");
    let error = wrong.enqueue(vec![flow("a", "[1]")]).await.unwrap_err();
    assert_eq!((error.kind(), error.flow()), (ErrorKind::Corrupt, Some(&id("a"))));
    let both = new.reading(Veil::new("k1", 7));
    assert_eq!(both.reoffer(&types, "some build").await.unwrap(), 1);
    assert_eq!(claim_one(&both).await.input, "[1]");
}

#[tokio::test]
async fn a_payload_in_the_place_of_another_is_not_decoded() {
    let inner = InMemoryExecutionLog::new();
    let log = CodecExecutionLog::new(inner.clone(), Veil::new("k1", 7));
    log.enqueue(vec![flow("a", "[1]"), flow("b", "[2]")]).await.unwrap();
    let stolen = inner.flow(&id("a")).await.unwrap().unwrap().input;
    inner.send(NewMessage::new(id("a"), Channel::signal("s"), stolen.clone())).await.unwrap();
    let error = log.messages(&id("a"), &[], 0, 1).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "flow \"a\": the message cannot be decoded by codec \"k1\": it is not what was encoded here"
    );
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    inner.enqueue(vec![NewFlow::new(id("c"), "T", 1, stolen)]).await.unwrap();
    assert_eq!(log.claim(request()).await.unwrap().flows.len(), 1, "only b is as it was");
}

#[tokio::test]
async fn what_cannot_be_encoded_is_refused() {
    let inner = InMemoryExecutionLog::new();
    let log = CodecExecutionLog::new(inner.clone(), Veil::new("k1", 7));
    let error = log.enqueue(vec![flow("a", "[1]"), flow("b", "refuse")]).await.unwrap_err();
    assert_eq!((error.kind(), error.flow()), (ErrorKind::Invalid, Some(&id("b"))));
    assert_eq!(error.to_string(), "flow \"b\": the input cannot be encoded by codec \"k1\": it may not be told");
    assert!(inner.flow(&id("a")).await.unwrap().is_none());
    let nameless = CodecExecutionLog::new(inner.clone(), Veil::new("", 7));
    assert_eq!(nameless.enqueue(vec![flow("a", "[1]")]).await.unwrap_err().kind(), ErrorKind::Invalid);
}

/// Schedules, continues, and asks for the id again.
async fn asked_again(first: &CodecExecutionLog, later: &CodecExecutionLog, runs: u32) -> [Enqueued; 2] {
    first.enqueue(vec![flow("a", "[1]")]).await.unwrap();
    for run in 1..runs {
        let claimed = claim_one(first).await;
        assert_eq!(claimed.info.run, run);
        end(first, &claimed, Next::Continue { input: "[5]".into() }).await;
    }
    let same = later.enqueue(vec![flow("a", "[1]")]).await.unwrap()[0];
    let other = later.enqueue(vec![flow("a", "[3]")]).await.unwrap()[0];
    [same, other]
}

#[tokio::test]
async fn an_id_is_asked_for_again_with_the_same_value() {
    let known = [true, false].map(|same| Enqueued::Existing { same });
    for runs in [1, 2, 3] {
        let log = |inner: &InMemoryExecutionLog, veil| CodecExecutionLog::new(inner.clone(), veil);
        // By the same key.
        let inner = InMemoryExecutionLog::new();
        let first = log(&inner, Veil::new("k1", 7));
        assert_eq!(asked_again(&first, &first, runs).await, known);
        // By another one.
        let inner = InMemoryExecutionLog::new();
        let first = log(&inner, Veil::new("k1", 7));
        let later = log(&inner, Veil::new("k2", 9)).reading(Veil::new("k1", 7));
        assert_eq!(asked_again(&first, &later, runs).await, known, "after {runs} runs");
        // From before there was a codec.
        let inner = InMemoryExecutionLog::new();
        inner.enqueue(vec![flow("a", "[1]")]).await.unwrap();
        let later = log(&inner, Veil::new("k2", 9));
        assert_eq!(asked_again(&later, &later, runs).await, known, "after {runs} runs");
    }
    // A codec that is never the same is compared by what it has encoded.
    let fickle = CodecExecutionLog::new(InMemoryExecutionLog::new(), Veil { fickle: true, ..Veil::new("k1", 7) });
    assert_eq!(asked_again(&fickle, &fickle, 1).await, known);
}

#[tokio::test]
async fn a_call_that_is_made_again_finds_its_child() {
    for fickle in [false, true] {
        let inner = InMemoryExecutionLog::new();
        let first = CodecExecutionLog::new(inner.clone(), Veil { fickle, ..Veil::new("k1", 7) });
        let later = CodecExecutionLog::new(inner.clone(), Veil::new("k2", 9)).reading(Veil::new("k1", 7));
        first.enqueue(vec![flow("parent", "[1]")]).await.unwrap();
        let parent = claim_one(&first).await;
        let child = || {
            let parent = Parent { id: id("parent"), path: CallPath::top(1), detached: false };
            vec![flow("child", "[2]").with_parent(parent)]
        };
        let mut commit = Commit::new(parent.lease.clone(), 1);
        commit.records = vec![Record { kind: CallKind::Child, ..record(1, Phase::Pending, "") }];
        commit.children = child();
        commit.next = fail("[3]");
        first.commit(commit).await.unwrap();
        let running = claim_one(&first).await;
        assert_eq!(running.info.id, id("child"));
        later.retry(&id("parent")).await.unwrap();
        let parent = claim_one(&later).await;
        let mut commit = Commit::new(parent.lease.clone(), 1);
        commit.records = vec![Record { kind: CallKind::Child, ..record(1, Phase::Pending, "") }];
        commit.children = child();
        later.commit(commit).await.unwrap();
        // It runs on, and nobody was told that its id is taken.
        assert_eq!(later.flow(&id("child")).await.unwrap().unwrap().info.epoch, running.lease.epoch);
        assert_eq!(later.messages(&id("parent"), &[], 0, 10).await.unwrap(), []);
    }
}
