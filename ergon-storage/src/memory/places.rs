//! Flows that are kept for the workers that they are bound to, and when those were heard of.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use super::lanes::Lane;
use crate::{Affinity, FlowInfo, Timestamp};

/// Of interest to flows with an affinity alone.
#[derive(Debug, Default)]
pub(super) struct Places {
    heard: HashMap<Arc<str>, Place>,
    kept: HashMap<u64, Kept>,
    /// By the worker and since when they are due.
    order: HashMap<Arc<str>, BTreeSet<(Timestamp, u64)>>,
}

/// A worker that flows are or were bound to.
#[derive(Debug)]
struct Place {
    heard_at: Timestamp,
    /// The lanes that it asks for; `None` while that is not known.
    lanes: Option<BTreeSet<Lane>>,
    /// Since when it asks for no more.
    since: Timestamp,
}

/// A flow that is due, and that only its worker is given.
#[derive(Debug)]
struct Kept {
    worker: Arc<str>,
    due_at: Timestamp,
    /// What it is filed under meanwhile. Under another instant it is kept no more.
    until: Timestamp,
}

impl Places {
    /// Takes note that a worker was heard of, if it `is_place` or was heard of before. Answers whether it was.
    pub(super) fn hear(&mut self, worker: &Arc<str>, is_place: bool, now: Timestamp) -> bool {
        if let Some(place) = self.heard.get_mut(worker) {
            if now >= place.heard_at.saturating_add(Affinity::HEARD_STEP) {
                place.heard_at = now;
            }
            return true;
        }
        if is_place {
            self.heard.retain(|_, place| place.heard_at.saturating_add(Affinity::FORGOTTEN_AFTER) > now);
            self.heard.insert(Arc::clone(worker), Place { heard_at: now, lanes: None, since: now });
        }
        is_place
    }

    /// Takes note of what a worker asks for that was heard of.
    pub(super) fn asks_for(&mut self, worker: &str, lanes: &BTreeSet<Lane>, now: Timestamp) {
        let Some(place) = self.heard.get_mut(worker) else { return };
        if place.lanes.as_ref() == Some(lanes) {
            return;
        }
        if place.lanes.as_ref().is_none_or(|known| !known.is_subset(lanes)) {
            place.since = now;
        }
        place.lanes = Some(lanes.clone());
    }

    /// True when the worker was ever heard of.
    pub(super) fn knows(&self, worker: &str) -> bool {
        self.heard.contains_key(worker)
    }

    /// When a worker was heard of as one that asks for such flows.
    pub(super) fn heard_at(&self, worker: &str, info: &FlowInfo) -> Option<Timestamp> {
        let place = self.heard.get(worker)?;
        let asks_for_it = place.lanes.as_ref().is_none_or(|lanes| Lane::has(lanes, info));
        Some(if asks_for_it { place.heard_at } else { place.since.min(place.heard_at) })
    }

    /// Since when a flow is due that is filed under this instant; `None` unless it was kept until then.
    pub(super) fn kept_since(&self, number: u64, filed_at: Timestamp) -> Option<Timestamp> {
        self.kept.get(&number).filter(|kept| kept.until == filed_at).map(|kept| kept.due_at)
    }

    pub(super) fn keep(&mut self, number: u64, worker: Arc<str>, due_at: Timestamp, until: Timestamp) {
        self.forget(number);
        self.order.entry(Arc::clone(&worker)).or_default().insert((due_at, number));
        self.kept.insert(number, Kept { worker, due_at, until });
    }

    /// The next flow that is kept for a worker, after this place: since when it is due and its number, and what it is filed
    /// under.
    pub(super) fn next_of(&self, worker: &str, after: (Timestamp, u64)) -> Option<((Timestamp, u64), Timestamp)> {
        let order = self.order.get(worker)?;
        let place = *order.range((Bound::Excluded(after), Bound::Unbounded)).next()?;
        Some((place, self.kept.get(&place.1)?.until))
    }

    pub(super) fn forget(&mut self, number: u64) {
        if self.kept.is_empty() {
            return;
        }
        let Some(kept) = self.kept.remove(&number) else { return };
        if let Some(flows) = self.order.get_mut(&kept.worker) {
            flows.remove(&(kept.due_at, number));
            if flows.is_empty() {
                self.order.remove(&kept.worker);
            }
        }
    }
}
