//! Heartbeats: what bodies report of themselves while they run, and how long they may go without.

use std::time::Duration;

use bytes::Bytes;
use ergon_storage::{Beat, CallPath, Clock, Phase, Record, Timestamp};

use super::{CallId, Journal, Place, State};

/// How often the heartbeats of one step are written at most. The first one of a body is written at once; of those that
/// follow, the newest is, this long after the one before.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of a step that sends heartbeats, or should.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// What the last one reported, of whichever attempt, and when it did.
    progress: Option<(Bytes, Timestamp)>,
    /// When that may be written, if it is yet to be.
    held: Option<Timestamp>,
    /// When the next one may be written.
    next_at: Option<Timestamp>,
    /// How long the attempt may go without one, and its last sign of life.
    silence: Option<(Duration, Timestamp)>,
    /// The instant at which to look whether there was one.
    armed: Option<Timestamp>,
    /// There was none.
    is_silent: bool,
}

impl Pulse {
    /// That of a step whose history tells of this progress.
    pub(super) fn resumed(progress: Bytes) -> Self {
        Self { progress: Some((progress, Timestamp::EPOCH)), ..Self::default() }
    }

    /// What the last heartbeat reported.
    pub(super) fn progress(&self) -> Option<Bytes> {
        self.progress.as_ref().map(|(progress, _)| progress.clone())
    }

    /// A body begins that may go so long without a heartbeat. Returns when to look.
    pub(super) fn begin(&mut self, silence: Duration, now: Timestamp) -> Option<Timestamp> {
        self.silence = Some((silence, now));
        self.is_silent = false;
        self.armed = Some(now.saturating_add(silence));
        self.armed
    }

    pub(super) fn armed(&self) -> Option<Timestamp> {
        self.armed
    }

    pub(super) fn held(&self) -> Option<Timestamp> {
        self.held
    }

    pub(super) fn is_silent(&self) -> bool {
        self.is_silent
    }

    pub(super) fn fall_silent(&mut self) {
        self.is_silent = true;
    }
}

impl Journal {
    /// A body sends a heartbeat. False when this attempt of the step is over, whose body goes on all the same.
    pub(crate) fn beat(
        &mut self,
        place: Place,
        path: &CallPath,
        attempt: u32,
        progress: Bytes,
        now: Timestamp,
    ) -> bool {
        let Place::Step(id) = place else { return false };
        // A thread that nobody waits for any more may name a call that is gone, and whose number another has.
        let runs = self.calls.get(id.0).is_some_and(|call| {
            matches!(call.state, State::Running) && call.path.as_ref() == Some(path) && call.attempts + 1 == attempt
        });
        if !runs {
            return false;
        }
        self.note_life(place, now);
        let call = &mut self.calls[id.0];
        let pulse = call.pulse.get_or_insert_default();
        if pulse.progress.as_ref().is_some_and(|(known, _)| *known == progress) {
            return true;
        }
        pulse.progress = Some((progress, now));
        if pulse.held.is_some() {
            return true;
        }
        let at = pulse.next_at.map_or(now, |next_at| next_at.max(now));
        pulse.held = Some(at);
        self.held.insert((at, id));
        // It is written when the code is next looked at; a body may be in the middle of something, or on a thread of its
        // own.
        if let Some(waker) = &call.waker {
            waker.wake_by_ref();
        }
        true
    }

    /// Puts the heartbeats among what is to be written that may be by now.
    pub(crate) fn write_beats(&mut self, now: Timestamp) {
        while let Some(&(at, id)) = self.held.first() {
            if at > now {
                return;
            }
            self.held.pop_first();
            self.write_beat(id, at);
            if now == Timestamp::MAX
                && let Some(pulse) = &mut self.calls[id.0].pulse
            {
                // It came along, perhaps before its time: what comes next is not late on that account.
                pulse.next_at =
                    pulse.progress.as_ref().map(|(_, sent)| at.max(sent.saturating_add(HEARTBEAT_INTERVAL)));
            }
        }
    }

    /// When the next heartbeat may be written, if one is yet to be.
    pub(crate) fn beats_due(&self) -> Option<Timestamp> {
        self.held.first().map(|(at, _)| *at)
    }

