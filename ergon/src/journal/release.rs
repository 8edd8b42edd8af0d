//! Handing out outcomes, one at a time.

use bytes::Bytes;
use ergon_storage::{CallPath, Channel, ChildOutcome, Message, Phase, Record, Timestamp};

use super::{CallId, Journal, Outcome, Place, Spec, State};

impl Journal {
    /// Releases the next outcome, if there is one, and wakes the call that awaits it.
    pub(crate) fn release(&mut self, now: Timestamp) -> bool {
        while let Some(&(_, position)) = self.replay.front() {
            match self.matched.get(&position) {
                None => return false,
                Some(None) => {
                    self.replay.pop_front();
                    self.matched.remove(&position);
                }
                Some(Some(id)) => {
                    let id = *id;
                    self.replay.pop_front();
                    self.matched.remove(&position);
                    if let State::Replaying { at, outcome } = self.take_state(id) {
                        let message = self.unconsumed(id, &outcome);
                        self.hand_over(id, at, outcome, message);
                    }
                    return true;
                }
            }
        }
        if !self.root.recorded.is_empty() {
            // The code has not made all the calls that it made before: it is too early for anything new.
            return false;
        }
        for id in std::mem::take(&mut self.unrecorded) {
            self.activate(id, now);
        }
        self.take_children(now);
        if let Some((_, id)) = self.fresh.pop_first() {
            if let State::Recorded { at, outcome, .. } = self.take_state(id) {
                let message = self.unconsumed(id, &outcome);
                self.hand_over(id, at, outcome, message);
            }
            return true;
        }
        self.fire(now)
    }

    fn hand_over(&mut self, id: CallId, at: Timestamp, outcome: Outcome, message: Option<Message>) {
        let call = &mut self.calls[id.0];
        // Time within a step's body is the real one; only the flow's own code lives on recorded time.
        if call.place == Place::Flow {
            self.now = self.now.max(at);
            self.releases += 1;
            self.draws = 0;
        }
        call.state = State::Released { outcome, message };
        if let Some(waker) = call.waker.take() {
            waker.wake();
        }
    }

    /// The message that a recorded signal handed over, if it is still in the mailbox because nobody took it.
    fn unconsumed(&mut self, id: CallId, outcome: &Outcome) -> Option<Message> {
        let call = &self.calls[id.0];
        if !matches!(call.spec, Spec::Signal { .. }) || outcome.phase != Phase::Completed {
            return None;
        }
        let seq = call.reference.as_deref()?.parse().ok()?;
        let channel = Channel::signal(&call.key.name);
        let mail = self.mail.get_mut(&channel)?;
        let message = mail.remove(&seq);
        if mail.is_empty() {
            self.mail.remove(&channel);
        }
        message
    }

    /// Ends the wait whose time has come first, by an instant or by a message.
    fn fire(&mut self, now: Timestamp) -> bool {
        let due = self.timers.iter().find(|(_, id)| !matches!(self.calls[id.0].state, State::Backoff(_)));
        let due = due.copied().filter(|(due, _)| *due <= now);
        let message = self
            .signals
            .iter()
            .filter_map(|(channel, waiting)| {
                let message = self.mail.get(channel)?.first_key_value()?.1;
                Some((message.at, message.seq, channel.clone(), waiting.first()?.1))
            })
            .min_by_key(|(at, seq, ..)| (*at, *seq));
        let message = message.filter(|(at, ..)| due.is_none_or(|(due, _)| *at <= due));
        if let Some((_, seq, channel, id)) = message {
            self.unwatch(id);
            let Some(mail) = self.mail.get_mut(&channel) else { return false };
            let Some(message) = mail.remove(&seq) else { return false };
            if mail.is_empty() {
                self.mail.remove(&channel);
            }
            let payload = message.payload.clone();
            // The record names the message, which is consumed when the outcome is taken.
            self.calls[id.0].reference = Some(seq.to_string().into());
            let record = Record { payload: payload.clone(), ..self.record(id, Phase::Completed, now) };
            self.append(record);
            let outcome = Outcome { phase: Phase::Completed, payload };
            self.hand_over(id, now, outcome, Some(message));
            return true;
        }
        let Some((due, id)) = due else { return false };
        self.unwatch(id);
        // A timer that fires has completed; a wait for something else has failed to get it.
        let phase = match self.calls[id.0].spec {
            Spec::Timer(_) => Phase::Completed,
            _ => Phase::Failed,
        };
        let record = Record { due_at: Some(due), ..self.record(id, phase, now) };
        self.append(record);
        self.hand_over(id, now, Outcome { phase, payload: Bytes::new() }, None);
        true
    }

    /// Takes in what the mailbox says about children. A child whose call was dropped is heard of in vain.
    fn take_children(&mut self, now: Timestamp) {
        let Some(mail) = self.mail.remove(&Channel::children()) else { return };
        for (seq, message) in mail {
            let path = message.reference.as_deref().and_then(|path| path.parse::<CallPath>().ok());
            if path.as_ref().is_some_and(|path| path.position() >= self.root.next_position) {
                // The code has not come to this call yet, because it waits for something that is not durable.
                self.mail.entry(Channel::children()).or_default().insert(seq, message);
                continue;
            }
            self.batch.consumed.push(seq);
            let Some(id) = path.and_then(|path| self.children.get(&path).copied()) else { continue };
            self.unwatch(id);
            let phase = match message.child {
                Some(ChildOutcome::Completed) => Phase::Completed,
                _ => Phase::Failed,
            };
            let payload = crate::child::outcome_payload(&message);
            let record = Record { payload: payload.clone(), ..self.record(id, phase, now) };
            let seq = self.append(record);
            self.calls[id.0].state = State::Recorded { seq, at: now, outcome: Outcome { phase, payload } };
            self.fresh.insert(seq, id);
        }
    }
}
