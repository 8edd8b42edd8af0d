//! Flows that flows start.

use super::{
    Harness,
    scene::{
        Handle, Scene, child, complete, detached, fail, fail_of, flow, going, id, message, signal, stall, starting,
        steps, suspend, text,
    },
};
use crate::{
    CallPath, Channel, ChildOutcome, Commit, Committed, ErrorKind, Filter, FlowState, Lease, NewFlow, Parent, Retried,
    Start,
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
    let children = [child("a", "mother", 1), child("b 够", "mother", 2), flow("c").with_parent(nested)];
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
            let ended = message.ended.expect("a child's end names the child");
            (message.seq, message.child.expect("a child's end says how"), reference, ended, text(&message.payload))
        })
        .collect();
    let expected = [
        (1, ChildOutcome::Failed, "2", "b 够", "{broken}"),
        (2, ChildOutcome::Cancelled, "3.1", "c", "enough, 够了"),
        (3, ChildOutcome::Completed, "1", "a", "done"),
    ];
    let expected =
        expected.map(|(seq, outcome, call, name, told)| (seq, outcome, call.to_owned(), id(name), told.to_owned()));
    assert_eq!(heard, expected);
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

/// A child that is retried tells its parent again, and what it has told is withdrawn if it was not taken in.
pub async fn children_tell_their_end_again_after_a_retry(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for (name, taken_in, mother_ends) in [("a", false, false), ("b", true, false), ("c", false, true)] {
        let mother = log.start(&format!("mother of {name}")).await;
        let twin = format!("twin of {name}");
        let children = [child(name, mother.flow.as_str(), 1), child(&twin, mother.flow.as_str(), 2)];
        log.commit(starting(&mother, 1, children)).await.unwrap();
        for name in [name, &twin] {
            let lease = log.take_flow(name).await.lease;
            log.go(&lease, 1, fail()).await;
        }
        let mut commit = Commit::new(mother.clone(), 2);
        if taken_in {
            commit.consumed = vec![1];
        }
        if mother_ends {
            commit.next = fail();
        }
        log.commit(commit).await.unwrap();
        assert_eq!(log.retry(&id(name)).await.unwrap(), Retried::Scheduled);
        let calls = async || -> Vec<_> {
            let mail = log.mail(mother.flow.as_str()).await;
            mail.into_iter().map(|message| (message.reference.unwrap(), message.child.unwrap())).collect()
        };
        assert_eq!(calls().await, [("2".into(), ChildOutcome::Failed)]);
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, complete()).await;
        assert_eq!(calls().await, [("2".into(), ChildOutcome::Failed), ("1".into(), ChildOutcome::Completed)]);
    }
}

/// A parent that has failed hears of its children, for it may be retried, and stays where it is.
pub async fn children_of_a_failed_parent_are_heard_later(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let mut commit = starting(&mother, 1, [child("a", "mother", 1), child("b", "mother", 2)]);
    commit.next = fail();
    log.commit(commit).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, complete()).await;
    log.cancel(&id("b"), "enough").await.unwrap();
    let heard: Vec<_> = log.mail("mother").await.into_iter().map(|message| message.child).collect();
    assert_eq!(heard, [Some(ChildOutcome::Completed), Some(ChildOutcome::Cancelled)]);
    assert_eq!(log.state("mother").await, FlowState::Failed);
    log.retry(&id("mother")).await.unwrap();
    assert_eq!(log.take_flow("mother").await.messages.len(), 2);
}

