//! Settling the places of calls.

use std::collections::BTreeSet;

use ergon_storage::{CallKind, CallPath, Channel, Phase, Record, Timestamp};

use super::{
    CallId, CallKey, Divergence, Due, Fresh, Journal, Outcome, Place, Refusal, Spec, State,
    beat::Pulse,
    call::{Call, TimeLimit},
    handed,
    history::{Recorded, RecordedOutcome},
};

impl Journal {
    /// Settles the places of the calls made since the last time, and lets those take effect that may.
    pub(crate) fn seal(&mut self, now: Timestamp) -> Result<(), Divergence> {
        if !self.root.group.is_empty() {
            let mut group = std::mem::take(&mut self.root.group);
            self.seal_strict(&mut group, now)?;
            // The next group finds the room.
            group.clear();
            self.root.group = group;
        }
        if !self.nested.is_empty() {
            self.seal_nested(now);
        }
        Ok(())
    }

    /// The first call of the flow's own scope that was made since the last seal.
    pub(crate) fn first_made(&self) -> Option<CallKey> {
        self.root.group.iter().find_map(|id| self.calls.get(id.0)).map(|call| call.key.clone())
    }

    /// True when the present instant may make a difference before a body starts: not where steps alone were made, and
    /// nothing else is waited for.
    pub(crate) fn minds_time(&self) -> bool {
        let is_step = |id: &CallId| self.calls.get(id.0).is_none_or(|call| matches!(call.spec, Spec::Step { .. }));
        !(self.timers.is_empty()
            && self.mail.is_empty()
            && self.children.is_empty()
            && self.nested.is_empty()
            && self.unrecorded.is_empty()
            && self.untold_patches.is_empty()
            && self.root.group.iter().all(is_step))
    }

    fn seal_strict(&mut self, group: &mut [CallId], now: Timestamp) -> Result<(), Divergence> {
        let first = self.root.next_position;
        let count = u32::try_from(group.len()).unwrap_or(u32::MAX);
        self.root.next_position = first.saturating_add(count);
        let chosen;
        let places = if count == 1 {
            &[first][..]
        } else {
            self.sort_group(group);
            chosen = self.places(group, first, count);
            &chosen
        };
        // Nothing takes effect unless everything matches: what a stalled flow leaves must suit the old code.
        for (id, place) in group.iter().zip(places) {
            let called = &self.calls[id.0].key;
            if let Some(recorded) = self.root.recorded.get(place)
                && recorded.key != *called
                && !self.takes_over(recorded, called, group)
            {
                return Err(Divergence {
                    path: CallPath::top(*place),
                    recorded: Some(recorded.key.clone()),
                    called: Some(called.clone()),
                });
            }
        }
        for (id, place) in group.iter().zip(places) {
            let recorded = self.root.recorded.remove(place);
            self.settle(*id, CallPath::top(*place), recorded, now);
        }
        Ok(())
    }

    /// True when a call takes the record of another one because the flow was forked: arguments may hang on the flow's id or
    /// value. Not where other calls of the same name are made at the same time: their order may hang on the arguments.
    fn takes_over(&self, recorded: &Recorded, called: &CallKey, group: &[CallId]) -> bool {
        let is_alike = |key: &CallKey| (key.kind, &key.name) == (called.kind, &called.name);
        recorded.seq <= self.inherited
            && is_alike(&recorded.key)
            && group.iter().filter(|id| is_alike(&self.calls[id.0].key)).count() == 1
    }

    /// The positions of a sorted group of calls, which takes those from `first` on.
    fn places(&self, group: &[CallId], first: u32, count: u32) -> Vec<u32> {
        // First the calls that are where the history has them. Then, for each record that is left, a call that is
        // the same but was made at another place of the group, for a combinator may have polled its branches in
        // another order …
        let mut places: Vec<Option<u32>> = vec![None; group.len()];
        let recorded: Vec<u32> = self.root.recorded.range(first..first + count).map(|(at, _)| *at).collect();
        let mut taken = BTreeSet::new();
        if !recorded.is_empty() {
            let same = |id: CallId, at: u32| self.root.recorded[&at].key == self.calls[id.0].key;
            for at in &recorded {
                let index = (at - first) as usize;
                if same(group[index], *at) {
                    places[index] = Some(*at);
                    taken.insert(*at);
                }
            }
            for at in recorded.iter().filter(|at| !taken.contains(*at)).copied().collect::<Vec<_>>() {
                let moved = (0..group.len()).find(|index| places[*index].is_none() && same(group[*index], at));
                if let Some(index) = moved {
                    places[index] = Some(at);
                    taken.insert(at);
                }
            }
        }
        // … then by position.
        let mut free = (first..first + count).filter(|position| !taken.contains(position));
        places.into_iter().filter_map(|place| place.or_else(|| free.next())).collect()
    }

