//! What the PostgreSQL log does beyond the laws of every log: how it is connected, and what it does when connections,
//! servers and answers are lost.
#![cfg(feature = "postgres")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ergon_storage::{
    CallKind, CallPath, Cancelled, Channel, ChildOutcome, ClaimRequest, ClaimTarget, Clock, Commit, Committed,
    Enqueued, Error, ErrorKind, ExecutionLog, Filter, FlowId, FlowState, Lease, LeaseState, NewFlow, NewMessage, Next,
    Parent, Phase, PostgresExecutionLog, PostgresOptions, PrunePolicy, Record, Sent, Start, SynchronousCommit,
    SystemClock, Timestamp, Topic, Wake, Watch,
};
use ergon_test_servers::{PgBouncer, PoolMode, Postgres, Proxy, fresh_name};
use futures::future::join_all;
use tokio::sync::watch;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn id(name: &str) -> FlowId {
    FlowId::new(name).unwrap()
}

fn flow(name: &str) -> NewFlow {
    NewFlow::new(id(name), "Order", 1, &b"{}"[..])
}

fn child(name: &str, parent: &str, path: u32) -> NewFlow {
    flow(name).with_parent(Parent { id: id(parent), path: CallPath::top(path), detached: false })
}

fn record(seq: u32) -> Record {
    Record {
        seq,
        at: Timestamp::EPOCH,
        path: CallPath::top(seq),
        kind: CallKind::Step,
        phase: Phase::Completed,
        name: "charge".into(),
        args_hash: 7,
        attempt: 1,
        started_at: Timestamp::EPOCH,
        due_at: None,
        reference: None,
        payload: "7".into(),
    }
}

/// A commit of one step.
fn step(lease: &Lease, number: u32) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.records = vec![record(number)];
    commit
}

fn going(lease: &Lease, number: u32, next: Next) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.next = next;
    commit
}

fn complete() -> Next {
    Next::Complete { result: "7".into() }
}

fn suspend(channels: &[Channel]) -> Next {
    Next::Suspend(Wake { at: None, channels: channels.to_vec() })
}

/// A log of its own on the shared server.
fn options() -> PostgresOptions {
    PostgresOptions::new(Postgres::shared().url()).schema(fresh_name())
}

async fn connect() -> PostgresExecutionLog {
    options().connect().await.unwrap()
}

async fn start(log: &PostgresExecutionLog, name: &str) -> Lease {
    assert_eq!(log.enqueue(vec![flow(name)]).await.unwrap(), [Enqueued::Created]);
    take(log, name).await
}

async fn take(log: &PostgresExecutionLog, name: &str) -> Lease {
    let claimed = log.claim(ClaimRequest::new("worker", ClaimTarget::Flow(id(name)))).await.unwrap();
    claimed.flows.into_iter().next().expect("it is due").lease
}

async fn refused(options: PostgresOptions) -> Error {
    let error = options.connect().await.expect_err("this is refused");
    for text in [format!("{error:?}"), error.to_string()] {
        assert!(!text.contains("secret"), "no error names the password: {text}");
    }
    error
}

async fn hinted(watch: &mut Watch, why: &str) {
    let hint = tokio::time::timeout(PATIENCE, watch.changed()).await;
    assert!(hint.is_ok(), "there is a hint after {why}");
}

// ---- connecting ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_no_url_is_refused() {
    for url in ["", "orders", "postgres://", "postgres://ada:secret@host:secret/x", "mysql://ada:secret@host/x"] {
        assert_eq!(refused(PostgresOptions::new(url)).await.kind(), ErrorKind::Invalid, "{url}");
    }
    let shown = format!("{:?}", PostgresOptions::new("postgres://ada:secret@host/x"));
    assert!(shown.contains("database \\\"x\\\" at host:5432") && !shown.contains("secret"), "{shown}");
}

