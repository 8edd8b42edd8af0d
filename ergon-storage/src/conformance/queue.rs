//! Accepting flows.

use std::time::Duration;

use super::{
    Harness,
    scene::{Scene, child, flow, id, refused},
};
use crate::{Enqueued, ErrorKind, FlowState, NewFlow, Parent, Start, Timestamp, Wake};

/// Every flow is answered for, in the order in which they were given.
pub async fn enqueue_answers_in_order(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    assert_eq!(log.enqueue(vec![flow("b"), flow("a")]).await.unwrap(), [Enqueued::Created; 2]);
    let answers = log.enqueue(vec![flow("c"), flow("a"), flow("d")]).await.unwrap();
    assert_eq!(answers, [Enqueued::Created, Enqueued::Existing { same: true }, Enqueued::Created]);
    assert_eq!(log.enqueue(Vec::new()).await.unwrap(), []);
}

/// A taken id changes nothing, and it is said whether type and input are the same.
pub async fn enqueue_of_a_taken_id_changes_nothing(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    let before = log.snapshot().await;
    let other_input = NewFlow::new(id("a"), "Order", 1, &b"{ }"[..]);
    let other_type = NewFlow::new(id("a"), "Refund", 1, &b"{}"[..]);
    // Neither how it is to run nor its version is part of what it is.
    let otherwise = NewFlow::new(id("a"), "Order", 2, &b"{}"[..]).with_queue("other").with_priority(9);
    for (again, same) in [(flow("a"), true), (other_input, false), (other_type, false), (otherwise, true)] {
        assert_eq!(log.enqueue(vec![again]).await.unwrap(), [Enqueued::Existing { same }]);
    }
    log.snapshot().await.assert_is(&before, "nothing has changed");
}

/// An id stays taken as long as its flow is there, whatever has become of it.
pub async fn enqueue_of_a_taken_id_changes_nothing_in_any_state(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for state in FlowState::ALL {
        log.bring(&state.to_string(), state).await;
    }
    let before = log.snapshot().await;
    let again = FlowState::ALL.iter().map(|state| flow(&state.to_string())).collect();
    assert_eq!(log.enqueue(again).await.unwrap(), [Enqueued::Existing { same: true }; 7]);
    log.snapshot().await.assert_is(&before, "nothing has changed");
}

/// The first of two equal ids in a batch is taken, the second one finds it.
pub async fn enqueue_takes_an_id_once_within_a_batch(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let other = NewFlow::new(id("a"), "Order", 1, &b"other"[..]);
    let answers = log.enqueue(vec![flow("a"), flow("a"), other]).await.unwrap();
    let existing = |same| Enqueued::Existing { same };
    assert_eq!(answers, [Enqueued::Created, existing(true), existing(false)]);
    assert_eq!(log.read("a").await.input, b"{}"[..]);
    assert_eq!(log.snapshot().await.flows.len(), 1);
}

/// One flow that is refused refuses the whole batch, also when its id is taken.
pub async fn enqueue_is_all_or_nothing(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    let invalid = |name| NewFlow::new(id(name), "Order", 0, &b""[..]);
    log.refuses(ErrorKind::Invalid, log.enqueue(vec![flow("b"), invalid("c"), flow("d")])).await;
    log.refuses(ErrorKind::Invalid, log.enqueue(vec![flow("b"), invalid("a")])).await;
    let mut many: Vec<_> = (0..500).map(|number| flow(&format!("many-{number}"))).collect();
    many.push(invalid("last"));
    log.refuses(ErrorKind::Invalid, log.enqueue(many)).await;
}

