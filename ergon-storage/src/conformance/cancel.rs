//! Ending a flow from outside.

use super::{
    Harness,
    scene::{
        LEASE, SECOND, Scene, child, complete, detached, flow, going, id, message, refused, signal, starting, steps,
        suspend, text,
    },
};
use crate::{
    Cancelled, Channel, ChildOutcome, Commit, Committed, ErrorKind, Filter, FlowState, LeaseState, Start, Wake,
};

/// A flow that has not ended is cancelled at once, whatever it is doing.
pub async fn cancel_wins_in_every_live_state(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for state in FlowState::ALL.into_iter().filter(|state| !state.is_final()) {
        let name = state.to_string();
        log.bring(&name, state).await;
        log.tell(&name, &signal("other"), "").await;
        log.advance(SECOND).await;
        assert_eq!(log.cancel(&id(&name), "enough, 够了").await.unwrap(), Cancelled::Now);
        let read = log.read(&name).await;
        assert_eq!((read.info.state, read.info.reason.as_deref()), (FlowState::Cancelled, Some("enough, 够了")));
        assert_eq!((read.info.finished_at, read.info.due_at), (Some(log.now()), None));
        assert_eq!((read.info.wake, read.result.len(), log.mail(&name).await.len()), (Wake::default(), 0, 0));
    }
    log.advance(LEASE * 10).await;
    assert_eq!(log.take(10).await.len(), 0);
}

/// A flow that is due, or whose start or retry lies ahead, is never claimed after a cancellation.
pub async fn cancel_wins_over_time(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("later").with_start(Start::After(SECOND)), flow("now")]).await;
    let lease = log.start("sleeping").await;
    log.suspend(&lease, 1, Some(log.now().saturating_add(SECOND)), &[]).await;
    log.advance(SECOND).await;
    for name in ["later", "now", "sleeping"] {
        assert_eq!(log.cancel(&id(name), "").await.unwrap(), Cancelled::Now);
    }
    let claimed = log.claim(super::scene::request(9)).await.unwrap();
    assert_eq!((claimed.flows.len(), claimed.next_due_at), (0, None));
}

/// A flow that has ended is left as it is, which is said.
pub async fn cancel_of_an_ended_flow_changes_nothing(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for state in [FlowState::Completed, FlowState::Failed, FlowState::Cancelled] {
        let name = state.to_string();
        log.bring(&name, state).await;
        let before = log.snapshot().await;
        log.advance(SECOND).await;
        for _ in 0..2 {
            assert_eq!(log.cancel(&id(&name), "again").await.unwrap(), Cancelled::Already(state));
        }
        log.snapshot().await.assert_is(&before, "nothing has changed");
    }
}

/// An unknown flow cannot be cancelled.
pub async fn cancel_of_an_unknown_flow_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    log.refuses(ErrorKind::NotFound, log.cancel(&id("nobody"), "")).await;
}

/// The worker that has the flow learns of it at its next heartbeat, and can write nothing more.
pub async fn cancel_is_seen_by_the_worker(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let first = steps(&lease, 1, 0, 1);
    log.commit(first.clone()).await.unwrap();
    log.cancel(&id("a"), "enough").await.unwrap();
    assert_eq!(log.beat(&lease).await, LeaseState::Cancelled);
    log.refuses(ErrorKind::LeaseLost, log.commit(steps(&lease, 2, 1, 1))).await;
    log.refuses(ErrorKind::LeaseLost, log.commit(going(&lease, 2, complete()))).await;
    log.refuses(ErrorKind::LeaseLost, log.commit(first)).await;
    log.refuses(ErrorKind::LeaseLost, log.release(&lease)).await;
    assert_eq!(log.beat(&lease).await, LeaseState::Cancelled);
    refused(ErrorKind::Finished, log.send(message("a", &signal("go"), "")).await);
    assert_eq!(log.records("a").await.len(), 1, "what was written stays");
}

/// Attached descendants are cancelled with their ancestor for its reason, detached ones and theirs are not.
pub async fn cancel_reaches_attached_descendants(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([
        flow("root"),
        child("child", "root", 1),
        child("grandchild", "child", 1),
        child("great-grandchild", "grandchild", 1),
        detached("free", "root", 2),
        child("child of free", "free", 1),
        detached("free too", "grandchild", 2),
        child("other", "elsewhere", 1),
    ])
    .await;
    let lease = log.take_flow("grandchild").await.lease;
    let sleeper = log.take_flow("child").await.lease;
    log.suspend(&sleeper, 1, None, &[Channel::children()]).await;
    assert_eq!(log.cancel(&id("root"), "enough").await.unwrap(), Cancelled::Now);
    for name in ["root", "child", "grandchild", "great-grandchild"] {
        let info = log.info(name).await;
        assert_eq!((info.state, info.reason.as_deref()), (FlowState::Cancelled, Some("enough")), "{name}");
        assert_eq!((info.finished_at, log.mail(name).await.len()), (Some(log.now()), 0), "{name}");
    }
    for name in ["free", "child of free", "free too", "other"] {
        assert_eq!(log.state(name).await, FlowState::Scheduled, "{name}");
    }
    assert_eq!(log.beat(&lease).await, LeaseState::Cancelled);
}

