//! Flows that begin again: with another value, and with what belongs to the flow and not to the run.

use std::time::Duration;

use super::{
    Harness,
    scene::{
        LEASE, SECOND, Scene, again, child, complete, detached, fail, fail_of, flow, going, id, message, signal,
        starting, steps, text,
    },
};
use crate::{
    CallPath, Cancelled, Channel, ChildOutcome, Committed, Enqueued, ErrorKind, FlowState, NewFlow, Parent,
    PrunePolicy, Retried, Sent, Wake,
};

/// The next run has the value that it is given, no history, and else all that the flow had.
pub async fn a_run_begins_with_nothing_but_its_input(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let parent = Parent { id: id("mother"), path: CallPath::top(1), detached: false };
    let new = NewFlow::new(id("a"), "Order", 3, "first").with_queue("billing").with_priority(7).with_parent(parent);
    let lease = log.start_flow(new.with_timeout(Some(Duration::from_secs(3_600)))).await;
    log.commit(steps(&lease, 1, 0, 3)).await.unwrap();
    let before = log.read("a").await.info;
    log.advance(SECOND).await;
    let mut commit = steps(&lease, 2, 3, 2);
    commit.next = again("second");
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);

    let read = log.read("a").await;
    let mut expected = before;
    expected.state = FlowState::Scheduled;
    expected.run = 2;
    expected.due_at = Some(log.now());
    expected.started_at = None;
    expected.worker = None;
    expected.records = 0;
    assert_eq!((read.info, text(&read.input), read.result.len()), (expected.clone(), "second".into(), 0));
    assert_eq!(log.records("a").await, []);

    log.advance(SECOND).await;
    let claimed = log.take_flow("a").await;
    assert_eq!((claimed.history, text(&claimed.input)), (Vec::new(), "second".into()));
    assert_eq!((claimed.info.run, claimed.info.epoch), (2, expected.epoch + 1));
    assert_eq!((claimed.info.started_at, claimed.info.deadline_at), (Some(log.now()), expected.deadline_at));
    assert_eq!(log.commit(steps(&claimed.lease, 1, 0, 2)).await.unwrap(), Committed::Applied, "records begin at 1");
    log.go(&claimed.lease, 2, complete()).await;
    let told = log.mail("mother").await.remove(0);
    assert_eq!((told.child, text(&told.payload)), (Some(ChildOutcome::Completed), "done".into()));
    log.release(&mother).await.unwrap();
}

/// Messages that were not consumed wait for the next run, under their numbers; keys stay known, and new messages get
/// new numbers.
pub async fn a_run_keeps_the_mailbox(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let keyed = |text: &str, key: &str| message("a", &signal("go"), text).with_key(key);
    assert_eq!(log.send(keyed("one", "k1")).await.unwrap(), Sent::Accepted);
    log.tell("a", &signal("other"), "two").await;
    assert_eq!(log.send(keyed("three", "k3")).await.unwrap(), Sent::Accepted);
    let mut commit = going(&lease, 1, again("second"));
    commit.consumed = vec![1, 77];
    log.commit(commit).await.unwrap();
    let numbers = |messages: &[crate::Message]| -> Vec<_> {
        messages.iter().map(|message| (message.seq, text(&message.payload))).collect()
    };
    assert_eq!(numbers(&log.mail("a").await), [(2, "two".into()), (3, "three".into())]);
    assert_eq!(log.send(keyed("again", "k1")).await.unwrap(), Sent::Duplicate);
    assert_eq!(log.send(keyed("again", "k3")).await.unwrap(), Sent::Duplicate);
    log.tell("a", &signal("go"), "four").await;
    let claimed = log.take_flow("a").await;
    assert_eq!(numbers(&claimed.messages), [(2, "two".into()), (3, "three".into()), (4, "four".into())]);
    assert!(!claimed.more_messages);
    let wake = Wake { at: None, channels: vec![signal("go")] };
    assert_eq!(log.go(&claimed.lease, 1, crate::Next::suspend(wake)).await, Committed::Awake);
}

