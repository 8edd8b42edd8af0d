//! Steps forward: all or nothing, numbered, recognised when repeated.

use super::{
    Harness,
    scene::{
        LEASE, SECOND, Scene, again, child, complete, fail, flow, going, id, record, refused, signal, stall, starting,
        steps, suspend, text,
    },
};
use crate::{
    CallKind, CallPath, Commit, CommitNow, Committed, ErrorKind, FlowState, Next, Phase, Record, Start, Timestamp, Wake,
};

/// Records come back as they were written, field by field.
pub async fn commit_keeps_every_field_of_a_record(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let kinds = [CallKind::Step, CallKind::Timer, CallKind::Signal, CallKind::Child];
    let phases = [Phase::Pending, Phase::Attempt, Phase::Completed, Phase::Failed];
    let paths = [
        CallPath::top(0),
        CallPath::top(u32::MAX),
        CallPath::top(3).child(1),
        (1..16).fold(CallPath::top(9), |path, _| path.child(u32::MAX)),
    ];
    let instants = [i64::MIN, -1, 0, Timestamp::MAX.as_micros()].map(Timestamp::from_micros);
    let mut commit = Commit::new(lease, 1);
    for index in 0..64 {
        commit.records.push(Record {
            seq: index + 1,
            at: instants[index as usize % 4],
            path: paths[index as usize / 16].clone(),
            kind: kinds[index as usize % 4],
            phase: phases[index as usize / 4 % 4],
            name: ["", "charge", "naïve 步", "with \"quotes\", 'these' and\na line"][index as usize % 4].into(),
            args_hash: [0, 1, 1 << 63, u64::MAX][index as usize % 4],
            attempt: [0, 1, 77, u32::MAX][index as usize % 4],
            started_at: instants[(index as usize + 1) % 4],
            due_at: (index % 3 != 0).then(|| instants[(index as usize + 2) % 4]),
            reference: [None, Some(""), Some("child-7"), Some("ü")][index as usize % 4].map(Into::into),
            payload: [&b""[..], b"\x00", b"{}", b"\xff\xfe"][index as usize % 4].into(),
        });
    }
    let written = commit.records.clone();
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    assert_eq!(log.records("a").await, written);
    assert_eq!(log.info("a").await.records, 64);
    log.advance(LEASE).await;
    assert_eq!(log.take_flow("a").await.history, written);
}

/// A commit that is answered at once is like any other, and one that is not comes back, with nothing done.
pub async fn commit_now_commits_or_does_nothing(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let first = steps(&lease, 1, 0, 2);
    match log.commit_now(first.clone()) {
        CommitNow::Answered(answer) => {
            assert_eq!(answer.unwrap(), Committed::Applied);
            assert_eq!(log.commit(first).await.unwrap(), Committed::Applied, "a repeat is recognised");
        }
        CommitNow::NotNow(back) => {
            assert_eq!(log.records("a").await, []);
            assert_eq!((&back.lease, back.number, &back.records), (&first.lease, first.number, &first.records));
            assert_eq!(log.commit(back).await.unwrap(), Committed::Applied);
        }
    }
    assert_eq!(log.records("a").await, (1..=2).map(record).collect::<Vec<_>>());
    log.advance(LEASE).await;
    log.take_flow("a").await;
    if let CommitNow::Answered(answer) = log.commit_now(steps(&lease, 2, 2, 1)) {
        refused(ErrorKind::LeaseLost, answer);
    }
    assert_eq!(log.info("a").await.records, 2);
}

/// Commits add up to one history, and the flow stays with its worker.
pub async fn commits_add_up(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let due_at = log.info("a").await.due_at;
    for (number, (before, count)) in (1..).zip([(0, 1), (1, 3), (4, 0), (4, 1)]) {
        assert_eq!(log.commit(steps(&lease, number, before, count)).await.unwrap(), Committed::Applied);
        let info = log.info("a").await;
        assert_eq!((info.records, info.state, info.due_at), (before + count, FlowState::Running, due_at));
    }
    assert_eq!(log.records("a").await, (1..=5).map(record).collect::<Vec<_>>());
}

/// A flow that completes has its result, and waits for nothing any more.
pub async fn commit_completes(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.advance(SECOND).await;
    let mut commit = steps(&lease, 1, 0, 2);
    commit.next = complete();
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    let read = log.read("a").await;
    assert_eq!((read.info.state, text(&read.result), read.info.reason), (FlowState::Completed, "done".into(), None));
    assert_eq!((read.info.finished_at, read.info.due_at), (Some(log.now()), None));
    assert_eq!((read.info.records, read.info.wake), (2, Wake::default()));
}

