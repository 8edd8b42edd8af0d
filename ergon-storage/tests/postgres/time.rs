//! What the server's clock decides.

use std::time::Duration;

use ergon_storage::{ClaimRequest, ClaimTarget, Clock, ExecutionLog, Start, SystemClock};
use ergon_test_servers::{Postgres, fresh_name};

use super::{SECOND, connect, flow, id, options};

#[tokio::test]
async fn the_servers_clock_decides() {
    let log = connect().await;
    let (server, here) = (log.clock().now(), SystemClock.now());
    assert!(server.since(here).max(here.since(server)) < SECOND, "both are on this machine");
    let at = server.saturating_add(Duration::from_millis(100));
    log.enqueue(vec![flow("a").with_start(Start::At(at))]).await.unwrap();
    let request = ClaimRequest::new("worker", ClaimTarget::Flow(id("a")));
    let claimed = log.claim(request.clone()).await.unwrap();
    assert!(claimed.flows.is_empty() || log.clock().now() >= at, "it is not due yet");
    let lease = loop {
        let claimed = log.claim(request.clone()).await.unwrap();
        if let Some(flow) = claimed.flows.into_iter().next() {
            break flow;
        }
        log.clock().sleep_until(claimed.next_due_at.expect("it starts some time")).await;
    };
    assert!(lease.info.started_at.unwrap() >= at, "a start is never early");
}

#[tokio::test]
async fn flows_that_others_hold_are_looked_at_again_later() {
    let server = Postgres::shared();
    let schema = fresh_name();
    let log = options().schema(&schema).connect().await.unwrap();
    log.enqueue(vec![flow("a")]).await.unwrap();
    let holder = tokio::task::spawn_blocking({
        let schema = schema.clone();
        move || {
            let hold = format!("BEGIN; SELECT FROM {schema}.flows FOR UPDATE; SELECT pg_sleep(0.3); COMMIT");
            server.execute("postgres", &hold);
        }
    });
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let mut held = 0;
    loop {
        let claimed = log.claim(ClaimRequest::new("worker", target.clone())).await.unwrap();
        if !claimed.flows.is_empty() {
            break;
        }
        held += 1;
        log.clock().sleep_until(claimed.next_due_at.expect("it is due")).await;
    }
    assert!(held < 60, "nobody spins over what others hold: {held} claims in vain");
    holder.await.unwrap();
}