/// A repeat of the commit is recognised until somebody has claimed the next run, and then refused.
pub async fn a_run_begins_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let commit = going(&lease, 1, again("second"));
    for _ in 0..3 {
        assert_eq!(log.commit(commit.clone()).await.unwrap(), Committed::Applied);
        assert_eq!(log.info("a").await.run, 2);
    }
    let claimed = log.take_flow("a").await;
    log.refuses(ErrorKind::LeaseLost, log.commit(commit)).await;
    assert_eq!(log.commit(steps(&claimed.lease, 1, 0, 1)).await.unwrap(), Committed::Applied);
}

/// Whoever had the former run can write nothing into the next one.
pub async fn a_run_ends_the_lease_of_the_former(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.go(&lease, 1, again("second")).await;
    for _ in 0..2 {
        log.refuses(ErrorKind::LeaseLost, log.commit(steps(&lease, 2, 0, 1))).await;
        log.refuses(ErrorKind::LeaseLost, log.commit(going(&lease, 2, again("third")))).await;
        log.refuses(ErrorKind::LeaseLost, log.release(&lease)).await;
        assert_eq!(log.beat(&lease).await, crate::LeaseState::Lost);
        if log.state("a").await == FlowState::Scheduled {
            log.take_flow("a").await;
        }
    }
}

/// To begin again is progress.
pub async fn a_run_begins_with_no_deliveries(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    for _ in 0..3 {
        log.take_flow("a").await;
        log.advance(LEASE).await;
    }
    let lease = log.take_flow("a").await.lease;
    assert_eq!(log.info("a").await.deliveries, 4);
    log.go(&lease, 1, again("second")).await;
    assert_eq!(log.info("a").await.deliveries, 0);
    assert_eq!(log.take_flow("a").await.info.deliveries, 1);
}

/// The next run waits in its queue from now on, behind those that have waited for longer.
pub async fn a_run_is_claimed_like_any_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.advance(SECOND).await;
    log.add([flow("b")]).await;
    log.advance(SECOND).await;
    log.go(&lease, 1, again("second")).await;
    let counts = log.counts(&crate::Filter::all()).await.unwrap();
    assert_eq!((counts.len(), counts[0].flows, counts[0].state), (1, 2, FlowState::Scheduled));
    assert_eq!(log.take_names(5).await, ["b", "a"]);
}

/// A value over the limit is refused, and the run goes on.
pub async fn a_run_with_too_large_an_input_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let input = vec![b'x'; log.limits().payload_bytes_max + 1];
    let commit = going(&lease, 1, crate::Next::Continue { input: input.into() });
    log.refuses(ErrorKind::TooLarge, log.commit(commit)).await;
    assert_eq!(log.commit(steps(&lease, 1, 0, 1)).await.unwrap(), Committed::Applied);
}

/// A run hears of the children that it has started, and of no others: neither of ends that were told before it began,
/// nor of later ones.
pub async fn runs_hear_of_their_own_children(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let both = [child("early", "a", 1), child("late", "a", 2), detached("own", "a", 3)];
    log.commit(starting(&lease, 1, both)).await.unwrap();
    let [early, late] = [log.take_flow("early").await.lease, log.take_flow("late").await.lease];
    log.go(&early, 1, complete()).await;
    log.tell("a", &Channel::children(), "from outside").await;
    let mut last = going(&lease, 2, again("second"));
    last.children = vec![child("last", "a", 4)];
    log.commit(last).await.unwrap();
    assert_eq!(log.texts("a").await, ["from outside"], "only ends of children are taken out");
    let claimed = log.take_flow("a").await;
    log.go(&late, 1, fail()).await;
    let last = log.take_flow("last").await.lease;
    log.go(&last, 1, complete()).await;
    assert_eq!(log.texts("a").await.len(), 1, "the former run's");

    log.commit(starting(&claimed.lease, 1, [child("new", "a", 1)])).await.unwrap();
    let new = log.take_flow("new").await.lease;
    let wake = Wake { at: None, channels: vec![signal("go")] };
    assert_eq!(log.go(&claimed.lease, 2, crate::Next::suspend(wake)).await, Committed::Suspended);
    log.go(&new, 1, complete()).await;
    let told = log.mail("a").await;
    assert_eq!((told.len(), told[1].ended.as_ref()), (2, Some(&id("new"))));
}

