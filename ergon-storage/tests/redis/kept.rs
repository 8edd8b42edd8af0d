//! What stays on the server, and what does not.

use std::{sync::Arc, time::Duration};

use ergon_storage::{
    CallPath, Channel, Commit, Enqueued, ErrorKind, ExecutionLog, Filter, ManualClock, NewFlow, NewMessage, Next,
    Parent, PrunePolicy, RedisOptions, Sent, Wake,
};
use ergon_test_servers::{Persistence, Redis};

use super::{connect, flow, id, keys, one, step};

/// What prunes a type looks at none of the others' flows, however many of them ended before.
#[tokio::test]
async fn the_flows_of_other_types_are_not_looked_at_to_prune_one() {
    let redis = Redis::start(Persistence::None);
    let log = connect(&redis).await;
    for first in (0..3_000).step_by(500) {
        let others: Vec<_> = (first..first + 500).map(|number| id(&format!("other-{number}"))).collect();
        let flows = others.iter().map(|id| NewFlow::new(id.clone(), "Refund", 1, &b"{}"[..]));
        log.enqueue(flows.collect()).await.unwrap();
        for cancelled in futures::future::join_all(others.iter().map(|id| log.cancel(id, ""))).await {
            cancelled.unwrap();
        }
    }
    log.enqueue(vec![flow("a")]).await.unwrap();
    log.cancel(&id("a"), "").await.unwrap();
    _ = redis.command(&["CONFIG", "RESETSTAT"]);
    let orders = PrunePolicy::older_than(Duration::ZERO).with_flow_type("Order");
    assert_eq!(log.prune(&orders).await.unwrap(), 1);
    let stats = redis.command(&["INFO", "commandstats"]);
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_fcall:calls="));
    assert!(calls.is_some_and(|calls| calls.starts_with("1,")), "{stats}");
}

#[tokio::test]
async fn what_is_forgotten_leaves_no_key_behind() {
    let redis = Redis::start(Persistence::None);
    let clock = ManualClock::new();
    let log = RedisOptions::new(redis.url()).clock(Arc::new(clock.clone())).connect().await.unwrap();
    for round in 0..3 {
        let names: Vec<_> = (0..40).map(|number| format!("flow-{number}")).collect();
        let flows = names.iter().zip(0..).map(|(name, number)| {
            let parent = Parent { id: id("flow-0"), path: CallPath::top(number), detached: number % 2 == 0 };
            let of_its_own = flow(name).with_queue(format!("queue-{round}-{}", number % 3)).with_priority(round);
            if number == 0 { of_its_own } else { of_its_own.with_parent(parent) }
        });
        log.enqueue(flows.collect()).await.unwrap();
        for (name, number) in names.iter().zip(0..) {
            let message = NewMessage::new(id(name), Channel::signal("go"), "x").with_key("k");
            assert_eq!(log.send(message).await.unwrap(), Sent::Accepted);
            let Some(claimed) = log.claim(one(name)).await.unwrap().flows.pop() else { continue };
            let mut commit = Commit::new(claimed.lease, 1);
            commit.records = vec![step(1), step(2)];
            commit.next = match number % 4 {
                0 => Next::suspend(Wake { at: None, channels: vec![Channel::signal("never")] }),
                1 => Next::Fail { error: "e".into(), reason: "r".into(), again: vec![CallPath::top(2)] },
                2 => Next::Stall { reason: "r".into(), build: "build".into() },
                _ => Next::Complete { result: "1".into() },
            };
            log.commit(commit).await.unwrap();
        }
        log.retry(&id("flow-1")).await.unwrap();
        for name in &names {
            log.cancel(&id(name), "").await.unwrap();
        }
        assert!(keys(&redis).len() > 100);
        clock.advance(Duration::from_secs(1));
        assert!(log.delete(&id("flow-7")).await.unwrap());
        assert_eq!(log.prune(&PrunePolicy::older_than(Duration::ZERO).with_limit(20)).await.unwrap(), 20);
        assert_eq!(log.prune(&PrunePolicy::older_than(Duration::ZERO)).await.unwrap(), 19);
        assert_eq!(keys(&redis), ["{ergon}:meta"], "round {round}");
    }
    // Nothing ever expires by itself.
    log.enqueue(vec![flow("a")]).await.unwrap();
    let keyspace = redis.command(&["INFO", "keyspace"]);
    assert!(keyspace.contains("expires=0"), "{keyspace}");
}

#[tokio::test]
async fn a_large_batch_is_accepted_as_a_whole() {
    let redis = Redis::start(Persistence::None);
    let log = connect(&redis).await;
    let batch = |name: &str, size: usize| (0..size).map(|n| flow(&format!("{name}-{n}"))).collect::<Vec<_>>();
    assert_eq!(log.enqueue(batch("many", 10_000)).await.unwrap(), vec![Enqueued::Created; 10_000]);
    let again = log.enqueue(batch("many", 10_000)).await.unwrap();
    assert_eq!(again, vec![Enqueued::Existing { same: true }; 10_000]);
    let error = log.enqueue(batch("too many", 100_001)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(log.flow(&id("too many-0")).await.unwrap(), None);
    assert_eq!(log.counts(&Filter::all()).await.unwrap()[0].flows, 10_000);
}
