//! Heartbeats: what records say of calls that are under way is replaced, and nothing else.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use super::{
    Harness,
    scene::{SECOND, Scene, again, child, fail_of, going, id, names, record, signal, stall, steps, suspend, text},
};
use crate::{
    Beat, CallKind, CallPath, Commit, Committed, ErrorKind, Feed, FlowState, Keep, Lease, NewItem, Phase, Record,
    Retried, Timestamp,
};

const AT: Timestamp = Timestamp::from_micros(1_735_689_600_000_000);

fn beat(seq: u32, payload: &str) -> Beat {
    Beat { seq, at: AT.saturating_add(Duration::from_secs(60)), payload: payload.to_owned().into() }
}

/// A commit of nothing but heartbeats.
fn beating(lease: &Lease, number: u32, beats: impl IntoIterator<Item = Beat>) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.beats = beats.into_iter().collect();
    commit
}

/// The record has the instant and the payload of the heartbeat, and is else what it was; so are all others.
pub async fn a_beat_replaces_what_a_record_says(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let paths = [CallPath::top(u32::MAX), CallPath::top(1).child(2).child(30_000_000)];
    let names = ["ü \"quoted\"".to_owned(), String::new(), "n".repeat(Record::NAME_BYTES_MAX)];
    let mut expected: Vec<Record> = (1..=12)
        .map(|seq| Record {
            path: paths[seq as usize % 2].clone(),
            kind: CallKind::Step,
            phase: Phase::Pending,
            name: names[seq as usize % 3].as_str().into(),
            args_hash: u64::MAX - u64::from(seq),
            due_at: (seq % 4 < 2).then_some(Timestamp::MAX),
            reference: (seq % 4 > 1).then(|| "ref ü".repeat(seq as usize).into()),
            payload: Bytes::from(vec![b'x'; seq as usize % 5]),
            ..record(seq)
        })
        .collect();
    let mut commit = Commit::new(lease.clone(), 1);
    commit.records.clone_from(&expected);
    log.commit(commit).await.unwrap();
    let payloads: [&[u8]; 5] = [b"{\"page\":7}", b"", b"\x00\xff\x00", &[7; 3_000], b"1"];
    let instants = [Timestamp::from_micros(i64::MIN), AT, Timestamp::MAX];
    for (number, seq) in (2..).zip([1, 12, 5, 6, 7, 8, 3, 5]) {
        let (at, payload) = (instants[number as usize % 3], Bytes::from(payloads[number as usize % 5]));
        let beats = [Beat { seq, at, payload: payload.clone() }];
        assert_eq!(log.commit(beating(&lease, number, beats)).await.unwrap(), Committed::Applied);
        (expected[seq as usize - 1].at, expected[seq as usize - 1].payload) = (at, payload);
        assert_eq!(log.records("a").await, expected, "record {seq}");
    }
    assert_eq!(log.history(&id("a"), 4, 2).await.unwrap(), expected[4..6]);
    log.release(&lease).await.unwrap();
    assert_eq!(log.take_flow("a").await.history, expected, "who takes over is told");
    assert_eq!(log.second().await.records("a").await, expected, "to whoever reads it");
}

/// Of several heartbeats of one record the last one counts, within a commit and over commits; a repeat of a commit that
/// was applied changes nothing.
pub async fn the_last_beat_counts(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, 2)).await.unwrap();
    let said = async || log.records("a").await.iter().map(|record| text(&record.payload)).collect::<Vec<_>>();
    let commit = beating(&lease, 2, [beat(2, "one"), beat(1, "other"), beat(2, "two")]);
    log.commit(commit.clone()).await.unwrap();
    assert_eq!(said().await, ["other", "two"]);
    log.commit(commit).await.unwrap();
    assert_eq!(said().await, ["other", "two"]);
    let third = beating(&lease, 3, [beat(2, "three")]);
    log.commit(third.clone()).await.unwrap();
    log.commit(third).await.unwrap();
    assert_eq!(said().await, ["other", "three"]);
    for number in 4..40 {
        log.commit(beating(&lease, number, [beat(1, &number.to_string())])).await.unwrap();
    }
    assert_eq!(said().await, ["39", "three"]);
}