#[tokio::test]
async fn what_is_no_schema_is_refused() {
    for schema in ["", "pg_mine", "a\0b", "a'b", "a\"b", "$$", &"x".repeat(64)] {
        assert_eq!(refused(options().schema(schema)).await.kind(), ErrorKind::Invalid, "{schema:?}");
    }
    for schema in ["Größe; --", &"x".repeat(63), "select"] {
        let log = options().schema(schema).connect().await.unwrap();
        assert_eq!(log.enqueue(vec![flow("a")]).await.unwrap(), [Enqueued::Created]);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for host in ["127.0.0.1", "no-such-host.invalid"] {
        let url = format!("postgres://ada:secret@{host}:{port}/orders");
        let error = refused(PostgresOptions::new(url).connect_timeout(SECOND * 5)).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains(&format!("database \"orders\" at {host}:{port}")), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_silent_is_unavailable() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://ada:secret@{}/orders", silent.local_addr().unwrap());
    let error = refused(PostgresOptions::new(url).connect_timeout(Duration::from_millis(200))).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_host_that_accepts_and_stays_silent_leaves_time_for_the_others() {
    let server = Postgres::shared();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent, address) = (silent.local_addr().unwrap(), server.address());
    let url = format!("postgres://postgres@{silent},{address}/postgres");
    // A part of it is what the silent host costs each connection.
    let options = PostgresOptions::new(url).schema(fresh_name()).connect_timeout(SECOND * 4).connections(1);
    let log = options.connect().await.unwrap();
    start(&log, "a").await;
}

/// Wherever in its first words the server stops answering, the caller hears of it.
#[tokio::test]
async fn a_server_that_falls_silent_while_it_is_connected_is_unavailable() {
    let server = Postgres::shared();
    let began = Instant::now();
    let refused = (0..8).map(async |words: u32| {
        let proxy = Proxy::to(server.address());
        proxy.stall_after(16 << words);
        let options = PostgresOptions::new(proxy.url(&server.url())).schema(fresh_name());
        let quick = options.connect_timeout(SECOND * 2).answer_timeout(SECOND);
        let error = refused(quick).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.to_string().contains("did not answer within"), "{error}");
    });
    join_all(refused).await;
    assert!(began.elapsed() < SECOND * 30, "it does not wait for ever");
}

#[tokio::test]
async fn a_wrong_password_or_database_is_refused() {
    let server = Postgres::shared();
    server
        .execute("postgres", "CREATE ROLE ada LOGIN PASSWORD 'right' IN ROLE with_password; ALTER ROLE ada SUPERUSER");
    let url = |password: &str, database: &str| format!("postgres://ada:{password}@{}/{database}", server.address());
    for (url, hint) in [
        (url("secret", "postgres"), "does not accept the user or the password"),
        (url("right", "no_such_database"), "does not exist"),
        (format!("postgres://nobody_here:secret@{}/postgres", server.address()), "does not accept the user"),
    ] {
        let error = refused(PostgresOptions::new(url)).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
        assert!(error.to_string().contains(hint), "{error}");
    }
    let log = PostgresOptions::new(url("right", "postgres")).schema(fresh_name()).connect().await.unwrap();
    assert!(!format!("{log:?}").contains("right"), "{log:?}");
}

#[tokio::test]
async fn a_user_needs_a_schema_and_no_more() {
    let server = Postgres::shared();
    let schema = fresh_name();
    server.execute("postgres", "CREATE ROLE modest LOGIN");
    let options = PostgresOptions::new(format!("postgres://modest@{}/postgres", server.address())).schema(&schema);
    let error = refused(options.clone()).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(error.to_string().contains("privilege"), "{error}");
    server.execute("postgres", &format!("CREATE SCHEMA {schema} AUTHORIZATION modest"));
    let log = options.connect().await.unwrap();
    let lease = start(&log, "a").await;
    assert_eq!(log.commit(going(&lease, 1, complete())).await.unwrap(), Committed::Applied);
}

#[tokio::test]
async fn a_replica_is_refused() {
    let mut server = Postgres::start();
    drop(PostgresOptions::new(server.url()).connect().await.unwrap());
    server.become_replica();
    let error = refused(PostgresOptions::new(server.url())).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(error.to_string().contains("may only be read"), "{error}");
}

#[tokio::test]
async fn another_encoding_is_refused() {
    let server = Postgres::shared();
    let name = fresh_name();
    server.execute("postgres", &format!("CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0"));
    let error = refused(PostgresOptions::new(server.url_of(&name))).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("LATIN1"), "{error}");
}

