//! What is heard of.

use ergon_storage::{Channel, ExecutionLog, FlowState, NewMessage, PostgresOptions, Topic};
use ergon_test_servers::{Postgres, Proxy, fresh_name};

use super::{complete, flow, going, hinted, id, options, take};

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
