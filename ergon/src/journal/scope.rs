//! The calls of one enclosing call.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{CallId, CallKey, history::Recorded};

/// What is known of the calls made by the flow itself, or by one attempt of a step's body.
#[derive(Debug)]
pub(super) struct Scope {
    /// The calls in the history that the code has not made yet, by position.
    pub(super) recorded: BTreeMap<u32, Recorded>,
    /// For a lenient scope, the positions of those calls by what they are.
    by_key: HashMap<CallKey, VecDeque<u32>>,
    /// The position of the next call without a record.
    pub(super) next_position: u32,
    /// The calls made since the last seal.
    pub(super) group: Vec<CallId>,
}

impl Scope {
    /// A scope whose positions are counted in step with the history.
    pub(super) fn strict(recorded: BTreeMap<u32, Recorded>) -> Self {
        Self { recorded, by_key: HashMap::new(), next_position: 1, group: Vec::new() }
    }

    /// A scope whose calls find their records by what they are; the others count on after the last record.
    pub(super) fn lenient(recorded: BTreeMap<u32, Recorded>, last_position: u32) -> Self {
        let mut by_key: HashMap<_, VecDeque<_>> = HashMap::new();
        for (position, call) in &recorded {
            by_key.entry(call.key.clone()).or_default().push_back(*position);
        }
        Self { recorded, by_key, next_position: last_position + 1, group: Vec::new() }
    }

    /// The place of a call in a lenient scope, with its record if it has one.
    pub(super) fn place(&mut self, key: &CallKey) -> (u32, Option<Recorded>) {
        if let Some(position) = self.by_key.get_mut(key).and_then(VecDeque::pop_front) {
            return (position, self.recorded.remove(&position));
        }
        let position = self.next_position;
        self.next_position += 1;
        (position, None)
    }
}