#[tokio::test]
async fn what_others_keep_in_a_schema_is_left_alone() {
    let server = Postgres::shared();
    for table in ["orders", "versions"] {
        let schema = fresh_name();
        server.execute("postgres", &format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.{table} (version bigint)"));
        let error = refused(options().schema(&schema)).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        let tables = format!("SELECT count(*) FROM pg_tables WHERE schemaname = '{schema}'");
        assert_eq!(server.execute("postgres", &tables), ["1"]);
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let server = Postgres::shared();
    let schema = fresh_name();
    let log = options().schema(&schema).connect().await.unwrap();
    start(&log, "a").await;
    drop(log);
    server.execute("postgres", &format!("UPDATE {schema}.versions SET version = version + 1"));
    let error = refused(options().schema(&schema)).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("newer build"), "{error}");
}

/// With session mode all works as without a pooler. In transaction mode prepared statements, `LISTEN` and settings
/// would be lost between two calls, and with them hints and the choice of durability: it is refused.
#[tokio::test]
async fn a_pooler_must_be_in_session_mode() {
    let server = Postgres::shared();
    let session = PgBouncer::start(PoolMode::Session, server);
    let options = PostgresOptions::new(session.url_of("postgres")).schema(fresh_name());
    let (here, there) = (options.clone().connect().await.unwrap(), options.connect().await.unwrap());
    ask_everything(&here, "first").await;
    let mut queue = there.watch(Topic::Queue);
    here.enqueue(vec![flow("a")]).await.unwrap();
    hinted(&mut queue, "a new flow").await;

    let transaction = PgBouncer::start(PoolMode::Transaction, server);
    for connections in [1, 5] {
        let options = PostgresOptions::new(transaction.url_of("postgres")).schema(fresh_name());
        let error = refused(options.connections(connections)).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.to_string().contains("use session mode"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_at_once_make_one_schema() {
    for _ in 0..3 {
        let options = options();
        let logs = join_all((0..6).map(|_| tokio::spawn(options.clone().connect()))).await;
        let logs: Vec<_> = logs.into_iter().map(|log| log.unwrap().unwrap()).collect();
        let answers = join_all(logs.iter().map(|log| log.enqueue(vec![flow("a")]))).await;
        let created = answers.into_iter().filter(|answer| answer.as_ref().unwrap() == &[Enqueued::Created]);
        assert_eq!(created.count(), 1);
    }
}

#[tokio::test]
async fn the_choice_of_durability_reaches_the_server() {
    let server = Postgres::shared();
    for (chosen, setting) in [(SynchronousCommit::On, "on"), (SynchronousCommit::Off, "off")] {
        let name = fresh_name();
        let url = format!("{}?application_name={name}", server.url());
        let log =
            PostgresOptions::new(url).schema(&name).synchronous_commit(chosen).connections(1).connect().await.unwrap();
        log.enqueue(vec![flow("a")]).await.unwrap();
        // What a connection has set is seen by itself alone: a trigger tells.
        server.execute(
            "postgres",
            &format!(
                "CREATE TABLE {name}.told (setting text); \
                 CREATE FUNCTION {name}.tell() RETURNS trigger LANGUAGE plpgsql AS \
                 'BEGIN INSERT INTO {name}.told VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END'; \
                 CREATE TRIGGER tell AFTER INSERT ON {name}.facts EXECUTE FUNCTION {name}.tell()"
            ),
        );
        log.enqueue(vec![flow("b")]).await.unwrap();
        assert_eq!(server.execute("postgres", &format!("SELECT setting FROM {name}.told")), [setting]);
    }
}

#[tokio::test]
async fn the_fewest_connections_are_enough() {
    let server = Postgres::shared();
    let name = fresh_name();
    let url = format!("{}?application_name={name}", server.url());
    let log = PostgresOptions::new(url).schema(&name).connections(1).connect().await.unwrap();
    let lease = start(&log, "a").await;
    assert_eq!(log.commit(step(&lease, 1)).await.unwrap(), Committed::Applied);
    assert_eq!(log.heartbeat(std::slice::from_ref(&lease), SECOND).await.unwrap(), [LeaseState::Held]);
    assert_eq!(log.commit(going(&lease, 2, complete())).await.unwrap(), Committed::Applied);
    assert_eq!(log.list(&Filter::all(), None, 10).await.unwrap().flows.len(), 1);
    // Both lanes of commits have theirs, which nobody shares.
    let open = format!("SELECT FROM pg_stat_activity WHERE application_name = '{name}'");
    assert_eq!(server.execute("postgres", &open).len(), 4);
}

// ---- time ------------------------------------------------------------------------------------------------------

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

// ---- hints -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn others_hear_of_what_happens() {
    let options = options();
    let (here, there) = (options.clone().connect().await.unwrap(), options.connect().await.unwrap());
    let mut queue = there.watch(Topic::Queue);
    let mut a = there.watch(Topic::Flow(id("a")));
    here.enqueue(vec![flow("a")]).await.unwrap();
    hinted(&mut queue, "a new flow").await;
    let lease = take(&here, "a").await;
    here.send(NewMessage::new(id("a"), Channel::signal("go"), "7")).await.unwrap();
    hinted(&mut a, "a message").await;
    here.commit(going(&lease, 1, complete())).await.unwrap();
    while there.flow(&id("a")).await.unwrap().unwrap().info.state != FlowState::Completed {
        hinted(&mut a, "the end").await;
    }
}

#[tokio::test]
async fn whoever_has_not_listened_looks_again() {
    let server = Postgres::shared();
    let proxy = Proxy::to(server.address());
    let schema = fresh_name();
    let here = options().schema(&schema).connect().await.unwrap();
    let there = PostgresOptions::new(proxy.url(&server.url())).schema(&schema).connect().await.unwrap();
    proxy.refuse(true);
    let mut a = there.watch(Topic::Flow(id("a")));
    let mut queue = there.watch(Topic::Queue);
    proxy.cut();
    here.enqueue(vec![flow("a")]).await.unwrap();
    proxy.refuse(false);
    hinted(&mut a, "it listens again").await;
    hinted(&mut queue, "it listens again").await;
    assert!(there.flow(&id("a")).await.unwrap().is_some());
}

// ---- what is lost ----------------------------------------------------------------------------------------------

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

// ---- many at once ----------------------------------------------------------------------------------------------

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

/// Asks a log everything that it can be asked about some of its flows.
async fn ask_everything(log: &PostgresExecutionLog, name: &str) {
    let names: Vec<String> = (0..8).map(|number| format!("{name}-{number}")).collect();
    log.enqueue(names.iter().map(|name| flow(name).with_priority(1)).collect()).await.unwrap();
    assert_eq!(log.enqueue(vec![flow(&names[0])]).await.unwrap(), [Enqueued::Existing { same: true }]);
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let mut request = ClaimRequest::new("worker", target);
    request.limit = names.len();
    let claimed = log.claim(request.clone()).await.unwrap().flows;
    assert!(claimed.iter().all(|flow| flow.info.id.as_str().starts_with(name)), "higher priorities go first");
    let leases: Vec<_> = claimed.into_iter().map(|flow| flow.lease).collect();
    log.heartbeat(&leases, SECOND * 30).await.unwrap();
    for (number, lease) in leases.iter().enumerate() {
        log.send(NewMessage::new(lease.flow.clone(), Channel::signal("go"), "7").with_key("k")).await.unwrap();
        log.messages(&lease.flow, &[Channel::signal("go")], 0, 10).await.unwrap();
        log.messages(&lease.flow, &[], 0, 10).await.unwrap();
        let mut commit = step(lease, 1);
        match number {
            0..3 => commit.children = vec![child(&format!("{}/1", lease.flow), lease.flow.as_str(), 1)],
            3 => commit.consumed = vec![1],
            4 => commit.next = suspend(&[Channel::signal("stop")]),
            5 => commit.next = complete(),
            6 => commit.next = Next::Stall { reason: "diverged".into(), build: "build-1".into() },
            _ => commit.next = Next::Fail { error: "".into(), reason: "broken".into(), again: vec![CallPath::top(1)] },
        }
        log.commit(commit).await.unwrap();
        log.flow(&lease.flow).await.unwrap();
        log.history(&lease.flow, 0, 10).await.unwrap();
    }
    let child = take(log, &format!("{}/1", leases[0].flow)).await;
    log.commit(going(&child, 1, complete())).await.unwrap();
    log.send(NewMessage::new(leases[4].flow.clone(), Channel::signal("stop"), "7")).await.unwrap();
    log.list(&Filter::all().with_state(FlowState::Failed), None, 10).await.unwrap();
    log.list(&Filter::all().with_parent(leases[0].flow.clone()), None, 10).await.unwrap();
    log.list(&Filter::all(), None, 10).await.unwrap();
    log.retry(&leases[7].flow).await.unwrap();
    log.reoffer(&[("Order".into(), 1)], "build-2").await.unwrap();
    log.cancel(&leases[0].flow, "enough").await.unwrap();
    log.release(&leases[1]).await.unwrap();
    log.claim(request).await.unwrap();
    assert!(log.delete(&leases[5].flow).await.unwrap());
    log.prune(&PrunePolicy::older_than(Duration::ZERO).with_limit(2)).await.unwrap();
}

/// Plans that were made when the tables were small are good when they have grown: whatever is asked costs what it
/// finds, not what there is.
#[tokio::test]
async fn plans_stay_good_when_tables_grow() {
    const ROUNDS: usize = 10;
    const FLOWS: usize = 5_000;
    let server = Postgres::shared();
    let schema = fresh_name();
    let read = || -> u64 {
        let read = format!(
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) + (SELECT sum(idx_tup_read) \
             FROM pg_stat_user_indexes WHERE schemaname = '{schema}' AND relname <> 'lanes') \
             FROM pg_stat_user_tables WHERE schemaname = '{schema}' AND relname NOT IN ('lanes', 'versions')"
        );
        server.execute("postgres", &read)[0].parse().unwrap()
    };
    // The statistics of a connection are there once it has ended.
    let ended = async |name: &str| {
        let open = format!("SELECT FROM pg_stat_activity WHERE application_name = '{name}'");
        while !server.execute("postgres", &open).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let connect = async |name: &str| {
        let url = format!("{}?application_name={name}", server.url());
        PostgresOptions::new(url).schema(&schema).connect().await.unwrap()
    };
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
    let before = read();
    for round in 0..ROUNDS {
        ask_everything(&log, &format!("third-{round}")).await;
    }
    drop(log);
    ended(&second).await;
    let read = read() - before;
    let enough = u64::try_from(ROUNDS * FLOWS).unwrap() / 2;
    assert!(read < enough, "{read} rows and index entries were read");
    println!("{read} rows and index entries were read");
}
