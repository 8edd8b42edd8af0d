//! What holds of where flows run.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ergon::{
    Affinity, FlowId, Takeover, Timestamp,
    storage::{ClaimRequest, Phase},
};
use serde::Deserialize;

use super::{Law, Laws, Shadow, law};

/// How exactly a log knows when it has heard of a worker.
const EXACTLY: Duration = Duration::from_secs(1);

/// When the log has heard of which worker.
#[derive(Debug, Default)]
pub(super) struct Places {
    heard: BTreeMap<Arc<str>, Timestamp>,
}

impl Places {
    pub(super) fn hear(&mut self, request: &ClaimRequest, now: Timestamp) {
        self.heard.insert(Arc::clone(&request.worker), now);
    }

    /// A flow is given to a worker: it is not kept for another.
    pub(super) fn gives(&self, id: &FlowId, flow: &Shadow, worker: &str, now: Timestamp) -> Law {
        let Some(bound_to) = flow.info.worker.as_ref().filter(|bound_to| ***bound_to != *worker) else { return Ok(()) };
        let free_at = match Affinity::binding(&flow.info.labels) {
            Affinity::Anyone => return Ok(()),
            Affinity::Prefer { patience } => flow.due_since.map(|due_at| due_at.saturating_add(patience)),
            Affinity::Require { takeover: Takeover::After(time) } => {
                let heard_at = self.heard.get(bound_to).copied().unwrap_or(now);
                Some(heard_at.saturating_add(time.saturating_sub(EXACTLY)))
            }
            Affinity::Require { takeover: Takeover::Never } => None,
        };
        let is_free = free_at.is_some_and(|free_at| free_at <= now);
        law!(is_free, "{worker} is given {id}, which is kept for {bound_to} until {free_at:?}");
        Ok(())
    }
}

impl Laws {
    /// True when a claim may change more than the flows that it gives.
    pub(super) fn any_is_bound(&self) -> bool {
        self.flows.values().any(|flow| flow.is_bound() && !flow.info.state.is_final())
    }
}

impl Shadow {
    /// True when it is to go on where it ran.
    pub(super) fn is_bound(&self) -> bool {
        !self.info.labels.is_empty() && Affinity::binding(&self.info.labels) != Affinity::Anyone
    }

    /// A claim by another has put it off.
    pub(super) fn is_kept(&self, id: &FlowId, now: Timestamp) -> Law {
        let is_due = self.due_since.is_some_and(|due_at| due_at <= now);
        law!(self.is_bound() && is_due, "{id} is put off until {:?}, and is bound to nobody", self.info.due_at);
        Ok(())
    }

    /// The body of a step of a session begins: where the session did.
    pub(super) fn is_in_place(&self, id: &FlowId, process: &str) -> Law {
        #[derive(Deserialize)]
        struct Begun {
            worker: String,
        }
        // It may be in the middle of a session that began elsewhere, and need not know.
        if self.is_repaired {
            return Ok(());
        }
        let is_begin =
            |record: &&ergon::storage::Record| &*record.name == "ergon.session" && record.phase == Phase::Completed;
        let begun = self.records.iter().rev().find(is_begin);
        let begun = begun.ok_or_else(|| format!("a step of a session of {id} begins, and none has begun"))?;
        let Begun { worker } = serde_json::from_slice(&begun.payload).map_err(|error| error.to_string())?;
        law!(worker == process, "a step of the session of {id} begins on {process}, the session began on {worker}");
        Ok(())
    }
}
