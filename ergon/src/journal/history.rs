//! Folding the records of a history into what is known of each call.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use ergon_storage::{CallKind, CallPath, Phase, Record, Timestamp};

use super::{CallKey, cleanup::Cancel};

/// What the history holds of one call.
#[derive(Debug)]
pub(super) struct Recorded {
    /// The number of its first record.
    pub(super) seq: u32,
    pub(super) path: CallPath,
    pub(super) key: CallKey,
    pub(super) started_at: Timestamp,
    /// Failed attempts.
    pub(super) attempts: u32,
    /// The number of the last failed attempt's record; 0 when there is none.
    pub(super) attempt_seq: u32,
    /// The last attempt of which it is recorded that it has begun; 0 when there is none.
    pub(super) begun: u32,
    /// When the next attempt may begin.
    pub(super) retry_at: Option<Timestamp>,
    /// The instant of a wait; for a step when the time of its last attempt is up.
    pub(super) due_at: Option<Timestamp>,
    pub(super) reference: Option<Arc<str>>,
    /// What the last heartbeat reported, of whichever attempt.
    pub(super) progress: Option<Bytes>,
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
    /// The number of the message that it handed over, if it is a wait for a signal that came.
    pub(super) fn message(&self) -> Option<u32> {
        let outcome = self.outcome.as_ref()?;
        message(self.key.kind, outcome.phase, self.reference.as_deref())
    }

    fn new(record: &Record) -> Self {
        Self {
            seq: record.seq,
            path: record.path.clone(),
            key: CallKey { kind: record.kind, name: Arc::clone(&record.name), args_hash: record.args_hash },
            started_at: record.started_at,
            attempts: 0,
            attempt_seq: 0,
            begun: 0,
            retry_at: None,
            due_at: None,
            reference: None,
            progress: None,
            outcome: None,
        }
    }

