//! Putting flows on the queue and taking them off it.

use std::{
    collections::{BTreeSet, hash_map::Entry},
    sync::Arc,
};

use super::{
    lanes::Lane,
    state::{Flow, State},
};
use crate::{
    Affinity, ClaimRequest, ClaimTarget, Claimed, ClaimedFlow, Enqueued, Error, FlowInfo, FlowState, Lease, LeaseState,
    Limits, NewFlow, Result, Timestamp,
};

impl State {
    pub(super) fn enqueue(&mut self, flows: Vec<NewFlow>, now: Timestamp, limits: &Limits) -> Result<Vec<Enqueued>> {
        let instants = flows.iter().map(|flow| flow.check(now, limits)).collect::<Result<Vec<_>>>()?;
        let mut answers = Vec::with_capacity(flows.len());
        for (flow, (start_at, deadline_at)) in flows.into_iter().zip(instants) {
            answers.push(match self.ids.entry(flow.id.clone()) {
                Entry::Occupied(taken) => {
                    let taken = &self.flows[taken.get()];
                    Enqueued::Existing {
                        same: taken.info.flow_type == flow.flow_type && *taken.accepted() == flow.input,
                    }
                }
                Entry::Vacant(id) => {
                    self.last += 1;
                    id.insert(self.last);
                    self.file(Flow::new(flow, start_at, deadline_at, now));
                    Enqueued::Created
                }
            });
        }
        Ok(answers)
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest, now: Timestamp) -> Claimed {
        let lanes = Lane::all_of(&request.target);
        let single = match &request.target {
            ClaimTarget::Flow(id) => self.ids.get(id).copied(),
            ClaimTarget::Queues { .. } => None,
        };
        let is_heard = self.places.hear(&request.worker, request.is_place, now);
        if request.is_place && matches!(request.target, ClaimTarget::Queues { .. }) {
            self.places.asks_for(&request.worker, &lanes, now);
        }
        self.bring_back(request, &lanes, single);
        let mut chosen = Vec::new();
        let (mut poisonous, mut bound) = (Vec::new(), Vec::new());
        let due_alone = single.filter(|number| self.flows[number].is_due(now));
        for number in due_alone.into_iter().chain(self.index.lanes.due(&lanes, now)) {
            if chosen.len() >= request.limit || bound.len() >= Affinity::PASSED_MAX {
                break;
            }
            if let Some(until) = self.kept_until(&self.flows[&number].info, number, &request.worker, now) {
                bound.push((number, until));
                continue;
            }
            let harmless = self.flows[&number].info.deliveries < request.deliveries_max.max(1);
            if harmless { &mut chosen } else { &mut poisonous }.push(number);
        }
        for number in poisonous {
            self.update(number, |flow| {
                let (times, worker) = (flow.info.deliveries, flow.info.worker.as_deref().unwrap_or("nobody"));
                let reason = format!(
                    "claimed {times} times without making progress, the last time by {worker:?}; `retry` offers it \
                     again"
                );
                flow.set(FlowState::Stalled, None, Some(reason.into()));
            });
        }
        for (number, until) in bound {
            self.keep(number, until, now);
        }
        let flows: Vec<_> = chosen.into_iter().map(|number| self.lease(number, request, now)).collect();
        let is_place = is_heard || self.places.knows(&request.worker);
        let next_due_at = match single {
            Some(number) => self.flows[&number].info.due_at,
            None => self.index.lanes.next_due_at(&lanes),
        };
        Claimed { flows, next_due_at, is_place }
    }

    /// Until when a flow that is due is kept for another worker than this one.
    fn kept_until(&self, info: &FlowInfo, number: u64, worker: &str, now: Timestamp) -> Option<Timestamp> {
        if info.labels.is_empty() {
            return None;
        }
        let bound_to = info.worker.as_ref().filter(|bound_to| ***bound_to != *worker)?;
        let filed_at = info.due_at?;
        let kept_since = self.places.kept_since(number, filed_at);
        // A worker that is not known counts from now on. If the flow was kept for it, it has not asked since that was due.
        let heard_at = self.places.heard_at(bound_to, info).unwrap_or(kept_since.unwrap_or(now));
        let due_at = kept_since.unwrap_or(filed_at);
        Affinity::kept_until(info, due_at, heard_at, now)
    }

