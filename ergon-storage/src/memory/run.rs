//! What a lease allows.

use std::sync::Arc;

use bytes::Bytes;

use super::state::{Flow, State};
use crate::{
    CallPath, Channel, ChildOutcome, Cleanup, Clock, Commit, Committed, Error, ErrorKind, FlowState, Limits, Message,
    NewFlow, Next, Parent, Result, Timestamp,
};

/// How a flow ends.
pub(super) struct End {
    outcome: ChildOutcome,
    state: FlowState,
    reason: Option<Arc<str>>,
    result: Bytes,
    /// What the parent hears.
    told: Bytes,
}

impl End {
    pub(super) fn cancelled(reason: Arc<str>) -> Self {
        Self {
            outcome: ChildOutcome::Cancelled,
            state: FlowState::Cancelled,
            result: Bytes::new(),
            told: Bytes::copy_from_slice(reason.as_bytes()),
            reason: Some(reason),
        }
    }
}

impl State {
    pub(super) fn commit(&mut self, commit: Commit, clock: &dyn Clock, limits: &Limits) -> Result<Committed> {
        let Commit { lease, number, records, beats, consumed, children, labels, items, emitted, cleanup, next } =
            commit;
        let flow = self.flows.get_mut(&lease.key).filter(|flow| flow.is_leased_by(&lease));
        let flow = flow.ok_or_else(|| Error::lease_lost(&lease.flow))?;
        let last = match flow.last_commit {
            Some((last, answer)) if last == number => return Ok(answer),
            Some((last, _)) => last,
            None => 0,
        };
        if !flow.is_running() {
            return Err(Error::lease_lost(&lease.flow));
        }
        let invalid = |message| Err(Error::new(ErrorKind::Invalid, message).with_flow(&lease.flow));
        if last.checked_add(1) != Some(number) {
            return invalid(format!("commit {number} does not follow on commit {last}"));
        }
        for (record, seq) in records.iter().zip(flow.info.records + 1..) {
            if record.seq != seq {
                return invalid(format!("record {} does not follow on record {}", record.seq, seq - 1));
            }
        }
        Limits::check_beats(&beats, flow.info.records).map_err(|error| error.with_flow(&lease.flow))?;
        if next == Next::Run && children.is_empty() && labels.is_none() {
            // Most commits are such, which no other flow has to do with, and no instant.
            flow.info.cleanup = flow.info.cleanup.max(cleanup);
            flow.amend(beats);
            flow.append(records, &consumed);
            flow.last_commit = Some((number, Committed::Applied));
            if !items.is_empty() || emitted.is_some() {
                flow.emit(items, emitted);
                self.hints.flows.push(lease.flow.clone());
            }
            return Ok(Committed::Applied);
        }
        let now = clock.now();
        let instants = children.iter().map(|child| child.check(now, limits)).collect::<Result<Vec<_>>>()?;

        // From here on nothing is refused.
        let flow = self.flows.get_mut(&lease.key).expect("found above");
        flow.info.cleanup = flow.info.cleanup.max(cleanup);
        flow.amend(beats);
        flow.append(records, &consumed);
        if let Some(labels) = labels {
            flow.info.labels = labels;
        }
        if !items.is_empty() {
            self.hints.flows.push(lease.flow.clone());
        }
        flow.emit(items, emitted);
        for (child, (start_at, deadline_at)) in children.into_iter().zip(instants) {
            self.start_child(lease.key, child, start_at, deadline_at, now);
        }
        let answer = self.go_on(lease.key, next, now);
        self.flows.get_mut(&lease.key).expect("found above").last_commit = Some((number, answer));
        Ok(answer)
    }

