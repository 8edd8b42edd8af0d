//! Connections, servers and answers that are lost.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ergon_storage::{
    Cancelled, Channel, ChildOutcome, Commit, Committed, Enqueued, ErrorKind, ExecutionLog, FlowState, LeaseState,
    NewMessage, PostgresOptions, Sent, Topic,
};
use ergon_test_servers::{Postgres, Proxy, fresh_name};
use futures::future::join_all;
use tokio::sync::watch;

use super::{PATIENCE, SECOND, child, complete, flow, going, hinted, id, options, record, start, step, suspend, take};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_and_comes_back_goes_on() {
    let mut server = Postgres::start();
    let options = PostgresOptions::new(server.url()).connect_timeout(PATIENCE);
    let log = options.connect().await.unwrap();
    let lease = start(&log, "a").await;
    for number in 1..=3 {
        log.commit(step(&lease, number)).await.unwrap();
    }
    for number in 4..=6 {
        server.kill();
        let commit = tokio::spawn({
            let (log, lease) = (log.clone(), lease.clone());
            async move { log.commit(step(&lease, number)).await }
        });
        server.restart();
        assert_eq!(commit.await.unwrap().unwrap(), Committed::Applied, "it waits for the server");
    }
    assert_eq!(log.heartbeat(std::slice::from_ref(&lease), SECOND * 30).await.unwrap(), [LeaseState::Held]);
    let records = log.history(&id("a"), 0, 100).await.unwrap();
    assert_eq!(records, (1..=6).map(record).collect::<Vec<_>>(), "nothing is lost and nothing is there twice");
}

