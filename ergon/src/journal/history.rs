//! Folding the records of a history into what is known of each call.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use ergon_storage::{CallPath, Phase, Record, Timestamp};

use super::CallKey;

/// What the history holds of one call.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) path: CallPath,
    pub(super) key: CallKey,
    pub(super) started_at: Timestamp,
    /// Failed attempts.
    pub(super) attempts: u32,
    /// The number of the last failed attempt's record; 0 when there is none.
    pub(super) attempt_seq: u32,
    /// When the next attempt may begin.
    pub(super) retry_at: Option<Timestamp>,
    /// The instant of a wait.
    pub(super) due_at: Option<Timestamp>,
    pub(super) reference: Option<Arc<str>>,
    pub(super) outcome: Option<RecordedOutcome>,
}

#[derive(Debug)]
pub(super) struct RecordedOutcome {
    pub(super) seq: u32,
    pub(super) at: Timestamp,
    pub(super) phase: Phase,
    pub(super) payload: Bytes,
}

impl Recorded {
    fn new(record: &Record) -> Self {
        Self {
            path: record.path.clone(),
            key: CallKey { kind: record.kind, name: Arc::clone(&record.name), args_hash: record.args_hash },
            started_at: record.started_at,
            attempts: 0,
            attempt_seq: 0,
            retry_at: None,
            due_at: None,
            reference: None,
            outcome: None,
        }
    }

    fn add(&mut self, record: Record) {
        if record.reference.is_some() {
            self.reference = record.reference;
        }
        match record.phase {
            Phase::Pending => self.due_at = record.due_at,
            Phase::Attempt => {
                self.attempts = record.attempt;
                self.attempt_seq = record.seq;
                self.retry_at = record.due_at;
            }
            Phase::Completed | Phase::Failed => {
                self.outcome = Some(RecordedOutcome {
                    seq: record.seq,
                    at: record.at,
                    phase: record.phase,
                    payload: record.payload,
                });
            }
        }
    }
}

/// A history, sorted out.
pub(super) struct Loaded {
    /// The calls of the flow itself, by position.
    pub(super) root: BTreeMap<u32, Recorded>,
    /// The numbers and positions of their outcomes, in the order in which they were recorded.
    pub(super) outcomes: Vec<(u32, u32)>,
    /// The records of calls made by steps that have no outcome yet, by the path of the enclosing call.
    pub(super) nested: HashMap<CallPath, Vec<Record>>,
}

pub(super) fn load(history: Vec<Record>) -> Loaded {
    let mut root: BTreeMap<u32, Recorded> = BTreeMap::new();
    let mut outcomes = Vec::new();
    let mut nested: HashMap<CallPath, Vec<Record>> = HashMap::new();
    let mut ended = HashSet::new();
    for record in history {
        if let Some(enclosing) = record.path.parent() {
            if record.phase.is_outcome() {
                ended.insert(record.path.clone());
            }
            nested.entry(enclosing).or_default().push(record);
            continue;
        }
        let position = record.path.position();
        if record.phase.is_outcome() {
            outcomes.push((record.seq, position));
        }
        root.entry(position).or_insert_with(|| Recorded::new(&record)).add(record);
    }
    // Below a call that has its outcome, nothing is ever asked for again.
    nested.retain(|enclosing, _| {
        let top = enclosing.positions()[0];
        !ended.contains(enclosing) && root.get(&top).is_none_or(|call| call.outcome.is_none())
    });
    Loaded { root, outcomes, nested }
}

/// The calls that an attempt of a step's body may find answered: all that the same attempt recorded before, and
/// of earlier attempts what succeeded. Failures and unfinished waits of earlier attempts start afresh, at places
/// of their own. Also returns the last position in use.
pub(super) fn load_nested(records: &[Record], attempt_seq: u32) -> (BTreeMap<u32, Recorded>, u32) {
    let mut calls: BTreeMap<u32, (u32, Recorded)> = BTreeMap::new();
    for record in records {
        let (last_seq, call) =
            calls.entry(record.path.position()).or_insert_with(|| (record.seq, Recorded::new(record)));
        *last_seq = record.seq;
        call.add(record.clone());
    }
    let last_position = calls.last_key_value().map_or(0, |(position, _)| *position);
    let usable = calls.into_iter().filter_map(|(position, (last_seq, call))| {
        let completed = call.outcome.as_ref().is_some_and(|outcome| outcome.phase == Phase::Completed);
        (completed || last_seq > attempt_seq).then_some((position, call))
    });
    (usable.collect(), last_position)
}