    pub(super) fn go_on(&mut self, number: u64, next: Next, now: Timestamp) -> Committed {
        match next {
            Next::Run => {}
            Next::Suspend { wake, heard } => {
                let flow = &self.flows[&number];
                // A deadline wakes a flow just as its own instant does.
                let deadline_at = flow.info.deadline_at.filter(|_| flow.info.cleanup != Cleanup::Underway);
                let due_at = wake.at.into_iter().chain(deadline_at).min();
                if due_at.is_some_and(|due_at| due_at <= now) || flow.mailbox.has_any(&wake.channels, &heard) {
                    return Committed::Awake;
                }
                self.update(number, |flow| {
                    flow.set(FlowState::Suspended, due_at, None);
                    flow.info.wake = wake;
                    flow.info.deliveries = 0;
                });
                return Committed::Suspended;
            }
            Next::Complete { result } => {
                let end = End {
                    outcome: ChildOutcome::Completed,
                    state: FlowState::Completed,
                    reason: None,
                    // Most flows have no parent, and their results no second owner.
                    told: if self.flows[&number].info.parent.is_some() { result.clone() } else { Bytes::new() },
                    result,
                };
                self.end(number, end, now);
            }
            Next::Fail { error, reason, again } => {
                let end = End {
                    outcome: ChildOutcome::Failed,
                    state: FlowState::Failed,
                    reason: Some(reason),
                    told: error.clone(),
                    result: error,
                };
                self.end(number, end, now);
                self.flows.get_mut(&number).expect("the caller has found it").again = again;
            }
            Next::Cancel { reason } => {
                let end = End::cancelled(reason);
                self.end(number, end, now);
            }
            Next::Continue { input } => {
                let run_number = self.last;
                self.update(number, |flow| {
                    flow.set(FlowState::Scheduled, Some(now), None);
                    let former = std::mem::replace(&mut flow.input, input);
                    flow.accepted.get_or_insert(former);
                    flow.history = Vec::new();
                    flow.mailbox.withdraw(|_, _, _| true);
                    flow.run_number = run_number;
                    flow.info.run += 1;
                    flow.info.records = 0;
                    flow.info.emitted = 0;
                    flow.info.cleanup = Cleanup::None;
                    flow.info.deliveries = 0;
                    flow.info.started_at = None;
                    flow.info.worker = None;
                });
            }
            Next::Stall { reason, build } => self.update(number, |flow| {
                flow.set(FlowState::Stalled, None, Some(reason));
                flow.stalled_by = Some(build);
            }),
        }
        Committed::Applied
    }

    pub(super) fn start_child(
        &mut self,
        parent: u64,
        child: NewFlow,
        start_at: Timestamp,
        deadline_at: Option<Timestamp>,
        now: Timestamp,
    ) {
        let start = |state: &mut Self, child| state.insert(Flow::new(child, start_at, deadline_at, now));
        let run = self.run_number(parent);
        let Some(&number) = self.ids.get(&child.id) else { return start(self, child) };
        let taken = &self.flows[&number];
        let place = |parent: &Option<Parent>| parent.as_ref().map(|parent| (parent.id.clone(), parent.path.clone()));
        let owner = if place(&taken.info.parent) != place(&child.parent) {
            "a flow that this call did not start"
        } else if number > run && taken.is_what_is_wanted(&child) {
            if child.parent.as_ref().is_some_and(|parent| !parent.detached) {
                self.resume_child(number, now);
            }
            return;
        } else if taken.info.state.is_final() {
            self.withdraw_end(number);
            self.forget(number);
            return start(self, child);
        } else if number > run {
            "this call's child, which has not ended and runs with another value"
        } else {
            "a child of an earlier flow or run that has not ended"
        };
        let text = format!("the id {:?} belongs to {owner}", child.id);
        let Some(place) = child.parent else { return };
        let origin = Message::origin(&place.path, &child.id);
        self.deliver(parent, Channel::children(), text.into(), now, |message| {
            message.with_child(ChildOutcome::Refused, &origin)
        });
    }

    /// A call that has started a child is made again.
    pub(super) fn resume_child(&mut self, number: u64, now: Timestamp) {
        let flow = &self.flows[&number];
        let (outcome, told) = match flow.info.state {
            FlowState::Failed => return self.schedule_again(number, now),
            FlowState::Completed => (ChildOutcome::Completed, flow.result.clone()),
            FlowState::Cancelled => {
                let reason = flow.info.reason.as_deref().unwrap_or_default();
                (ChildOutcome::Cancelled, Bytes::copy_from_slice(reason.as_bytes()))
            }
            _ => return,
        };
        // It may have told it before, while its parent had failed.
        self.withdraw_end(number);
        self.tell_parent(number, outcome, told, now);
    }

