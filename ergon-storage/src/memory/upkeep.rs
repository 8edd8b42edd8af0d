//! Forgetting flows.

use super::state::State;
use crate::{Error, ErrorKind, FlowId, PrunePolicy, Result, Timestamp};

impl State {
    pub(super) fn prune(&mut self, policy: &PrunePolicy, now: Timestamp) -> u64 {
        let is_meant = |&&(_, number): &&(Timestamp, u64)| {
            policy.states.is_empty() || policy.states.contains(&self.flows[&number].info.state)
        };
        let finished = match &policy.flow_type {
            None => Some(&self.index.finished),
            Some(flow_type) => self.index.finished_of.get(flow_type),
        };
        let Some(finished) = finished else { return 0 };
        // The newest of those that do not stay by their number.
        let newest = match policy.keep as usize {
            0 => finished.last(),
            keep => finished.iter().rev().filter(is_meant).nth(keep),
        };
        let Some(&newest) = newest else { return 0 };
        let forgotten: Vec<u64> = (finished.range(..=newest))
            .take_while(|(finished_at, _)| *finished_at <= now && now.since(*finished_at) >= policy.older_than)
            .filter(is_meant)
            .map(|&(_, number)| number)
            .filter(|number| !self.is_awaited(*number))
            .take(policy.limit as usize)
            .collect();
        for &number in &forgotten {
            self.forget(number);
        }
        forgotten.len() as u64
    }

    pub(super) fn delete(&mut self, id: &FlowId) -> Result<bool> {
        let Some(&number) = self.ids.get(id) else { return Ok(false) };
        let info = &self.flows[&number].info;
        let conflict = |message| Err(Error::new(ErrorKind::Conflict, message).with_flow(id));
        if !info.state.is_final() {
            return conflict(format!("the flow is {}, only one that has ended can be deleted", info.state));
        }
        if self.is_awaited(number) {
            return conflict("the flow's parent has not ended".into());
        }
        self.forget(number);
        Ok(true)
    }

    /// True when the flow has a parent that hears of its end and has not ended itself.
    pub(super) fn is_awaited(&self, number: u64) -> bool {
        self.hearer(number).is_some_and(|(parent, _)| !self.flows[&parent].info.state.is_final())
    }

    pub(super) fn forget(&mut self, number: u64) {
        let Some(flow) = self.flows.remove(&number) else { return };
        self.places.forget(number);
        self.index.remove(number, &flow.info);
        self.ids.remove(&flow.info.id);
        if let Some(parent) = &flow.info.parent
            && let Some(siblings) = self.children.get_mut(&parent.id)
        {
            siblings.remove(&number);
            if siblings.is_empty() {
                self.children.remove(&parent.id);
            }
        }
        self.hints.flows.push(flow.info.id);
    }
}