/// A call that is made again goes on with the child that it has started: one that has failed runs again, one that
/// has ended otherwise tells its end again.
pub async fn children_go_on_when_their_call_is_made_again(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let calls = [("completed", 1), ("failed", 2), ("cancelled", 3), ("stalled", 4)];
    let children = || calls.map(|(name, call)| child(name, "mother", call));
    log.commit(starting(&mother, 1, children())).await.unwrap();
    for (name, next) in
        [("completed", complete()), ("failed", fail_of([CallPath::top(1)])), ("stalled", stall("build-1"))]
    {
        let lease = log.take_flow(name).await.lease;
        let mut commit = steps(&lease, 1, 0, 1);
        (commit.records[0].path, commit.next) = (CallPath::top(1), next);
        log.commit(commit).await.unwrap();
    }
    log.cancel(&id("cancelled"), "enough").await.unwrap();
    let mut failure = Commit::new(mother, 2);
    let mail = log.mail("mother").await;
    (failure.consumed, failure.next) = (mail.iter().map(|message| message.seq).collect(), fail());
    log.commit(failure).await.unwrap();
    log.retry(&id("mother")).await.unwrap();
    let mother = log.take_flow("mother").await;
    assert_eq!(mother.messages, []);
    log.commit(starting(&mother.lease, 1, children())).await.unwrap();
    let heard: Vec<_> = log.mail("mother").await.iter().map(|m| (m.child.unwrap(), text(&m.payload))).collect();
    assert_eq!(heard, [(ChildOutcome::Completed, "done".into()), (ChildOutcome::Cancelled, "enough".into())]);
    let (failed, stalled) = (log.info("failed").await, log.info("stalled").await);
    assert_eq!((failed.state, failed.records, stalled.state), (FlowState::Scheduled, 0, FlowState::Stalled));
    let lease = log.take_flow("failed").await.lease;
    log.go(&lease, 1, complete()).await;
    assert_eq!(log.mail("mother").await.len(), 3);
}

/// A child that an earlier flow of its parent's id has started makes room when it has ended, and is in the way when
/// it has not.
pub async fn children_of_an_earlier_parent_make_room(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let mut commit = starting(&mother, 1, [child("ended", "mother", 1), child("live", "mother", 2)]);
    commit.next = complete();
    log.commit(commit).await.unwrap();
    let lease = log.take_flow("ended").await.lease;
    log.commit(Commit { next: complete(), ..steps(&lease, 1, 0, 3) }).await.unwrap();
    log.delete(&id("mother")).await.unwrap();
    let live = log.take_flow("live").await.lease;
    let mother = log.start("mother").await;
    let again = [child("ended", "mother", 1), child("live", "mother", 2)];
    log.commit(starting(&mother, 1, again.map(|child| child.with_priority(7)))).await.unwrap();
    let ended = log.info("ended").await;
    assert_eq!((ended.state, ended.records, ended.priority), (FlowState::Scheduled, 0, 7));
    assert_eq!(log.records("ended").await, []);
    let heard = log.mail("mother").await;
    let heard: Vec<_> = heard.iter().map(|message| (message.child, message.reference.as_deref())).collect();
    assert_eq!(heard, [(Some(ChildOutcome::Refused), Some("2"))]);
    assert_eq!(log.info("live").await.state, FlowState::Running);
    assert_eq!(log.go(&live, 1, complete()).await, Committed::Applied);
}

/// Brings about what is confusing: a live child `old` of the first call of a `mother` that is gone, and a new flow
/// `mother` whose first call has started the live child `young`. Returns the leases of the three.
async fn two_generations(log: &Handle) -> [Lease; 3] {
    let mother = log.start("mother").await;
    log.commit(Commit { next: complete(), ..starting(&mother, 1, [child("old", "mother", 1)]) }).await.unwrap();
    log.delete(&id("mother")).await.unwrap();
    let old = log.take_flow("old").await.lease;
    let mother = log.start("mother").await;
    log.commit(starting(&mother, 1, [child("young", "mother", 1)])).await.unwrap();
    let young = log.take_flow("young").await.lease;
    [mother, old, young]
}

/// A child is that of the flow that has started it: a later flow of its parent's id neither hears of its end nor is
/// woken by it.
pub async fn children_of_an_earlier_parent_are_not_heard(harness: &impl Harness) {
    for end in [Some(complete()), Some(fail()), None] {
        let log = Scene::new(harness).await;
        let [mother, old, young] = two_generations(&log).await;
        log.suspend(&mother, 2, None, &[Channel::children()]).await;
        match end {
            Some(end) => _ = log.go(&old, 1, end).await,
            None => _ = log.cancel(&id("old"), "enough").await.unwrap(),
        }
        assert_eq!((log.state("mother").await, log.mail("mother").await), (FlowState::Suspended, Vec::new()));
        log.go(&young, 1, complete()).await;
        assert_eq!((log.state("mother").await, log.mail("mother").await.len()), (FlowState::Scheduled, 1));
    }
}

