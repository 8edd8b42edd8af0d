//! What the code asks of its calls: to be made, for their outcomes, and to be forgotten.

use std::{panic::Location, sync::Arc, task::Waker, time::Duration};

use ergon_storage::Channel;

use super::{
    BatchNumber, Call, CallId, CallKey, CallPoll, Hold, Journal, Place, Spec, Startable, State, TimeUp, WhenCancelled,
    failed_path, handed,
};

impl Journal {
    /// Makes a call. Its place is settled at the next [`seal`](Self::seal).
    pub(crate) fn call(
        &mut self,
        place: Place,
        key: CallKey,
        spec: Spec,
        location: &'static Location<'static>,
    ) -> CallId {
        self.made += 1;
        let reference = match &spec {
            Spec::Child { flow, .. } => Some(Arc::from(flow.id.as_str())),
            _ => None,
        };
        let when_cancelled = match place {
            Place::Flow if self.is_inside => WhenCancelled::GoesOn,
            Place::Flow => WhenCancelled::Ends,
            Place::Step(owner) => self.calls.get(owner.0).map_or(WhenCancelled::Ends, |owner| owner.when_cancelled),
        };
        let is_over = when_cancelled == WhenCancelled::Ends && self.is_cleaning_up();
        let id = CallId(self.calls.insert(Call {
            place,
            key,
            spec,
            location,
            made: self.made,
            path: None,
            state: if is_over { State::Over } else { State::Made },
            when_cancelled,
            polled: false,
            orphan: false,
            quiet: false,
            attempts: 0,
            attempt_seq: 0,
            begun: 0,
            started_at: self.now,
            limit: None,
            pulse: None,
            begun_seq: 0,
            waker: None,
            reference,
        }));
        match place {
            _ if is_over => {}
            Place::Flow => {
                self.beginnings += 1;
                self.root.group.push(id);
            }
            Place::Step(owner) => {
                let scope = self.open_scope(owner);
                scope.group.push(id);
                scope.open.insert(id);
            }
        }
        id
    }