    fn seal_nested(&mut self, now: Timestamp) {
        let mut owners: Vec<CallId> =
            self.nested.iter().filter(|(_, scope)| !scope.group.is_empty()).map(|(owner, _)| *owner).collect();
        // In the order of what is written: the same calls leave the same history each time.
        owners.sort_unstable();
        for owner in owners {
            let Some(enclosing) = self.path(owner).cloned() else { continue };
            if enclosing.positions().len() >= CallPath::DEPTH_MAX {
                self.refuse_depth(owner);
                continue;
            }
            let Some(scope) = self.nested.get_mut(&owner) else { continue };
            let mut group = std::mem::take(&mut scope.group);
            self.sort_group(&mut group);
            self.fix_limit(owner, now);
            for id in group {
                let key = self.calls[id.0].key.clone();
                let Some(scope) = self.nested.get_mut(&owner) else { break };
                let (position, recorded) = scope.place(&key);
                if recorded.is_none() && key.kind == CallKind::Step {
                    let ordinal = scope.ordinal(&key);
                    self.calls[id.0].reference = (ordinal > 1).then(|| ordinal.to_string().into());
                }
                self.settle(id, enclosing.child(position), recorded, now);
            }
        }
    }

    /// Records when the time of a step is up whose body makes a call: it may start again after a wait, and its time
    /// must not.
    fn fix_limit(&mut self, owner: CallId, now: Timestamp) {
        let call = &mut self.calls[owner.0];
        let (State::Running, Some(limit)) = (&call.state, &mut call.limit) else { return };
        if std::mem::replace(&mut limit.recorded, true) {
            return;
        }
        let (attempt, due_at) = (call.attempts + 1, Some(limit.at));
        let record = Record { attempt, due_at, ..self.record(owner, Phase::Pending, now) };
        self.calls[owner.0].begun_seq = self.append(record);
    }

    /// Steps that call steps that call steps … must end somewhere.
    fn refuse_depth(&mut self, owner: CallId) {
        let call = self.calls[owner.0].key.clone();
        let message = format!("calls nest at most {} deep; loop in the flow instead of recursing", CallPath::DEPTH_MAX);
        self.refusal.get_or_insert(Refusal { call, message });
    }

    /// Lets children take effect that were started just before the code ended.
    pub(crate) fn start_orphans(&mut self, now: Timestamp) {
        for id in std::mem::take(&mut self.unrecorded) {
            if let Spec::Child { .. } = self.calls[id.0].spec {
                self.activate(id, now);
            }
        }
    }

    /// Puts a group into an order that does not depend on the order in which a combinator polled its branches:
    /// by the place in the source, by what they are, then as made.
    fn sort_group(&self, group: &mut [CallId]) {
        if group.len() > 1 {
            let rank = |id: &CallId| {
                let Call { location, key, .. } = &self.calls[id.0];
                (location.file(), location.line(), location.column(), key.kind, &key.name, key.args_hash)
            };
            group.sort_by(|one, other| rank(one).cmp(&rank(other)));
        }
    }