    /// Puts the last heartbeat of a step, which was due then, among what is to be written.
    fn write_beat(&mut self, id: CallId, due: Timestamp) {
        let call = &mut self.calls[id.0];
        let Some(pulse) = &mut call.pulse else { return };
        pulse.held = None;
        let Some((payload, at)) = pulse.progress.clone() else { return };
        pulse.next_at = Some(due.max(at).saturating_add(HEARTBEAT_INTERVAL));
        let seq = call.begun_seq;
        if seq == 0 {
            // The instant until which the attempt has time stays in the history.
            let due_at = call.limit.filter(|limit| limit.recorded).map(|limit| limit.at);
            let attempt = call.attempts + 1;
            let record = Record { attempt, due_at, payload, ..self.record(id, Phase::Pending, at) };
            self.calls[id.0].begun_seq = self.append(record);
            return;
        }
        if let Some(last) = self.last.as_mut().filter(|(last, _)| *last == seq) {
            last.1 = at;
        }
        if let Some(record) = self.batch.records.iter_mut().rev().find(|record| record.seq == seq) {
            (record.at, record.payload) = (at, payload);
            return;
        }
        self.batch.beats.retain(|beat| beat.seq != seq);
        self.batch.beats.push(Beat { seq, at, payload });
    }

    /// The attempt of a step ends, in this way. How far it came is for the next one to know, and for people.
    pub(super) fn end_pulse(&mut self, id: CallId, phase: Phase) {
        let Some(pulse) = &mut self.calls[id.0].pulse else { return };
        (pulse.silence, pulse.armed, pulse.is_silent) = (None, None, false);
        if let Some(at) = pulse.held {
            self.held.remove(&(at, id));
            if phase == Phase::Completed {
                pulse.held = None;
            } else {
                self.write_beat(id, at);
            }
        }
        // The first one of the next body is written at once.
        if let Some(pulse) = &mut self.calls[id.0].pulse {
            pulse.next_at = None;
        }
    }

    /// A sign of life of this body, and of those that it is in.
    fn note_life(&mut self, mut place: Place, now: Timestamp) {
        while let Place::Step(id) = place
            && let Some(call) = self.calls.get_mut(id.0)
        {
            if let Some((_, seen)) = call.pulse.as_mut().and_then(|pulse| pulse.silence.as_mut()) {
                *seen = now;
            }
            place = call.place;
        }
    }

    /// The body of a running step waits for nothing but calls of its own, or does so no longer: that time is theirs.
    pub(super) fn rest(&mut self, id: CallId, rests: bool, clock: &dyn Clock) {
        let call = &mut self.calls[id.0];
        let limit_at = call.limit.map(|limit| limit.at);
        let Some(pulse) = &mut call.pulse else { return };
        let Some((silence, seen)) = &mut pulse.silence else { return };
        match (rests, pulse.armed) {
            (true, Some(at)) => {
                pulse.armed = None;
                if limit_at != Some(at) {
                    self.timers.remove(&(at, id));
                }
            }
            (false, None) => {
                *seen = clock.now();
                let at = seen.saturating_add(*silence);
                pulse.armed = Some(at);
                self.timers.insert((at, id));
            }
            _ => {}
        }
    }

    /// True when it was to be looked at this instant whether a body has sent a heartbeat, and it has in time: then it is
    /// looked again later.
    pub(super) fn still_beats(&mut self, id: CallId, at: Timestamp, now: Timestamp) -> bool {
        // While one of its own calls is open, it is that call which takes the time.
        let waits = self.nested.get(&id).is_some_and(|scope| !scope.open.is_empty());
        let call = &mut self.calls[id.0];
        if call.limit.is_some_and(|limit| limit.at <= now) {
            return false;
        }
        let Some(pulse) = call.pulse.as_mut().filter(|pulse| pulse.armed == Some(at)) else { return false };
        let Some((silence, seen)) = &mut pulse.silence else { return false };
        if waits {
            *seen = now;
        }
        let due = seen.saturating_add(*silence);
        if due <= now {
            return false;
        }
        pulse.armed = Some(due);
        self.timers.remove(&(at, id));
        self.timers.insert((due, id));
        true
    }
}