    /// Asks for the outcome of a call, or whether its body may run.
    pub(crate) fn poll(&mut self, id: CallId, waker: &Waker) -> CallPoll {
        let Some(call) = self.calls.get_mut(id.0) else { return CallPoll::Pending };
        if let State::Released { .. } = call.state {
            let call = self.remove(id);
            self.note_failure(&call);
            // Taken: now, and only now, the message is consumed.
            let reserved = handed(&call).and_then(|(seq, owner)| Some((seq, self.reserved.get_mut(&seq)?, owner)));
            let own = reserved.filter(|(_, reserved, owner)| reserved.owner == **owner);
            let arrived =
                own.and_then(|(seq, reserved, owner)| match std::mem::replace(&mut reserved.hold, Hold::Taken) {
                    Hold::Untaken(Some(message)) => Some(message.seq),
                    // Far back in the mailbox, perhaps. When the body has ended, its history no longer tells that it took it.
                    Hold::Untaken(None) if owner.parent().is_some() => Some(seq),
                    _ => None,
                });
            let State::Released { outcome, message: held } = call.state else { return CallPoll::Pending };
            self.batch.consumed.extend(held.map(|message| message.seq).or(arrived));
            return CallPoll::Ready(outcome);
        }
        if !call.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            call.waker = Some(waker.clone());
        }
        if let State::Running = call.state {
            if call.is_lost() {
                return CallPoll::Lost { attempt: call.attempts + 1 };
            }
            let time_is_up = match (&call.limit, &call.pulse) {
                (Some(limit), _) if limit.passed => Some(TimeUp::Limit),
                (_, Some(pulse)) if pulse.is_silent() => Some(TimeUp::Silence),
                _ => None,
            };
            return CallPoll::Run { attempt: call.attempts + 1, time_is_up };
        }
        if let State::Over = call.state {
            if self.is_inside {
                self.awaited_over = Some(call.key.clone());
            }
        } else if !call.polled {
            call.polled = true;
            self.beginnings += u64::from(call.place == Place::Flow);
            self.watch_for(id);
        }
        CallPoll::Pending
    }

    /// Forgets a call whose future was dropped. What it would have consumed stays where it is.
    pub(crate) fn drop_call(&mut self, id: CallId) {
        if !self.calls.contains(id.0) {
            return;
        }
        let call = &mut self.calls[id.0];
        match (&call.state, &call.spec) {
            (State::Made | State::Unrecorded, Spec::Child { .. }) => {
                call.orphan = true;
                return;
            }
            (State::Over, _) => {
                self.calls.remove(id.0);
                return;
            }
            // A call counts from the moment it is made, even when nothing ever comes of it.
            (State::Made, _) => {
                call.state = State::Abandoned;
                return;
            }
            _ => {}
        }
        self.unwatch(id);
        let call = self.remove(id);
        self.note_failure(&call);
        if let Some((seq, owner)) = handed(&call) {
            self.give_back(seq, owner);
        }
        if let (Spec::Step { .. }, Some(path)) = (&call.spec, &call.path) {
            self.give_back_below(path);
        }
        match call.state {
            State::Replaying { .. } => {
                if let Some(path) = &call.path {
                    self.matched.insert(path.position(), None);
                }
            }
            State::Unrecorded => {
                self.unrecorded.remove(&id);
            }
            State::Running => self.busy -= usize::from(!call.quiet),
            State::Recorded { seq, .. } => {
                if let Ok(place) = self.fresh.binary_search_by_key(&seq, |fresh| fresh.seq) {
                    self.fresh.remove(place);
                }
            }
            State::Released { message: Some(message), .. } => {
                // Handed over but never taken: the message goes back, unconsumed. Its record stays, and a replay
                // hands it to the same call, which drops it again.
                self.let_go(message.seq, call.path.as_ref());
                self.put_back(*message);
            }
            State::Made
            | State::Abandoned
            | State::Idle
            | State::Backoff(_)
            | State::Waiting { .. }
            | State::Released { .. }
            | State::Over => {}
        }
    }

    /// Gives a signal that was made in this pass a time limit, which is part of its identity. False when its
    /// place is settled already.
    pub(crate) fn set_limit(&mut self, id: CallId, limit: Duration, args_hash: u64) -> bool {
        match self.calls.get_mut(id.0) {
            Some(call) if matches!(call.state, State::Made) => {
                call.spec = Spec::Signal { limit: Some(limit) };
                call.key.args_hash = args_hash;
                true
            }
            _ => false,
        }
    }

    /// The code learns, by taking or by dropping it, that this call has failed.
    pub(super) fn note_failure(&mut self, call: &Call) {
        let Some(path) = failed_path(call) else { return };
        if self.failures.0 != self.beginnings {
            self.failures = (self.beginnings, Vec::new());
        }
        if self.failures.1.is_empty() {
            self.emitted_until_failure = self.emitted;
        }
        self.failures.1.push(path.clone());
    }

    /// Puts a call that waits for something into the index where that something is found.
    pub(super) fn watch_for(&mut self, id: CallId) {
        let call = &self.calls[id.0];
        let wants = call.polled;
        match (&call.state, &call.spec) {
            (State::Idle, _) if wants => self.add_startable(id),
            (State::Backoff(due), _) => {
                self.timers.insert((*due, id));
            }
            (State::Waiting { .. }, Spec::Child { .. }) => {
                if let Some(path) = &call.path {
                    self.children.insert(path.clone(), id);
                }
            }
            (State::Waiting { due }, spec) if wants => {
                if let Some(due) = due {
                    self.timers.insert((*due, id));
                }
                if let Spec::Signal { .. } = spec {
                    let channel = Channel::signal(&call.key.name);
                    self.signals.entry(channel).or_default().insert((call.made, id));
                }
            }
            _ => {}
        }
    }

    pub(super) fn add_startable(&mut self, id: CallId) {
        let made = self.calls[id.0].made;
        if let Err(index) = self.startable.binary_search_by_key(&made, |startable| startable.made) {
            self.startable.insert(index, Startable { made, id, after: BatchNumber::MAX });
        }
    }

    pub(super) fn unwatch(&mut self, id: CallId) {
        let call = &self.calls[id.0];
        if let Ok(index) = self.startable.binary_search_by_key(&call.made, |startable| startable.made) {
            self.startable.remove(index);
        }
        self.intended.retain(|intended| intended.id != id);
        match &call.state {
            State::Backoff(due) => {
                self.timers.remove(&(*due, id));
            }
            State::Running => {
                if let Some(limit) = call.limit {
                    self.timers.remove(&(limit.at, id));
                }
                if let Some(at) = call.pulse.as_ref().and_then(|pulse| pulse.armed()) {
                    self.timers.remove(&(at, id));
                }
            }
            State::Waiting { due } => {
                if let Some(due) = due {
                    self.timers.remove(&(*due, id));
                }
                if let (Spec::Child { .. }, Some(path)) = (&call.spec, &call.path) {
                    self.children.remove(path);
                }
                if let Spec::Signal { .. } = call.spec {
                    self.looked.remove(&call.made);
                    let channel = Channel::signal(&call.key.name);
                    if let Some(waiting) = self.signals.get_mut(&channel) {
                        waiting.remove(&(call.made, id));
                        if waiting.is_empty() {
                            self.signals.remove(&channel);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn remove(&mut self, id: CallId) -> Call {
        self.close_scope(id);
        let call = self.calls.remove(id.0);
        if let Some(at) = call.pulse.as_ref().and_then(|pulse| pulse.held()) {
            self.held.remove(&(at, id));
        }
        self.handed_over.take_if(|last| *last == id);
        if let Place::Step(owner) = call.place
            && let Some(scope) = self.nested.get_mut(&owner)
        {
            scope.open.remove(&id);
        }
        call
    }
}
