//! What only a log on a server can suffer: the server, the way to it, and its settings.
#![cfg(feature = "redis")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use ergon_storage::{
    CallKind, CallPath, Channel, ClaimRequest, ClaimTarget, Commit, Committed, Enqueued, Error, ErrorKind,
    ExecutionLog, Filter, FlowId, FlowState, Lease, LeaseState, Limits, ManualClock, NewFlow, NewMessage, Next, Parent,
    Phase, PrunePolicy, Record, RedisExecutionLog, RedisOptions, Retried, Sent, Topic, Wake,
};
use ergon_test_servers::{Persistence, Proxy, Redis};

/// How long something may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);

fn id(name: &str) -> FlowId {
    FlowId::new(name).unwrap()
}

fn flow(name: &str) -> NewFlow {
    NewFlow::new(id(name), "Order", 1, &b"{}"[..])
}

fn one(name: &str) -> ClaimRequest {
    ClaimRequest::new("worker", ClaimTarget::Flow(id(name)))
}

fn step(seq: u32) -> Record {
    let at = ergon_storage::Timestamp::from_micros(1_735_689_600_000_000);
    Record {
        seq,
        at,
        path: CallPath::top(seq),
        kind: CallKind::Step,
        phase: Phase::Completed,
        name: "charge".into(),
        args_hash: u64::MAX,
        attempt: 1,
        started_at: at,
        due_at: None,
        reference: None,
        payload: "{}".into(),
    }
}

async fn refused(options: RedisOptions) -> Error {
    options.connect().await.expect_err("it is refused")
}

async fn connect(redis: &Redis) -> RedisExecutionLog {
    let options = RedisOptions::new(redis.url()).namespace(redis.fresh_prefix());
    options.connect().await.unwrap()
}

/// Does it again as long as the server cannot be reached.
async fn until_it_works<T>(call: impl AsyncFn() -> Result<T, Error>) -> T {
    let trying = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trying).await.expect("it works in the end")
}

