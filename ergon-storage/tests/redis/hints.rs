//! Who is told of what.

use std::time::Duration;

use ergon_storage::{ExecutionLog, RedisOptions, Topic};
use ergon_test_servers::{Persistence, Proxy, Redis};

use super::{PATIENCE, connect, flow, id};

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