/// Children of former runs belong to the flow: they go with it when it is cancelled.
pub async fn runs_keep_the_children_of_former_ones(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(starting(&lease, 1, [child("first", "a", 1), detached("own", "a", 2)])).await.unwrap();
    log.go(&lease, 2, again("second")).await;
    let lease = log.take_flow("a").await.lease;
    log.commit(starting(&lease, 1, [child("second", "a", 2)])).await.unwrap();
    log.go(&lease, 2, again("third")).await;
    let states =
        async |names: [&str; 3]| [log.state(names[0]).await, log.state(names[1]).await, log.state(names[2]).await];
    assert_eq!(states(["first", "own", "second"]).await, [FlowState::Scheduled; 3]);
    assert_eq!(log.cancel(&id("a"), "enough").await.unwrap(), Cancelled::Now);
    let ended = [FlowState::Cancelled, FlowState::Scheduled, FlowState::Cancelled];
    assert_eq!(states(["first", "own", "second"]).await, ended);
    assert_eq!(log.mail("a").await, []);
}

/// What a former run has started and has ended waits for nobody: it can be forgotten while the flow lives.
pub async fn runs_leave_the_children_of_former_ones_to_upkeep(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(starting(&lease, 1, [child("x", "a", 1), child("y", "a", 2)])).await.unwrap();
    for name in ["x", "y"] {
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, complete()).await;
        log.refuses(ErrorKind::Conflict, log.delete(&id(name))).await;
    }
    log.go(&lease, 2, again("second")).await;
    assert!(log.delete(&id("x")).await.unwrap());
    assert_eq!(log.prune(&PrunePolicy::older_than(Duration::ZERO)).await.unwrap(), 1);
    let lease = log.take_flow("a").await.lease;
    log.commit(starting(&lease, 1, [child("x", "a", 1)])).await.unwrap();
    let x = log.take_flow("x").await.lease;
    log.go(&x, 1, complete()).await;
    log.refuses(ErrorKind::Conflict, log.delete(&id("x"))).await;
}

/// A call takes the place of what the call at its place of a former run has started once that has ended, and is refused
/// while it lives, even if it wants the same.
pub async fn runs_start_children_in_the_places_of_former_ones(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(starting(&lease, 1, [child("x", "a", 1), child("y", "a", 1)])).await.unwrap();
    log.go(&lease, 2, again("second")).await;
    let x = log.take_flow("x").await.lease;
    log.go(&x, 1, complete()).await;
    let lease = log.take_flow("a").await.lease;
    let three = [child("x", "a", 1), child("y", "a", 1), child("x", "a", 2)];
    log.commit(starting(&lease, 1, three)).await.unwrap();
    let told = log.mail("a").await;
    let refusals: Vec<_> = told.iter().map(|message| (message.child, text(&message.payload))).collect();
    let refused_for = |text: &str| (Some(ChildOutcome::Refused), text.to_owned());
    assert_eq!(
        refusals,
        [
            refused_for("the id \"y\" belongs to a child of an earlier flow or run that has not ended"),
            refused_for("the id \"x\" belongs to a flow that this call did not start"),
        ]
    );
    assert_eq!(log.state("x").await, FlowState::Scheduled, "another flow has the id");
    // The call is made again, by a worker that has lost the answer to the commit, say.
    log.commit(starting(&lease, 2, [child("x", "a", 1)])).await.unwrap();
    assert_eq!(log.mail("a").await.len(), 2);
}