/// A child of an earlier flow of its parent's id that is retried takes nothing back that another child has told.
pub async fn children_of_an_earlier_parent_withdraw_nothing(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let [_, old, young] = two_generations(&log).await;
    log.go(&old, 1, fail()).await;
    log.go(&young, 1, fail()).await;
    let heard = log.mail("mother").await;
    assert_eq!(heard.len(), 1);
    assert_eq!(log.retry(&id("old")).await.unwrap(), Retried::Scheduled);
    assert_eq!(log.mail("mother").await, heard);
    assert_eq!(log.retry(&id("young")).await.unwrap(), Retried::Scheduled);
    assert_eq!(log.mail("mother").await, []);
}

/// A flow that names a parent that is accepted later, or itself, has no parent.
pub async fn children_are_younger_than_their_parent(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let early = log.start_flow(child("early", "mother", 1)).await;
    let own = log.start_flow(child("own", "own", 1)).await;
    log.add([child("in time", "mother", 1), flow("mother"), child("late", "mother", 2)]).await;
    log.go(&early, 1, complete()).await;
    log.go(&own, 1, fail()).await;
    let in_time = log.take_flow("in time").await.lease;
    log.go(&in_time, 1, complete()).await;
    for name in ["mother", "own"] {
        assert_eq!(log.mail(name).await, [], "{name}");
    }
    let late = log.take_flow("late").await.lease;
    log.go(&late, 1, complete()).await;
    let heard: Vec<_> =
        log.mail("mother").await.into_iter().map(|message| message.reference.unwrap().to_string()).collect();
    assert_eq!(heard, ["2"]);
}

/// A call that is made again and wants another child than it has started gets it, when that one has ended.
pub async fn children_with_another_value_take_the_place(harness: &impl Harness) {
    let wanted = |name| {
        [
            NewFlow::new(id(name), "Order", 1, &b"other"[..]),
            NewFlow::new(id(name), "Order", 2, &b"{}"[..]),
            NewFlow::new(id(name), "Refund", 1, &b"{}"[..]),
        ]
    };
    for end in [Some(complete()), Some(fail_of([CallPath::top(1)])), None] {
        for (wanted, detached) in wanted("a").into_iter().flat_map(|wanted| [(wanted.clone(), false), (wanted, true)]) {
            let log = Scene::new(harness).await;
            let parent = Parent { id: id("mother"), path: CallPath::top(1), detached };
            let mother = log.start("mother").await;
            log.commit(starting(&mother, 1, [flow("a").with_parent(parent.clone())])).await.unwrap();
            let lease = log.take_flow("a").await.lease;
            log.commit(starting(&lease, 1, [child("below", "a", 1)])).await.unwrap();
            log.commit(steps(&lease, 2, 0, 2)).await.unwrap();
            match end.clone() {
                Some(end) => _ = log.go(&lease, 3, end).await,
                None => _ = log.cancel(&id("a"), "enough").await.unwrap(),
            }
            let below = log.state("below").await;
            log.commit(starting(&mother, 2, [wanted.clone().with_parent(parent.clone())])).await.unwrap();
            assert_eq!(log.mail("mother").await, [], "what the former child has told is withdrawn");
            let a = log.read("a").await;
            assert_eq!((a.info.state, a.info.records, a.info.epoch), (FlowState::Scheduled, 0, 0));
            assert_eq!((a.info.flow_type, a.info.version, a.input), (wanted.flow_type, wanted.version, wanted.input));
            assert_eq!((a.info.parent, a.info.finished_at), (Some(parent), None));
            assert_eq!(log.records("a").await, []);
            let lease = log.take_flow("a").await.lease;
            assert_eq!(log.state("below").await, below, "what the former child has started is another's");
            log.go(&lease, 1, complete()).await;
            assert_eq!(log.mail("mother").await.len(), usize::from(!detached));
        }
    }
}

