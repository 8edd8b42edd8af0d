//! Suspended flows that stay in memory for a while.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use ergon_storage::{ClaimedFlow, FlowId};

use crate::{machine::Machine, meter::Meters};

/// A bounded number of machines, the longest parked of which goes first.
pub(super) struct Parking {
    places: usize,
    inner: Mutex<Inner>,
    meters: Meters,
}

#[derive(Default)]
struct Inner {
    next: u64,
    machines: HashMap<FlowId, (u64, Box<Machine>)>,
    order: BTreeMap<u64, FlowId>,
}

impl Parking {
    pub(super) fn new(places: usize, meters: Meters) -> Self {
        Self { places, inner: Mutex::default(), meters }
    }

    pub(super) fn park(&self, machine: Box<Machine>) {
        if self.places == 0 {
            return;
        }
        // Machines are dropped after the lock: dropping runs the user's code.
        let _dropped = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let place = inner.next;
            inner.next += 1;
            let id = machine.flow().id.clone();
            inner.order.insert(place, id.clone());
            let former = inner.machines.insert(id, (place, machine));
            if let Some((place, _)) = &former {
                inner.order.remove(place);
            }
            let evicted = (inner.machines.len() > self.places)
                .then(|| inner.order.pop_first().and_then(|(_, id)| inner.machines.remove(&id)))
                .flatten();
            self.meters.parked(inner.machines.len());
            (former, evicted)
        };
    }

    /// The machine of a flow, if it was parked where the log says that the flow is.
    pub(super) fn unpark(&self, claimed: &ClaimedFlow) -> Option<Box<Machine>> {
        let (_, machine) = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            if inner.machines.is_empty() {
                return None;
            }
            let parked = inner.machines.remove(&claimed.info.id)?;
            inner.order.remove(&parked.0);
            self.meters.parked(inner.machines.len());
            parked
        };
        machine.fits(claimed).then_some(machine)
    }
}