/// A server that answers each command as it is told, by a part of its text.
fn fake(answers: Vec<(&'static str, String)>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut connection, answers) = (connection.unwrap(), answers.clone());
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(bytes @ 1..) = connection.read(&mut buffer) {
                    // Each command is an array.
                    let text = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
                    for command in text.split('*').skip(1) {
                        let answer = answers.iter().find(|(part, _)| command.contains(part));
                        let answer = answer.map_or("+OK\r\n", |(_, answer)| answer);
                        if connection.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

fn version(version: &str) -> String {
    let text = format!("# Server\r\nredis_version:{version}\r\n");
    format!("${}\r\n{text}\r\n", text.len())
}

// ---- connecting ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn bad_options_are_refused_without_a_server() {
    for url in ["", "localhost", "redis:", "http://localhost", "redis://ada:secret@", "redis://ada:secret@host:port"] {
        let error = refused(RedisOptions::new(url)).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{url}: {error:?}");
        assert!(!format!("{error:?} {error}").contains("secret"), "{error:?}");
    }
    let options = || RedisOptions::new("redis://ada:secret@127.0.0.1:1");
    assert!(!format!("{:?}", options()).contains("secret"));
    for options in [
        options().namespace(""),
        options().namespace("a{b}"),
        options().connections(0),
        options().connect_timeout(Duration::ZERO),
        options().answer_timeout(Duration::ZERO),
    ] {
        assert_eq!(refused(options).await.kind(), ErrorKind::Invalid);
    }
    let error = refused(RedisOptions::new("rediss://ada:secret@127.0.0.1:1")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    // Nobody listens there.
    let error = refused(options()).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_shown() {
    let redis = Redis::start_with(Persistence::None, &[("requirepass", "right")]);
    let address = redis.address();
    for url in [format!("redis://:wrong-one@{address}"), format!("redis://{address}")] {
        let error = refused(RedisOptions::new(url)).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
        assert!(error.to_string().contains("password") && !format!("{error:?}").contains("wrong-one"), "{error:?}");
    }
    RedisExecutionLog::connect(format!("redis://:right@{address}")).await.unwrap();
}

#[tokio::test]
async fn an_old_server_is_refused() {
    let old = fake(vec![("\r\nINFO\r\n", version("6.2.14"))]);
    let error = refused(RedisOptions::new(format!("redis://{old}"))).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("6.2.14"), "{error}");
}

#[tokio::test]
async fn a_node_that_lacks_the_slot_leads_to_the_one_that_has_it() {
    let cluster = Redis::shared_cluster();
    let moved = format!("-MOVED 1 {}\r\n", cluster.address());
    let other = fake(vec![("\r\nINFO\r\n", version("7.2.4")), ("SETINFO", "+OK\r\n".into()), ("", moved)]);
    let options = RedisOptions::new(format!("redis://{other}")).namespace(cluster.fresh_prefix());
    let log = options.connect().await.unwrap();
    assert_eq!(log.enqueue(vec![flow("a")]).await.unwrap(), [Enqueued::Created]);
}

/// Nodes of a cluster count their listeners each for itself.
#[tokio::test]
async fn hints_follow_the_namespace_to_another_node() {
    let (old, new) = (Redis::start_cluster(), Redis::start_cluster());
    let here = RedisExecutionLog::connect(old.url()).await.unwrap();
    let mut of_flow = here.watch(Topic::Flow(id("a")));
    let hinted = async |watch: &mut ergon_storage::Watch| {
        tokio::time::timeout(PATIENCE, watch.changed()).await.expect("it is hinted at");
    };
    hinted(&mut of_flow).await;
    // The other node has nothing yet, and they meet.
    assert_eq!(new.command(&["CLUSTER", "FLUSHSLOTS"]), "+OK\r\n");
    let bus = new.command(&["CONFIG", "GET", "cluster-port"]);
    let bus = bus.lines().rfind(|line| line.parse::<u16>().is_ok()).unwrap().to_owned();
    let port = new.address().port().to_string();
    assert_eq!(old.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]), "+OK\r\n");
    let name = |redis: &Redis| redis.command(&["CLUSTER", "MYID"]).lines().nth(1).unwrap().to_owned();
    let slot = old.command(&["CLUSTER", "KEYSLOT", "{ergon}:meta"]);
    let slot = slot.trim().trim_start_matches(':');
    assert_eq!(old.command(&["FLUSHALL"]), "+OK\r\n");
    let moved = async {
        for redis in [&new, &old] {
            while redis.command(&["CLUSTER", "SETSLOT", slot, "NODE", &name(&new)]) != "+OK\r\n" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        while !new.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, moved).await.expect("the slot moves");

    assert_eq!(until_it_works(async || here.enqueue(vec![flow("a")]).await).await, [Enqueued::Created]);
    // It listens there, and says so once.
    hinted(&mut of_flow).await;
    let there = RedisExecutionLog::connect(new.url()).await.unwrap();
    until_it_works(async || there.cancel(&id("a"), "").await).await;
    hinted(&mut of_flow).await;
}

#[tokio::test]
async fn what_belongs_to_another_program_is_refused() {
    let redis = Redis::start(Persistence::None);
    let options = |name: &str| RedisOptions::new(redis.url()).namespace(name);
    assert_eq!(redis.command(&["SET", "{taken}:session", "1"]), "+OK\r\n");
    assert_eq!(redis.command(&["SET", "{text}:meta", "1"]), "+OK\r\n");
    assert_eq!(redis.command(&["HSET", "{hash}:meta", "name", "x"]), ":1\r\n");
    assert_eq!(redis.command(&["HSET", "{newer}:meta", "schema", "9"]), ":1\r\n");
    for (name, hint) in [("taken", "session"), ("text", "another"), ("hash", "another"), ("newer", "schema 9")] {
        let error = refused(options(name)).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.to_string().contains(hint), "{error}");
    }
    options("free").connect().await.unwrap();
}

#[tokio::test]
async fn many_that_connect_at_once_have_one_log() {
    let redis = Redis::start(Persistence::None);
    // One after the other, so that some look at the namespace while others take it.
    for _ in 0..40 {
        let namespace = redis.fresh_prefix();
        let logs = (0..10).map(|nth| {
            let options = RedisOptions::new(redis.url()).namespace(&namespace);
            async move {
                tokio::time::sleep(Duration::from_millis(nth)).await;
                options.connect().await
            }
        });
        let logs = futures::future::join_all(logs).await;
        let enqueued = logs.into_iter().map(|log| async { log.unwrap().enqueue(vec![flow("a")]).await.unwrap()[0] });
        let enqueued = futures::future::join_all(enqueued).await;
        assert_eq!(enqueued.iter().filter(|answer| **answer == Enqueued::Created).count(), 1);
    }
}

#[tokio::test]
async fn settings_that_lose_flows_are_warned_of() {
    let warnings = async |persistence, settings: &[(&str, &str)]| {
        let redis = Redis::start_with(persistence, settings);
        RedisExecutionLog::connect(redis.url()).await.unwrap().warnings().join("; ")
    };
    assert_eq!(warnings(Persistence::Always, &[]).await, "");
    assert!(warnings(Persistence::EverySecond, &[]).await.contains("2 seconds"));
    assert!(warnings(Persistence::None, &[]).await.contains("persists nothing"));
    assert!(warnings(Persistence::None, &[("save", "3600 1")]).await.contains("snapshots"));
    let evicting = [("maxmemory", "100mb"), ("maxmemory-policy", "allkeys-lru")];
    assert!(warnings(Persistence::Always, &evicting).await.contains("allkeys-lru"));
    assert_eq!(warnings(Persistence::Always, &[("maxmemory", "100mb")]).await, "");
    // The newer protocol answers otherwise.
    let redis = Redis::start(Persistence::None);
    let log = RedisExecutionLog::connect(format!("{}?protocol=resp3", redis.url())).await.unwrap();
    assert!(log.warnings().join("; ").contains("persists nothing"), "{:?}", log.warnings());
    assert_eq!(log.enqueue(vec![flow("a")]).await.unwrap(), [Enqueued::Created]);
    assert_eq!(log.claim(one("a")).await.unwrap().flows.len(), 1);
}

// ---- permissions -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_user_who_may_not_load_functions_uses_scripts() {
    let redis = Redis::start(Persistence::None);
    let user = ["ACL", "SETUSER", "ada", "on", ">secret", "~{ergon}:*", "&{ergon}:*"];
    let rules = ["+@all", "-@admin", "-function", "-fcall", "-fcall_ro", "-config"];
    assert_eq!(redis.command(&[&user[..], &rules[..]].concat()), "+OK\r\n");
    let url = format!("redis://ada:secret@{}", redis.address());
    let log = RedisExecutionLog::connect(&url).await.unwrap();
    assert!(log.warnings()[0].contains("CONFIG is not allowed"), "{:?}", log.warnings());
    for round in 0..2 {
        let name = format!("flow-{round}");
        log.enqueue(vec![flow(&name)]).await.unwrap();
        let lease = log.claim(one(&name)).await.unwrap().flows.remove(0).lease;
        let mut commit = Commit::new(lease, 1);
        commit.next = Next::Complete { result: "1".into() };
        log.commit(commit).await.unwrap();
        assert_eq!(log.flow(&id(&name)).await.unwrap().unwrap().info.state, FlowState::Completed);
        assert!(log.delete(&id(&name)).await.unwrap());
        assert_eq!(redis.command(&["SCRIPT", "FLUSH"]), "+OK\r\n");
    }
    // Not even that.
    assert_eq!(redis.command(&["ACL", "SETUSER", "ada", "-eval", "-evalsha", "-script"]), "+OK\r\n");
    let error = refused(RedisOptions::new(&url)).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("permission"), "{error}");
}

