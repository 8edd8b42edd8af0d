//! The server is killed, is full, answers nobody or has lost what it had.

use std::time::Duration;

use ergon_storage::{
    Channel, Commit, Committed, Enqueued, ErrorKind, ExecutionLog, NewMessage, Next, PrunePolicy, RedisExecutionLog,
    RedisOptions, Sent, Topic,
};
use ergon_test_servers::{Persistence, Proxy, Redis};

use super::{PATIENCE, connect, flow, id, one, refused, step, until_it_works};

/// What was answered is there after the server was killed, when it appends and syncs before it answers.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_answered_is_lost_when_the_server_is_killed() {
    let mut redis = Redis::start(Persistence::Always);
    let log = RedisExecutionLog::connect(redis.url()).await.unwrap();
    let mut queue = log.watch(Topic::Queue);
    for round in 0..3 {
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let log = log.clone();
                tokio::spawn(async move {
                    let mut answered = Vec::new();
                    for number in 0..10_000 {
                        let name = format!("flow-{round}-{writer}-{number}");
                        match log.enqueue(vec![flow(&name)]).await {
                            Ok(_) => answered.push(name),
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                                return answered;
                            }
                        }
                    }
                    answered
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        redis.kill();
        redis.restart();
        for writer in writers {
            for name in writer.await.unwrap() {
                let found = until_it_works(async || log.flow(&id(&name)).await).await;
                assert!(found.is_some(), "{name} was answered");
            }
        }
    }
    // Hints arrive again.
    let hinted = async {
        loop {
            queue.changed().await;
            until_it_works(async || log.enqueue(vec![flow("again")]).await).await;
        }
    };
    _ = tokio::time::timeout(Duration::from_millis(300), hinted).await;
    log.enqueue(vec![flow("one more")]).await.unwrap();
    tokio::time::timeout(PATIENCE, queue.changed()).await.expect("it is hinted at");
}

/// The functions and all flows are gone: the log goes on, empty.
#[tokio::test]
async fn lost_functions_are_loaded_again() {
    let redis = Redis::start(Persistence::None);
    let log = RedisExecutionLog::connect(redis.url()).await.unwrap();
    log.enqueue(vec![flow("a")]).await.unwrap();
    for flush in [&["FUNCTION", "FLUSH"][..], &["FLUSHALL"]] {
        assert_eq!(redis.command(flush), "+OK\r\n");
        log.enqueue(vec![flow("a")]).await.unwrap();
        assert!(log.flow(&id("a")).await.unwrap().is_some());
    }
    let mut redis = redis;
    redis.kill();
    redis.restart();
    assert_eq!(until_it_works(async || log.enqueue(vec![flow("a")]).await).await, [Enqueued::Created]);
}

/// A server that lost its latest writes numbers flows and claims as it did before; the leases differ all the same.
#[tokio::test]
async fn a_lease_from_before_a_loss_is_not_taken_for_one_from_after_it() {
    let redis = Redis::start(Persistence::None);
    let log = RedisExecutionLog::connect(redis.url()).await.unwrap();
    log.enqueue(vec![flow("a")]).await.unwrap();
    let before = log.claim(one("a")).await.unwrap().flows.remove(0).lease;
    assert_eq!(redis.command(&["FLUSHALL"]), "+OK\r\n");
    log.enqueue(vec![flow("a")]).await.unwrap();
    let after = log.claim(one("a")).await.unwrap().flows.remove(0).lease;
    assert_eq!((before.epoch, &before.flow), (after.epoch, &after.flow));
    let mut commit = Commit::new(before, 1);
    commit.records.push(step(1));
    assert_eq!(log.commit(commit.clone()).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    commit.lease = after;
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_recognised() {
    let redis = Redis::shared();
    let proxy = Proxy::to(redis.address());
    let options = RedisOptions::new(proxy.url(&redis.url())).namespace(redis.fresh_prefix());
    // Two would take turns.
    let log = options.connections(1).connect().await.unwrap();
    log.enqueue(vec![flow("a")]).await.unwrap();
    let lease = log.claim(one("a")).await.unwrap().flows.remove(0).lease;
    for number in 1..=5 {
        let mut commit = Commit::new(lease.clone(), number);
        commit.records.push(step(number));
        if number == 5 {
            commit.next = Next::Complete { result: "1".into() };
        }
        proxy.lose_answers();
        let error = log.commit(commit.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert_eq!(until_it_works(async || log.commit(commit.clone()).await).await, Committed::Applied);
        assert_eq!(log.history(&id("a"), 0, 10).await.unwrap().len(), number as usize);
    }
    // A sender's key does the same for a message.
    log.enqueue(vec![flow("b")]).await.unwrap();
    let message = NewMessage::new(id("b"), Channel::signal("go"), "").with_key("k");
    proxy.lose_answers();
    assert!(log.send(message.clone()).await.unwrap_err().is_retryable());
    assert_eq!(until_it_works(async || log.send(message.clone()).await).await, Sent::Duplicate);
    assert!(proxy.lost() >= 6);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_in_time() {
    let redis = Redis::start(Persistence::None);
    let log = RedisOptions::new(redis.url()).answer_timeout(Duration::from_millis(200)).connect().await.unwrap();
    redis.pause();
    let error = log.enqueue(vec![flow("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let error = log.flow(&id("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    redis.resume();
    until_it_works(async || log.enqueue(vec![flow("b")]).await).await;
}

#[tokio::test]
async fn a_replica_is_no_place_to_write() {
    let redis = Redis::start(Persistence::None);
    let log = connect(&redis).await;
    assert_eq!(redis.command(&["REPLICAOF", "127.0.0.1", "1"]), "+OK\r\n");
    let error = log.enqueue(vec![flow("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("read-only replica"), "{error}");
    let error = refused(RedisOptions::new(redis.url())).await;
    assert!(error.to_string().contains("read-only replica"), "{error}");
    // It becomes the master.
    assert_eq!(redis.command(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
    assert_eq!(until_it_works(async || log.enqueue(vec![flow("a")]).await).await, [Enqueued::Created]);
}

#[tokio::test]
async fn a_full_server_refuses_and_can_be_pruned() {
    let redis = Redis::start(Persistence::None);
    let log = connect(&redis).await;
    log.enqueue(vec![flow("a")]).await.unwrap();
    log.cancel(&id("a"), "").await.unwrap();
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "1"]), "+OK\r\n");
    let error = log.enqueue(vec![flow("b")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("maxmemory"), "{error}");
    assert_eq!(log.prune(&PrunePolicy::older_than(Duration::ZERO)).await.unwrap(), 1);
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "0"]), "+OK\r\n");
    assert_eq!(log.enqueue(vec![flow("b")]).await.unwrap(), [Enqueued::Created]);
}
