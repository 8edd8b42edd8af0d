//! Forgetting flows.

use std::time::Duration;

use futures::future::try_join_all;

use super::{
    Harness,
    scene::{
        Handle, MICRO, SECOND, Scene, child, complete, detached, fail, flow, id, message, names, refused, signal, steps,
    },
};
use crate::{ErrorKind, Filter, FlowState, NewFlow, PrunePolicy, Sent, Timestamp};

async fn end(log: &Handle, name: &str) {
    let lease = log.take_flow(name).await.lease;
    log.go(&lease, 1, complete()).await;
}

async fn left(log: &Handle) -> Vec<String> {
    log.snapshot().await.flows.iter().map(|(flow, _, _)| flow.info.id.to_string()).collect()
}

/// A flow is forgotten at its age and not a microsecond before.
pub async fn prune_at_the_age_but_not_before(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.bring("a", FlowState::Completed).await;
    let policy = PrunePolicy::older_than(SECOND);
    log.advance(SECOND.checked_sub(MICRO).unwrap()).await;
    assert_eq!(log.prune(&policy).await.unwrap(), 0);
    log.advance(MICRO).await;
    assert_eq!(log.prune(&policy).await.unwrap(), 1);
    assert_eq!(log.prune(&policy).await.unwrap(), 0);
    assert_eq!(left(&log).await, [""; 0]);
}

/// At the end of time a flow is as old as it is, and no older.
pub async fn prune_knows_ages_at_the_end_of_time(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.bring("a", FlowState::Completed).await;
    let age = Timestamp::MAX.since(log.now());
    log.advance(age).await;
    // Not every log tells such instants apart to the microsecond.
    for older_than in [age + SECOND, age * 2, Duration::MAX] {
        assert_eq!(log.prune(&PrunePolicy::older_than(older_than)).await.unwrap(), 0, "{older_than:?}");
    }
    assert_eq!(log.prune(&PrunePolicy::older_than(age.checked_sub(SECOND).unwrap())).await.unwrap(), 1);
}

/// A type is pruned however many flows of others have ended before.
pub async fn prune_of_a_type_is_not_held_up_by_others(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let others: Vec<_> = (0..1_500).map(|number| NewFlow::new(id(&format!("r{number}")), "Refund", 1, "")).collect();
    let ids: Vec<_> = others.iter().map(|flow| flow.id.clone()).collect();
    log.add(others).await;
    for some in ids.chunks(100) {
        try_join_all(some.iter().map(|id| log.cancel(id, ""))).await.unwrap();
    }
    log.advance(MICRO).await;
    log.add([flow("a"), flow("b").with_queue("other"), flow("c").with_priority(1)]).await;
    for name in ["c", "b", "a"] {
        log.cancel(&id(name), "").await.unwrap();
        log.advance(MICRO).await;
    }
    let orders = PrunePolicy::older_than(Duration::ZERO).with_flow_type("Order");
    assert_eq!(log.prune(&orders.clone().with_limit(2)).await.unwrap(), 2);
    assert_eq!(log.prune(&orders.clone().with_keep(1)).await.unwrap(), 0);
    assert!(log.flow(&id("a")).await.unwrap().is_some(), "it ended last");
    assert_eq!(log.prune(&orders).await.unwrap(), 1);
    // And the longest finished go first over all types.
    log.bring("d", FlowState::Completed).await;
    assert_eq!(log.prune(&PrunePolicy::all_but(1).with_limit(u32::MAX)).await.unwrap(), 1_500);
    assert_eq!(left(&log).await, ["d"]);
}

/// The longest finished go first, as many as the limit says.
pub async fn prune_takes_the_longest_finished_first(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = names(0..10);
    log.add(names.iter().map(|name| flow(name))).await;
    // They end in another order than they were accepted in.
    for name in names.iter().rev() {
        end(&log, name).await;
        log.advance(SECOND).await;
    }
    let policy = PrunePolicy::older_than(Duration::ZERO);
    assert_eq!(log.prune(&policy.clone().with_limit(0)).await.unwrap(), 0);
    assert_eq!(log.prune(&policy.clone().with_limit(3)).await.unwrap(), 3);
    assert_eq!(left(&log).await, names[..7]);
    assert_eq!(log.prune(&PrunePolicy::older_than(SECOND * 6)).await.unwrap(), 2);
    assert_eq!(left(&log).await, names[..5]);
    assert_eq!(log.prune(&policy.with_limit(u32::MAX)).await.unwrap(), 5);
    assert_eq!(log.prune(&PrunePolicy::older_than(Duration::MAX)).await.unwrap(), 0);
}

