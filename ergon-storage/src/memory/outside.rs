//! What others do to a flow.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    run::End,
    state::{Ending, State},
};
use crate::{
    CallPath, Cancelled, Channel, ChildOutcome, Cleanup, Error, FlowId, FlowState, NewMessage, Record, Result, Retried,
    Sent, Timestamp,
};

impl State {
    pub(super) fn send(&mut self, message: NewMessage, now: Timestamp) -> Result<Sent> {
        let number = self.find(&message.to)?;
        let flow = self.flows.get_mut(&number).expect("found above");
        if message.key.as_deref().is_some_and(|key| flow.mailbox.knows(key)) {
            return Ok(Sent::Duplicate);
        }
        if flow.info.state.is_final() {
            return Err(Error::finished(&message.to, flow.info.state));
        }
        if let Some(key) = message.key {
            flow.mailbox.remember(key);
        }
        self.deliver(number, message.channel, message.payload, now, |message| message);
        Ok(Sent::Accepted)
    }

    pub(super) fn cancel(&mut self, id: &FlowId, reason: &str, ending: Ending, now: Timestamp) -> Result<Cancelled> {
        let number = self.find(id)?;
        let info = &self.flows[&number].info;
        if info.state.is_final() {
            return Ok(Cancelled::Already(info.state));
        }
        if info.is_cleaning_up() && ending == Ending::InOrder {
            return Ok(Cancelled::Already(FlowState::Cancelled));
        }
        let reason: Arc<str> = reason.into();
        let mut pending = vec![number];
        while let Some(next) = pending.pop() {
            let flow = self.flows.get_mut(&next).expect("children are flows");
            let at_once = next == number && ending == Ending::AtOnce;
            if flow.info.state.is_final() || flow.info.is_cleaning_up() && !at_once {
                continue;
            }
            flow.last_commit = None;
            let cleans_up = flow.info.cleanup == Cleanup::Needed && flow.info.records < Record::SEQ_MAX && !at_once;
            pending.extend(self.attached_children(next, next).map(|(child, _)| child));
            if cleans_up {
                self.update(next, |flow| {
                    // Whoever runs it may be in the middle of something.
                    let due_at = if flow.is_running() { flow.info.due_at } else { Some(now) };
                    flow.set(FlowState::Scheduled, due_at, None);
                    let record = Record::cancel(flow.info.records + 1, now, Record::CANCELLED, &reason);
                    flow.append(vec![record], &[]);
                    flow.info.cleanup = Cleanup::Underway;
                });
                continue;
            }
            // What goes with its parent has nobody to tell.
            let end = End::cancelled(Arc::clone(&reason));
            if next == number {
                self.end(next, end, now);
            } else {
                self.end_silently(next, end, now);
            }
        }
        Ok(Cancelled::Now)
    }

    pub(super) fn retry(&mut self, id: &FlowId, now: Timestamp) -> Result<Retried> {
        let number = self.find(id)?;
        let state = self.flows[&number].info.state;
        if !matches!(state, FlowState::Failed | FlowState::Stalled) {
            return Ok(Retried::Not(state));
        }
        self.schedule_again(number, now);
        Ok(Retried::Scheduled)
    }

    /// Schedules a flow that has failed or come to a standstill, and with it the descendants that it would fail of.
    pub(super) fn schedule_again(&mut self, number: u64, now: Timestamp) {
        self.withdraw_end(number);
        let mut pending = vec![number];
        while let Some(number) = pending.pop() {
            pending.extend(self.withdraw_failures(number));
            self.update(number, |flow| {
                flow.forget_calls_to_be_made_again();
                flow.set(FlowState::Scheduled, Some(now), None);
                flow.info.deliveries = 0;
                flow.info.finished_at = None;
                flow.info.deadline_at =
                    flow.info.deadline_at.map(|deadline_at| now.saturating_add(deadline_at.since(flow.info.start_at)));
                flow.result = Bytes::new();
            });
        }
    }

    /// Takes out of a failed flow's mailbox the ends of children that it is to hear anew: of the calls that it makes
    /// again, and of those that have failed and are scheduled again, which are returned.
    fn withdraw_failures(&mut self, number: u64) -> BTreeSet<u64> {
        let flow = &self.flows[&number];
        let mut failed = BTreeSet::new();
        if flow.info.state != FlowState::Failed || !flow.mailbox.has_any(&[Channel::children()], &[]) {
            return failed;
        }
        let again: HashSet<String> = flow.again.iter().map(CallPath::to_string).collect();
        // The last child of a call is the one that it waits for.
        let last: HashMap<String, (u64, FlowState, FlowId)> = (self.heard_children(number))
            .filter_map(|(child, flow)| {
                let path = flow.info.parent.as_ref()?.path.to_string();
                Some((path, (child, flow.info.state, flow.info.id.clone())))
            })
            .collect();
        let flow = self.flows.get_mut(&number).expect("found above");
        flow.mailbox.withdraw(|outcome, call, ended| {
            if again.contains(call) {
                return true;
            }
            // Without the child, its end is all there is of it.
            match last.get(call) {
                Some((child, FlowState::Failed, id)) if outcome == ChildOutcome::Failed && ended == Some(id) => {
                    failed.insert(*child);
                    true
                }
                _ => false,
            }
        });
        failed
    }

    pub(super) fn reoffer(&mut self, types: &[(Arc<str>, u32)], build: &str, now: Timestamp) -> u64 {
        let offered: Vec<u64> = (self.index.stalled.iter().copied())
            .filter(|number| {
                let flow = &self.flows[number];
                flow.stalled_by.as_deref().is_some_and(|stalled_by| stalled_by != build)
                    && types.iter().any(|(name, version)| (name, *version) == (&flow.info.flow_type, flow.info.version))
            })
            .collect();
        for &number in &offered {
            self.update(number, |flow| flow.set(FlowState::Scheduled, Some(now), None));
        }
        offered.len() as u64
    }
}