/// A flow that fails has its error and its reason.
pub async fn commit_fails(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.go(&lease, 1, fail()).await;
    let read = log.read("a").await;
    assert_eq!((read.info.state, text(&read.result)), (FlowState::Failed, "{broken}".into()));
    assert_eq!((read.info.reason.as_deref(), read.info.finished_at), (Some("broken"), Some(log.now())));
    assert_eq!(read.info.due_at, None);
}

/// A stalled flow has its reason, has not ended, and keeps what it has.
pub async fn commit_stalls(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.tell("a", &signal("go"), "hello").await;
    let mut commit = steps(&lease, 1, 0, 2);
    commit.next = stall("build-1");
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    let read = log.read("a").await;
    assert_eq!((read.info.state, read.info.reason.as_deref()), (FlowState::Stalled, Some("diverged")));
    assert_eq!((read.info.finished_at, read.info.due_at, read.result.len()), (None, None, 0));
    assert_eq!((log.records("a").await.len(), log.texts("a").await), (2, vec!["hello".to_owned()]));
}

/// An empty result and an empty error are kept as such.
pub async fn commit_ends_with_nothing(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let (a, b) = (log.start("a").await, log.start("b").await);
    log.go(&a, 1, Next::Complete { result: "".into() }).await;
    log.go(&b, 1, Next::Fail { error: "".into(), reason: "".into(), again: Vec::new() }).await;
    assert_eq!(log.read("a").await.result, "");
    let read = log.read("b").await;
    assert_eq!((read.result.len(), read.info.reason.as_deref()), (0, Some("")));
}

/// Commits are numbered from 1 under each lease, without gaps.
pub async fn commit_numbers_follow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    for number in [0, 2, 9, u32::MAX] {
        log.refuses(ErrorKind::Invalid, log.commit(steps(&lease, number, 0, 1))).await;
    }
    log.commit(steps(&lease, 1, 0, 1)).await.unwrap();
    log.commit(steps(&lease, 2, 1, 1)).await.unwrap();
    for number in [0, 1, 4, u32::MAX] {
        log.refuses(ErrorKind::Invalid, log.commit(steps(&lease, number, 2, 1))).await;
    }
    log.release(&lease).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    log.refuses(ErrorKind::Invalid, log.commit(steps(&lease, 3, 2, 1))).await;
    assert_eq!(log.commit(steps(&lease, 1, 2, 1)).await.unwrap(), Committed::Applied);
}

/// Records follow on the history and on one another.
pub async fn commit_records_follow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, 2)).await.unwrap();
    for seqs in [&[1][..], &[2], &[4], &[0], &[3, 5], &[3, 3], &[3, 2], &[4, 3], &[3, 4, 6]] {
        let mut commit = Commit::new(lease.clone(), 2);
        commit.records = seqs.iter().map(|seq| record(*seq)).collect();
        log.refuses(ErrorKind::Invalid, log.commit(commit)).await;
    }
    assert_eq!(log.commit(steps(&lease, 2, 2, 2)).await.unwrap(), Committed::Applied, "the number is still free");
}

/// A large commit is applied as a whole.
pub async fn commit_applies_a_large_one(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let mut commit = steps(&lease, 1, 0, 5_000);
    commit.children = (0..500).map(|number| child(&format!("child-{number}"), "a", number)).collect();
    commit.next = complete();
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    assert!(log.records("a").await == (1..=5_000).map(record).collect::<Vec<_>>());
    assert_eq!(log.snapshot().await.flows.len(), 501);
}

/// A large commit that is refused for its last part leaves no trace of its first.
pub async fn commit_refuses_a_large_one_as_a_whole(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.tell("a", &signal("go"), "hello").await;
    let whole = || {
        let mut commit = steps(&lease, 1, 0, 5_000);
        commit.consumed = vec![1];
        commit.children = (0..100).map(|number| child(&format!("child-{number}"), "a", number)).collect();
        commit.next = complete();
        commit
    };
    let mut record_amiss = whole();
    record_amiss.records[4_999].seq = 4_999;
    let mut child_amiss = whole();
    child_amiss.children[99].version = 0;
    let mut start_amiss = whole();
    start_amiss.children[99].start = Start::After(std::time::Duration::MAX);
    let mut parent_amiss = whole();
    parent_amiss.children[99].parent = None;
    let mut number_amiss = whole();
    number_amiss.number = 2;
    let mut name_amiss = whole();
    name_amiss.records[4_999].name = "x".repeat(Record::NAME_BYTES_MAX + 1).into();
    for commit in [record_amiss, child_amiss, start_amiss, parent_amiss, number_amiss, name_amiss] {
        log.refuses(ErrorKind::Invalid, log.commit(commit)).await;
    }
    let mut epoch_amiss = whole();
    epoch_amiss.lease.epoch += 1;
    log.refuses(ErrorKind::LeaseLost, log.commit(epoch_amiss)).await;
    assert_eq!(log.commit(whole()).await.unwrap(), Committed::Applied);
}

