//! How often a flow may be claimed without getting anywhere.

use super::{
    Harness,
    scene::{Handle, LEASE, SECOND, Scene, flow, id, request, signal, stall, starting, steps, suspend},
};
use crate::{ClaimRequest, ClaimTarget, ClaimedFlow, Commit, Committed, ErrorKind, FlowState, Retried};

async fn take(log: &Handle, deliveries_max: u32) -> Vec<ClaimedFlow> {
    let mut request = request(10);
    request.deliveries_max = deliveries_max;
    log.claim(request).await.unwrap().flows
}

/// Each claim counts before the flow runs, whether or not its lease is given up.
pub async fn deliveries_count_at_the_claim(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    for deliveries in 1..=3 {
        let claimed = take(&log, 10).await;
        assert_eq!((claimed[0].info.deliveries, log.info("a").await.deliveries), (deliveries, deliveries));
        log.advance(LEASE).await;
    }
}

/// A flow over the limit is stalled, with a reason that says how often, by whom and what to do.
pub async fn deliveries_over_the_limit_stall(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    for _ in 0..3 {
        assert_eq!(take(&log, 3).await.len(), 1);
        log.advance(LEASE).await;
    }
    let claimed = log.claim(ClaimRequest { deliveries_max: 3, ..request(10) }).await.unwrap();
    assert_eq!((claimed.flows.len(), claimed.next_due_at), (0, None));
    let info = log.info("a").await;
    assert_eq!((info.state, info.due_at, info.epoch, info.deliveries), (FlowState::Stalled, None, 3, 3));
    assert_eq!(info.finished_at, None, "nothing is lost");
    let reason = info.reason.expect("a stalled flow has a reason");
    for part in ["3", "worker", "retry"] {
        assert!(reason.contains(part), "{part:?} is in {reason:?}");
    }
}

/// A flow that is claimed for the first time is never over the limit.
pub async fn deliveries_of_one_are_allowed(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    assert_eq!(take(&log, 1).await.len(), 1);
    log.advance(LEASE).await;
    assert_eq!(take(&log, 1).await.len(), 0);
    assert_eq!(log.state("a").await, FlowState::Stalled);
}

/// The worker whose lease ran out finds it lost once the flow is stalled.
pub async fn deliveries_over_the_limit_end_the_lease(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.advance(LEASE).await;
    assert_eq!(take(&log, 1).await.len(), 0);
    assert_eq!(log.beat(&lease).await, crate::LeaseState::Lost);
    log.refuses(ErrorKind::LeaseLost, log.commit(steps(&lease, 1, 0, 1))).await;
    log.refuses(ErrorKind::LeaseLost, log.release(&lease)).await;
}

/// Flows over the limit take no place in the answer and hide nobody.
pub async fn deliveries_over_the_limit_hide_no_others(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add((0..20).map(|number| flow(&format!("poison-{number}")).with_priority(5))).await;
    let mut all = request(20);
    all.lease = SECOND;
    assert_eq!(log.claim(all).await.unwrap().flows.len(), 20);
    log.add([flow("a"), flow("b")]).await;
    log.advance(SECOND).await;
    let mut request = request(1);
    request.deliveries_max = 1;
    let claimed = log.claim(request).await.unwrap().flows;
    assert_eq!(claimed.iter().map(|claimed| &claimed.info.id).collect::<Vec<_>>(), [&id("a")]);
    for number in 0..20 {
        assert_eq!(log.state(&format!("poison-{number}")).await, FlowState::Stalled);
    }
}

/// A claim of one flow counts and stalls too.
pub async fn deliveries_count_for_one_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.start("a").await;
    log.advance(LEASE).await;
    let mut request = ClaimRequest::new("worker", ClaimTarget::Flow(id("a")));
    request.deliveries_max = 1;
    let claimed = log.claim(request).await.unwrap();
    assert_eq!((claimed.flows.len(), claimed.next_due_at), (0, None));
    assert_eq!(log.state("a").await, FlowState::Stalled);
}

/// A commit with records, or a suspension, is progress; everything else is not.
pub async fn deliveries_are_reset_by_progress(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    let again = async || {
        log.advance(LEASE).await;
        take(&log, 100).await.remove(0).lease
    };
    take(&log, 100).await;
    let lease = again().await;
    assert_eq!(log.info("a").await.deliveries, 2);

    log.commit(Commit::new(lease.clone(), 1)).await.unwrap();
    log.commit(starting(&lease, 2, [])).await.unwrap();
    log.beat(&lease).await;
    log.tell("a", &signal("go"), "").await;
    assert_eq!(log.go(&lease, 3, suspend(None, &[signal("go")])).await, Committed::Awake);
    assert_eq!(log.info("a").await.deliveries, 2, "none of this is progress");

    log.commit(steps(&lease, 4, 0, 1)).await.unwrap();
    assert_eq!(log.info("a").await.deliveries, 0, "records are");
    let lease = again().await;
    assert_eq!(log.info("a").await.deliveries, 1);
    log.suspend(&lease, 1, Some(log.now().saturating_add(SECOND)), &[]).await;
    assert_eq!(log.info("a").await.deliveries, 0, "a suspension is");
    let lease = again().await;
    let mut awake = steps(&lease, 1, 1, 1);
    awake.next = suspend(Some(log.now()), &[]);
    assert_eq!(log.commit(awake).await.unwrap(), Committed::Awake);
    assert_eq!(log.info("a").await.deliveries, 0, "records are, also when the flow stays awake");
}

/// A flow that suspends again and again is never over the limit.
pub async fn deliveries_never_stall_a_flow_that_gets_on(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    for _ in 0..20 {
        let lease = take(&log, 1).await.remove(0).lease;
        log.suspend(&lease, 1, Some(log.now().saturating_add(SECOND)), &[]).await;
        log.advance(SECOND).await;
    }
}

/// A flow that is given back was not delivered.
pub async fn deliveries_are_taken_back_by_a_release(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    take(&log, 2).await;
    log.advance(LEASE).await;
    for _ in 0..5 {
        let claimed = take(&log, 2).await.remove(0);
        assert_eq!(claimed.info.deliveries, 2);
        log.release(&claimed.lease).await.unwrap();
        assert_eq!(log.info("a").await.deliveries, 1);
    }
    let claimed = take(&log, 2).await.remove(0);
    log.commit(steps(&claimed.lease, 1, 0, 1)).await.unwrap();
    log.release(&claimed.lease).await.unwrap();
    assert_eq!(log.info("a").await.deliveries, 0, "never less than none");
}

/// A flow that the log has stalled goes on after a retry, with its deliveries counted anew.
pub async fn deliveries_are_reset_by_a_retry(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.start("a").await;
    log.advance(LEASE).await;
    assert_eq!(take(&log, 1).await.len(), 0);
    assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Scheduled);
    assert_eq!(log.info("a").await.deliveries, 0);
    let claimed = take(&log, 1).await.remove(0);
    assert_eq!((claimed.info.epoch, claimed.info.deliveries, claimed.info.reason), (2, 1, None));
}

/// A flow that builds pass on without getting anywhere stays countable: offering it again is no progress.
pub async fn deliveries_survive_a_reoffer(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.go(&lease, 1, stall("build-1")).await;
    assert_eq!(log.reoffer(&[("Order".into(), 1)], "build-2").await.unwrap(), 1);
    assert_eq!(log.info("a").await.deliveries, 1);
}