/// What is accepted can be read back, field by field.
pub async fn enqueue_keeps_every_field(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let now = log.now();
    let parent = Parent { id: id("mother"), path: crate::CallPath::top(3).child(1), detached: true };
    let new = NewFlow::new(id("a"), "Order", 7, &b"\x00\xff"[..])
        .with_queue("billing")
        .with_priority(-5)
        .with_start(Start::After(Duration::from_secs(60)))
        .with_timeout(Some(Duration::from_secs(600)))
        .with_parent(parent.clone());
    log.add([new]).await;
    let read = log.read("a").await;
    assert_eq!((&read.input[..], &read.result[..]), (&b"\x00\xff"[..], &b""[..]));
    let info = read.info;
    assert_eq!((info.id, &*info.flow_type, info.version), (id("a"), "Order", 7));
    assert_eq!((&*info.queue, info.priority, info.parent), ("billing", -5, Some(parent)));
    assert_eq!((info.state, info.reason, info.wake), (FlowState::Scheduled, None, Wake::default()));
    let start_at = now.saturating_add(Duration::from_secs(60));
    assert_eq!((info.created_at, info.start_at, info.due_at), (now, start_at, Some(start_at)));
    assert_eq!((info.started_at, info.finished_at), (None, None));
    assert_eq!(info.deadline_at, Some(now.saturating_add(Duration::from_secs(660))), "counted from the start");
    assert_eq!((info.epoch, info.deliveries, info.records, info.worker), (0, 0, 0, None));
}

/// A start is now, an instant, or a time from the acceptance on; a time limit counts from the later of start and
/// acceptance.
pub async fn enqueue_counts_from_the_acceptance(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.advance(Duration::from_secs(5)).await;
    let now = log.now();
    let limit = Duration::from_secs(10);
    let after = |seconds| now.saturating_add(Duration::from_secs(seconds));
    let past = Timestamp::from_micros(now.as_micros() - 1_000_000);
    let starts =
        [(Start::Now, now), (Start::After(limit), after(10)), (Start::At(after(3)), after(3)), (Start::At(past), past)];
    for (number, (start, start_at)) in starts.into_iter().enumerate() {
        let name = format!("flow-{number}");
        log.add([flow(&name).with_start(start).with_timeout(Some(limit))]).await;
        let info = log.info(&name).await;
        assert_eq!((info.start_at, info.due_at), (start_at, Some(start_at)), "{start:?}");
        assert_eq!(info.deadline_at, Some(start_at.max(now).saturating_add(limit)), "{start:?}");
    }
}

/// A name that is empty or too long, version 0, or an instant past the end of time is refused.
pub async fn enqueue_refuses_what_makes_no_sense(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let typed = |name: &str, version| NewFlow::new(id("a"), name, version, &b""[..]);
    let overlong = "x".repeat(NewFlow::NAME_BYTES_MAX + 1);
    let senseless = [
        typed("", 1),
        typed(&overlong, 1),
        typed("Order", 0),
        flow("a").with_queue(""),
        flow("a").with_queue(overlong.as_str()),
        flow("a").with_start(Start::After(Duration::MAX)),
        flow("a").with_timeout(Some(Duration::MAX)),
    ];
    for new in senseless {
        let text = format!("{new:?}");
        let error = log.enqueue(vec![new]).await.expect_err(&text);
        assert_eq!((error.kind(), error.flow()), (ErrorKind::Invalid, Some(&id("a"))), "{text}");
        assert_eq!(log.flow(&id("a")).await.unwrap(), None, "{text}");
    }
}

/// An id is free again once its flow was deleted, and nothing of the former flow reaches the new one.
pub async fn enqueue_of_a_deleted_id_begins_anew(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(super::scene::steps(&lease, 1, 0, 3)).await.unwrap();
    log.tell("a", &super::scene::signal("go"), "early").await;
    log.go(&lease, 2, super::scene::complete()).await;
    assert!(log.delete(&id("a")).await.unwrap());
    log.advance(Duration::from_secs(1)).await;
    log.add([flow("a")]).await;
    let read = log.read("a").await;
    assert_eq!((read.info.state, read.info.records, read.result.len()), (FlowState::Scheduled, 0, 0));
    assert_eq!((read.info.created_at, read.info.started_at), (log.now(), None));
    assert_eq!((log.records("a").await, log.mail("a").await), (Vec::new(), Vec::new()));
    refused(ErrorKind::LeaseLost, log.commit(super::scene::steps(&lease, 3, 0, 1)).await);
}

/// A flow may be enqueued with a parent that is not there.
pub async fn enqueue_takes_a_child_of_an_unknown_parent(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start_flow(child("a", "nobody", 1)).await;
    log.go(&lease, 1, super::scene::complete()).await;
    assert_eq!(log.state("a").await, FlowState::Completed);
    assert!(log.delete(&id("a")).await.unwrap());
}