/// A repeat of the last commit is answered as the first time, and applies nothing again.
pub async fn commit_recognises_its_repeat(harness: &impl Harness) {
    let nexts = [
        (Next::Run, Committed::Applied),
        (suspend(None, &[signal("other")]), Committed::Suspended),
        (suspend(None, &[signal("go")]), Committed::Awake),
        (complete(), Committed::Applied),
        (fail(), Committed::Applied),
        (stall("build-1"), Committed::Applied),
        (again("next"), Committed::Applied),
    ];
    for (next, answer) in nexts {
        let log = Scene::new(harness).await;
        let mother = log.start("mother").await;
        log.commit(starting(&mother, 1, [child("a", "mother", 1)])).await.unwrap();
        let lease = log.take_flow("a").await.lease;
        log.commit(steps(&lease, 1, 0, 1)).await.unwrap();
        log.tell("a", &signal("go"), "first").await;
        log.tell("a", &signal("go"), "second").await;
        let mut commit = steps(&lease, 2, 1, 2);
        commit.consumed = vec![1];
        commit.children = vec![child("grandchild", "a", 2), child("mother", "a", 3)];
        commit.next = next.clone();
        assert_eq!(log.commit(commit.clone()).await.unwrap(), answer, "{next:?}");
        let before = log.snapshot().await;
        log.advance(SECOND).await;
        for _ in 0..3 {
            assert_eq!(log.commit(commit.clone()).await.unwrap(), answer, "{next:?}");
            assert_eq!(log.snapshot().await, before, "{next:?}");
        }
        if matches!(next, Next::Run) || answer == Committed::Awake {
            assert_eq!(log.commit(steps(&lease, 3, 3, 1)).await.unwrap(), Committed::Applied);
        }
    }
}

/// A repeat is told by its number alone: what it holds is not looked at.
pub async fn commit_recognises_its_repeat_by_the_number(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, 1)).await.unwrap();
    let before = log.snapshot().await;
    assert_eq!(log.commit(steps(&lease, 1, 1, 5)).await.unwrap(), Committed::Applied);
    assert_eq!(log.commit(going(&lease, 1, complete())).await.unwrap(), Committed::Applied);
    log.snapshot().await.assert_is(&before, "nothing has changed");
}

/// A suspending commit is recognised also after the flow was woken, until somebody claims it.
pub async fn commit_recognises_its_repeat_until_the_next_claim(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let commit = going(&lease, 1, suspend(None, &[signal("go")]));
    assert_eq!(log.commit(commit.clone()).await.unwrap(), Committed::Suspended);
    log.tell("a", &signal("go"), "").await;
    assert_eq!(log.commit(commit.clone()).await.unwrap(), Committed::Suspended);
    assert_eq!(log.state("a").await, FlowState::Scheduled);
    let next = log.take_flow("a").await.lease;
    log.refuses(ErrorKind::LeaseLost, log.commit(commit.clone())).await;
    assert_eq!(log.commit(steps(&next, 1, 0, 1)).await.unwrap(), Committed::Applied);
    log.refuses(ErrorKind::LeaseLost, log.commit(commit)).await;
}

/// After a cancellation not even a repeat is answered: the flow did not go where the commit took it.
pub async fn commit_of_a_cancelled_flow_is_not_recognised(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let commit = going(&lease, 1, suspend(None, &[]));
    log.commit(commit.clone()).await.unwrap();
    log.cancel(&id("a"), "enough").await.unwrap();
    log.refuses(ErrorKind::LeaseLost, log.commit(commit)).await;
}

/// Under a new lease the numbers begin anew, and the last commit of the former one is not taken for a repeat.
pub async fn commit_repeats_do_not_cross_leases(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let first = log.start("a").await;
    log.commit(steps(&first, 1, 0, 1)).await.unwrap();
    log.advance(LEASE).await;
    let second = log.take_flow("a").await.lease;
    assert_eq!(log.commit(steps(&second, 1, 1, 1)).await.unwrap(), Committed::Applied);
    assert_eq!(log.records("a").await.len(), 2, "it was applied, not recognised");
    refused(ErrorKind::LeaseLost, log.commit(steps(&first, 1, 0, 1)).await);
}

/// A history is as long as its flow needs it to be.
pub async fn commits_without_end(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    for number in 0..100 {
        log.commit(steps(&lease, number + 1, number * 100, 100)).await.unwrap();
    }
    assert_eq!(log.info("a").await.records, 10_000);
    log.add([flow("b")]).await;
    assert_eq!(log.history(&id("a"), 9_990, 100).await.unwrap(), (9_991..=10_000).map(record).collect::<Vec<_>>());
}
