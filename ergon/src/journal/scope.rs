//! The calls of one enclosing call.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::{
    CallId, CallKey,
    history::{Recorded, Used},
};

/// What is known of the calls made by the flow itself, or by one attempt of a step's body.
#[derive(Debug)]
pub(super) struct Scope {
    /// The calls in the history that the code has not made yet, by position.
    pub(super) recorded: BTreeMap<u32, Recorded>,
    /// For a lenient scope, the positions of those calls by what they are.
    by_key: HashMap<CallKey, VecDeque<u32>>,
    /// For a lenient scope, the places that calls with a record have or had.
    used: Used,
    /// The position of the next call without a record, or a used one before it.
    pub(super) next_position: u32,
    /// For a lenient scope, its calls whose futures live.
    pub(super) open: HashSet<CallId>,
    /// The calls made since the last seal.
    pub(super) group: Vec<CallId>,
}

impl Scope {
    /// A scope whose positions are counted in step with the history.
    pub(super) fn strict(recorded: BTreeMap<u32, Recorded>) -> Self {
        Self::new(recorded, HashMap::new(), Used::default())
    }

    /// A scope whose calls find their records by what they are; the others take the first positions that are not
    /// used, so that a call without a record has the same one when its body starts again.
    pub(super) fn lenient(recorded: BTreeMap<u32, Recorded>, used: Used) -> Self {
        let mut by_key: HashMap<_, VecDeque<_>> = HashMap::new();
        for (position, call) in &recorded {
            by_key.entry(call.key.clone()).or_default().push_back(*position);
        }
        Self::new(recorded, by_key, used)
    }

    fn new(recorded: BTreeMap<u32, Recorded>, by_key: HashMap<CallKey, VecDeque<u32>>, used: Used) -> Self {
        Self { recorded, by_key, used, next_position: 1, open: HashSet::new(), group: Vec::new() }
    }

    /// The place of a call in a lenient scope, with its record if it has one.
    pub(super) fn place(&mut self, key: &CallKey) -> (u32, Option<Recorded>) {
        while let Some(position) = self.by_key.get_mut(key).and_then(VecDeque::pop_front) {
            if let Some(recorded) = self.recorded.remove(&position) {
                return (position, Some(recorded));
            }
        }
        while self.used.positions.contains(&self.next_position) {
            self.next_position += 1;
        }
        let position = self.next_position;
        self.next_position += 1;
        (position, None)
    }

    /// The number of a step without a record among equal calls: the first that is free, so that it has the same one
    /// when its body starts again and the others have their outcomes.
    pub(super) fn ordinal(&mut self, key: &CallKey) -> u32 {
        let used = self.used.ordinals.entry(key.clone()).or_default();
        let ordinal = (1..=u32::MAX).find(|ordinal| !used.contains(ordinal)).unwrap_or(u32::MAX);
        used.insert(ordinal);
        ordinal
    }
}
