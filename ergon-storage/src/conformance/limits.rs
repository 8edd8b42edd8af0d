//! How large things may be, and that they come back byte for byte.

use bytes::Bytes;

use super::{
    Harness,
    scene::{Scene, child, flow, id, message, names, refused, signal, starting, steps},
};
use crate::{Channel, Commit, Committed, Enqueued, ErrorKind, Filter, FlowId, NewFlow, NewMessage, Next, Record, Sent};

/// Bytes that no text encoding and no compression makes anything of.
fn noise(bytes: usize) -> Bytes {
    let mut state = 0x9e37_79b9_u32;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..bytes).map(|_| byte()).collect()
}

/// A payload as large as the limit allows comes back as it was, wherever it is.
pub async fn the_largest_payload_is_kept(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let largest = noise(log.limits().payload_bytes_max);
    let lease = log.start_flow(NewFlow::new(id("a"), "Order", 1, largest.clone())).await;
    assert!(log.read("a").await.input == largest);
    assert_eq!(log.send(NewMessage::new(id("a"), signal("go"), largest.clone())).await.unwrap(), Sent::Accepted);
    assert!(log.mail("a").await[0].payload == largest);
    let mut commit = steps(&lease, 1, 0, 1);
    commit.records[0].payload = largest.clone();
    commit.children = vec![child("b", "a", 1)];
    commit.children[0].input = largest.clone();
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    assert!(log.records("a").await[0].payload == largest);
    let other = log.take_flow("b").await;
    assert!(other.input == largest);
    log.go(&other.lease, 1, Next::Fail { error: largest.clone(), reason: "large".into(), again: Vec::new() }).await;
    assert!(log.read("b").await.result == largest && log.mail("a").await[1].payload == largest);
    log.go(&lease, 2, Next::Complete { result: largest.clone() }).await;
    assert!(log.read("a").await.result == largest);
}

/// A payload that is one byte larger is refused, and leaves no trace.
pub async fn a_larger_payload_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let larger = Bytes::from(vec![0; log.limits().payload_bytes_max + 1]);
    let lease = log.start("a").await;
    let large = NewFlow::new(id("b"), "Order", 1, larger.clone());
    log.refuses(ErrorKind::TooLarge, log.enqueue(vec![flow("c"), large])).await;
    log.refuses(ErrorKind::TooLarge, log.send(NewMessage::new(id("a"), signal("go"), larger.clone()))).await;
    let mut record_larger = steps(&lease, 1, 0, 3);
    record_larger.records[2].payload = larger.clone();
    let mut child_larger = starting(&lease, 1, [child("b", "a", 1), child("c", "a", 2)]);
    child_larger.children[1].input = larger.clone();
    let mut result_larger = steps(&lease, 1, 0, 1);
    result_larger.next = Next::Complete { result: larger.clone() };
    let mut error_larger = steps(&lease, 1, 0, 1);
    error_larger.next = Next::Fail { error: larger.clone(), reason: "".into(), again: Vec::new() };
    for commit in [record_larger, child_larger, result_larger, error_larger] {
        log.refuses(ErrorKind::TooLarge, log.commit(commit)).await;
    }
}

/// A name as long as it may be is kept, one byte more is refused.
pub async fn names_are_kept_up_to_their_length(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let name_of = |bytes: usize| "ü".repeat(bytes / 2) + &"x".repeat(bytes % 2);
    let (longest_id, name) = (name_of(FlowId::BYTES_MAX), name_of(NewFlow::NAME_BYTES_MAX));
    let new = NewFlow::new(id(&longest_id), name.as_str(), u32::MAX, &b""[..]).with_queue(name.as_str());
    let lease = log.start_flow(new).await;
    let info = log.info(&longest_id).await;
    assert_eq!((&*info.flow_type, &*info.queue, info.version), (name.as_str(), name.as_str(), u32::MAX));

    let channel = Channel::from_name(&name_of(Channel::BYTES_MAX));
    let keyed = |key: String| message(&longest_id, &channel, "").with_key(key);
    assert_eq!(log.send(keyed(name_of(Channel::BYTES_MAX))).await.unwrap(), Sent::Accepted);
    assert_eq!(log.send(keyed(name_of(Channel::BYTES_MAX))).await.unwrap(), Sent::Duplicate);
    assert_eq!(log.mail(&longest_id).await[0].channel, channel);
    for key in [String::new(), name_of(Channel::BYTES_MAX + 1)] {
        log.refuses(ErrorKind::Invalid, log.send(keyed(key))).await;
    }
    for name in [String::new(), name_of(Channel::BYTES_MAX + 1)] {
        log.refuses(ErrorKind::Invalid, log.send(message(&longest_id, &Channel::from_name(&name), ""))).await;
    }
    let named = |name: String| {
        let mut commit = steps(&lease, 1, 0, 2);
        commit.records[1].name = name.into();
        commit
    };
    log.refuses(ErrorKind::Invalid, log.commit(named(name_of(Record::NAME_BYTES_MAX + 1)))).await;
    log.commit(named(name_of(Record::NAME_BYTES_MAX))).await.unwrap();
    assert_eq!(*log.records(&longest_id).await[1].name, *name_of(Record::NAME_BYTES_MAX));
}

