//! Heartbeats, and bodies that send none.

use bytes::Bytes;
use ergon_storage::{CallPath, ManualClock, Phase};

use super::{Flow, NOW, SECOND, WAKER, after};
use crate::journal::{CallPoll, Place, TimeUp};

#[test]
fn only_the_attempt_that_runs_sends_heartbeats() {
    let mut flow = Flow::new();
    let step = flow.step(Place::Flow, "a");
    flow.journal.seal(NOW).unwrap();
    let (own, other) = (CallPath::top(1), CallPath::top(2));
    let beat = |flow: &mut Flow, place, path, attempt| flow.journal.beat(place, path, attempt, Bytes::new(), NOW);
    assert!(!beat(&mut flow, Place::Step(step), &own, 1), "it does not run yet");
    flow.settle();
    assert!(!beat(&mut flow, Place::Flow, &own, 1));
    assert!(!beat(&mut flow, Place::Step(step), &other, 1));
    assert!(!beat(&mut flow, Place::Step(step), &own, 2));
    assert!(beat(&mut flow, Place::Step(step), &own, 1));
}

#[test]
fn heartbeats_are_written_an_interval_apart() {
    let mut flow = Flow::new();
    let step = flow.limited(None, None);
    assert_eq!(flow.journal.beats_due(), None);
    flow.beat(step, "1", NOW);
    assert_eq!(flow.journal.beats_due(), Some(NOW));
    flow.journal.write_beats(NOW);
    assert!(flow.journal.has_batch());
    let batch = flow.flush();
    let [record] = &batch.records[..] else { panic!("{batch:?}") };
    assert_eq!((record.phase, record.attempt, &record.payload[..]), (Phase::Pending, 1, &b"1"[..]));
    // The next ones take its place, later.
    flow.beat(step, "2", after(100));
    flow.beat(step, "3", after(200));
    flow.journal.write_beats(after(900));
    assert!(!flow.journal.has_batch());
    assert_eq!(flow.journal.beats_due(), Some(after(1_000)));
    flow.journal.write_beats(after(1_001));
    assert_eq!(flow.journal.last(), Some((1, after(200))));
    flow.beat(step, "4", after(1_050));
    assert_eq!(flow.journal.beats_due(), Some(after(2_000)));
    // One that comes along with something else does not make the next one late.
    let batch = flow.flush();
    let [beat] = &batch.beats[..] else { panic!("{batch:?}") };
    assert_eq!((beat.seq, beat.at, &beat.payload[..]), (1, after(1_050), &b"4"[..]));
    flow.beat(step, "5", after(1_100));
    assert_eq!(flow.journal.beats_due(), Some(after(2_050)));
}

#[test]
fn bodies_beat_side_by_side() {
    let mut flow = Flow::new();
    let steps = [flow.limited(None, None), flow.limited(None, None)];
    for (progress, at) in [("1", NOW), ("2", after(2_000))] {
        for step in steps {
            flow.beat(step, progress, at);
        }
        flow.journal.write_beats(at);
        let batch = flow.flush();
        assert_eq!(batch.records.len() + batch.beats.len(), 2, "{batch:?}");
    }
}

#[test]
fn the_last_heartbeat_of_a_failed_attempt_is_written_and_that_of_a_completed_one_is_not() {
    let mut flow = Flow::new();
    let begun = |flow: &mut Flow| {
        let step = flow.limited(None, Some(SECOND * 10));
        flow.beat(step, "1", NOW);
        flow.flush();
        flow.beat(step, "2", after(100));
        step
    };
    let step = begun(&mut flow);
    flow.finish(step, Phase::Completed);
    assert_eq!(flow.journal.beats_due(), None);
    assert!(flow.flush().beats.is_empty());
    let step = begun(&mut flow);
    flow.journal.attempt_failed(step, Bytes::new(), after(200), after(200));
    assert_eq!(flow.journal.beats_due(), None);
    let batch = flow.flush();
    assert_eq!((batch.beats.len(), &batch.beats[0].payload[..]), (1, &b"2"[..]));
    // The first one of the next attempt is written at once.
    assert!(flow.journal.wants_grant(after(300)));
    flow.journal.grant(after(300));
    let path = flow.journal.path(step).unwrap().clone();
    assert!(flow.journal.beat(Place::Step(step), &path, 2, Bytes::from("3"), after(400)));
    assert_eq!(flow.journal.beats_due(), Some(after(400)));
}

#[test]
fn a_heartbeat_leaves_the_time_limit_in_the_history() {
    let mut first = Flow::new();
    let step = first.limited(Some(SECOND), None);
    first.signal(Place::Step(step), "x");
    first.settle();
    first.flush();
    assert_eq!(first.history[0].due_at, Some(after(1_000)));
    let mut second = Flow::with(first.history);
    let step = second.limited(Some(SECOND), None);
    second.beat(step, "1", after(500));
    assert_eq!(second.flush().records[0].due_at, Some(after(1_000)));
}

#[test]
fn a_body_without_a_sign_of_life_is_told_so() {
    let mut flow = Flow::new();
    let step = flow.limited(None, Some(SECOND * 10));
    assert!(matches!(flow.poll(step), CallPoll::Run { time_is_up: None, .. }));
    assert_eq!(flow.journal.wake().at, Some(after(10_000)));
    let inner = flow.running(Place::Step(step), "inner");
    let path = flow.journal.path(inner).unwrap().clone();
    assert!(flow.journal.beat(Place::Step(inner), &path, 1, Bytes::new(), after(5_000)), "a sign of both");
    flow.journal.drop_call(inner);
    assert!(!flow.journal.release(after(10_000)));
    assert_eq!(flow.journal.wake().at, Some(after(15_000)));
    assert!(flow.journal.release(after(15_000)));
    assert!(matches!(flow.poll(step), CallPoll::Run { time_is_up: Some(TimeUp::Silence), .. }));
}

#[test]
fn silence_is_told_from_a_limit() {
    let mut flow = Flow::new();
    let step = flow.limited(Some(SECOND * 60), Some(SECOND * 10));
    assert!(flow.journal.release(after(10_000)));
    assert!(matches!(flow.poll(step), CallPoll::Run { time_is_up: Some(TimeUp::Silence), .. }));
}

#[test]
fn a_body_may_be_silent_while_it_waits_for_calls_of_its_own() {
    let clock = ManualClock::new();
    let mut flow = Flow::new();
    let step = flow.limited(Some(SECOND * 60), Some(SECOND * 10));
    flow.signal(Place::Step(step), "x");
    flow.settle();
    flow.journal.note_wakers(step, 1, WAKER, &clock);
    assert_eq!(flow.journal.wake().at, Some(after(60_000)));
    clock.set(after(30_000));
    flow.journal.note_wakers(step, 2, WAKER, &clock);
    assert_eq!(flow.journal.wake().at, Some(after(40_000)));
    assert!(!flow.journal.release(after(40_000)), "one of its own calls is open");
    assert_eq!(flow.journal.wake().at, Some(after(50_000)));
    assert!(!flow.journal.release(after(50_000)));
    assert!(flow.journal.release(after(60_000)));
    assert!(matches!(flow.poll(step), CallPoll::Run { time_is_up: Some(TimeUp::Limit), .. }));
}
