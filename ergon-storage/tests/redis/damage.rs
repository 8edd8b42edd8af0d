//! What others have written over, or is there in part.

use std::time::Duration;

use ergon_storage::{
    Channel, Committed, Enqueued, ErrorKind, ExecutionLog, Filter, FlowState, LeaseState, NewMessage,
    RedisExecutionLog, Retried, Sent,
};
use ergon_test_servers::{Persistence, Redis};

use super::{commit, flow, id, leased, queue};

/// The name of a part of the flow that was accepted as the `number`th.
fn part(letter: char, number: u32) -> String {
    format!("{{ergon}}:{letter}:{number:011x}")
}

/// Changes what only the log should.
fn change(redis: &Redis, command: &[&str]) {
    let answer = redis.command(command);
    assert!(!answer.starts_with('-'), "{answer}");
}

/// Does all of this in one call: a first one is under way meanwhile.
async fn in_one_call<T>(redis: &Redis, log: &RedisExecutionLog, work: impl Future<Output = T>) -> T {
    redis.pause();
    let first = tokio::spawn({
        let log = log.clone();
        async move { log.reoffer(&[], "build").await }
    });
    let (answer, ()) = tokio::join!(work, async {
        // The server tells nobody that it has received the first one; if it has not, there are two calls.
        tokio::time::sleep(Duration::from_millis(50)).await;
        redis.resume();
    });
    first.await.unwrap().unwrap();
    answer
}