/// Only flows of the policy's states and type go.
pub async fn prune_keeps_to_its_states_and_type(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for state in FlowState::ALL {
        log.bring(&state.to_string(), state).await;
    }
    log.add([NewFlow::new(id("refund"), "Refund", 1, &b""[..])]).await;
    log.cancel(&id("refund"), "").await.unwrap();
    let all = PrunePolicy::older_than(Duration::ZERO);
    assert_eq!(log.prune(&all.clone().with_flow_type("Other")).await.unwrap(), 0);
    assert_eq!(log.prune(&all.clone().with_state(FlowState::Running)).await.unwrap(), 0, "a live flow never goes");
    let failed_order = all.clone().with_state(FlowState::Failed).with_flow_type("Order");
    assert_eq!(log.prune(&failed_order).await.unwrap(), 1);
    let both = all.clone().with_state(FlowState::Completed).with_state(FlowState::Cancelled).with_flow_type("Order");
    assert_eq!(log.prune(&both).await.unwrap(), 2);
    assert_eq!(left(&log).await, ["scheduled", "running", "suspended", "stalled", "refund"]);
    assert_eq!(log.prune(&all).await.unwrap(), 1);
    assert_eq!(left(&log).await, ["scheduled", "running", "suspended", "stalled"]);
}

/// So many stay as the policy says: those that ended last, of the policy's states and type, also when they are old.
pub async fn prune_keeps_the_newest(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = names(0..8);
    log.add(names.iter().map(|name| flow(name))).await;
    log.add([NewFlow::new(id("refund"), "Refund", 1, &b""[..]), flow("live")]).await;
    // They end in another order than they were accepted in, and some in one instant.
    for (number, name) in names.iter().rev().enumerate() {
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, if number % 2 == 0 { complete() } else { fail() }).await;
        if number != 5 {
            log.advance(SECOND).await;
        }
    }
    log.cancel(&id("refund"), "").await.unwrap();
    log.advance(SECOND * 60).await;
    let (keep, completed) = (PrunePolicy::all_but, FlowState::Completed);
    assert_eq!(log.prune(&keep(9)).await.unwrap(), 0);
    assert_eq!(log.prune(&keep(u32::MAX)).await.unwrap(), 0);
    assert_eq!(log.prune(&keep(8).with_flow_type("Order")).await.unwrap(), 0);
    assert_eq!(log.prune(&keep(1).with_flow_type("Refund")).await.unwrap(), 0);
    assert_eq!(log.prune(&keep(6).with_flow_type("Order").with_limit(1)).await.unwrap(), 1);
    assert_eq!(left(&log).await, [&names[..7], &["refund".into(), "live".into()]].concat());
    assert_eq!(log.prune(&keep(6).with_flow_type("Order")).await.unwrap(), 1);
    assert_eq!(log.prune(&keep(6).with_flow_type("Order")).await.unwrap(), 0);
    // Of the completed ones 5, 3 and 1 are left, and the age counts too.
    let old = PrunePolicy::older_than(SECOND * 64).with_state(completed);
    assert_eq!(log.prune(&old.clone().with_keep(3)).await.unwrap(), 0);
    assert_eq!(log.prune(&old.with_keep(1)).await.unwrap(), 1);
    assert_eq!(log.prune(&keep(1).with_state(completed)).await.unwrap(), 1);
    assert_eq!(left(&log).await, [&names[..3], &[names[4].clone(), "refund".into(), "live".into()]].concat());
    assert_eq!(log.prune(&keep(2).with_flow_type("Order")).await.unwrap(), 2);
    // Of the two that ended in one instant the one that was accepted first has gone.
    assert_eq!(left(&log).await, [&names[0], &names[2], "refund", "live"]);
    assert_eq!(log.prune(&keep(0)).await.unwrap(), 3);
    assert_eq!(left(&log).await, ["live"]);
}

/// What stays for its parent counts among those that stay by their number, whatever its age.
pub async fn prune_counts_what_stays_for_its_parent(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.add([
        child("a", "mother", 1),
        flow("b"),
        child("c", "mother", 2),
        flow("d"),
        flow("e"),
        child("f", "mother", 3),
    ])
    .await;
    for name in ["a", "b", "c", "d", "e", "f"] {
        end(&log, name).await;
        log.advance(MICRO).await;
    }
    assert_eq!(log.prune(&PrunePolicy::all_but(3).with_limit(1)).await.unwrap(), 1);
    assert_eq!(left(&log).await, ["mother", "a", "c", "d", "e", "f"]);
    assert_eq!(log.prune(&PrunePolicy::all_but(3)).await.unwrap(), 0);
    assert_eq!(log.prune(&PrunePolicy::all_but(2)).await.unwrap(), 1);
    assert_eq!(left(&log).await, ["mother", "a", "c", "e", "f"]);
    log.go(&mother, 1, complete()).await;
    assert_eq!(log.prune(&PrunePolicy::all_but(2)).await.unwrap(), 3);
    assert_eq!(left(&log).await, ["mother", "f"]);
}

/// A child stays as long as the parent that waits for it lives, and takes up no place in the limit.
pub async fn prune_keeps_the_children_of_live_parents(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.add([
        child("a", "mother", 1),
        detached("b", "mother", 2),
        child("c", "nobody", 1),
        child("d", "a", 1),
        flow("e"),
    ])
    .await;
    for name in ["a", "b", "c", "d", "e"] {
        end(&log, name).await;
        log.advance(MICRO).await;
    }
    let policy = PrunePolicy::older_than(Duration::ZERO);
    assert_eq!(log.prune(&policy.clone().with_limit(1)).await.unwrap(), 1);
    assert_eq!(left(&log).await, ["mother", "a", "c", "d", "e"]);
    assert_eq!(log.prune(&policy).await.unwrap(), 3);
    assert_eq!(left(&log).await, ["mother", "a"]);
    log.go(&mother, 1, super::scene::stall("build-1")).await;
    assert_eq!(log.prune(&policy).await.unwrap(), 0, "a stalled parent has not ended");
    log.cancel(&id("mother"), "").await.unwrap();
    assert_eq!(log.prune(&policy).await.unwrap(), 2);
}

