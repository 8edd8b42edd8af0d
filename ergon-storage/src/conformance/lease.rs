//! Holding, renewing, losing and giving back a lease.

use std::time::Duration;

use super::{
    Harness,
    scene::{Handle, LEASE, MICRO, SECOND, Scene, complete, flow, id, signal, steps},
};
use crate::{Commit, Committed, ErrorKind, FlowState, Lease, LeaseState};

/// A renewed lease lasts that long from now on, be it longer or shorter than before.
pub async fn heartbeat_renews_from_now(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.advance(SECOND).await;
    for length in [LEASE * 2, LEASE, SECOND] {
        let beat = log.heartbeat(std::slice::from_ref(&lease), length).await.unwrap();
        assert_eq!(beat, [LeaseState::Held]);
        assert_eq!(log.info("a").await.due_at, Some(log.now().saturating_add(length)));
    }
    log.advance(SECOND.checked_sub(MICRO).unwrap()).await;
    assert_eq!(log.take(1).await.len(), 0);
    log.advance(MICRO).await;
    assert_eq!(log.take(1).await.len(), 1);
}

/// A lease that is renewed in time never ends.
pub async fn heartbeat_keeps_a_lease(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    for _ in 0..10 {
        log.advance(LEASE.checked_sub(MICRO).unwrap()).await;
        assert_eq!(log.take(1).await.len(), 0);
        assert_eq!(log.beat(&lease).await, LeaseState::Held);
    }
    assert_eq!(log.go(&lease, 1, complete()).await, Committed::Applied);
}

/// Every lease is answered for, in the order in which they were given.
pub async fn heartbeat_answers_in_order(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    assert_eq!(log.heartbeat(&[], LEASE).await.unwrap(), []);
    let (a, b, c, d) = (log.start("a").await, log.start("b").await, log.start("c").await, log.start("d").await);
    log.cancel(&id("b"), "enough").await.unwrap();
    log.go(&c, 1, complete()).await;
    let unknown = Lease { flow: id("nobody"), epoch: 1, key: 1 << 40 };
    let (held, lost, cancelled) = (LeaseState::Held, LeaseState::Lost, LeaseState::Cancelled);
    let beats = log.heartbeat(&[d.clone(), c, unknown, b, a.clone(), d], LEASE).await.unwrap();
    assert_eq!(beats, [held, lost, lost, cancelled, held, held]);
}

/// A heartbeat of many leases renews them all.
pub async fn heartbeat_renews_many(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add((0..500).map(|number| flow(&format!("flow-{number}")))).await;
    let leases: Vec<_> = log.take(500).await.into_iter().map(|claimed| claimed.lease).collect();
    log.advance(SECOND).await;
    assert_eq!(log.heartbeat(&leases, LEASE).await.unwrap(), [LeaseState::Held; 500]);
    log.advance(LEASE.checked_sub(MICRO).unwrap()).await;
    assert_eq!(log.take(500).await.len(), 0);
}

/// A lease that has ended is current until somebody else claims the flow.
pub async fn an_unclaimed_lease_outlives_its_end(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let (a, b, c) = (log.start("a").await, log.start("b").await, log.start("c").await);
    log.advance(LEASE * 10).await;
    assert_eq!(log.commit(steps(&a, 1, 0, 1)).await.unwrap(), Committed::Applied);
    assert_eq!(log.beat(&b).await, LeaseState::Held);
    log.release(&c).await.unwrap();
    assert_eq!(log.take_names(9).await, ["a", "c"], "the renewed one is held, the committing one was not renewed");
}

/// A renewal that comes after another's claim is refused, and harms the other's lease in no way.
pub async fn heartbeat_after_anothers_claim_is_lost(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let first = log.start("a").await;
    log.advance(LEASE).await;
    let second = log.take_flow("a").await.lease;
    let before = log.snapshot().await;
    log.advance(SECOND).await;
    assert_eq!(log.beat(&first).await, LeaseState::Lost);
    log.snapshot().await.assert_is(&before, "nothing has changed");
    assert_eq!(log.beat(&second).await, LeaseState::Held);
}

/// A released flow is scheduled at once, with its history and its mailbox.
pub async fn release_offers_the_flow_at_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, 2)).await.unwrap();
    log.tell("a", &signal("go"), "hello").await;
    log.advance(SECOND).await;
    log.release(&lease).await.unwrap();
    let info = log.info("a").await;
    assert_eq!((info.state, info.due_at, info.epoch), (FlowState::Scheduled, Some(log.now()), 1));
    assert_eq!(info.worker.as_deref(), Some("worker"), "the last one that had it");
    let claimed = log.take(1).await.remove(0);
    assert_eq!((claimed.lease.epoch, claimed.history.len(), claimed.messages.len()), (2, 2, 1));
}

/// A lease can be given back once.
pub async fn release_of_a_released_flow_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.release(&lease).await.unwrap();
    log.refuses(ErrorKind::LeaseLost, log.release(&lease)).await;
}

