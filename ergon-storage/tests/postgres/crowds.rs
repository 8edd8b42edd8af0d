//! Many calls at once, and much that there is.

use std::{sync::Arc, time::Duration};

use ergon_storage::{
    Channel, ClaimRequest, ClaimTarget, Commit, Committed, ExecutionLog, FlowState, NewFlow, NewMessage, Next,
    PostgresExecutionLog, PostgresOptions, PrunePolicy,
};
use ergon_test_servers::{Postgres, fresh_name};
use futures::future::join_all;

use super::{SECOND, ask_everything, child, complete, flow, going, id, options, start, step, suspend, take};

/// Parents go to sleep, their children end and messages come in, all at once and from several processes: everything
/// is heard, everybody wakes, and nobody waits for each other in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn families_that_end_at_once_are_heard() {
    const PARENTS: usize = 30;
    const CHILDREN: u32 = 6;
    let server = Postgres::shared();
    let database = server.fresh_database();
    let options = PostgresOptions::new(&database);
    let logs = [options.clone().connect().await, options.clone().connect().await, options.connect().await];
    let logs = logs.map(Result::unwrap);
    let parents: Vec<String> = (0..PARENTS).map(|number| format!("parent-{number}")).collect();
    logs[0].enqueue(parents.iter().map(|name| flow(name)).collect()).await.unwrap();
    let mut tasks = Vec::new();
    let mut suspensions = Vec::new();
    for (number, name) in parents.iter().enumerate() {
        let lease = take(&logs[number % 3], name).await;
        let mut commit = Commit::new(lease.clone(), 1);
        commit.children = (0..CHILDREN).map(|path| child(&format!("{name}/{path}"), name, path)).collect();
        logs[number % 3].commit(commit).await.unwrap();
        suspensions.push(lease);
    }
    let mut children = Vec::new();
    for path in 0..CHILDREN {
        for name in &parents {
            children.push(take(&logs[0], &format!("{name}/{path}")).await);
        }
    }
    for (number, lease) in suspensions.iter().cloned().enumerate() {
        let log = logs[(number + 1) % 3].clone();
        tasks.push(tokio::spawn(async move {
            let channels = [Channel::children(), Channel::signal("go")];
            log.commit(going(&lease, 2, suspend(&channels))).await.unwrap()
        }));
    }
    for (number, lease) in children.into_iter().enumerate() {
        let log = logs[number % 3].clone();
        tasks.push(tokio::spawn(async move { log.commit(going(&lease, 1, complete())).await.unwrap() }));
    }
    for name in parents.iter().rev() {
        for log in &logs {
            let (log, to) = (log.clone(), id(name));
            tasks.push(tokio::spawn(async move {
                log.send(NewMessage::new(to, Channel::signal("go"), "7")).await.unwrap();
                Committed::Applied
            }));
        }
    }
    let answers: Vec<Committed> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    for (name, answer) in parents.iter().zip(&answers) {
        let info = logs[0].flow(&id(name)).await.unwrap().unwrap().info;
        let expected = if *answer == Committed::Awake { FlowState::Running } else { FlowState::Scheduled };
        assert_eq!(info.state, expected, "{name}");
        let messages = logs[0].messages(&id(name), &[], 0, 100).await.unwrap();
        let mut heard: Vec<_> = messages.iter().filter_map(|message| message.reference.clone()).collect();
        heard.sort();
        assert_eq!(heard, (0..CHILDREN).map(|path| path.to_string().into()).collect::<Vec<Arc<str>>>(), "{name}");
        assert_eq!(messages.len(), CHILDREN as usize + 3, "{name}");
        assert!(messages.iter().zip(1..).all(|(message, seq)| message.seq == seq), "{name}");
    }
    let name = database.rsplit('/').next().unwrap();
    let deadlocks =
        format!("SELECT pg_stat_force_next_flush(); SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'");
    assert_eq!(server.execute("postgres", &deadlocks).last().map(String::as_str), Some("0"));
}

