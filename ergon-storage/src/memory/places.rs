//! Flows that are kept for the workers that they are bound to, and when those were heard of.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use crate::{Affinity, Timestamp};

/// Of interest to flows with an affinity alone.
#[derive(Debug, Default)]
pub(super) struct Places {
    heard: HashMap<Arc<str>, Timestamp>,
    kept: HashMap<u64, Kept>,
    /// By the worker and since when they are due.
    order: HashMap<Arc<str>, BTreeSet<(Timestamp, u64)>>,
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
        if let Some(heard_at) = self.heard.get_mut(worker) {
            if now >= heard_at.saturating_add(Affinity::HEARD_STEP) {
                *heard_at = now;
            }
            return true;
        }
        if is_place {
            self.heard.insert(Arc::clone(worker), now);
        }
        is_place
    }

    /// When a worker was heard of.
    pub(super) fn heard_at(&self, worker: &str) -> Option<Timestamp> {
        self.heard.get(worker).copied()
    }

    /// Since when a flow is due that is filed under this instant.
    pub(super) fn due_at(&self, number: u64, filed_at: Timestamp) -> Timestamp {
        self.kept.get(&number).filter(|kept| kept.until == filed_at).map_or(filed_at, |kept| kept.due_at)
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