    fn add(&mut self, record: Record) {
        if record.reference.is_some() {
            self.reference = record.reference;
        }
        match record.phase {
            Phase::Pending => {
                self.started_at = record.started_at;
                self.due_at = record.due_at;
                self.begun = record.attempt;
                if !record.payload.is_empty() {
                    self.progress = Some(record.payload);
                }
            }
            Phase::Attempt => {
                self.due_at = None;
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

/// The number of a call among the equal ones of a body.
pub(super) fn ordinal(reference: Option<&str>) -> u32 {
    reference.and_then(|reference| reference.parse().ok()).unwrap_or(1)
}

fn message(kind: CallKind, phase: Phase, reference: Option<&str>) -> Option<u32> {
    reference.filter(|_| kind == CallKind::Signal && phase == Phase::Completed)?.parse().ok()
}

/// Whether a call was made below another one.
pub(super) fn is_below(path: &CallPath, enclosing: &CallPath) -> bool {
    let (path, enclosing) = (path.positions(), enclosing.positions());
    path.len() > enclosing.len() && path.starts_with(enclosing)
}

/// A history, sorted out.
pub(super) struct Loaded {
    /// The calls of the flow itself, by position.
    pub(super) root: BTreeMap<u32, Recorded>,
    /// The numbers and positions of their outcomes, in the order in which they were recorded.
    pub(super) outcomes: Vec<(u32, u32)>,
    /// The records of calls made by steps that have no outcome yet, by the path of the enclosing call.
    pub(super) nested: HashMap<CallPath, Vec<Record>>,
    /// What became last of the calls made by steps that have not completed, by the step's position.
    pub(super) below: HashMap<u32, HashMap<CallPath, Phase>>,
    /// The changes of the code that the flow has taken up.
    pub(super) patches: Vec<Arc<str>>,
    /// The messages that waits were handed and may not have taken, by number, with the last wait that was.
    pub(super) handed: HashMap<u32, CallPath>,
    /// The messages that waits inside steps were handed in earlier attempts. What was taken then is gone.
    pub(super) let_go: HashMap<u32, CallPath>,
    /// The calls inside steps whose messages went to others after all.
    pub(super) void: HashSet<CallPath>,
    /// The number of the last record that says that those before it are another flow's; 0 when none does.
    pub(super) inherited: u32,
    /// That the flow was cancelled, or that its time is up.
    pub(super) cancel: Option<Box<Cancel>>,
}

pub(super) fn load(history: Vec<Record>) -> Loaded {
    let mut root: BTreeMap<u32, Recorded> = BTreeMap::new();
    let mut outcomes = Vec::new();
    let mut nested: HashMap<CallPath, Vec<Record>> = HashMap::new();
    let mut below: HashMap<u32, HashMap<CallPath, Phase>> = HashMap::new();
    let mut ended = HashSet::new();
    let mut patches = Vec::new();
    let (mut handed, mut let_go, mut void) = (HashMap::new(), HashMap::new(), HashSet::new());
    // The numbers of the messages that were handed to waits inside steps.
    let mut handed_below = Vec::new();
    let mut inherited = 0;
    let mut cancel = None;
    for record in history {
        if record.kind == CallKind::Patch {
            patches.push(record.name);
            continue;
        }
        if record.kind == CallKind::Fork {
            inherited = record.seq;
            continue;
        }
        if record.kind == CallKind::Cancel {
            cancel = Some(Box::new(Cancel::new(&record)));
            continue;
        }
        if let Some(seq) = message(record.kind, record.phase, record.reference.as_deref()) {
            let earlier = handed.insert(seq, record.path.clone()).or_else(|| let_go.remove(&seq));
            void.extend(earlier.filter(|path| path.parent().is_some()));
            if record.path.parent().is_some() {
                handed_below.push(seq);
            }
        } else if record.kind == CallKind::Step && record.phase != Phase::Pending {
            // What a body has taken is written as consumed with the end of its attempt, at the latest.
            handed_below.retain(|seq| {
                let below = handed.get(seq).is_some_and(|owner| is_below(owner, &record.path));
                let owner = if below { handed.remove(seq) } else { None };
                let_go.extend(owner.map(|owner| (*seq, owner)));
                !below
            });
        }
        if let Some(enclosing) = record.path.parent() {
            if record.phase.is_outcome() {
                ended.insert(record.path.clone());
            }
            below.entry(record.path.positions()[0]).or_default().insert(record.path.clone(), record.phase);
            nested.entry(enclosing).or_default().push(record);
            continue;
        }
        let position = record.path.position();
        if record.phase.is_outcome() {
            outcomes.push((record.seq, position));
        }
        root.entry(position).or_insert_with(|| Recorded::new(&record)).add(record);
    }
    let completed = |call: &Recorded| call.outcome.as_ref().is_some_and(|outcome| outcome.phase == Phase::Completed);
    below.retain(|top, _| !root.get(top).is_some_and(completed));
    // Below a call that has its outcome, nothing is ever asked for again.
    nested.retain(|enclosing, _| {
        let top = enclosing.positions()[0];
        !ended.contains(enclosing) && root.get(&top).is_none_or(|call| call.outcome.is_none())
    });
    Loaded { root, outcomes, nested, below, patches, handed, let_go, void, inherited, cancel }
}

/// The places that the calls of a step's body with a record have.
#[derive(Debug, Default)]
pub(super) struct Used {
    pub(super) positions: BTreeSet<u32>,
    /// The numbers of equal steps.
    pub(super) ordinals: HashMap<CallKey, BTreeSet<u32>>,
}

/// The calls that an attempt of a step's body may find answered: all that the same attempt recorded before, and
/// of earlier attempts what succeeded. Failures and unfinished waits of earlier attempts start afresh, at places
/// of their own, and so do those whose records are void. Also returns the places in use.
pub(super) fn load_nested(
    records: &[Record],
    attempt_seq: u32,
    void: &HashSet<CallPath>,
) -> (BTreeMap<u32, Recorded>, Used) {
    let mut calls: BTreeMap<u32, (u32, Recorded)> = BTreeMap::new();
    for record in records {
        let (last_seq, call) =
            calls.entry(record.path.position()).or_insert_with(|| (record.seq, Recorded::new(record)));
        *last_seq = record.seq;
        call.add(record.clone());
    }
    let mut used = Used { positions: calls.keys().copied().collect(), ordinals: HashMap::new() };
    for (_, call) in calls.values().filter(|(_, call)| call.key.kind == CallKind::Step) {
        used.ordinals.entry(call.key.clone()).or_default().insert(ordinal(call.reference.as_deref()));
    }
    let usable = calls.into_iter().filter_map(|(position, (last_seq, call))| {
        let completed = call.outcome.as_ref().is_some_and(|outcome| outcome.phase == Phase::Completed);
        ((completed || last_seq > attempt_seq) && !void.contains(&call.path)).then_some((position, call))
    });
    (usable.collect(), used)
}