#[tokio::test]
async fn a_server_that_stays_away_is_unavailable() {
    let mut server = Postgres::start();
    let quick = PostgresOptions::new(server.url()).connect_timeout(Duration::from_millis(500));
    let log = quick.answer_timeout(SECOND).connect().await.unwrap();
    let lease = start(&log, "a").await;
    server.kill();
    let error = log.commit(step(&lease, 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.is_retryable());
    let error = log.flow(&id("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    server.restart();
    let committed = loop {
        match log.commit(step(&lease, 1)).await {
            Ok(committed) => break committed,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    };
    assert_eq!(committed, Committed::Applied);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_applied_once() {
    let server = Postgres::shared();
    let proxy = Proxy::to(server.address());
    let schema = fresh_name();
    let options = PostgresOptions::new(proxy.url(&server.url())).schema(&schema).connect_timeout(PATIENCE);
    let log = options.connect().await.unwrap();
    let lease = start(&log, "mother").await;
    let mut commits = [1, 2, 3].map(|number| step(&lease, number));
    commits[1].children = vec![child("child", "mother", 1)];
    commits[2].next = suspend(&[Channel::children()]);
    for (commit, expected) in commits.into_iter().zip([Committed::Applied, Committed::Applied, Committed::Suspended]) {
        proxy.lose_answers();
        let lost = proxy.lost();
        assert_eq!(log.commit(commit).await.unwrap(), expected);
        assert!(proxy.lost() > lost, "an answer was lost");
    }
    assert_eq!(log.history(&id("mother"), 0, 10).await.unwrap().len(), 3);
    // By a way on which nothing is lost.
    let direct = PostgresOptions::new(server.url()).schema(&schema).connect().await.unwrap();
    let child_lease = take(&direct, "child").await;
    proxy.lose_answers();
    assert_eq!(log.commit(going(&child_lease, 1, complete())).await.unwrap(), Committed::Applied);
    let heard = log.messages(&id("mother"), &[], 0, 10).await.unwrap();
    assert_eq!(heard.iter().map(|message| message.child).collect::<Vec<_>>(), [Some(ChildOutcome::Completed)]);
}

#[tokio::test]
async fn a_parent_is_hinted_when_the_answer_to_its_childs_end_is_lost() {
    let server = Postgres::shared();
    let proxy = Proxy::to(server.address());
    let schema = fresh_name();
    let direct = PostgresOptions::new(server.url()).schema(&schema).connect().await.unwrap();
    let options = PostgresOptions::new(proxy.url(&server.url())).schema(&schema).connect_timeout(PATIENCE);
    let log = options.connect().await.unwrap();
    // Of its own enqueue it is not told by others.
    let mother = start(&direct, "mother").await;
    let mut commit = Commit::new(mother, 1);
    commit.children = vec![child("child", "mother", 1)];
    direct.commit(commit).await.unwrap();
    let lease = take(&log, "child").await;
    let mut heard = direct.watch(Topic::Flow(id("mother")));
    proxy.lose_answers();
    assert_eq!(log.commit(going(&lease, 1, complete())).await.unwrap(), Committed::Applied);
    assert!(proxy.lost() > 0, "an answer was lost");
    hinted(&mut heard, "the end of a child").await;
}

#[tokio::test]
async fn what_cannot_be_repeated_is_unavailable_when_its_answer_is_lost() {
    let server = Postgres::shared();
    let proxy = Proxy::to(server.address());
    let options = PostgresOptions::new(proxy.url(&server.url())).schema(fresh_name()).connect_timeout(PATIENCE);
    let log = options.connect().await.unwrap();
    log.enqueue(vec![flow("a")]).await.unwrap();
    let message = NewMessage::new(id("a"), Channel::signal("go"), "7");
    // What was never sent before is prepared first, and repeated if the answer to that is lost.
    assert_eq!(log.send(message.clone()).await.unwrap(), Sent::Accepted);
    let message = message.with_key("k");
    proxy.lose_answers();
    let error = log.send(message.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert_eq!(log.send(message).await.unwrap(), Sent::Duplicate, "it had arrived");
    assert_eq!(log.messages(&id("a"), &[], 0, 10).await.unwrap().len(), 2);
    assert!(log.enqueue(vec![flow("a")]).await.is_ok());
    proxy.lose_answers();
    let error = log.enqueue(vec![flow("b")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert_eq!(log.enqueue(vec![flow("b")]).await.unwrap(), [Enqueued::Existing { same: true }]);
}

#[tokio::test]
async fn a_server_that_stops_answering_is_given_up() {
    let server = Postgres::shared();
    let proxy = Proxy::to(server.address());
    let options = PostgresOptions::new(proxy.url(&server.url())).schema(fresh_name());
    let log = options.connect_timeout(SECOND * 3).answer_timeout(SECOND).connect().await.unwrap();
    let lease = start(&log, "a").await;
    proxy.stall(true);
    let began = Instant::now();
    let error = log.commit(step(&lease, 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(began.elapsed() < SECOND * 30, "it does not wait for ever");
    proxy.stall(false);
    let committed = loop {
        match log.commit(step(&lease, 1)).await {
            Ok(committed) => break committed,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    };
    assert_eq!(committed, Committed::Applied);
    assert_eq!(log.history(&id("a"), 0, 10).await.unwrap().len(), 1);
}

/// However many calls wait before it, a call waits for a lost connection no longer than was asked for.
#[tokio::test]
async fn all_who_wait_for_a_server_that_is_away_are_told_in_time() {
    const CALLS: usize = 4_000;
    let mut server = Postgres::start();
    let log = PostgresOptions::new(server.url()).connect_timeout(SECOND * 3).connect().await.unwrap();
    log.enqueue(vec![flow("a")]).await.unwrap();
    server.kill();
    let began = Instant::now();
    let message = NewMessage::new(id("a"), Channel::signal("go"), "7");
    for answer in join_all((0..CALLS).map(|_| log.send(message.clone()))).await {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    assert!(began.elapsed() < SECOND * 12, "{:?}", began.elapsed());
}

/// Whoever waits for others that are answered on the same connection does not take the server for dead.
#[tokio::test]
async fn a_call_that_waits_for_others_has_its_own_time() {
    let server = Postgres::shared();
    let schema = fresh_name();
    let log = options().schema(&schema).answer_timeout(SECOND * 4).connect().await.unwrap();
    for name in ["a", "b", "c"] {
        log.enqueue(vec![flow(name)]).await.unwrap();
    }
    // Each is held a while after the one before: all of it takes longer than a call may take.
    let hold =
        |names: &str| format!("SELECT FROM {schema}.flows f JOIN {schema}.facts a USING (key) WHERE a.id IN ({names})");
    let holding = [("'a'", 2.0), ("'b'", 4.0), ("'c'", 6.0)].map(|(names, seconds)| {
        let hold = format!("BEGIN; {} FOR UPDATE OF f; SELECT pg_sleep({seconds}); COMMIT", hold(names));
        tokio::task::spawn_blocking(move || server.execute("postgres", &hold))
    });
    let sleeping = format!("SELECT FROM pg_stat_activity WHERE query LIKE '%{schema}%' AND wait_event = 'PgSleep'");
    while server.execute("postgres", &sleeping).len() < holding.len() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let cancelled = join_all(["a", "b", "c"].map(|name| {
        let (log, id) = (log.clone(), id(name));
        async move { log.cancel(&id, "enough").await }
    }))
    .await;
    for answer in cancelled {
        assert_eq!(answer.unwrap(), Cancelled::Now);
    }
    join_all(holding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_again_and_again_lose_nothing() {
    const FLOWS: u32 = 20;
    const STEPS: u32 = 15;
    const ANSWERS: usize = 25;
    let server = Postgres::shared();
    let proxy = Arc::new(Proxy::to(server.address()));
    let options = PostgresOptions::new(proxy.url(&server.url())).schema(fresh_name()).connect_timeout(PATIENCE);
    let log = options.connect().await.unwrap();
    let mut leases = Vec::new();
    for number in 0..FLOWS {
        leases.push(start(&log, &format!("flow-{number}")).await);
    }
    let answered = Arc::new(watch::Sender::new(0_usize));
    let running = leases.into_iter().map(|lease| {
        let (log, answered) = (log.clone(), Arc::clone(&answered));
        tokio::spawn(async move {
            for number in 1..=STEPS {
                let mut commit = step(&lease, number);
                if number == STEPS {
                    commit.next = complete();
                }
                assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
                answered.send_modify(|answered| *answered += 1);
            }
        })
    });
    let running = join_all(running.collect::<Vec<_>>());
    // At every so many answers, and again while the log connects anew. Were it done by time, a slow machine could be
    // cut off each time before it has got anywhere.
    let cutting = async {
        for cut in 1.. {
            answered.subscribe().wait_for(|answered| *answered >= cut * ANSWERS).await.unwrap();
            proxy.cut();
            while proxy.connections() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            proxy.cut();
        }
    };
    tokio::select! {
        ended = running => ended.into_iter().for_each(|flow| flow.unwrap()),
        () = cutting => {}
    }
    for number in 0..FLOWS {
        let name = id(&format!("flow-{number}"));
        assert_eq!(log.flow(&name).await.unwrap().unwrap().info.state, FlowState::Completed);
        assert_eq!(log.history(&name, 0, 100).await.unwrap().len(), STEPS as usize);
    }
}

/// A standby that had not heard of the latest claims grants them once more.
#[tokio::test]
async fn a_lease_that_a_failover_took_back_is_not_taken_for_the_next_one() {
    let server = Postgres::shared();
    let schema = fresh_name();
    let log = options().schema(&schema).connect().await.unwrap();
    log.enqueue(vec![flow("a")]).await.unwrap();
    let copy = format!("CREATE TABLE {schema}.earlier AS SELECT * FROM {schema}.flows");
    server.execute("postgres", &copy);
    let lost = take(&log, "a").await;
    let failover = format!("DELETE FROM {schema}.flows; INSERT INTO {schema}.flows SELECT * FROM {schema}.earlier");
    server.execute("postgres", &failover);
    let lease = take(&log, "a").await;
    assert_eq!(lease.epoch, lost.epoch, "the standby counts on from what it knows");

    let error = log.commit(step(&lost, 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error:?}");
    let held = log.heartbeat(&[lost.clone(), lease.clone()], SECOND).await.unwrap();
    assert_eq!(held, [LeaseState::Lost, LeaseState::Held]);
    assert_eq!(log.release(&lost).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    assert_eq!(log.commit(step(&lease, 1)).await.unwrap(), Committed::Applied);
    let error = log.commit(step(&lost, 2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error:?}");
}
