//! Handing out outcomes, one at a time.

use std::time::Duration;

use bytes::Bytes;
use ergon_storage::{CallPath, Channel, ChildOutcome, Message, Phase, Record, Timestamp};

use super::{CallId, Fresh, Hold, Journal, Outcome, Place, Reserved, Spec, State, handed};

/// What the names of the messages begin with that the engine itself sends a flow. They come before all others, and before
/// all timers: they may say that the code which waits for those is not to go on.
const OWN: &str = "ergon.";

impl Journal {
    /// Releases the next outcome, if there is one, and wakes the call that awaits it.
    pub(crate) fn release(&mut self, now: Timestamp) -> bool {
        self.release_recorded().unwrap_or_else(|| self.release_fresh(now))
    }

    /// Releases the next outcome of the history. `None` when the code has been given them all; false when it has not
    /// made the call yet that the next one is for.
    pub(crate) fn release_recorded(&mut self) -> Option<bool> {
        loop {
            // What the code has dropped is passed over, and may be all that there was before.
            if self.has_come_to_cancel() {
                return Some(false);
            }
            let Some(&(_, position)) = self.replay.front() else { break };
            match self.matched.get(&position) {
                None => return Some(false),
                Some(None) => {
                    self.replay.pop_front();
                    self.matched.remove(&position);
                }
                Some(Some(id)) => {
                    let id = *id;
                    self.replay.pop_front();
                    self.matched.remove(&position);
                    if let State::Replaying { at, outcome } = self.take_state(id) {
                        let message = self.unconsumed(id);
                        self.hand_over(id, at, outcome, message);
                    }
                    return Some(true);
                }
            }
        }
        // The code has not made all the calls that it made before: it is too early for anything new.
        (!self.root.recorded.is_empty()).then_some(false)
    }

    fn release_fresh(&mut self, now: Timestamp) -> bool {
        while let Some(id) = self.unrecorded.pop_first() {
            self.activate(id, now);
        }
        self.take_children(now);
        if !self.accepted.is_empty() {
            self.take_accepted(now);
        }
        if let Some(Fresh { id, after, .. }) = self.fresh.front() {
            // What a step's body does next may be an effect; what the flow's code does is none.
            if matches!(self.calls[id.0].place, Place::Step(_)) && *after > self.durable() {
                return false;
            }
        }
        if let Some(Fresh { id, .. }) = self.fresh.pop_front() {
            if let State::Recorded { at, outcome, .. } = self.take_state(id) {
                let message = self.unconsumed(id);
                self.hand_over(id, at, outcome, message);
            }
            return true;
        }
        self.fire(now)
    }

    fn hand_over(&mut self, id: CallId, at: Timestamp, outcome: Outcome, message: Option<Message>) {
        self.awaited_over = None;
        let present = self.present();
        let call = &mut self.calls[id.0];
        // Time within a step's body is the real one; only the flow's own code lives on recorded time.
        if call.place == Place::Flow {
            self.now = self.now.max(at);
            self.releases += 1;
            self.draws = 0;
            self.handed_over = Some(id);
            self.released_in = present;
        }
        call.state = State::Released { outcome, message: message.map(Box::new) };
        if let Some(waker) = call.waker.take() {
            waker.wake();
        }
    }

    /// The message that a recorded signal handed over, if it is still in the mailbox because nobody took it.
    fn unconsumed(&mut self, id: CallId) -> Option<Message> {
        let (seq, owner) = handed(&self.calls[id.0])?;
        let here = |reserved: &Reserved| reserved.owner == *owner && matches!(reserved.hold, Hold::Untaken(Some(_)));
        if !self.reserved.get(&seq).is_some_and(here) {
            return None;
        }
        self.reserved_below.remove(&seq);
        match self.reserved.remove(&seq)?.hold {
            Hold::Untaken(message) => message,
            Hold::Taken => None,
        }
    }