    /// Keeps a flow for its worker until then.
    fn keep(&mut self, number: u64, until: Timestamp, now: Timestamp) {
        let info = &self.flows[&number].info;
        let (Some(worker), Some(filed_at)) = (info.worker.clone(), info.due_at) else { return };
        let kept_since = self.places.kept_since(number, filed_at);
        let is_required = matches!(Affinity::binding(&info.labels), Affinity::Require { .. });
        if is_required && kept_since.is_none() && !self.places.knows(&worker) {
            self.places.hear(&worker, true, now);
        }
        self.places.keep(number, worker, kept_since.unwrap_or(filed_at), until);
        self.refile(number, until);
    }

    /// Makes flows claimable that are kept for a worker, as many as it asks for.
    fn bring_back(&mut self, request: &ClaimRequest, lanes: &BTreeSet<Lane>, single: Option<u64>) {
        let (mut missing, mut place) = (request.limit, (Timestamp::from_micros(i64::MIN), 0));
        while missing > 0
            && let Some((next, until)) = self.places.next_of(&request.worker, place)
        {
            place = next;
            let (due_at, number) = next;
            let info = &self.flows[&number].info;
            if info.due_at != Some(until) || info.worker.as_ref() != Some(&request.worker) {
                self.places.forget(number);
            } else if single == Some(number) || Lane::has(lanes, info) {
                self.places.forget(number);
                self.refile(number, due_at);
                missing -= 1;
            }
        }
    }

    /// Files a flow under another instant.
    fn refile(&mut self, number: u64, due_at: Timestamp) {
        let flow = self.flows.get_mut(&number).expect("the caller has found it");
        self.index.remove(number, &flow.info);
        flow.info.due_at = Some(due_at);
        self.index.insert(number, &flow.info);
        self.hints.queue = true;
    }

    fn lease(&mut self, number: u64, request: &ClaimRequest, now: Timestamp) -> ClaimedFlow {
        let labels = &self.flows[&number].info.labels;
        if !labels.is_empty() && matches!(Affinity::binding(labels), Affinity::Require { .. }) {
            self.places.hear(&request.worker, true, now);
        }
        self.places.forget(number);
        self.update(number, |flow| {
            flow.set(FlowState::Running, Some(now.saturating_add(request.lease)), None);
            flow.last_commit = None;
            flow.info.started_at.get_or_insert(now);
            flow.info.epoch += 1;
            flow.info.deliveries += 1;
            flow.info.worker = Some(Arc::clone(&request.worker));
            ClaimedFlow {
                lease: Lease { flow: flow.info.id.clone(), epoch: flow.info.epoch, key: number },
                info: flow.info.clone(),
                input: flow.input.clone(),
                history: flow.history.iter().take(request.history_max).cloned().collect(),
                messages: flow.mailbox.read(&[], 0, request.messages_max),
                more_messages: flow.mailbox.len() > request.messages_max,
            }
        })
    }

    pub(super) fn heartbeat(&mut self, leases: &[Lease], until: Timestamp) -> Vec<LeaseState> {
        leases
            .iter()
            .map(|lease| match self.leased(lease) {
                Ok(flow) if flow.info.state == FlowState::Cancelled || flow.awaits_cleanup() => LeaseState::Cancelled,
                Ok(flow) if flow.is_running() => {
                    let flow = self.flows.get_mut(&lease.key).expect("found above");
                    self.index.lanes.remove(&flow.info, lease.key);
                    flow.info.due_at = Some(until);
                    self.index.lanes.insert(&flow.info, lease.key);
                    LeaseState::Held
                }
                _ => LeaseState::Lost,
            })
            .collect()
    }

    pub(super) fn release(&mut self, lease: &Lease, now: Timestamp) -> Result<()> {
        let flow = self.leased(lease)?;
        if flow.awaits_cleanup() {
            self.update(lease.key, |flow| flow.info.due_at = flow.info.due_at.min(Some(now)));
            return Ok(());
        }
        if !flow.is_running() {
            return Err(Error::lease_lost(&lease.flow));
        }
        self.update(lease.key, |flow| {
            flow.set(FlowState::Scheduled, Some(now), None);
            flow.info.deliveries = flow.info.deliveries.saturating_sub(1);
        });
        Ok(())
    }
}