/// A call that is made again and wants another child than it has started is refused while that one has not ended.
pub async fn children_with_another_value_are_refused_while_one_lives(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.commit(starting(&mother, 1, [child("a", "mother", 1), detached("b", "mother", 2)])).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, stall("build-1")).await;
    let before = log.snapshot().await.flows;
    let mut others = [child("a", "mother", 1), detached("b", "mother", 2)];
    others[0].input = "other".into();
    others[1].version = 2;
    log.commit(starting(&mother, 2, others)).await.unwrap();
    let heard = log.mail("mother").await;
    for (message, (name, call)) in heard.iter().zip([("a", "1"), ("b", "2")]) {
        assert_eq!((message.child, message.reference.as_deref()), (Some(ChildOutcome::Refused), Some(call)));
        let told = text(&message.payload);
        assert!(told.contains(&format!("{name:?}")) && told.contains("another value"), "{told:?} says why");
    }
    assert_eq!(heard.len(), 2);
    let mut after = log.snapshot().await.flows;
    after[0].2.clear();
    assert_eq!(after, before, "nothing but the mailbox has changed");
}

/// A call that is made again hears of its child once, also when that has told its end while its parent had failed.
pub async fn children_that_are_found_again_are_heard_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let children = || [child("completed", "mother", 1), child("cancelled", "mother", 2), child("other", "mother", 3)];
    log.commit(starting(&mother, 1, children())).await.unwrap();
    for name in ["completed", "other"] {
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, complete()).await;
    }
    log.cancel(&id("cancelled"), "enough").await.unwrap();
    log.commit(starting(&mother, 2, children().into_iter().take(2))).await.unwrap();
    let heard: Vec<_> = log.mail("mother").await.iter().map(|message| (message.seq, message.child.unwrap())).collect();
    let expected = [(2, ChildOutcome::Completed), (4, ChildOutcome::Completed), (5, ChildOutcome::Cancelled)];
    assert_eq!(heard, expected);
}

/// A call that is made again may start another child than before: each tells its own end, and one that is retried takes
/// nothing back that the other has told.
pub async fn children_of_one_call_are_told_apart(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.commit(starting(&mother, 1, [child("former", "mother", 1)])).await.unwrap();
    let lease = log.take_flow("former").await.lease;
    log.go(&lease, 1, fail()).await;
    let consumed = log.mail("mother").await.iter().map(|message| message.seq).collect();
    log.commit(Commit { consumed, next: fail_of([CallPath::top(1)]), ..Commit::new(mother, 2) }).await.unwrap();
    log.retry(&id("mother")).await.unwrap();
    let mother = log.take_flow("mother").await.lease;
    log.commit(starting(&mother, 1, [child("latter", "mother", 1)])).await.unwrap();
    let lease = log.take_flow("latter").await.lease;
    log.go(&lease, 1, fail()).await;
    let heard = async || -> Vec<_> {
        let mail = log.mail("mother").await;
        mail.into_iter().map(|message| (message.ended.unwrap().to_string(), message.child.unwrap())).collect()
    };
    let latter = || ("latter".to_owned(), ChildOutcome::Failed);
    assert_eq!(heard().await, [latter()]);
    log.retry(&id("former")).await.unwrap();
    assert_eq!(heard().await, [latter()], "what another child has told stays");
    let lease = log.take_flow("former").await.lease;
    log.go(&lease, 1, fail()).await;
    assert_eq!(heard().await, [latter(), ("former".to_owned(), ChildOutcome::Failed)]);
    // The failure of a child that the call no longer waits for is none to retry.
    log.commit(Commit { next: fail(), ..Commit::new(mother, 2) }).await.unwrap();
    log.retry(&id("mother")).await.unwrap();
    assert_eq!(heard().await, [("former".to_owned(), ChildOutcome::Failed)]);
    assert_eq!((log.state("former").await, log.state("latter").await), (FlowState::Failed, FlowState::Scheduled));
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
        assert_eq!(message.ended, Some(id(name)));
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

/// A child that this call has started already is left alone while it has not ended, and when nobody waits for it.
pub async fn children_that_were_started_are_left_alone(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let children = [child("a", "mother", 1), detached("b", "mother", 2), detached("c", "mother", 3)];
    log.commit(starting(&mother, 1, children)).await.unwrap();
    for (name, next) in [("b", complete()), ("c", fail())] {
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, next).await;
    }
    let before = log.snapshot().await;
    let again = [child("a", "mother", 1).with_priority(9), detached("b", "mother", 2), detached("c", "mother", 3)];
    assert_eq!(log.commit(starting(&mother, 2, again)).await.unwrap(), Committed::Applied);
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