/// A user may not tell others of changes, or not hear of them.
#[tokio::test]
async fn a_missing_permission_is_found_before_anything_is_written() {
    let redis = Redis::start(Persistence::None);
    let user = ["ACL", "SETUSER", "ada", "reset", "on", ">secret", "~{ergon}:*"];
    let url = format!("redis://ada:secret@{}", redis.address());
    for (rules, command) in [
        (&["&{ergon}:*", "+@all", "-publish"][..], "PUBLISH"),
        (&["&{ergon}:*", "+@all", "-pubsub"], "PUBSUB"),
        (&["&{ergon}:*", "+@all", "-subscribe"], "SUBSCRIBE"),
        (&["&other:*", "+@all"], "PUBLISH"),
        (&["&{ergon}:*", "+@all", "-unlink"], "UNLINK"),
    ] {
        assert_eq!(redis.command(&[&user[..], rules].concat()), "+OK\r\n");
        let error = refused(RedisOptions::new(&url)).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.to_string().contains(command), "{error}");
        assert!(keys(&redis).is_empty());
    }
    // What is taken away later does not take a write back, nor is it taken for damage.
    assert_eq!(redis.command(&[&user[..], &["&{ergon}:*", "+@all"]].concat()), "+OK\r\n");
    let log = RedisExecutionLog::connect(&url).await.unwrap();
    assert_eq!(redis.command(&["ACL", "SETUSER", "ada", "-publish", "-pubsub"]), "+OK\r\n");
    assert_eq!(log.enqueue(vec![flow("a")]).await.unwrap(), [Enqueued::Created]);
    assert_eq!(redis.command(&["ACL", "SETUSER", "ada", "-zmscore"]), "+OK\r\n");
    let error = log.enqueue(vec![flow("b")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("permission"), "{error}");
}

