//! What bodies of steps tell while they run, and what they are handed of what was told before.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ergon::{FlowId, Timestamp, storage::CallPath};
use serde::{Deserialize, Serialize};

use crate::{
    code::{self, Turn},
    process::lock,
};

/// How far a body has come, with a number that no other heartbeat has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Beat {
    pub(crate) done: u64,
    pub(crate) number: usize,
}

/// Where a flow's items go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feed {
    Lines,
    Status,
}

/// The body of a step, from its beginning to its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    pub(crate) flow: FlowId,
    /// Another flow may have had the id before.
    pub(crate) created_at: Timestamp,
    pub(crate) run: u32,
    pub(crate) epoch: u64,
    pub(crate) path: CallPath,
    pub(crate) attempt: u32,
}

impl Source {
    pub(crate) fn of(turn: &Turn, path: CallPath, attempt: u32) -> Self {
        let Turn { flow, created_at, run, epoch, .. } = turn;
        Self { flow: flow.clone(), created_at: *created_at, run: *run, epoch: *epoch, path, attempt }
    }
}

/// All that bodies have told, whatever became of it. It outlives a power cut, as the world outside does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// `None` for those of a body that never was: a power cut has taken its claim.
    beats: Vec<Option<Source>>,
    items: BTreeMap<Source, Vec<(Feed, u64)>>,
    number: u64,
}

/// More than the number of anything that a flow's own code tells.
const ITEMS_FROM: u64 = 1_000_000;

impl Told {
    /// A body begins. What a body under the same lease has told was before a power cut that took that lease.
    fn begins(&self, source: &Source) {
        let mut inner = lock(&self.0);
        inner.items.remove(source);
        for beat in inner.beats.iter_mut().filter(|beat| beat.as_ref() == Some(source)) {
            *beat = None;
        }
    }

    fn beat(&self, source: &Source) -> usize {
        let mut inner = lock(&self.0);
        inner.beats.push(Some(source.clone()));
        inner.beats.len() - 1
    }

    fn tell(&self, source: &Source, feed: Feed) -> u64 {
        let mut inner = lock(&self.0);
        inner.number += 1;
        let content = ITEMS_FROM + inner.number;
        inner.items.entry(source.clone()).or_default().push((feed, content));
        content
    }

    /// The body that has sent this heartbeat.
    pub(crate) fn sender(&self, beat: &Beat) -> Option<Source> {
        lock(&self.0).beats.get(beat.number).cloned().flatten()
    }

    /// The number of the last heartbeat of a body.
    pub(crate) fn last_beat(&self, source: &Source) -> Option<usize> {
        lock(&self.0).beats.iter().rposition(|sent| sent.as_ref() == Some(source))
    }

    /// What a body has told, in its order.
    pub(crate) fn items(&self, source: &Source) -> Vec<(Feed, u64)> {
        lock(&self.0).items.get(source).cloned().unwrap_or_default()
    }
}

/// The running body of a step.
pub(crate) struct Body {
    turn: Arc<Turn>,
    source: Source,
}

impl Body {
    /// The one that begins.
    pub(crate) fn begin() -> Self {
        let (turn, (path, attempt)) = (code::turn().expect("bodies run in processes"), code::step());
        let source = Source::of(&turn, path, attempt);
        turn.world.told.begins(&source);
        Self { turn, source }
    }

    /// It is told what the last heartbeat was.
    pub(crate) fn is_handed(&self, beat: Option<&Beat>) {
        self.turn.world.is_handed(&self.turn, &self.source, beat);
    }

    pub(crate) fn beat(&self, done: u64) -> Beat {
        Beat { done, number: self.turn.world.told.beat(&self.source) }
    }

    pub(crate) fn tell(&self, feed: Feed) -> u64 {
        self.turn.world.told.tell(&self.source, feed)
    }
}