/// A descendant that has ended is left as it is, and so is what it started.
pub async fn cancel_stops_at_an_ended_descendant(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("root"), child("ended", "root", 1), child("below", "ended", 1), child("live", "root", 2)]).await;
    let lease = log.take_flow("ended").await.lease;
    log.go(&lease, 1, complete()).await;
    log.cancel(&id("root"), "").await.unwrap();
    assert_eq!(log.state("ended").await, FlowState::Completed);
    assert_eq!(log.state("below").await, FlowState::Scheduled);
    assert_eq!(log.state("live").await, FlowState::Cancelled);
}

/// Flows that were accepted before the one that is cancelled are not its children, whatever they name as their parent.
pub async fn cancel_leaves_older_flows_alone(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let root = log.start("root").await;
    log.commit(Commit { next: complete(), ..starting(&root, 1, [child("earlier", "root", 1)]) }).await.unwrap();
    log.delete(&id("root")).await.unwrap();
    log.add([child("early", "root", 1), child("below", "early", 1), flow("root"), child("late", "root", 1)]).await;
    log.cancel(&id("root"), "").await.unwrap();
    for (name, state) in [
        ("earlier", FlowState::Scheduled),
        ("early", FlowState::Scheduled),
        ("below", FlowState::Scheduled),
        ("late", FlowState::Cancelled),
    ] {
        assert_eq!(log.state(name).await, state, "{name}");
    }
}

/// The parent of the flow that is cancelled hears of it once, and is woken if it waits.
pub async fn cancel_tells_the_parent(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("root").await;
    let mut commit = starting(&lease, 1, [child("child", "root", 4)]);
    commit.next = suspend(None, &[Channel::children()]);
    log.commit(commit).await.unwrap();
    log.add([child("a", "child", 1), child("b", "child", 2)]).await;
    log.cancel(&id("child"), "enough, 够了").await.unwrap();
    let heard = log.mail("root").await;
    assert_eq!(heard.len(), 1);
    assert_eq!((heard[0].child, heard[0].reference.as_deref()), (Some(ChildOutcome::Cancelled), Some("4")));
    assert_eq!((text(&heard[0].payload), log.state("root").await), ("enough, 够了".into(), FlowState::Scheduled));
    log.cancel(&id("child"), "again").await.unwrap();
    assert_eq!(log.mail("root").await.len(), 1);
}

/// A family of any depth is cancelled as one.
pub async fn cancel_reaches_any_depth(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = super::scene::names(0..500);
    let below = names.windows(2).map(|pair| child(&pair[1], &pair[0], 1));
    log.add([flow(&names[0])].into_iter().chain(below)).await;
    log.cancel(&id(&names[0]), "").await.unwrap();
    assert_eq!(log.counts(&Filter::all()).await.unwrap().len(), 1);
    assert_eq!(log.state(&names[499]).await, FlowState::Cancelled);
}

/// A family of any breadth is cancelled as one.
pub async fn cancel_reaches_any_breadth(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = super::scene::names(0..1_000);
    log.add([flow("root")].into_iter().chain(names.iter().map(|name| child(name, "root", 1)))).await;
    log.cancel(&id("root"), "").await.unwrap();
    let counts = log.counts(&Filter::all()).await.unwrap();
    assert_eq!((counts.len(), counts[0].state, counts[0].flows), (1, FlowState::Cancelled, 1_001));
}

/// Flows that name each other as their parent are cancelled once each, the younger with the older.
pub async fn cancel_ends_in_a_circle(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([child("a", "b", 1), child("b", "a", 1), child("self", "self", 1)]).await;
    log.add([child("c", "d", 1), child("d", "c", 1)]).await;
    assert_eq!(log.cancel(&id("d"), "").await.unwrap(), Cancelled::Now);
    assert_eq!(log.state("c").await, FlowState::Scheduled);
    assert_eq!(log.cancel(&id("a"), "").await.unwrap(), Cancelled::Now);
    assert_eq!(log.cancel(&id("self"), "").await.unwrap(), Cancelled::Now);
    assert_eq!(log.state("b").await, FlowState::Cancelled);
    for name in ["a", "b", "self"] {
        assert_eq!(log.mail(name).await, []);
    }
}

/// A cancelled flow's worker does not keep others from anything: a lease that it held on another flow is good.
pub async fn cancel_leaves_other_leases_alone(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let (_, other) = (log.start("a").await, log.start("b").await);
    log.cancel(&id("a"), "").await.unwrap();
    assert_eq!(log.beat(&other).await, LeaseState::Held);
    assert_eq!(log.go(&other, 1, complete()).await, Committed::Applied);
}
