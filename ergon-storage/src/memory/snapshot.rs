//! Flows that come whole, and flows that are taken back.

use std::collections::HashSet;

use super::{
    mailbox::Mailbox,
    state::{Ending, Flow, State},
};
use crate::{CallPath, Cleanup, Error, Extras, FlowId, FlowState, Imported, Reset, Result, Snapshot, Timestamp};

impl State {
    pub(super) fn extras(&self, id: &FlowId) -> Option<Extras> {
        let flow = self.get(id)?;
        let (received, keys) = flow.mailbox.received();
        let feeds = flow.feeds.keys().cloned().collect();
        let (accepted, again, stalled_by) = (flow.accepted.clone(), flow.again.clone(), flow.stalled_by.clone());
        Some(Extras { accepted, received, keys, feeds, again, stalled_by })
    }

    pub(super) fn import(&mut self, snapshot: Snapshot) -> Imported {
        let Snapshot { flow, extras, records, messages, items } = snapshot;
        if self.get(&flow.info.id).is_some() {
            return Imported::Taken;
        }
        self.insert(Flow {
            info: flow.info,
            input: flow.input,
            accepted: extras.accepted,
            run_number: 0,
            result: flow.result,
            history: records,
            mailbox: Mailbox::restored(extras.received, messages, &extras.keys),
            feeds: items.into_iter().collect(),
            last_commit: None,
            stalled_by: extras.stalled_by,
            again: extras.again,
        });
        Imported::Created
    }

    pub(super) fn reset(&mut self, reset: Reset, now: Timestamp) -> Result<()> {
        let number = self.find(&reset.flow)?;
        let info = &self.flow_at(number).info;
        if (info.run, info.epoch, info.records) != (reset.run, reset.epoch, reset.records) {
            return Err(reset.conflict());
        }

        for child in &reset.children {
            let Ok(key) = self.find(child) else { continue };
            let info = &self.flow_at(key).info;
            let is_own = self.hearer(key).is_some_and(|(parent, _)| parent == number);
            if is_own && !info.state.is_final() && info.cleanup != Cleanup::None {
                return Err(reset.child_cleans_up(child));
            }
        }

        // From here on nothing is refused.
        self.withdraw_end(number);
        for child in &reset.children {
            let Ok(key) = self.find(child) else { continue };
            if self.hearer(key).is_some_and(|(parent, _)| parent == number) {
                // The end of the flow's own child is told to it, and withdrawn below.
                let _: Result<_, Error> = self.cancel(child, Reset::REASON, Ending::AtOnce, now);
                self.forget(key);
            }
        }
        let again: HashSet<CallPath> = reset.again.into_iter().collect();
        self.update(number, |flow| {
            flow.history.truncate(reset.keep as usize);
            flow.history.retain(|record| !again.contains(&record.path));
            for (record, seq) in flow.history.iter_mut().zip(1..) {
                record.seq = seq;
            }
            for message in reset.messages {
                flow.mailbox.put_back(message);
            }
            flow.mailbox.withdraw(|_, _, _| true);
            flow.set(FlowState::Scheduled, Some(now), None);
            flow.result = bytes::Bytes::new();
            flow.again = Vec::new();
            flow.last_commit = None;
            let info = &mut flow.info;
            info.records = flow.history.last().map_or(0, |record| record.seq);
            info.epoch += 1;
            info.deliveries = 0;
            info.emitted = 0;
            info.cleanup = info.cleanup.min(Cleanup::Needed);
            info.finished_at = None;
            info.deadline_at = info.deadline_at.map(|deadline_at| now.saturating_add(deadline_at.since(info.start_at)));
        });
        Ok(())
    }
}