/// A record or a message that cannot be read stalls its flow, and hides no other.
#[tokio::test]
async fn what_cannot_be_read_hides_no_other_flow() {
    let server = Postgres::shared();
    let schema = fresh_name();
    let log = options().schema(&schema).connect().await.unwrap();
    for name in ["good", "history", "mailbox"] {
        let lease = start(&log, name).await;
        log.commit(step(&lease, 1)).await.unwrap();
        log.send(NewMessage::new(id(name), Channel::signal("go"), "7")).await.unwrap();
        log.release(&lease).await.unwrap();
    }
    let key = |name: &str| format!("(SELECT key FROM {schema}.facts WHERE id = '{name}')");
    let [history, mailbox] = [key("history"), key("mailbox")];
    server.execute("postgres", &format!("UPDATE {schema}.records SET path = '?' WHERE k >> 24 = {history}"));
    server.execute("postgres", &format!("UPDATE {schema}.messages SET outcome = 99 WHERE flow = {mailbox}"));
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let mut request = ClaimRequest::new("worker", target);
    request.limit = 10;
    let claimed = log.claim(request).await.unwrap().flows;
    assert_eq!(claimed.iter().map(|flow| flow.info.id.as_str()).collect::<Vec<_>>(), ["good"]);
    assert_eq!((claimed[0].history.len(), claimed[0].messages.len()), (1, 1));
    for name in ["history", "mailbox"] {
        let info = log.flow(&id(name)).await.unwrap().unwrap().info;
        assert_eq!(info.state, FlowState::Stalled, "{name}");
        assert!(info.reason.unwrap().contains("cannot read"), "{name}");
    }
}

/// A child is retried, which takes back what it has told, just when its parent takes it in: the mailbox is counted
/// rightly afterwards, and the parent does not sleep over the next message.
#[tokio::test]
async fn what_is_taken_back_while_a_commit_waits_is_not_taken_in() {
    let server = Postgres::shared();
    let schema = fresh_name();
    let log = options().schema(&schema).connect().await.unwrap();
    let parent = start(&log, "parent").await;
    let mut commit = Commit::new(parent.clone(), 1);
    commit.children = vec![child("child", "parent", 1)];
    log.commit(commit).await.unwrap();
    let lease = take(&log, "child").await;
    let fail = Next::Fail { error: "".into(), reason: "broken".into(), again: Vec::new() };
    log.commit(going(&lease, 1, fail)).await.unwrap();
    assert_eq!(log.messages(&id("parent"), &[], 0, 10).await.unwrap().len(), 1);

    let retry = format!("BEGIN; SELECT {schema}.retry(NULL, 'child'); SELECT pg_sleep(1); COMMIT");
    let retry = tokio::task::spawn_blocking(move || server.execute("postgres", &retry));
    let holds = format!("SELECT FROM pg_stat_activity WHERE query LIKE '%{schema}.retry%' AND wait_event = 'PgSleep'");
    while server.execute("postgres", &holds).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut commit = Commit::new(parent.clone(), 2);
    commit.consumed = vec![1];
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    retry.await.unwrap();

    let waiting =
        format!("SELECT waiting FROM {schema}.flows f JOIN {schema}.facts a USING (key) WHERE a.id = 'parent'");
    assert_eq!(server.execute("postgres", &waiting), ["0"]);
    log.send(NewMessage::new(id("parent"), Channel::signal("go"), "7")).await.unwrap();
    let suspended = log.commit(going(&parent, 3, suspend(&[Channel::signal("go")]))).await.unwrap();
    assert_eq!(suspended, Committed::Awake);
}

/// A flow that is retried and ends anew while it is about to be forgotten is not as old as it was.
#[tokio::test]
async fn what_ends_anew_while_it_is_pruned_stays() {
    let server = Postgres::shared();
    let schema = fresh_name();
    let log = options().schema(&schema).connect().await.unwrap();
    let lease = start(&log, "a").await;
    let fail = Next::Fail { error: "".into(), reason: "broken".into(), again: Vec::new() };
    log.commit(going(&lease, 1, fail)).await.unwrap();
    server.execute("postgres", &format!("UPDATE {schema}.flows SET finished_us = 0"));

    let now = log.clock().now().as_micros();
    let end = format!("BEGIN; UPDATE {schema}.flows SET finished_us = {now}; SELECT pg_sleep(1); COMMIT");
    let end = tokio::task::spawn_blocking(move || server.execute("postgres", &end));
    let holds =
        format!("SELECT FROM pg_stat_activity WHERE query LIKE '%UPDATE {schema}.flows%' AND wait_event = 'PgSleep'");
    while server.execute("postgres", &holds).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(log.prune(&PrunePolicy::older_than(SECOND * 3600)).await.unwrap(), 0);
    end.await.unwrap();
    assert!(log.flow(&id("a")).await.unwrap().is_some());
}