/// Everything under this lease is refused, whatever the rest of the call says.
async fn assert_stale(log: &Handle, lease: &Lease, heartbeat: LeaseState) {
    let before = log.snapshot().await;
    for number in [1, 2, 9] {
        log.refuses(ErrorKind::LeaseLost, log.commit(Commit::new(lease.clone(), number))).await;
        log.refuses(ErrorKind::LeaseLost, log.commit(steps(lease, number, 0, 1))).await;
        log.refuses(ErrorKind::LeaseLost, log.commit(super::scene::going(lease, number, complete()))).await;
    }
    log.refuses(ErrorKind::LeaseLost, log.release(lease)).await;
    assert_eq!(log.beat(lease).await, heartbeat);
    assert_eq!(log.snapshot().await, before, "nothing under a stale lease leaves a trace");
}

/// A lease is over once another worker has the flow, and stays so through everything that happens to it.
pub async fn a_stale_lease_is_refused_in_every_state(harness: &impl Harness) {
    for state in FlowState::ALL {
        let log = Scene::new(harness).await;
        let stale = log.start("a").await;
        log.advance(LEASE).await;
        let lease = log.take_flow("a").await.lease;
        assert_stale(&log, &stale, LeaseState::Lost).await;
        match state {
            FlowState::Scheduled => log.release(&lease).await.unwrap(),
            FlowState::Running => {}
            FlowState::Suspended => log.suspend(&lease, 1, None, &[signal("go")]).await,
            FlowState::Completed => _ = log.go(&lease, 1, complete()).await,
            FlowState::Failed => _ = log.go(&lease, 1, super::scene::fail()).await,
            FlowState::Cancelled => _ = log.cancel(&id("a"), "enough").await.unwrap(),
            FlowState::Stalled => _ = log.go(&lease, 1, super::scene::stall("build-1")).await,
        }
        assert_eq!(log.state("a").await, state);
        assert_stale(&log, &stale, LeaseState::Lost).await;
    }
}

/// A lease is over with what ends it, even before anybody else claims the flow.
pub async fn an_ended_lease_is_refused(harness: &impl Harness) {
    for state in [FlowState::Scheduled, FlowState::Cancelled, FlowState::Stalled] {
        let log = Scene::new(harness).await;
        let lease = log.start("a").await;
        match state {
            FlowState::Scheduled => log.release(&lease).await.unwrap(),
            FlowState::Cancelled => _ = log.cancel(&id("a"), "enough").await.unwrap(),
            _ => {
                log.advance(LEASE).await;
                let mut poisoned = super::scene::request(1);
                poisoned.deliveries_max = 1;
                assert_eq!(log.claim(poisoned).await.unwrap().flows.len(), 0);
            }
        }
        assert_eq!(log.state("a").await, state);
        let heartbeat = if state == FlowState::Cancelled { LeaseState::Cancelled } else { LeaseState::Lost };
        assert_stale(&log, &lease, heartbeat).await;
    }
}

/// The commit that ends a lease is its last one.
pub async fn a_lease_ends_with_its_commit(harness: &impl Harness) {
    use super::scene::{fail, stall, suspend};
    let nexts = [complete(), fail(), stall("build-1"), suspend(None, &[signal("go")])];
    for next in nexts {
        let log = Scene::new(harness).await;
        let lease = log.start("a").await;
        log.go(&lease, 1, next).await;
        log.refuses(ErrorKind::LeaseLost, log.commit(steps(&lease, 2, 0, 1))).await;
        log.refuses(ErrorKind::LeaseLost, log.release(&lease)).await;
        assert_eq!(log.beat(&lease).await, LeaseState::Lost);
    }
}

/// A commit does not bring back a flow that was deleted, nor does it reach another one with the same id.
pub async fn a_lease_of_a_deleted_flow_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.go(&lease, 1, complete()).await;
    assert!(log.delete(&id("a")).await.unwrap());
    assert_stale(&log, &lease, LeaseState::Lost).await;
    log.add([flow("a")]).await;
    assert_stale(&log, &lease, LeaseState::Lost).await;
    let again = log.take_flow("a").await.lease;
    assert_eq!(again.epoch, lease.epoch, "the new flow counts its own claims");
    assert_stale(&log, &lease, LeaseState::Lost).await;
    assert_eq!(log.commit(steps(&again, 1, 0, 1)).await.unwrap(), Committed::Applied);
}

/// A lease is of one flow and one claim: no other field makes up for a wrong one.
pub async fn a_made_up_lease_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let other = log.start("b").await;
    log.add([flow("c")]).await;
    let made_up = [
        Lease { epoch: 0, ..lease.clone() },
        Lease { epoch: 2, ..lease.clone() },
        Lease { epoch: u64::MAX, ..lease.clone() },
        Lease { flow: id("b"), ..lease.clone() },
        Lease { flow: id("nobody"), ..lease.clone() },
        Lease { key: other.key, ..lease.clone() },
        Lease { key: u64::MAX, ..lease.clone() },
        Lease { flow: id("c"), epoch: 0, ..lease },
    ];
    for lease in made_up {
        assert_stale(&log, &lease, LeaseState::Lost).await;
    }
}

/// A worker may hold a lease for as long as it works, and commit under it without renewing in between.
pub async fn a_commit_does_not_renew(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let end = log.now().saturating_add(LEASE);
    log.advance(Duration::from_secs(10)).await;
    log.commit(steps(&lease, 1, 0, 1)).await.unwrap();
    assert_eq!(log.info("a").await.due_at, Some(end));
}
