//! What holds of flows that are retried, taken back, or made of others.

use std::collections::BTreeSet;

use ergon::{
    FlowId, FlowInfo, FlowState, InMemoryExecutionLog,
    storage::{CallKind, CallPath, Channel, Cleanup, ErrorKind, ExecutionLog, Phase, Record, Reset, Snapshot, Topic},
};

use super::{ALL, Law, Laws, Shadow, law};
use crate::network::{Reply, Write, at_once};

/// What has been done about a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repair {
    /// It goes on where it failed.
    Retried,
    /// It goes on from an earlier place.
    Reset,
}

/// What a write does about this flow.
pub(super) fn of(
    write: &Write,
    reply: &ergon::storage::Result<Reply>,
    id: &FlowId,
    was: &FlowInfo,
    is: &FlowInfo,
) -> Option<Repair> {
    let is_again = (was.state, is.state) == (FlowState::Failed, FlowState::Scheduled);
    match write {
        Write::Reset(reset) if reset.flow == *id && reply.is_ok() => Some(Repair::Reset),
        Write::Retry(_) => is_again.then_some(Repair::Retried),
        // A call that is made again finds its child failed.
        Write::Commit(commit, _) if !commit.children.is_empty() => is_again.then_some(Repair::Retried),
        _ => None,
    }
}

/// A history without these calls.
fn without(records: &[Record], again: &BTreeSet<CallPath>) -> Vec<Record> {
    let kept = records.iter().filter(|record| !again.contains(&record.path));
    kept.zip(1..).map(|(record, seq)| Record { seq, ..record.clone() }).collect()
}

impl Shadow {
    /// It is retried or taken back: exactly what is to be made again is gone.
    pub(super) fn is_repaired_by(
        &mut self,
        log: &InMemoryExecutionLog,
        id: &FlowId,
        repair: Repair,
        write: &Write,
        was: &FlowInfo,
    ) -> Law {
        let kept = match write {
            Write::Reset(reset) if repair == Repair::Reset => {
                without(&self.records[..reset.keep as usize], &reset.again.iter().cloned().collect())
            }
            _ => without(&self.records, &self.again),
        };
        let history = at_once(log.history(id, 0, ALL)).map_err(|error| error.to_string())?;
        law!(history == kept, "{id} is repaired, and its history is {history:#?} instead of {kept:#?}");
        let FlowInfo { state, deliveries, emitted, cleanup, .. } = &self.info;
        law!((*state, *deliveries) == (FlowState::Scheduled, 0), "{id} is repaired, and {state}");
        if repair == Repair::Reset {
            let is_back = *emitted == 0 && *cleanup == was.cleanup.min(Cleanup::Needed);
            law!(is_back, "{id} is taken back, has told {emitted} items, and cleans up: {cleanup:?}");
            self.reset_epoch = self.info.epoch;
        }
        self.goes_on_from(history);
        Ok(())
    }

    /// Its history is this from now on, and its code begins again.
    fn goes_on_from(&mut self, records: Vec<Record>) {
        self.ended = records.iter().filter(|it| it.phase.is_outcome()).map(|it| it.path.clone()).collect();
        (self.due, self.failed) = Default::default();
        for record in &records {
            match record.phase {
                Phase::Pending if record.kind != CallKind::Step => {
                    self.due.extend(record.due_at.map(|due_at| (record.path.clone(), due_at)));
                }
                Phase::Attempt => _ = self.failed.insert(record.path.clone(), (record.attempt, record.due_at)),
                _ => {}
            }
        }
        self.once.retain(|(path, _)| records.iter().any(|record| record.path == *path));
        self.records = records;
        self.seen.clear();
        self.heard.truncate(self.heard_before);
        self.taken = self.taken.min(self.heard_before);
        self.again.clear();
        self.is_repaired = true;
        self.feeds.begins(&self.info);
    }
}

impl Laws {
    /// True when the log may refuse to take a flow back.
    pub(super) fn may_refuse(&self, reset: &Reset, kind: ErrorKind) -> bool {
        let Some(flow) = self.flows.get(&reset.flow) else { return kind == ErrorKind::NotFound };
        let FlowInfo { run, epoch, records, .. } = flow.info;
        let has_moved = (run, epoch, records) != (reset.run, reset.epoch, reset.records);
        let cleans_up = |info: &FlowInfo| info.cleanup != Cleanup::None && !info.state.is_final();
        let mut children = reset.children.iter().filter_map(|child| self.flows.get(child));
        kind == ErrorKind::Conflict && (has_moved || children.any(|child| cleans_up(&child.info)))
    }

