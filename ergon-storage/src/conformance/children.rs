//! Flows that flows start.

use super::{
    Harness,
    scene::{
        Scene, child, complete, detached, fail, flow, going, id, message, signal, stall, starting, steps, suspend, text,
    },
};
use crate::{
    CallPath, Channel, ChildOutcome, Commit, Committed, ErrorKind, Filter, FlowState, NewFlow, Parent, Retried, Start,
};

/// Children start with the commit that starts them, each as it is described.
pub async fn children_start_with_the_commit(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("mother").await;
    log.advance(super::scene::SECOND).await;
    let path = CallPath::top(2).child(7);
    let parent = Parent { id: id("mother"), path, detached: false };
    let later = NewFlow::new(id("later"), "Refund", 3, &b"\xff"[..])
        .with_queue("other")
        .with_priority(4)
        .with_start(Start::After(super::scene::SECOND))
        .with_timeout(Some(super::scene::SECOND))
        .with_parent(parent.clone());
    let mut commit = starting(&lease, 1, [child("now", "mother", 1), later]);
    commit.records = steps(&lease, 1, 0, 1).records;
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    let read = log.read("later").await;
    let at = |seconds| log.now().saturating_add(super::scene::SECOND * seconds);
    assert_eq!((&*read.info.queue, read.info.priority, read.info.version), ("other", 4, 3));
    assert_eq!((read.info.parent, &read.input[..]), (Some(parent), &b"\xff"[..]));
    assert_eq!((read.info.created_at, read.info.start_at, read.info.deadline_at), (at(0), at(1), Some(at(2))));
    assert_eq!(log.take_names(9).await, ["now"]);
    let page = log.list(&Filter::all().with_parent(id("mother")), None, 10).await.unwrap();
    assert_eq!(page.flows.iter().map(|info| info.id.as_str()).collect::<Vec<_>>(), ["now", "later"]);
}

/// A child that does not name the committing flow as its parent is refused.
pub async fn children_must_name_their_parent(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("mother").await;
    log.add([flow("other")]).await;
    for orphan in [flow("a"), child("a", "other", 1), child("a", "nobody", 1)] {
        log.refuses(ErrorKind::Invalid, log.commit(starting(&lease, 1, [orphan]))).await;
    }
}

/// A child's end reaches its parent's mailbox, with the call that started it.
pub async fn children_tell_their_end(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("mother").await;
    let nested = Parent { id: id("mother"), path: CallPath::top(3).child(1), detached: false };
    let children = [child("a", "mother", 1), child("b", "mother", 2), flow("c").with_parent(nested)];
    log.commit(starting(&lease, 1, children)).await.unwrap();
    let leases: Vec<_> = log.take(9).await.into_iter().map(|claimed| claimed.lease).collect();
    log.advance(super::scene::SECOND).await;
    log.go(&leases[1], 1, fail()).await;
    log.cancel(&id("c"), "enough, 够了").await.unwrap();
    log.go(&leases[0], 1, complete()).await;
    let heard: Vec<_> = log
        .mail("mother")
        .await
        .into_iter()
        .map(|message| {
            assert_eq!((message.channel, message.at), (Channel::children(), log.now()));
            let reference = message.reference.expect("a child's end names its call").to_string();
            (message.seq, message.child.expect("a child's end says how"), reference, text(&message.payload))
        })
        .collect();
    let expected = [
        (1, ChildOutcome::Failed, "2", "{broken}"),
        (2, ChildOutcome::Cancelled, "3.1", "enough, 够了"),
        (3, ChildOutcome::Completed, "1", "done"),
    ];
    assert_eq!(heard, expected.map(|(seq, outcome, call, told)| (seq, outcome, call.to_owned(), told.to_owned())));
}

/// A parent that waits for a child is woken by its end; one that waits for something else is not.
pub async fn children_wake_their_parent(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for (mother, name, channel, woken) in [
        ("waits", "a", Channel::children(), FlowState::Scheduled),
        ("waits otherwise", "b", signal("go"), FlowState::Suspended),
    ] {
        let lease = log.start(mother).await;
        let mut commit = starting(&lease, 1, [child(name, mother, 1)]);
        commit.next = suspend(None, &[channel]);
        assert_eq!(log.commit(commit).await.unwrap(), Committed::Suspended);
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, complete()).await;
        assert_eq!(log.state(mother).await, woken);
        assert_eq!(log.mail(mother).await.len(), 1);
    }
    assert_eq!(log.info("waits").await.due_at, Some(log.now()));
    assert_eq!(log.take_flow("waits").await.messages[0].child, Some(ChildOutcome::Completed));
}