/// What a server says that has no code of its own.
#[tokio::test]
async fn refusals_of_the_server_are_told_apart() {
    for (text, kind, hint) in [
        ("-ERR max number of clients reached\r\n", ErrorKind::Unavailable, "maxclients"),
        ("-DENIED Redis is running in protected mode because\r\n", ErrorKind::Unsupported, "protected mode"),
        ("-ERR Error running script: Script killed by user with FUNCTION KILL.\r\n", ErrorKind::Unavailable, "KILL"),
        ("-NOPERM The user executing the script can't run this command\r\n", ErrorKind::Unsupported, "permission"),
    ] {
        let server = fake(vec![("", text.to_owned())]);
        let error = refused(RedisOptions::new(format!("redis://{server}"))).await;
        assert_eq!(error.kind(), kind, "{text}: {error:?}");
        assert!(error.to_string().contains(hint), "{error:?}");
    }
    let redis = Redis::shared();
    let error = refused(RedisOptions::new(format!("{}/99", redis.url()))).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(error.to_string().contains("database"), "{error:?}");
    // Nobody listens there: it is named, and why, once.
    let error = refused(RedisOptions::new("redis://ada:secret@127.0.0.1:1")).await;
    let text = format!("{error:?}");
    assert_eq!(text.matches("127.0.0.1:1").count(), 1, "{text}");
    assert_eq!(text.to_lowercase().matches("refused").count(), 1, "{text}");
}

// ---- the server is in trouble ----------------------------------------------------------------------------------

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

// ---- hints -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn logs_hear_of_each_other() {
    let redis = Redis::shared();
    let name = redis.fresh_prefix();
    let proxy = Proxy::to(redis.address());
    let here = RedisOptions::new(proxy.url(&redis.url())).namespace(&name).connect().await.unwrap();
    let there = RedisOptions::new(redis.url()).namespace(&name).connect().await.unwrap();
    let (mut queue, mut of_flow) = (here.watch(Topic::Queue), here.watch(Topic::Flow(id("a"))));
    let hinted = async |watch: &mut ergon_storage::Watch| {
        tokio::time::timeout(PATIENCE, watch.changed()).await.expect("it is hinted at");
    };
    // The connection is made.
    hinted(&mut queue).await;
    hinted(&mut of_flow).await;
    there.enqueue(vec![flow("a")]).await.unwrap();
    hinted(&mut queue).await;
    hinted(&mut of_flow).await;
    // What happens while the connection is gone is hinted at when it is there again.
    proxy.refuse(true);
    proxy.cut();
    there.cancel(&id("a"), "").await.unwrap();
    proxy.refuse(false);
    hinted(&mut of_flow).await;
    hinted(&mut queue).await;
}

#[tokio::test]
async fn an_idle_log_asks_nothing() {
    let redis = Redis::start(Persistence::None);
    let log = connect(&redis).await;
    let mut queue = log.watch(Topic::Queue);
    queue.changed().await;
    log.enqueue(vec![flow("a")]).await.unwrap();
    let commands = || {
        let stats = redis.command(&["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    let before = commands();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(commands() - before, 1, "only the one that asked before");
}

// ---- what is kept ----------------------------------------------------------------------------------------------

/// The names of all keys.
fn keys(redis: &Redis) -> Vec<String> {
    let answer = redis.command(&["KEYS", "*"]);
    let mut keys: Vec<_> = answer.lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect();
    keys.sort();
    keys
}

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

// ---- damage ----------------------------------------------------------------------------------------------------

fn queue(limit: usize) -> ClaimRequest {
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let mut request = ClaimRequest::new("worker", target);
    request.limit = limit;
    request
}

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

/// A log on one connection, and leases of its flows `a`, `b`, …
async fn leased(redis: &Redis, flows: usize) -> (RedisExecutionLog, Vec<Lease>) {
    let log = RedisOptions::new(redis.url()).connections(1).connect().await.unwrap();
    let names = ('a'..='z').take(flows).map(|name| flow(&name.to_string()));
    log.enqueue(names.collect()).await.unwrap();
    let leases = log.claim(queue(flows)).await.unwrap().flows.into_iter().map(|flow| flow.lease).collect();
    (log, leases)
}

fn commit(lease: &Lease, number: u32) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.records.push(step(number));
    commit
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

// ---- size ------------------------------------------------------------------------------------------------------

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

// ---- time ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_clock_follows_the_server_and_is_never_ahead() {
    let redis = Redis::shared();
    let log = connect(redis).await;
    let server = || {
        let answer = redis.command(&["TIME"]);
        let numbers: Vec<i64> = answer.lines().filter_map(|line| line.parse().ok()).collect();
        numbers[0] * 1_000_000 + numbers[1]
    };
    for _ in 0..20 {
        let before = server();
        log.enqueue(vec![flow("a")]).await.unwrap();
        let now = log.clock().now().as_micros();
        let after = server();
        assert!(now <= after, "{now} is ahead of {after}");
        assert!(now >= before - 1_000_000, "{now} is far behind {before}");
    }
    let due = log.clock().now().saturating_add(Duration::from_millis(5));
    log.clock().sleep_until(due).await;
    assert!(server() >= due.as_micros());
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
