//! What outlives a handle, and what several handles share.

use super::{
    Harness, Lifetime,
    scene::{
        SECOND, Scene, child, complete, detached, fail, flow, id, message, refused, signal, stall, starting, steps,
        suspend,
    },
};
use crate::{Channel, Commit, Committed, Enqueued, ErrorKind, Filter, FlowState, Sent};

/// Brings flows into every state, with histories, messages, children and retries.
async fn fill(log: &Scene<'_, impl Harness>) {
    for state in FlowState::ALL {
        log.bring(&state.to_string(), state).await;
        log.advance(SECOND).await;
    }
    let mother = log.start_flow(flow("mother").with_timeout(Some(SECOND * 100)).with_priority(-3)).await;
    let mut commit = starting(&mother, 1, [child("a", "mother", 1), detached("b", "mother", 2)]);
    commit.records = steps(&mother, 1, 0, 700).records;
    log.commit(commit).await.unwrap();
    for number in 0..150 {
        let channel = if number % 2 == 0 { signal("go") } else { Channel::from_name("näme, 名") };
        log.send(message("mother", &channel, &number.to_string()).with_key(format!("key-{number}"))).await.unwrap();
    }
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, complete()).await;
    let mut consuming = Commit::new(mother, 2);
    consuming.consumed = (1..=20).collect();
    consuming.next = suspend(Some(log.now().saturating_add(SECOND * 50)), &[signal("other"), signal("x y")]);
    log.commit(consuming).await.unwrap();
    log.retry(&id("failed")).await.unwrap();
    let lease = log.start("failed again").await;
    log.commit(steps(&lease, 1, 0, 2)).await.unwrap();
    log.go(&lease, 2, fail()).await;
    log.start("poison").await;
    log.advance(SECOND * 30).await;
    let mut request = super::scene::request(100);
    request.deliveries_max = 1;
    log.claim(request).await.unwrap();
    assert_eq!(log.state("poison").await, FlowState::Stalled);
}

/// A store that is closed and opened again gives the same answers to every read, but for leases that end early
/// because their holder is gone; one that does not outlive its handle is empty.
pub async fn a_store_that_is_opened_again_is_the_same(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    fill(&log).await;
    let mut before = log.snapshot().await;
    let log = log.reopen().await;
    let after = log.snapshot().await;
    if lifetime(harness) == Lifetime::Handle {
        assert!(after.flows.is_empty() && after.counts.is_empty(), "this log does not outlive its handle");
        return;
    }
    for ((before, _, _), (after, _, _)) in before.flows.iter_mut().zip(&after.flows) {
        if before.info.state == FlowState::Running {
            assert!(after.info.due_at <= before.info.due_at, "no lease is longer than it was");
            before.info.due_at = after.info.due_at;
        }
    }
    for (before, after) in before.counts.iter_mut().zip(&after.counts) {
        if before.state == FlowState::Running {
            assert!(after.oldest_due_at <= before.oldest_due_at, "nor is that of any of them");
            before.oldest_due_at = after.oldest_due_at;
        }
    }
    after.assert_is(&before, "it is as it was");
    let again = log.reopen().await;
    again.snapshot().await.assert_is(&before, "it stays as it was");
}

pub(super) fn lifetime<H: Harness>(_: &H) -> Lifetime {
    H::LIFETIME
}

/// A worker that finds its store opened again goes on under its lease, and a lost answer is still recognised.
pub async fn a_store_that_is_opened_again_goes_on(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let stale = log.start("b").await;
    log.release(&stale).await.unwrap();
    let commit = steps(&lease, 1, 0, 3);
    log.commit(commit.clone()).await.unwrap();
    log.send(message("a", &signal("go"), "").with_key("k")).await.unwrap();
    let sleeping = log.start("c").await;
    let suspension = super::scene::going(&sleeping, 1, suspend(None, &[signal("go")]));
    log.commit(suspension.clone()).await.unwrap();
    let page = log.list(&Filter::all(), None, 1).await.unwrap();
    let log = log.reopen().await;
    if lifetime(harness) == Lifetime::Handle {
        refused(ErrorKind::LeaseLost, log.commit(steps(&lease, 2, 3, 1)).await);
        return;
    }
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    assert_eq!(log.commit(suspension).await.unwrap(), Committed::Suspended);
    assert_eq!(log.info("a").await.records, 3);
    assert_eq!(log.send(message("a", &signal("go"), "").with_key("k")).await.unwrap(), Sent::Duplicate);
    log.tell("a", &signal("go"), "").await;
    assert_eq!(log.mail("a").await.last().unwrap().seq, 2);
    assert_eq!(log.commit(steps(&lease, 2, 3, 1)).await.unwrap(), Committed::Applied);
    refused(ErrorKind::LeaseLost, log.commit(steps(&stale, 1, 0, 1)).await);
    assert_eq!(log.take_flow("b").await.lease.epoch, 2);
    log.tell("c", &signal("go"), "").await;
    assert_eq!(log.state("c").await, FlowState::Scheduled);
    assert_eq!(log.enqueue(vec![flow("a")]).await.unwrap(), [Enqueued::Existing { same: true }]);
    let rest = log.list(&Filter::all(), page.next, 10).await.unwrap();
    assert_eq!(rest.flows.iter().map(|info| info.id.as_str()).collect::<Vec<_>>(), ["b", "c"]);
}

/// The lease of a flow that was deleted before the store was closed is not taken for that of a later flow.
pub async fn a_store_that_is_opened_again_reuses_no_lease(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let other = log.start("b").await;
    for lease in [&lease, &other] {
        log.go(lease, 1, complete()).await;
        assert!(log.delete(&lease.flow).await.unwrap());
    }
    let log = log.reopen().await;
    log.add([flow("b"), flow("a")]).await;
    log.take(2).await;
    for lease in [lease, other] {
        refused(ErrorKind::LeaseLost, log.commit(steps(&lease, 1, 0, 1)).await);
        refused(ErrorKind::LeaseLost, log.commit(steps(&lease, 2, 0, 1)).await);
        refused(ErrorKind::LeaseLost, log.release(&lease).await);
    }
}

/// A lease that one handle has granted is good on every other one.
pub async fn a_lease_is_good_on_every_handle(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let other = log.second().await;
    let lease = log.start("a").await;
    assert_eq!(other.commit(steps(&lease, 1, 0, 1)).await.unwrap(), Committed::Applied);
    assert_eq!(log.commit(steps(&lease, 1, 0, 1)).await.unwrap(), Committed::Applied);
    assert_eq!(log.commit(steps(&lease, 2, 1, 1)).await.unwrap(), Committed::Applied);
    assert_eq!(other.beat(&lease).await, crate::LeaseState::Held);
    assert_eq!(other.take(1).await.len(), 0);
    assert_eq!(other.go(&lease, 3, stall("build-1")).await, Committed::Applied);
    assert_eq!(log.state("a").await, FlowState::Stalled);
    assert_eq!(log.snapshot().await, other.snapshot().await);
}

/// Stores share nothing.
pub async fn stores_are_isolated(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let other = Scene::new(harness).await;
    log.add([flow("a")]).await;
    assert_eq!(other.flow(&id("a")).await.unwrap(), None);
    let now = other.now();
    log.advance(SECOND).await;
    assert_eq!(other.now(), now);
    other.add([flow("a")]).await;
    log.take_flow("a").await;
    assert_eq!(other.state("a").await, FlowState::Scheduled);
}