    fn settle(&mut self, id: CallId, path: CallPath, recorded: Option<Recorded>, now: Timestamp) {
        let strict = self.calls[id.0].place == Place::Flow;
        let replaying = self.is_replaying();
        let call = &mut self.calls[id.0];
        if matches!(call.state, State::Abandoned) || (call.orphan && recorded.is_some()) {
            if let Some(recorded) = recorded.filter(|recorded| recorded.outcome.is_some()) {
                if strict {
                    self.matched.insert(path.position(), None);
                }
                if let Some(seq) = recorded.message() {
                    self.give_back(seq, &path);
                }
            }
            self.give_back_below(&path);
            self.remove(id);
            return;
        }
        call.path = Some(path);
        call.started_at = now;
        let Some(recorded) = recorded else {
            if replaying {
                call.state = State::Unrecorded;
                self.unrecorded.insert(id);
            } else {
                self.activate(id, now);
            }
            return;
        };
        call.started_at = recorded.started_at;
        call.attempts = recorded.attempts;
        call.attempt_seq = recorded.attempt_seq;
        call.begun = recorded.begun;
        call.pulse = recorded.progress.map(|progress| Box::new(Pulse::resumed(progress)));
        if recorded.reference.is_some() {
            call.reference = recorded.reference;
        }
        match recorded.outcome {
            Some(RecordedOutcome { at, phase, payload, .. }) if strict => {
                let position = call.path.as_ref().map_or(0, CallPath::position);
                call.state = State::Replaying { at, outcome: Outcome { phase, payload } };
                self.matched.insert(position, Some(id));
            }
            Some(RecordedOutcome { seq, at, phase, payload }) => {
                call.state = State::Recorded { seq, at, outcome: Outcome { phase, payload } };
                let channel = Channel::signal(&call.key.name);
                let handed = handed(call).map(|(seq, path)| (seq, path.clone()));
                self.keep_in_order(Fresh { seq, id, after: 0 });
                if let Some((seq, path)) = handed {
                    self.find_again(seq, &path, &channel);
                }
            }
            None => {
                call.state = match (&call.spec, recorded.retry_at) {
                    (Spec::Step { .. }, retry_at) => {
                        // The code may have no limit any more.
                        let due_at = recorded.due_at.filter(|_| matches!(call.spec, Spec::Step { limit: Some(_), .. }));
                        call.limit = due_at.map(|at| TimeLimit { at, recorded: true, passed: false });
                        // What is lost no longer waits.
                        retry_at.filter(|_| !call.is_lost()).map_or(State::Idle, State::Backoff)
                    }
                    _ => State::Waiting { due: recorded.due_at },
                };
                if let (Spec::Child { detached: true, .. }, Some(path)) = (&call.spec, &call.path) {
                    // What is in the history was accepted, or there is a message that says otherwise.
                    self.accepted.push(path.clone());
                }
                self.watch_for(id);
            }
        }
    }

    /// Lets a call without a record take effect.
    pub(super) fn activate(&mut self, id: CallId, now: Timestamp) {
        let call = &mut self.calls[id.0];
        call.started_at = now;
        let wait = match &call.spec {
            Spec::Step { .. } => {
                call.state = State::Idle;
                self.watch_for(id);
                return;
            }
            Spec::Timer(Due::At(at)) => Ok((Some(*at), true)),
            Spec::Timer(Due::After(after)) => now.checked_add(*after).map(|at| (Some(at), true)).ok_or(*after),
            Spec::Signal { limit: None } => Ok((None, false)),
            Spec::Signal { limit: Some(limit) } => now.checked_add(*limit).map(|at| (Some(at), true)).ok_or(*limit),
            Spec::Child { flow, detached } => {
                let mut flow = flow.clone();
                if let (Some(parent), Some(path)) = (&mut flow.parent, &call.path) {
                    parent.path = path.clone();
                }
                self.batch.children.push(*flow);
                if call.orphan {
                    let phase = if *detached { Phase::Completed } else { Phase::Pending };
                    let record = self.record(id, phase, now);
                    self.append(record);
                    self.remove(id);
                    return;
                }
                if *detached {
                    self.batch.starts.extend(call.path.clone());
                }
                Ok((None, true))
            }
        };
        match wait {
            Ok((due, durable)) => {
                self.calls[id.0].state = State::Waiting { due };
                if durable {
                    let record = Record { due_at: due, ..self.record(id, Phase::Pending, now) };
                    self.append(record);
                }
                self.watch_for(id);
            }
            Err(duration) => {
                self.calls[id.0].state = State::Waiting { due: None };
                let call = self.calls[id.0].key.clone();
                let message = format!("{duration:?} from now is past the end of time");
                self.refusal.get_or_insert(Refusal { call, message });
            }
        }
    }
}