/// What one flow suffers leaves no trace in the others of the same call, before it and after it.
#[tokio::test]
async fn an_operation_that_fails_leaves_the_others_of_its_call_alone() {
    let redis = Redis::start(Persistence::None);
    let (log, leases) = leased(&redis, 5).await;
    for lease in &leases {
        log.commit(commit(lease, 1)).await.unwrap();
    }
    // The third one's history is another program's, the fourth one's mailbox, too, and the fifth one's row is gone in
    // part.
    assert_eq!(redis.command(&["SET", &part('h', 3), "x"]), "+OK\r\n");
    assert_eq!(redis.command(&["SET", &part('m', 4), "x"]), "+OK\r\n");
    assert_eq!(redis.command(&["DEL", &part('g', 5)]), ":1\r\n");
    let (commits, message, new, cancelled) = in_one_call(&redis, &log, async {
        let commits = futures::future::join_all(leases[..3].iter().map(|lease| log.commit(commit(lease, 2))));
        let message = log.send(NewMessage::new(id("d"), Channel::signal("go"), "x").with_key("key"));
        let (new, cancelled) = (log.enqueue(vec![flow("new")]), log.cancel(&leases[4].flow, "why"));
        tokio::join!(commits, message, new, cancelled)
    })
    .await;
    let mut commits = commits.into_iter();
    for flow in ["a", "b"] {
        assert_eq!(commits.next().unwrap().unwrap(), Committed::Applied);
        assert_eq!(log.history(&id(flow), 0, 10).await.unwrap().len(), 2, "{flow}");
    }
    for (error, flow) in [(commits.next().unwrap().unwrap_err(), "c"), (message.unwrap_err(), "d")] {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        assert!(error.to_string().contains(&format!("flow {flow:?}")), "{error:?}");
    }
    assert_eq!(new.unwrap(), [Enqueued::Created]);
    assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Corrupt);
    // Once it is mended, nothing of what was refused is there.
    assert_eq!(redis.command(&["DEL", &part('m', 4)]), ":1\r\n");
    assert!(log.messages(&id("d"), &[], 0, 10).await.unwrap().is_empty());
    let message = NewMessage::new(id("d"), Channel::signal("go"), "x").with_key("key");
    assert_eq!(log.send(message).await.unwrap(), Sent::Accepted);
    assert_eq!(log.commit(commit(&leases[0], 3)).await.unwrap(), Committed::Applied);
    assert_eq!(log.history(&id("a"), 0, 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_history_that_differs_from_its_row_is_mended_or_reported() {
    let redis = Redis::start(Persistence::None);
    let (log, leases) = leased(&redis, 3).await;
    for lease in &leases[1..] {
        log.commit(commit(lease, 1)).await.unwrap();
    }
    // Half of a write that was never answered.
    assert_eq!(redis.command(&["RPUSH", &part('h', 1), "rubbish"]), ":1\r\n");
    assert_eq!(redis.command(&["RPUSH", &part('h', 2), "rubbish", "rubbish"]), ":3\r\n");
    for (lease, records) in [(&leases[0], 1), (&leases[1], 2)] {
        let number = u32::try_from(records).unwrap();
        assert_eq!(log.commit(commit(lease, number)).await.unwrap(), Committed::Applied);
        let history = log.history(&lease.flow, 0, 10).await.unwrap();
        assert_eq!(history.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=number).collect::<Vec<_>>());
    }
    // What was answered is gone.
    assert_eq!(redis.command(&["DEL", &part('h', 3)]), ":1\r\n");
    let error = log.commit(commit(&leases[2], 2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("flow \"c\": its history has 0 entries, by its row 1"), "{error}");
    assert_eq!(log.history(&id("c"), 0, 10).await.unwrap_err().kind(), ErrorKind::Corrupt);
    log.release(&leases[2]).await.unwrap();
    assert!(log.claim(queue(10)).await.unwrap().flows.is_empty());
    let info = log.flow(&id("c")).await.unwrap().unwrap().info;
    assert_eq!(info.state, FlowState::Stalled);
    assert!(info.reason.unwrap().contains("0 entries, by the row 1"));
}

/// A flow of which something is damaged is passed over, whatever it is, and hides no others.
#[tokio::test]
async fn a_damaged_flow_hides_no_others() {
    let redis = Redis::start(Persistence::None);
    let log = RedisExecutionLog::connect(redis.url()).await.unwrap();
    let names = ["row", "rest", "rest cut", "header", "header rubbish", "history", "record", "good", "good too"];
    log.enqueue(names.iter().map(|name| flow(name)).collect()).await.unwrap();
    for claimed in log.claim(queue(20)).await.unwrap().flows {
        log.commit(commit(&claimed.lease, 1)).await.unwrap();
        log.release(&claimed.lease).await.unwrap();
    }
    assert_eq!(redis.command(&["RENAME", &part('h', 6), "saved"]), "+OK\r\n");
    for damage in [
        ["SET", &part('f', 1), "rubbish"],
        ["SET", &part('g', 2), ""],
        ["SET", &part('g', 3), "rubbish"],
        ["SET", &part('i', 5), "\u{7f}rubbish"],
        ["SET", &part('h', 6), "rubbish"],
        ["RPUSH", &part('h', 7), "rubbish"],
    ] {
        change(&redis, &damage);
    }
    change(&redis, &["DEL", &part('g', 2), &part('i', 4)]);
    change(&redis, &["LPOP", &part('h', 7)]);

    let claimed = log.claim(queue(20)).await.unwrap();
    assert_eq!(claimed.flows.iter().map(|flow| flow.info.id.as_str()).collect::<Vec<_>>(), names[7..]);
    // Nobody spins over the others.
    let again = log.claim(queue(20)).await.unwrap();
    assert!(again.flows.is_empty());
    assert!(again.next_due_at.unwrap() > log.clock().now());
    // They are found by whoever looks.
    for (name, what) in [("row", "row"), ("rest", "second part"), ("rest cut", "second part"), ("header", "header")] {
        let error = log.flow(&id(name)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error:?}");
        assert!(error.to_string().contains(name) && error.to_string().contains(what), "{error}");
    }
    for name in ["history", "record"] {
        let info = log.flow(&id(name)).await.unwrap().unwrap().info;
        assert_eq!(info.state, FlowState::Stalled, "{name}");
        assert!(info.reason.as_ref().unwrap().contains("cannot be read"), "{info:?}");
    }
    let listed = log.list(&Filter::default(), None, 20).await.unwrap().flows;
    let listed: Vec<_> = listed.iter().map(|info| info.id.as_str()).collect();
    assert_eq!(listed, ["header", "header rubbish", "history", "record", "good", "good too"]);
    assert!(!log.counts(&Filter::all()).await.unwrap().is_empty());
    // One that is mended goes on.
    assert_eq!(redis.command(&["RENAME", "saved", &part('h', 6)]), "+OK\r\n");
    assert_eq!(log.retry(&id("history")).await.unwrap(), Retried::Scheduled);
    let mended = log.claim(queue(20)).await.unwrap().flows.remove(0);
    assert_eq!((mended.info.id.as_str(), mended.history.len()), ("history", 1));
}

#[tokio::test]
async fn a_damaged_flow_ends_no_other_lease() {
    let redis = Redis::start(Persistence::None);
    let (log, leases) = leased(&redis, 4).await;
    change(&redis, &["DEL", &part('g', 2)]);
    change(&redis, &["SET", &part('f', 3), "rubbish"]);
    let states = log.heartbeat(&leases, Duration::from_secs(60)).await.unwrap();
    assert_eq!(states, [LeaseState::Held, LeaseState::Lost, LeaseState::Lost, LeaseState::Held]);
}
