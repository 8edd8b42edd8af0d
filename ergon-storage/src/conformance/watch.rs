//! Hints.

use std::time::Duration;

use super::{
    Harness,
    scene::{
        Handle, LEASE, SECOND, Scene, child, complete, fail, flow, id, message, request, signal, stall, starting,
        suspend,
    },
};
use crate::{Channel, Commit, Feed, FlowState, Keep, Labels, NewItem, PrunePolicy, Start, Timestamp, Topic, Watch};

/// How long a hint may take before it counts as lost.
const HINT_MAX: Duration = Duration::from_secs(20);

async fn hinted(watch: &mut Watch, what: &str) {
    let hint = tokio::time::timeout(HINT_MAX, watch.changed()).await;
    assert!(hint.is_ok(), "{what} is hinted at");
}

/// Watches the queue and a flow through some call, and expects hints about both.
async fn both_hinted(log: &Handle, name: &str, what: &str, call: impl Future<Output = ()>) {
    let mut queue = log.watch(Topic::Queue);
    flow_hinted(log, name, what, call).await;
    hinted(&mut queue, what).await;
}

async fn flow_hinted(log: &Handle, name: &str, what: &str, call: impl Future<Output = ()>) {
    let mut flow = log.watch(Topic::Flow(id(name)));
    call.await;
    hinted(&mut flow, what).await;
}

/// Whatever makes a flow claimable, now or at some instant, is hinted at.
pub async fn watch_hints_at_claimable_flows(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    both_hinted(&log, "a", "a new flow", async { log.add([flow("a")]).await }).await;
    let later = flow("later").with_start(Start::After(SECOND));
    both_hinted(&log, "later", "a later flow", async { log.add([later]).await }).await;
    let lease = log.take_flow("a").await.lease;
    both_hinted(&log, "a", "a release", async { log.release(&lease).await.unwrap() }).await;

    let lease = log.take_flow("a").await.lease;
    let at = Some(log.now().saturating_add(SECOND));
    both_hinted(&log, "a", "a timer", async { log.suspend(&lease, 1, at, &[]).await }).await;
    log.advance(SECOND).await;
    let lease = log.take_flow("a").await.lease;
    log.suspend(&lease, 1, None, &[signal("go")]).await;
    both_hinted(&log, "a", "a waking message", async { log.tell("a", &signal("go"), "").await }).await;

    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, fail()).await;
    both_hinted(&log, "a", "a retry", async { _ = log.retry(&id("a")).await.unwrap() }).await;
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, stall("build-1")).await;
    let types = [("Order".into(), 1)];
    both_hinted(&log, "a", "a reoffer", async { _ = log.reoffer(&types, "build-2").await.unwrap() }).await;

    let lease = log.take_flow("a").await.lease;
    let children = starting(&lease, 1, [child("b", "a", 1)]);
    both_hinted(&log, "b", "a new child", async { _ = log.commit(children).await.unwrap() }).await;
    log.suspend(&lease, 2, None, &[Channel::children()]).await;
    let lease = log.take_flow("b").await.lease;
    both_hinted(&log, "a", "the end of a child", async { _ = log.go(&lease, 1, complete()).await }).await;
}

/// Whatever changes the state of a flow, or reaches its mailbox, is hinted at.
pub async fn watch_hints_at_changed_flows(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a"), child("b", "a", 1)]).await;
    flow_hinted(&log, "a", "a claim", async { _ = log.take_flow("a").await }).await;
    flow_hinted(&log, "a", "a message", async { log.tell("a", &signal("go"), "").await }).await;
    flow_hinted(&log, "b", "a cancelled ancestor", async { _ = log.cancel(&id("a"), "").await.unwrap() }).await;
    flow_hinted(&log, "a", "a deletion", async { _ = log.delete(&id("a")).await.unwrap() }).await;
    let all = PrunePolicy::older_than(Duration::ZERO);
    flow_hinted(&log, "b", "a prune", async { _ = log.prune(&all).await.unwrap() }).await;
    for (name, next) in [("c", complete()), ("d", fail()), ("e", stall("build-1")), ("f", suspend(None, &[]))] {
        let lease = log.start(name).await;
        flow_hinted(&log, name, "a commit", async { _ = log.go(&lease, 1, next).await }).await;
    }
    // It runs on: nothing but the item is news.
    let mut telling = Commit::new(log.start("h").await, 1);
    let (feed, at) = (Feed::stream("tokens"), Timestamp::EPOCH);
    telling.items.push(NewItem { feed, keep: Keep::All, at, call: None, attempt: 0, payload: "x".into() });
    telling.labels = Some(Labels::from([("stage", "paid")]));
    flow_hinted(&log, "h", "an item beside a label", async { _ = log.commit(telling).await.unwrap() }).await;
    log.start("g").await;
    log.advance(LEASE).await;
    let mut poisoned = request(1);
    poisoned.deliveries_max = 1;
    flow_hinted(&log, "g", "a poisonous flow", async { _ = log.claim(poisoned).await.unwrap() }).await;
    assert_eq!(log.state("g").await, FlowState::Stalled);
}

/// A hint that comes before one waits is kept; hints that nobody took are one; a watch goes on after a hint.
pub async fn watch_keeps_a_hint(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    let mut watch = log.watch(Topic::Flow(id("a")));
    for round in 0..3 {
        for _ in 0..5 {
            log.tell("a", &signal("go"), "").await;
        }
        hinted(&mut watch, &format!("round {round}")).await;
    }
}

/// Every watch has its own hints, and one that is dropped takes nothing from the others.
pub async fn watch_hints_to_everybody(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mut watches: Vec<_> = (0..10).map(|_| log.watch(Topic::Flow(id("a")))).collect();
    watches.extend((0..10).map(|_| log.watch(Topic::Queue)));
    drop(watches.remove(0));
    log.add([flow("a")]).await;
    for watch in &mut watches {
        hinted(watch, "a new flow").await;
    }
}

/// Whoever waits for a flow to end and looks again at each hint sees the end.
pub async fn watch_then_look_never_misses(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..50 {
        let name = format!("flow-{round}");
        let lease = log.start(&name).await;
        let waiting = {
            let (log, name) = (log.clone(), name.clone());
            tokio::spawn(async move {
                let mut watch = log.watch(Topic::Flow(id(&name)));
                while !log.state(&name).await.is_final() {
                    hinted(&mut watch, "the end").await;
                }
            })
        };
        log.send(message(&name, &signal("go"), "")).await.unwrap();
        log.go(&lease, 1, complete()).await;
        waiting.await.unwrap();
    }
}