/// A child that has ended before its parent suspends keeps it awake.
pub async fn children_that_have_ended_keep_their_parent_awake(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.commit(starting(&mother, 1, [child("a", "mother", 1)])).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, complete()).await;
    assert_eq!(log.go(&mother, 2, suspend(None, &[Channel::children()])).await, Committed::Awake);
}

/// A detached child tells nobody.
pub async fn detached_children_tell_nobody(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let children = [detached("a", "mother", 1), detached("b", "mother", 2), detached("c", "mother", 3)];
    log.commit(starting(&mother, 1, children)).await.unwrap();
    let leases: Vec<_> = log.take(9).await.into_iter().map(|claimed| claimed.lease).collect();
    log.suspend(&mother, 2, None, &[Channel::children()]).await;
    log.go(&leases[0], 1, complete()).await;
    log.go(&leases[1], 1, fail()).await;
    log.cancel(&id("c"), "").await.unwrap();
    assert_eq!((log.state("mother").await, log.mail("mother").await), (FlowState::Suspended, Vec::new()));
}

/// A child outlives its parent's end, and its own end then harms nobody.
pub async fn children_of_an_ended_parent_end_in_peace(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for (mother, delete) in [("ended", false), ("deleted", true)] {
        let lease = log.start(mother).await;
        let name = format!("child of {mother}");
        let mut commit = starting(&lease, 1, [child(&name, mother, 1)]);
        commit.next = complete();
        log.commit(commit).await.unwrap();
        if delete {
            assert!(log.delete(&id(mother)).await.unwrap());
        }
        assert_eq!(log.state(&name).await, FlowState::Scheduled);
        let lease = log.take_flow(&name).await.lease;
        assert_eq!(log.go(&lease, 1, complete()).await, Committed::Applied);
        if !delete {
            assert_eq!((log.state(mother).await, log.mail(mother).await), (FlowState::Completed, Vec::new()));
        }
    }
}

/// A parent that is at a standstill hears of its children, and stays where it is.
pub async fn children_of_a_stalled_parent_are_heard_later(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let mut commit = starting(&mother, 1, [child("a", "mother", 1)]);
    commit.next = stall("build-1");
    log.commit(commit).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, complete()).await;
    assert_eq!((log.state("mother").await, log.mail("mother").await.len()), (FlowState::Stalled, 1));
}

/// A child that stalls or suspends has not ended.
pub async fn children_tell_only_their_end(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.commit(starting(&mother, 1, [child("a", "mother", 1), child("b", "mother", 2)])).await.unwrap();
    let leases: Vec<_> = log.take(9).await.into_iter().map(|claimed| claimed.lease).collect();
    log.go(&leases[0], 1, stall("build-1")).await;
    log.suspend(&leases[1], 1, None, &[]).await;
    assert_eq!(log.mail("mother").await, []);
}

/// A child that is retried tells its parent again.
pub async fn children_tell_their_end_again_after_a_retry(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.commit(starting(&mother, 1, [child("a", "mother", 1)])).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, fail()).await;
    assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Scheduled);
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, complete()).await;
    let outcomes: Vec<_> = log.mail("mother").await.iter().map(|message| message.child).collect();
    assert_eq!(outcomes, [Some(ChildOutcome::Failed), Some(ChildOutcome::Completed)]);
}

/// A child whose id belongs to a flow that this call did not start is answered with a refusal.
pub async fn children_with_a_taken_id_are_refused_by_message(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let other = log.start("other").await;
    log.commit(starting(&other, 1, [child("others child", "other", 1)])).await.unwrap();
    log.add([flow("nobodys child")]).await;
    let mother = log.start("mother").await;
    log.commit(starting(&mother, 1, [child("my child", "mother", 1)])).await.unwrap();
    let before = log.snapshot().await.flows;
    let taken = ["others child", "nobodys child", "my child", "mother", "other"];
    log.commit(starting(&mother, 2, taken.map(|name| child(name, "mother", 2)))).await.unwrap();
    let messages = log.mail("mother").await;
    assert_eq!(messages.len(), taken.len());
    for (message, name) in messages.iter().zip(taken) {
        assert_eq!((message.child, message.reference.as_deref()), (Some(ChildOutcome::Refused), Some("2")));
        assert_eq!(message.channel, Channel::children());
        let told = text(&message.payload);
        assert!(told.contains(name), "{told:?} names {name:?}");
    }
    let mut after = log.snapshot().await.flows;
    for flow in &mut after {
        flow.2.clear();
    }
    assert_eq!(after, before, "nothing but the mailbox has changed");
}