    /// A flow was taken back, and what it had started since is forgotten.
    pub(super) fn forgets(&mut self, log: &InMemoryExecutionLog, reset: &Reset) -> Law {
        let parent = self.flows.get(&reset.flow).map(|flow| (flow.number, flow.info.run));
        for child in &reset.children {
            let Some(flow) = self.flows.get(child) else { continue };
            let is_gone = at_once(log.flow(child)).ok().flatten().is_none();
            let is_detached = flow.info.parent.as_ref().is_some_and(|parent| parent.detached);
            law!(
                is_gone == (flow.parent == parent && !is_detached),
                "{child}, which {} forgets, is gone: {is_gone}",
                reset.flow
            );
            if is_gone {
                self.flows.remove(child);
                // And so are those that it had started.
                self.cancelled.insert(child.clone());
            }
        }
        Ok(())
    }

    /// A flow is made of another: it begins with exactly what that one had.
    pub(super) fn is_forked(
        &mut self,
        log: &InMemoryExecutionLog,
        id: &FlowId,
        info: FlowInfo,
        snapshot: &Snapshot,
    ) -> Law {
        let is_ready = info.state == FlowState::Scheduled && info.parent.is_none() && info.due_at.is_some();
        law!(is_ready, "the fork {id} is there, as {info:?}");
        let records = at_once(log.history(id, 0, ALL)).map_err(|error| error.to_string())?;
        let Some((mark, inherited)) = records.split_last() else { return Err(format!("the fork {id} has no history")) };
        let of =
            FlowId::new(&*mark.name).ok().and_then(|of| self.flows.get(&of)).filter(|_| mark.kind == CallKind::Fork);
        let of = of.ok_or_else(|| format!("the fork {id} is of nobody: {mark:?}"))?;
        // That one may have told more since it was looked at.
        law!(info.emitted <= of.info.emitted || of.is_changed(), "the fork {id} has told {info:?}");
        if !of.is_changed() {
            begins_as(id, inherited, of)?;
        }
        let messages = at_once(log.messages(id, &[], 0, ALL)).map_err(|error| error.to_string())?;
        let words = messages.iter().all(|message| message.channel != Channel::children());
        law!(words && messages == snapshot.messages, "the fork {id} has the messages {messages:?}");
        let mut fork = Shadow::new(info, self.next_number(), None, log.watch(Topic::Flow(id.clone())));
        fork.feeds.inherit(log, id)?;
        fork.mailbox = messages.into_iter().map(|message| (message.seq, message)).collect();
        fork.last_message = snapshot.extras.received;
        fork.keys = snapshot.extras.keys.iter().map(ToString::to_string).collect();
        fork.goes_on_from(records);
        self.flows.insert(id.clone(), fork);
        Ok(())
    }
}

impl Shadow {
    /// True when its history may not go on from what was read of it some time ago.
    fn is_changed(&self) -> bool {
        self.is_repaired || self.info.run > 1
    }
}

/// The records are the first ones of that flow, but for those of calls that are made again.
fn begins_as(id: &FlowId, inherited: &[Record], of: &Shadow) -> Law {
    let what = |record: &Record| {
        let outcome = record.phase.is_outcome().then(|| record.payload.clone());
        (record.path.clone(), record.kind, record.phase, record.name.clone(), record.attempt, outcome)
    };
    let mut rest = of.records.iter();
    let mut left_out = Vec::new();
    for record in inherited {
        loop {
            let next = rest.next().ok_or_else(|| format!("the fork {id} has {record:?}, which its origin has not"))?;
            if what(next) == what(record) {
                break;
            }
            left_out.push(next);
        }
    }
    let ended: BTreeSet<_> =
        inherited.iter().filter(|record| record.phase.is_outcome()).map(|record| &record.path).collect();
    let is_again = |record: &Record| {
        record.kind == CallKind::Child && !ended.contains(&record.path) || of.again.contains(&record.path)
    };
    match left_out.into_iter().find(|record| !is_again(record)) {
        None => Ok(()),
        Some(record) => Err(format!("the fork {id} has not got {record:?}, and has what came after it")),
    }
}