/// A heartbeat is of a record that was there before its commit; else the commit is refused as a whole.
pub async fn a_beat_of_no_record_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.refuses(ErrorKind::Invalid, log.commit(beating(&lease, 1, [beat(1, "none")]))).await;
    log.commit(steps(&lease, 1, 0, 2)).await.unwrap();
    for seq in [0, 3, 4, Record::SEQ_MAX, Record::SEQ_MAX + 2, 1 << 24, 1 << 31, u32::MAX] {
        let mut commit = steps(&lease, 2, 2, 1);
        commit.beats = vec![beat(1, "known"), beat(seq, "unknown")];
        log.refuses(ErrorKind::Invalid, log.commit(commit)).await;
    }
    log.commit(beating(&lease, 2, [beat(1, "known")])).await.unwrap();
}

/// Heartbeats are payloads like any other.
pub async fn a_beat_with_too_large_a_payload_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, 1)).await.unwrap();
    let max = log.limits().payload_bytes_max;
    let of = |bytes| Beat { payload: vec![b'x'; bytes].into(), ..beat(1, "") };
    log.refuses(ErrorKind::TooLarge, log.commit(beating(&lease, 2, [of(max + 1)]))).await;
    log.commit(beating(&lease, 2, [of(max)])).await.unwrap();
    assert_eq!(log.records("a").await[0].payload.len(), max);
}

/// Who has lost the lease writes no heartbeats: neither over those of the next holder nor after the end.
pub async fn a_zombies_beats_are_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let zombie = log.start("a").await;
    log.commit(steps(&zombie, 1, 0, 1)).await.unwrap();
    log.commit(beating(&zombie, 2, [beat(1, "mine")])).await.unwrap();
    log.release(&zombie).await.unwrap();
    log.refuses(ErrorKind::LeaseLost, log.commit(beating(&zombie, 3, [beat(1, "zombie")]))).await;
    let lease = log.take_flow("a").await.lease;
    log.commit(beating(&lease, 1, [beat(1, "theirs")])).await.unwrap();
    log.refuses(ErrorKind::LeaseLost, log.commit(beating(&zombie, 3, [beat(1, "zombie")]))).await;
    log.cancel(&id("a"), "enough").await.unwrap();
    log.refuses(ErrorKind::LeaseLost, log.commit(beating(&lease, 2, [beat(1, "zombie")]))).await;
    assert_eq!(text(&log.records("a").await[0].payload), "theirs");
}

/// Heartbeats and everything else that a commit can hold are one transition, wherever the flow goes.
pub async fn beats_come_with_all_else(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let nexts = [
        ("run", crate::Next::Run),
        ("suspend", suspend(None, &[signal("go")])),
        ("complete", super::scene::complete()),
        ("fail", fail_of([])),
        ("stall", stall("build-1")),
    ];
    for (name, next) in nexts {
        let lease = log.start(name).await;
        log.tell(name, &signal("mail"), "hello").await;
        let seq = log.mail(name).await[0].seq;
        log.commit(steps(&lease, 1, 0, 3)).await.unwrap();
        let mut commit = steps(&lease, 2, 3, 2);
        commit.beats = vec![beat(2, "two"), beat(3, "three")];
        commit.consumed = vec![seq];
        commit.children = vec![child(&format!("{name}'s"), name, 9)];
        let (feed, keep) = (Feed::stream("x"), Keep::All);
        commit.items = vec![NewItem { feed, keep, at: AT, call: None, attempt: 0, payload: "item".into() }];
        commit.next = next;
        log.commit(commit).await.unwrap();
        let said: Vec<_> = log.records(name).await.iter().map(|record| text(&record.payload)).collect();
        assert_eq!(said, ["1", "two", "three", "4", "5"], "{name}");
        assert_eq!(log.items(&id(name), &Feed::stream("x"), 0, 9).await.unwrap().len(), 1, "{name}");
        assert_eq!(log.state(&format!("{name}'s")).await, FlowState::Scheduled);
        assert_eq!(log.mail(name).await, []);
    }
    // The history of a run goes with it.
    let lease = log.start("again").await;
    log.commit(steps(&lease, 1, 0, 1)).await.unwrap();
    let mut commit = going(&lease, 2, again("second"));
    commit.beats = vec![beat(1, "gone")];
    log.commit(commit).await.unwrap();
    assert_eq!(log.records("again").await, []);
    let lease = log.take_flow("again").await.lease;
    log.refuses(ErrorKind::Invalid, log.commit(beating(&lease, 1, [beat(1, "gone")]))).await;
    log.commit(steps(&lease, 1, 0, 1)).await.unwrap();
    assert_eq!(text(&log.records("again").await[0].payload), "1");
}