/// How many rows and index entries of a schema were read by connections that have ended.
fn rows_read(schema: &str) -> u64 {
    let read = format!(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) + (SELECT sum(idx_tup_read) \
         FROM pg_stat_user_indexes WHERE schemaname = '{schema}' AND relname <> 'lanes') \
         FROM pg_stat_user_tables WHERE schemaname = '{schema}' AND relname NOT IN ('lanes', 'versions')"
    );
    Postgres::shared().execute("postgres", &read)[0].parse().unwrap()
}

/// A log whose connections have this name.
async fn connect_as(name: &str, schema: &str) -> PostgresExecutionLog {
    let url = format!("{}?application_name={name}", Postgres::shared().url());
    PostgresOptions::new(url).schema(schema).connect().await.unwrap()
}

/// The connections of this name have ended: what they have read is counted.
async fn ended(name: &str) {
    let open = format!("SELECT FROM pg_stat_activity WHERE application_name = '{name}'");
    while !Postgres::shared().execute("postgres", &open).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What prunes a type reads none of the others' flows, however many of them ended before.
#[tokio::test]
async fn the_flows_of_other_types_are_not_read_to_prune_one() {
    const OTHERS: usize = 2_000;
    let (schema, filling, pruning) = (fresh_name(), fresh_name(), fresh_name());
    let log = connect_as(&filling, &schema).await;
    let others: Vec<_> = (0..OTHERS).map(|number| id(&format!("other-{number}"))).collect();
    for some in others.chunks(500) {
        let flows = some.iter().map(|id| NewFlow::new(id.clone(), "Refund", 1, &b"{}"[..]));
        log.enqueue(flows.collect()).await.unwrap();
        join_all(some.iter().map(|id| log.cancel(id, "enough"))).await;
    }
    log.enqueue(vec![flow("a"), flow("b")]).await.unwrap();
    for name in ["a", "b"] {
        log.cancel(&id(name), "enough").await.unwrap();
    }
    drop(log);
    ended(&filling).await;
    let before = rows_read(&schema);
    let log = connect_as(&pruning, &schema).await;
    let orders = PrunePolicy::older_than(Duration::ZERO).with_flow_type("Order");
    assert_eq!(log.prune(&orders.clone().with_keep(1)).await.unwrap(), 1);
    assert_eq!(log.prune(&orders).await.unwrap(), 1);
    drop(log);
    ended(&pruning).await;
    let read = rows_read(&schema) - before;
    assert!(read < 200, "{read} rows and index entries were read");
}

/// Plans that were made when the tables were small are good when they have grown: whatever is asked costs what it
/// finds, not what there is.
#[tokio::test]
async fn plans_stay_good_when_tables_grow() {
    const ROUNDS: usize = 10;
    const FLOWS: usize = 5_000;
    let server = Postgres::shared();
    let schema = fresh_name();
    let connect = async |name: &str| connect_as(name, &schema).await;
    let [first, second, third] = [fresh_name(), fresh_name(), fresh_name()];
    ask_everything(&connect(&first).await, "first").await;
    ended(&first).await;
    for table in ["flows", "facts", "records", "messages", "message_keys", "items"] {
        server.execute("postgres", &format!("VACUUM ANALYZE {schema}.{table}"));
    }
    let log = connect(&second).await;
    ask_everything(&log, "second").await;
    let other = connect(&third).await;
    for first in (0..FLOWS).step_by(500) {
        let flows = (first..first + 500).map(|number| {
            let name = format!("waiting-{number}");
            if number % 2 == 0 { flow(&name) } else { child(&name, "nobody", 1) }
        });
        other.enqueue(flows.collect()).await.unwrap();
    }
    for number in 0..500 {
        other.send(NewMessage::new(id(&format!("waiting-{number}")), Channel::children(), "7")).await.unwrap();
        other.cancel(&id(&format!("waiting-{}", number + 500)), "enough").await.unwrap();
    }
    drop(other);
    ended(&third).await;
    let before = rows_read(&schema);
    for round in 0..ROUNDS {
        ask_everything(&log, &format!("third-{round}")).await;
    }
    drop(log);
    ended(&second).await;
    let read = rows_read(&schema) - before;
    let enough = u64::try_from(ROUNDS * FLOWS).unwrap() / 2;
    assert!(read < enough, "{read} rows and index entries were read");
    println!("{read} rows and index entries were read");
}
