//! What is large, or many.

use ergon_storage::{
    Channel, Commit, ErrorKind, ExecutionLog, Filter, FlowState, Limits, NewFlow, NewMessage, Next, RedisOptions,
};
use ergon_test_servers::{Persistence, Redis};

use super::{commit, connect, flow, id, queue};

#[tokio::test]
async fn a_claim_is_bounded_by_bytes() {
    let redis = Redis::start(Persistence::None);
    let log = connect(&redis).await;
    let flows = (0..20).map(|n| NewFlow::new(id(&format!("flow-{n:02}")), "Order", 1, vec![7; 1 << 20]));
    log.enqueue(flows.collect()).await.unwrap();
    let mut claimed = Vec::new();
    let mut calls = 0;
    while claimed.len() < 20 {
        let answer = log.claim(queue(20)).await.unwrap();
        assert!((1..=8).contains(&answer.flows.len()), "{}", answer.flows.len());
        claimed.extend(answer.flows);
        calls += 1;
        assert!(claimed.len() == 20 || answer.next_due_at.unwrap() <= log.clock().now(), "more are due");
    }
    assert!(calls >= 3);
    assert!(claimed.iter().map(|flow| flow.info.id.as_str()).is_sorted());
    // A history and a mailbox likewise.
    let lease = &claimed[0].lease;
    for number in 1..=40 {
        let mut commit = commit(lease, number);
        commit.records[0].payload = vec![7; 100_000].into();
        log.commit(commit).await.unwrap();
        log.send(NewMessage::new(lease.flow.clone(), Channel::signal("go"), vec![7; 100_000])).await.unwrap();
    }
    log.release(lease).await.unwrap();
    let again = log.claim(queue(1)).await.unwrap().flows.remove(0);
    assert!((1..40).contains(&again.history.len()), "{}", again.history.len());
    assert!((1..40).contains(&again.messages.len()) && again.more_messages, "{}", again.messages.len());
    assert_eq!(log.history(&lease.flow, 0, 1_000).await.unwrap().len(), 40);
    assert_eq!(log.messages(&lease.flow, &[], 0, 1_000).await.unwrap().len(), 40);
    // One that is larger than everything is claimed all the same.
    let large = NewFlow::new(id("large"), "Order", 1, vec![7; 10 << 20]).with_priority(1);
    log.enqueue(vec![large]).await.unwrap();
    assert_eq!(log.claim(queue(20)).await.unwrap().flows.remove(0).input.len(), 10 << 20);
}

#[tokio::test]
async fn many_stalled_flows_are_offered_again_in_parts() {
    let redis = Redis::shared();
    let log = connect(redis).await;
    let flows = (0..2_600).map(|n| flow(&format!("flow-{n:04}")));
    log.enqueue(flows.collect()).await.unwrap();
    let mut claimed = Vec::new();
    while claimed.len() < 2_600 {
        claimed.extend(log.claim(queue(1_000)).await.unwrap().flows);
    }
    let stalls = claimed.iter().enumerate().map(|(n, flow)| {
        let mut commit = Commit::new(flow.lease.clone(), 1);
        let build = if n % 2 == 0 { "old" } else { "new" };
        commit.next = Next::Stall { reason: "why".into(), build: build.into() };
        log.commit(commit)
    });
    futures::future::try_join_all(stalls).await.unwrap();
    let types = [("Other".into(), 1), ("Order".into(), 1)];
    assert_eq!(log.reoffer(&types, "new").await.unwrap(), 1_300);
    assert_eq!(log.reoffer(&types, "new").await.unwrap(), 0);
    assert_eq!(log.reoffer(&types, "old").await.unwrap(), 1_300);
    let stalled = log.counts(&Filter::all()).await.unwrap().into_iter().find(|count| count.state == FlowState::Stalled);
    assert!(stalled.is_none());
}

#[tokio::test]
async fn limits_are_kept() {
    let redis = Redis::shared();
    let mut limits = Limits::default();
    limits.payload_bytes_max = 10;
    let options = RedisOptions::new(redis.url()).namespace(redis.fresh_prefix()).limits(limits.clone());
    let log = options.connect().await.unwrap();
    assert_eq!(log.limits(), limits);
    let large = NewFlow::new(id("a"), "Order", 1, vec![0; 11]);
    assert_eq!(log.enqueue(vec![large]).await.unwrap_err().kind(), ErrorKind::TooLarge);
}