/// Heartbeats wake nobody, count as no record, and leave the lease, its deliveries and its end as they are.
pub async fn beats_change_nothing_else(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.start("other").await;
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, 1)).await.unwrap();
    log.advance(LEASE_AND_MORE).await;
    let lease = log.take_flow("a").await.lease;
    let before = log.snapshot().await;
    log.advance(SECOND).await;
    log.commit(beating(&lease, 1, [beat(1, "beat")])).await.unwrap();
    let mut expected = before;
    for (flow, history, _) in &mut expected.flows {
        if flow.info.id == lease.flow {
            assert_eq!(flow.info.deliveries, 1);
            let Beat { at, payload, .. } = beat(1, "beat");
            (history[0].at, history[0].payload) = (at, payload);
        }
    }
    log.snapshot().await.assert_is(&expected, "only what the record says is another");
}

/// Longer than a lease lasts.
const LEASE_AND_MORE: Duration = Duration::from_secs(31);

/// Commits of many flows, with and without heartbeats, that a log may write together.
pub async fn beats_of_many_flows_at_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = names(0..60);
    let mut leases = Vec::new();
    for name in &names {
        let lease = log.start(name).await;
        log.commit(steps(&lease, 1, 0, 2)).await.unwrap();
        leases.push(lease);
    }
    for round in 2..5_u32 {
        let commits = leases.iter().enumerate().map(|(place, lease)| {
            let mut commit = beating(lease, round, [beat(2, &format!("{place} {round}"))]);
            if place % 3 == 0 {
                commit.beats.clear();
            }
            if place % 2 == 0 {
                commit.records = vec![record(round + 1)];
            }
            log.commit(commit)
        });
        let answers = join_all(commits).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap() == Committed::Applied));
    }
    for (place, name) in names.iter().enumerate() {
        let records = log.records(name).await;
        let expected = if place % 3 == 0 { "2".to_owned() } else { format!("{place} 4") };
        assert_eq!((text(&records[1].payload), text(&records[0].payload)), (expected, "1".into()), "{name}");
        assert_eq!(records.len(), if place % 2 == 0 { 5 } else { 2 });
    }
}

/// A retry takes the records of some calls away; of the others stays what heartbeats have made of them.
pub async fn a_retry_keeps_the_beats_of_what_it_keeps(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, 4)).await.unwrap();
    let mut commit = going(&lease, 2, fail_of([CallPath::top(2)]));
    commit.beats = vec![beat(2, "goes"), beat(3, "stays")];
    log.commit(commit).await.unwrap();
    assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Scheduled);
    let said = async || log.records("a").await.iter().map(|record| text(&record.payload)).collect::<Vec<_>>();
    assert_eq!(said().await, ["1", "stays", "4"]);
    let lease = log.take_flow("a").await.lease;
    log.commit(beating(&lease, 1, [beat(2, "on")])).await.unwrap();
    assert_eq!(said().await, ["1", "on", "4"]);
}
