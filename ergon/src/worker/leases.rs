//! The leases that a worker holds, renewed together.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ergon_storage::{ExecutionLog, Lease, LeaseState};

use crate::{drive::Control, numbers::NumberMap};

/// The flows that run, and how long they may.
#[derive(Default)]
pub(crate) struct Leases {
    /// By the log's number for the flow.
    held: Mutex<NumberMap<u64, Held>>,
}

struct Held {
    lease: Lease,
    control: Arc<Control>,
}

impl Leases {
    /// Adds a lease. A flow that this worker still drives under an earlier one is dropped.
    pub(crate) fn add(&self, lease: Lease, control: Arc<Control>) {
        if let Some(former) = self.lock().insert(lease.key, Held { lease, control }) {
            tracing::info!(flow = %former.lease.flow, "the lease has ended before it was renewed; the flow starts over");
            former.control.drop_flow();
        }
    }

    pub(crate) fn remove(&self, lease: &Lease) {
        let mut held = self.lock();
        if held.get(&lease.key).is_some_and(|held| held.lease.epoch == lease.epoch) {
            held.remove(&lease.key);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn drain(&self) {
        for held in self.lock().values() {
            held.control.drain();
        }
    }

    pub(crate) fn drop_flows(&self) {
        for held in self.lock().values() {
            held.control.drop_flow();
        }
    }

    /// The leases held now.
    pub(crate) fn all(&self) -> Vec<Lease> {
        self.lock().values().map(|held| held.lease.clone()).collect()
    }

    /// Renews all leases once, and says when to do it again. Flows whose lease is gone are dropped; while the log
    /// does not answer, so are those whose lease is about to end, before others may claim them.
    pub(crate) async fn renew(&self, log: &dyn ExecutionLog, lease: Duration) -> Duration {
        let leases = self.all();
        if leases.is_empty() {
            return lease / 3;
        }
        let asked_at = log.clock().now();
        let answer = tokio::time::timeout(lease / 4, log.heartbeat(&leases, lease)).await;
        let trouble = match answer {
            Ok(Ok(states)) => {
                let until = asked_at.saturating_add(lease);
                let held = self.lock();
                for (lease, state) in leases.iter().zip(states) {
                    let Some(held) = held.get(&lease.key).filter(|held| held.lease == *lease) else { continue };
                    match state {
                        LeaseState::Held => held.control.renewed(until),
                        LeaseState::Cancelled => {
                            tracing::info!(flow = %lease.flow, "the flow was cancelled");
                            held.control.cancel();
                        }
                        LeaseState::Lost => {
                            tracing::info!(flow = %lease.flow, ?state, "the flow is let go");
                            held.control.drop_flow();
                        }
                    }
                }
                return lease / 3;
            }
            Ok(Err(error)) => error.to_string(),
            Err(elapsed) => elapsed.to_string(),
        };
        tracing::warn!(error = trouble, leases = leases.len(), "leases could not be renewed");
        let (again, answer_at_most) = (lease / 12, lease / 4);
        let too_late = log.clock().now().saturating_add(again + answer_at_most);
        for held in self.lock().values().filter(|held| held.control.until() <= too_late) {
            held.control.drop_flow();
        }
        again
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, NumberMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