/// Whether an id is given to the same flow is told by what was accepted, not by what the present run has.
pub async fn runs_are_of_the_flow_that_was_accepted(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let with_input = |input: &str| {
        let mut flow = child("a", "mother", 1);
        flow.input = input.to_owned().into();
        flow
    };
    log.commit(starting(&mother, 1, [with_input("first")])).await.unwrap();
    for run in ["second", "third"] {
        let lease = log.take_flow("a").await.lease;
        log.go(&lease, 1, again(run)).await;
        for (input, same) in [("first", true), ("second", false), ("third", false)] {
            let existing = log.enqueue(vec![with_input(input)]).await.unwrap();
            assert_eq!(existing, [Enqueued::Existing { same }], "{input}");
        }
    }
    log.commit(starting(&mother, 2, [with_input("first")])).await.unwrap();
    assert_eq!(log.mail("mother").await, [], "the call finds its child");
    log.commit(starting(&mother, 3, [with_input("third")])).await.unwrap();
    assert_eq!(log.mail("mother").await.len(), 1, "it is another value");
}

/// A run that has failed goes on where it stopped, with its own value and records.
pub async fn runs_are_retried_by_themselves(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, 5)).await.unwrap();
    log.go(&lease, 2, again("second")).await;
    let lease = log.take_flow("a").await.lease;
    let mut commit = steps(&lease, 1, 0, 3);
    commit.next = fail_of([CallPath::top(2)]);
    log.commit(commit).await.unwrap();
    assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Scheduled);
    let claimed = log.take_flow("a").await;
    assert_eq!((claimed.info.run, claimed.info.records, text(&claimed.input)), (2, 2, "second".into()));
    log.go(&claimed.lease, 1, complete()).await;
    log.release(&claimed.lease).await.unwrap_err();
    assert!(log.delete(&id("a")).await.unwrap());
    log.add([flow("a")]).await;
    assert_eq!((log.info("a").await.run, text(&log.read("a").await.input)), (1, "{}".into()));
}

/// A flow may begin again a thousand times, and no more is kept of it than of its last run.
pub async fn runs_without_end(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    for run in 1..=1_000 {
        let claimed = log.take_flow("a").await;
        assert_eq!((claimed.info.run, claimed.history.len()), (run, 0));
        let mut commit = steps(&claimed.lease, 1, 0, 3);
        commit.next = again(&format!("run {run}"));
        assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    }
    let read = log.read("a").await;
    assert_eq!((read.info.run, read.info.records, text(&read.input)), (1_001, 0, "run 1000".into()));
    assert_eq!(log.records("a").await, []);
}

/// Of messages that are sent while a flow begins again and again, none is lost and none comes twice.
pub async fn runs_lose_and_double_no_message(harness: &impl Harness) {
    const MESSAGES: u32 = 200;
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    let sender = log.second().await;
    let send = tokio::spawn(async move {
        for number in 0..MESSAGES {
            let message = message("a", &signal("go"), &number.to_string()).with_key(format!("key-{number}"));
            assert_eq!(sender.send(message).await.unwrap(), Sent::Accepted);
        }
    });
    let mut taken = Vec::new();
    while taken.len() < MESSAGES as usize {
        let claimed = log.take_flow("a").await;
        let mut commit = going(&claimed.lease, 1, again("next"));
        // Half of what is there; the rest is for the next run.
        for message in claimed.messages.iter().take(claimed.messages.len().div_ceil(2)) {
            commit.consumed.push(message.seq);
            taken.push(text(&message.payload));
        }
        log.commit(commit.clone()).await.unwrap();
        log.commit(commit).await.unwrap();
    }
    send.await.unwrap();
    assert_eq!(taken, (0..MESSAGES).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(log.mail("a").await, []);
}