    /// Ends a flow and tells its parent.
    pub(super) fn end(&mut self, number: u64, end: End, now: Timestamp) {
        let (outcome, told) = (end.outcome, end.told.clone());
        self.end_silently(number, end, now);
        self.tell_parent(number, outcome, told, now);
    }

    pub(super) fn end_silently(&mut self, number: u64, end: End, now: Timestamp) {
        self.update(number, |flow| {
            flow.set(end.state, None, end.reason);
            flow.info.finished_at = Some(now);
            flow.result = end.result;
            // Most flows that a log holds have ended.
            flow.history.shrink_to_fit();
            // A failed flow may go on, and finds its messages where they were.
            if end.state != FlowState::Failed {
                flow.mailbox.clear();
            }
        });
    }

    /// Tells the parent of a flow how that one has ended, if it is there and may still want to know.
    pub(super) fn tell_parent(&mut self, child: u64, outcome: ChildOutcome, told: Bytes, now: Timestamp) {
        let Some((parent, path)) = self.hearer(child) else { return };
        let origin = Message::origin(&path, &self.flows[&child].info.id);
        let state = self.flows[&parent].info.state;
        if !state.is_final() || state == FlowState::Failed {
            self.deliver(parent, Channel::children(), told, now, |message| message.with_child(outcome, &origin));
        }
    }

    /// The parent that hears of a flow's end, and the call that has started it.
    pub(super) fn hearer(&self, child: u64) -> Option<(u64, CallPath)> {
        let parent = self.flows[&child].info.parent.as_ref().filter(|parent| !parent.detached)?;
        // A flow that was accepted later has the id of the parent, and is another; a later run did not start it.
        let number = self.ids.get(&parent.id).copied().filter(|number| self.run_number(*number) < child)?;
        Some((number, parent.path.clone()))
    }

    /// The flow's own number, or the greatest that there was when its present run began: what it starts has a greater one.
    pub(super) fn run_number(&self, number: u64) -> u64 {
        self.flows[&number].run_number.max(number)
    }

    /// The children whose ends a flow hears of, in the order in which they were accepted.
    pub(super) fn heard_children(&self, parent: u64) -> impl Iterator<Item = (u64, &Flow)> {
        self.attached_children(parent, self.run_number(parent))
    }

    /// The attached children of a flow that were accepted after this number, in that order.
    pub(super) fn attached_children(&self, parent: u64, after: u64) -> impl Iterator<Item = (u64, &Flow)> {
        let children = self.children.get(&self.flows[&parent].info.id);
        let children = children.into_iter().flat_map(move |children| children.range(after + 1..));
        let children = children.map(|child| (*child, &*self.flows[child]));
        children.filter(|(_, child)| child.info.parent.as_ref().is_some_and(|parent| !parent.detached))
    }

    /// Takes back what a flow has told its parent of its end.
    pub(super) fn withdraw_end(&mut self, child: u64) {
        let id = self.flows[&child].info.id.clone();
        if let Some((parent, path)) = self.hearer(child)
            && let Some(flow) = self.flows.get_mut(&parent)
        {
            let path = path.to_string();
            flow.mailbox.withdraw(|_, call, ended| call == path && ended == Some(&id));
        }
    }

    /// Puts a message into a mailbox, and wakes the flow if it waits for it.
    pub(super) fn deliver(
        &mut self,
        number: u64,
        channel: Channel,
        payload: Bytes,
        now: Timestamp,
        finish: impl FnOnce(Message) -> Message,
    ) {
        let flow = self.flows.get_mut(&number).expect("the caller has found it");
        let wakes = flow.info.state == FlowState::Suspended && flow.info.wake.channels.contains(&channel);
        flow.mailbox.push(channel, now, payload, finish);
        if wakes {
            self.update(number, |flow| {
                // A timer may have come before the message, and nobody has claimed the flow since.
                let due_at = flow.info.due_at.map_or(now, |due_at| due_at.min(now));
                flow.set(FlowState::Scheduled, Some(due_at), None);
            });
        } else {
            self.hints.flows.push(flow.info.id.clone());
        }
    }
}