    /// Ends the wait whose time has come first, by an instant or by a message.
    fn fire(&mut self, now: Timestamp) -> bool {
        let due = loop {
            let due = self.timers.iter().find(|(_, id)| !matches!(self.calls[id.0].state, State::Backoff(_)));
            match due.copied().filter(|(due, _)| *due <= now) {
                Some((at, id)) if self.still_beats(id, at, now) => {}
                due => break due,
            }
        };
        let message = self
            .signals
            .iter()
            .filter_map(|(channel, waiting)| {
                let message = self.mail.get(channel)?.first_key_value()?.1;
                let id = waiting.first()?.1;
                let call = &self.calls[id.0];
                let at = match (&call.spec, &call.state) {
                    _ if call.key.name.starts_with(OWN) => Timestamp::from_micros(i64::MIN),
                    // Who asks only for what is there takes what is found, whatever the clocks say.
                    (Spec::Signal { limit: Some(Duration::ZERO) }, State::Waiting { due: Some(due) }) => {
                        message.at.min(*due)
                    }
                    _ => message.at,
                };
                Some((at, message.seq, channel.clone(), id))
            })
            .min_by_key(|(at, seq, ..)| (*at, *seq));
        let message = message.filter(|(at, ..)| due.is_none_or(|(due, _)| *at <= due));
        if let Some((_, seq, channel, id)) = message {
            self.unwatch(id);
            let Some(message) = self.take_mail(&channel, seq) else { return false };
            self.supersede(seq);
            let payload = message.payload.clone();
            // The record names the message, which is consumed when the outcome is taken.
            self.calls[id.0].reference = Some(seq.to_string().into());
            let record = Record { payload: payload.clone(), ..self.record(id, Phase::Completed, now) };
            let outcome = Outcome { phase: Phase::Completed, payload };
            return self.answer(id, record, outcome, Some(message));
        }
        let Some((due, id)) = due else { return false };
        let call = &self.calls[id.0];
        if matches!(call.spec, Spec::Signal { .. }) && !self.looked.contains(&call.made) {
            // One that came in time may be in the mailbox, unread.
            return false;
        }
        self.unwatch(id);
        let call = &mut self.calls[id.0];
        if let State::Running = call.state {
            // The step itself records what becomes of its attempt.
            match (&mut call.limit, &mut call.pulse) {
                (Some(limit), _) if limit.at <= now => limit.passed = true,
                (_, Some(pulse)) => pulse.fall_silent(),
                _ => {}
            }
            if let Some(waker) = &call.waker {
                waker.wake_by_ref();
            }
            return true;
        }
        // A timer that fires has completed; a wait for something else has failed to get it.
        let phase = match self.calls[id.0].spec {
            Spec::Timer(_) => Phase::Completed,
            _ => Phase::Failed,
        };
        let record = Record { due_at: Some(due), ..self.record(id, phase, now) };
        self.answer(id, record, Outcome { phase, payload: Bytes::new() }, None)
    }

    /// Ends a wait. True when its outcome was released; inside a step that comes later, when the outcome is durable,
    /// for what the body does next may be an effect.
    fn answer(&mut self, id: CallId, record: Record, outcome: Outcome, message: Option<Message>) -> bool {
        let at = record.at;
        let owner = record.path.clone();
        let seq = self.append(record);
        if self.calls[id.0].place == Place::Flow {
            self.hand_over(id, at, outcome, message);
            return true;
        }
        if let Some(message) = message {
            self.reserved_below.insert(message.seq);
            self.reserved.insert(message.seq, Reserved { owner, hold: Hold::Untaken(Some(message)) });
        }
        self.calls[id.0].state = State::Recorded { seq, at, outcome };
        self.keep(seq, id);
        false
    }

    /// Takes in what the mailbox says about children. A child whose call was dropped is heard of in vain.
    fn take_children(&mut self, now: Timestamp) {
        if self.mail.is_empty() {
            return;
        }
        let Some(mail) = self.mail.remove(&Channel::children()) else { return };
        for (seq, message) in mail {
            let path = message.reference.as_deref().and_then(|path| path.parse::<CallPath>().ok());
            if path.as_ref().is_some_and(|path| path.position() >= self.root.next_position) {
                // The code has not come to this call yet, because it waits for something that is not durable.
                self.mail.entry(Channel::children()).or_default().insert(seq, message);
                continue;
            }
            self.batch.consumed.push(seq);
            let id = path.as_ref().and_then(|path| self.children.get(path).copied());
            let Some(id) = id.filter(|id| self.is_child_of(*id, &message)) else {
                if message.child == Some(ChildOutcome::Refused) {
                    let why = String::from_utf8_lossy(&message.payload);
                    tracing::warn!(call = ?path, %why, "a child flow was not started, and its call is gone");
                }
                continue;
            };
            self.unwatch(id);
            let phase = match message.child {
                Some(ChildOutcome::Completed) => Phase::Completed,
                _ => Phase::Failed,
            };
            let payload = crate::child::outcome_payload(&message);
            let record = Record { payload: payload.clone(), ..self.record(id, phase, now) };
            let seq = self.append(record);
            self.calls[id.0].state = State::Recorded { seq, at: now, outcome: Outcome { phase, payload } };
            self.keep(seq, id);
        }
    }

    /// True when the call waits for the child that has ended. A flow that was retried may have started another one.
    fn is_child_of(&self, id: CallId, message: &Message) -> bool {
        let child = self.calls[id.0].reference.as_deref();
        message.ended.as_ref().is_none_or(|ended| child.is_none_or(|child| child == ended.as_str()))
    }

    /// Ends the calls of children that live on their own, which have been started. Those that were refused have
    /// ended already.
    fn take_accepted(&mut self, now: Timestamp) {
        for path in std::mem::take(&mut self.accepted) {
            let Some(id) = self.children.get(&path).copied() else { continue };
            self.unwatch(id);
            let record = self.record(id, Phase::Completed, now);
            let seq = self.append(record);
            let outcome = Outcome { phase: Phase::Completed, payload: Bytes::new() };
            self.calls[id.0].state = State::Recorded { seq, at: now, outcome };
            self.keep(seq, id);
        }
    }
}