/// A live flow that was accepted after a flow that names it as its parent is another: nothing waits for that one.
pub async fn prune_takes_the_children_of_an_earlier_parent(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([child("a", "mother", 1), child("b", "mother", 2), flow("mother"), child("c", "mother", 1)]).await;
    for name in ["a", "b", "c"] {
        end(&log, name).await;
    }
    assert!(log.delete(&id("a")).await.unwrap());
    log.refuses(ErrorKind::Conflict, log.delete(&id("c"))).await;
    assert_eq!(log.prune(&PrunePolicy::older_than(Duration::ZERO)).await.unwrap(), 1);
    assert_eq!(left(&log).await, ["mother", "c"]);
}

/// A retried flow is live again.
pub async fn prune_keeps_a_retried_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.bring("a", FlowState::Failed).await;
    log.retry(&id("a")).await.unwrap();
    log.advance(SECOND).await;
    assert_eq!(log.prune(&PrunePolicy::older_than(Duration::ZERO)).await.unwrap(), 0);
    refused(ErrorKind::Conflict, log.delete(&id("a")).await);
}

/// Many flows with long histories go at once, and what belongs to others stays.
pub async fn prune_removes_everything_that_belongs_to_a_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = names(0..40);
    log.add(names.iter().map(|name| flow(name))).await;
    for (number, name) in names.iter().enumerate() {
        log.send(message(name, &signal("go"), "").with_key("k")).await.unwrap();
        let lease = log.take_flow(name).await.lease;
        let mut commit = steps(&lease, 1, 0, 50);
        commit.next = if number % 2 == 0 { complete() } else { super::scene::suspend(None, &[]) };
        log.commit(commit).await.unwrap();
    }
    let live: Vec<_> = log.snapshot().await.flows.into_iter().skip(1).step_by(2).collect();
    assert_eq!(log.prune(&PrunePolicy::older_than(Duration::ZERO)).await.unwrap(), 20);
    assert_eq!(log.snapshot().await.flows, live);
    for name in names.iter().step_by(2) {
        refused(ErrorKind::NotFound, log.history(&id(name), 0, 1).await);
        refused(ErrorKind::NotFound, log.messages(&id(name), &[], 0, 1).await);
        log.add([flow(name)]).await;
        assert_eq!((log.records(name).await.len(), log.mail(name).await.len()), (0, 0));
        let sent = log.send(message(name, &signal("go"), "").with_key("k")).await.unwrap();
        assert_eq!(sent, Sent::Accepted, "the keys of the former flow are forgotten");
    }
}

/// An ended flow is deleted with everything that belongs to it; one that is not there is said not to be.
pub async fn delete_an_ended_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for (name, next) in [("a", complete()), ("b", fail())] {
        let lease = log.start(name).await;
        log.commit(steps(&lease, 1, 0, 3)).await.unwrap();
        log.go(&lease, 2, next).await;
    }
    log.bring("c", FlowState::Cancelled).await;
    for name in ["a", "b", "c"] {
        assert!(log.delete(&id(name)).await.unwrap(), "{name}");
        assert!(!log.delete(&id(name)).await.unwrap(), "{name}");
        assert_eq!(log.flow(&id(name)).await.unwrap(), None);
        refused(ErrorKind::NotFound, log.history(&id(name), 0, 1).await);
    }
    assert_eq!(log.counts(&Filter::all()).await.unwrap(), []);
    assert!(!log.delete(&id("nobody")).await.unwrap());
}

/// A flow that has not ended is not deleted.
pub async fn delete_of_a_live_flow_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for state in FlowState::ALL.into_iter().filter(|state| !state.is_final()) {
        let name = state.to_string();
        log.bring(&name, state).await;
        log.refuses(ErrorKind::Conflict, log.delete(&id(&name))).await;
    }
}

/// A child is not deleted as long as the parent that waits for it lives; a detached one is.
pub async fn delete_of_a_live_parents_child_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.add([child("a", "mother", 1), detached("b", "mother", 2), child("c", "nobody", 1)]).await;
    for name in ["a", "b", "c"] {
        end(&log, name).await;
    }
    log.refuses(ErrorKind::Conflict, log.delete(&id("a"))).await;
    assert!(log.delete(&id("b")).await.unwrap());
    assert!(log.delete(&id("c")).await.unwrap());
    log.go(&mother, 1, complete()).await;
    assert!(log.delete(&id("mother")).await.unwrap(), "its children stay");
    assert_eq!(left(&log).await, ["a"]);
    assert!(log.delete(&id("a")).await.unwrap());
}