/// A history cannot outgrow its numbers.
pub async fn a_record_number_out_of_range_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    for seq in [Record::SEQ_MAX + 1, u32::MAX] {
        let mut commit = Commit::new(lease.clone(), 1);
        commit.records = vec![super::scene::record(seq)];
        log.refuses(ErrorKind::TooLarge, log.commit(commit)).await;
    }
}

/// Ids that a careless log would take for one another.
const LOOKALIKES: [&str; 18] = [
    "é", "e\u{301}", "É", "e", "E", "e ", " e", "e\n", "e\0", "\0", "'e'", "\"e\"", "e;--", "%", "_", "e/../e", "{e}",
    "🦀",
];

/// Ids are compared byte for byte, and all of UTF-8 may be in one.
pub async fn ids_are_compared_byte_for_byte(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for name in LOOKALIKES {
        let answer = log.enqueue(vec![NewFlow::new(id(name), "Order", 1, name)]).await.unwrap();
        assert_eq!(answer, [Enqueued::Created], "{name:?}");
    }
    let page = log.list(&Filter::all(), None, 100).await.unwrap();
    assert_eq!(page.flows.iter().map(|info| info.id.as_str()).collect::<Vec<_>>(), LOOKALIKES);
    for name in LOOKALIKES {
        assert_eq!(log.read(name).await.input, name.as_bytes(), "{name:?}");
        log.add([child(&format!("child of {name}"), name, 1)]).await;
    }
    log.cancel(&id("e"), "").await.unwrap();
    for name in LOOKALIKES {
        let cancelled = log.state(&format!("child of {name}")).await == crate::FlowState::Cancelled;
        assert_eq!(cancelled, name == "e", "{name:?}");
    }
}

/// Queues, types, channels and keys are compared byte for byte too.
pub async fn names_are_compared_byte_for_byte(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for name in LOOKALIKES {
        log.add([
            NewFlow::new(id(&format!("queue {name}")), "Order", 1, &b""[..]).with_queue(name),
            NewFlow::new(id(&format!("type {name}")), name, 1, &b""[..]).with_queue("types"),
        ])
        .await;
    }
    let lease = log.start("a").await;
    for name in LOOKALIKES {
        for (target, expected) in [
            (super::scene::queues(&[name], &[("Order", 1)]), format!("queue {name}")),
            (super::scene::queues(&["types"], &[(name, 1)]), format!("type {name}")),
        ] {
            let mut request = crate::ClaimRequest::new(name, target);
            request.limit = 100;
            let flows = log.claim(request).await.unwrap().flows;
            assert_eq!(flows.iter().map(|claimed| claimed.info.id.as_str()).collect::<Vec<_>>(), [expected]);
            assert_eq!(flows[0].info.worker.as_deref(), Some(name));
        }
        let sent = log.send(message("a", &Channel::from_name(name), name).with_key(name)).await.unwrap();
        assert_eq!(sent, Sent::Accepted, "{name:?}");
    }
    for name in LOOKALIKES {
        let channel = [Channel::from_name(name)];
        let read = log.messages(&id("a"), &channel, 0, 100).await.unwrap();
        assert_eq!(read.iter().map(|message| &message.payload[..]).collect::<Vec<_>>(), [name.as_bytes()]);
    }
    assert_eq!(log.beat(&lease).await, crate::LeaseState::Held);
}

/// Payloads of every length and every byte come back as they were.
pub async fn payloads_are_kept_byte_for_byte(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lengths = [0, 1, 2, 3, 255, 256, 1_000, 4_095, 4_096, 65_535, 65_536, 1 << 20];
    for (name, length) in names(0..lengths.len()).iter().zip(lengths) {
        let payload = noise(length.min(log.limits().payload_bytes_max));
        let lease = log.start_flow(NewFlow::new(id(name), "Order", 1, payload.clone())).await;
        log.send(NewMessage::new(id(name), signal("go"), payload.clone())).await.unwrap();
        let mut commit = steps(&lease, 1, 0, 1);
        commit.records[0].payload = payload.clone();
        log.commit(commit).await.unwrap();
        assert!(log.mail(name).await[0].payload == payload && log.records(name).await[0].payload == payload);
        log.go(&lease, 2, Next::Complete { result: payload.clone() }).await;
        let read = log.read(name).await;
        assert!(read.input == payload && read.result == payload, "{length} bytes");
    }
    let every: Bytes = (0..=255).collect();
    log.add([NewFlow::new(id("every"), "Order", 1, every.clone())]).await;
    assert_eq!(log.read("every").await.input, every);
}

/// Reasons are text of any kind.
pub async fn reasons_are_kept_byte_for_byte(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for (number, reason) in LOOKALIKES.into_iter().chain([""]).enumerate() {
        let (cancelled, failed, stalled) =
            (format!("cancelled-{number}"), format!("failed-{number}"), format!("stalled-{number}"));
        log.add([flow(&cancelled)]).await;
        log.cancel(&id(&cancelled), reason).await.unwrap();
        let lease = log.start(&failed).await;
        log.go(&lease, 1, Next::Fail { error: Bytes::new(), reason: reason.into(), again: Vec::new() }).await;
        let lease = log.start(&stalled).await;
        log.go(&lease, 1, Next::Stall { reason: reason.into(), build: reason.into() }).await;
        for name in [cancelled, failed, stalled] {
            assert_eq!(log.info(&name).await.reason.as_deref(), Some(reason), "{name}");
        }
    }
    refused(ErrorKind::Finished, log.send(message("cancelled-0", &signal("go"), "")).await);
}
