//! How it is connected, and what it finds there.

use std::time::Duration;

use ergon_storage::{Enqueued, ErrorKind, ExecutionLog, RedisExecutionLog, RedisOptions, Topic};
use ergon_test_servers::{Persistence, Redis};

use super::{PATIENCE, fake, flow, id, one, refused, until_it_works, version};

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