/// A child that this call has started already is left alone, whatever has become of it.
pub async fn children_that_were_started_are_left_alone(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.commit(starting(&mother, 1, [child("a", "mother", 1), child("b", "mother", 2)])).await.unwrap();
    let lease = log.take_flow("b").await.lease;
    log.go(&lease, 1, complete()).await;
    let mut consume = Commit::new(mother.clone(), 2);
    consume.consumed = vec![1];
    log.commit(consume).await.unwrap();
    let before = log.snapshot().await;
    let again = [child("a", "mother", 1).with_priority(9), child("b", "mother", 2)];
    assert_eq!(log.commit(starting(&mother, 3, again)).await.unwrap(), Committed::Applied);
    log.snapshot().await.assert_is(&before, "nothing has changed");
}

/// Two children with one id in a commit: the first one starts, the second is refused unless it is the same call.
pub async fn children_with_one_id_start_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let twins = [child("a", "mother", 1), child("a", "mother", 1), child("a", "mother", 2)];
    log.commit(starting(&mother, 1, twins)).await.unwrap();
    assert_eq!(log.info("a").await.parent.unwrap().path, CallPath::top(1));
    let references: Vec<_> = log.mail("mother").await.into_iter().map(|message| message.reference).collect();
    assert_eq!(references, [Some("2".into())]);
}

/// A refusal keeps the parent awake that would wait for it.
pub async fn a_refused_child_keeps_its_parent_awake(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("taken")]).await;
    let mother = log.start("mother").await;
    let mut commit = starting(&mother, 1, [child("taken", "mother", 1)]);
    commit.next = suspend(None, &[Channel::children()]);
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Awake);
    assert_eq!(log.mail("mother").await.len(), 1);
}

/// A flow that starts a child and ends in one commit leaves the child running and its own mailbox empty.
pub async fn a_refused_child_of_an_end_is_not_heard(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("taken")]).await;
    let mother = log.start("mother").await;
    let mut commit = starting(&mother, 1, [child("taken", "mother", 1), child("free", "mother", 2)]);
    commit.next = complete();
    log.commit(commit).await.unwrap();
    assert_eq!(log.mail("mother").await, []);
    assert_eq!(log.state("free").await, FlowState::Scheduled);
}

/// A child's end and its parent's message are one: no read finds the one without the other.
pub async fn a_childs_end_and_its_message_are_one(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let names = super::scene::names(0..50);
    let children = names.iter().zip(1..).map(|(name, path)| child(name, "mother", path));
    log.commit(starting(&mother, 1, children)).await.unwrap();
    log.suspend(&mother, 2, None, &[Channel::children()]).await;
    let leases = log.take(100).await;
    let reader = {
        let log = log.second().await;
        let names = names.clone();
        tokio::spawn(async move {
            loop {
                tokio::task::yield_now().await;
                // The messages are read after the states, so there are at least as many.
                let mut ended = 0;
                for name in &names {
                    ended += usize::from(log.state(name).await.is_final());
                }
                let heard = log.mail("mother").await.len();
                assert!(heard >= ended, "{ended} have ended, {heard} were heard of");
                assert!(heard == 0 || log.state("mother").await == FlowState::Scheduled, "one heard of has woken");
                if ended == names.len() {
                    return;
                }
            }
        })
    };
    for claimed in &leases {
        log.commit(going(&claimed.lease, 1, complete())).await.unwrap();
    }
    reader.await.unwrap();
}

/// An outsider's message on the children's channel is a message like any other.
pub async fn a_message_on_the_childrens_channel_is_no_child(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.suspend(&mother, 1, None, &[Channel::children()]).await;
    log.send(message("mother", &Channel::children(), "forged")).await.unwrap();
    assert_eq!(log.state("mother").await, FlowState::Scheduled);
    let heard = log.mail("mother").await.remove(0);
    assert_eq!((heard.child, heard.reference), (None, None));
}
