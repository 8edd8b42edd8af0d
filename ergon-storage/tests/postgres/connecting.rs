//! How a log is connected, and what is refused.

use std::time::{Duration, Instant};

use ergon_storage::{
    Committed, Enqueued, ErrorKind, ExecutionLog, Filter, LeaseState, PostgresOptions, SynchronousCommit, Topic,
};
use ergon_test_servers::{PgBouncer, PoolMode, Postgres, Proxy, fresh_name};
use futures::future::join_all;

use super::{SECOND, ask_everything, complete, flow, going, hinted, options, refused, start, step};

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
