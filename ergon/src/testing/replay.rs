//! Histories of the past, code of today.

use std::{fmt, sync::Arc};

use ergon_storage::{FlowState, ManualClock};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::Setup;
use crate::{
    History, codec,
    context::{Env, FlowContext, Identity},
    fingerprint::{Sequences, fingerprint},
    flow::{Flow, FlowDef, FlowEnd},
    journal::Journal,
    machine::{Effects, Machine, Progress},
    meter::Meters,
    middleware::Layers,
};

impl Setup {
    /// Replays a history with today's code, without running the body of any step: whether the code makes the calls
    /// that the history has, takes their outcomes, and, if the flow had completed, comes to the same result.
    ///
    /// Read the histories of flows of every kind from a production log with
    /// [`FlowHandle::history`](crate::FlowHandle::history) before a deploy, or from a file in continuous integration.
    ///
    /// # Errors
    ///
    /// [`Mismatch`] says where the two part, as the reason of a stalled flow does.
    pub fn replay<F: Flow>(&self, history: &History) -> Result<(), Mismatch> {
        let History { info, input, records, result } = history;
        let mismatch = |message: String| Mismatch { message: format!("flow {:?}: {message}", info.id) };
        let ended_at = records.last().map_or(info.created_at, |record| record.at);
        let clock = ManualClock::starting_at(ended_at);
        let env = Env {
            clock: Arc::new(clock),
            states: self.states.clone(),
            payload_bytes_max: usize::MAX,
            observer: Some(self.observer()),
            log: None,
            meters: Meters::default(),
            layers: Layers::default(),
            presence: crate::session::Presence::default(),
        };
        let mut journal = Box::new(Journal::new(records.clone(), info.started_at.unwrap_or(info.created_at)));
        journal.knows_cleanup(info.cleanup);
        let flow = FlowContext::new(Identity::of(info), Arc::new(env), journal);
        let def = FlowDef::of::<F>();
        let future = (def.begin)(input, usize::MAX).map_err(|error| mismatch(error.to_string()))?;
        let mut machine = Machine::new(Arc::new(flow), future);
        let progress = loop {
            match machine.advance(Effects::Held, ended_at) {
                Progress::Yield => {}
                progress => break progress,
            }
        };
        match progress {
            Progress::Stalled(reason) | Progress::Missing(reason) => Err(mismatch(reason)),
            Progress::Ended(FlowEnd::Completed { result: now }) => match info.state {
                FlowState::Completed if is_same::<F::Output>(result, &now) => Ok(()),
                FlowState::Completed => {
                    let [then, now] = [result, &now].map(|result| String::from_utf8_lossy(result));
                    Err(mismatch(format!("it completed with {then}, the code completes with {now}")))
                }
                FlowState::Failed => Err(mismatch("it failed, the code completes".into())),
                _ => Ok(()),
            },
            Progress::Ended(FlowEnd::Failed { reason, .. }) if info.state == FlowState::Completed => {
                Err(mismatch(format!("it completed, the code fails: {reason}")))
            }
            // One that was cancelled may have been about to.
            Progress::Ended(FlowEnd::Continued { .. })
                if matches!(info.state, FlowState::Completed | FlowState::Failed) =>
            {
                Err(mismatch(format!("it is {}, the code begins another run", info.state)))
            }
            Progress::Flush | Progress::Wait if info.state == FlowState::Completed => {
                Err(mismatch("it completed, the code makes another call".into()))
            }
            _ => Ok(()),
        }
    }
}

/// How the histories of one flow type are replayed.
#[derive(Clone, Copy)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) version: u32,
    replay: fn(&Setup, &History) -> Result<(), Mismatch>,
}

impl Check {
    pub(super) fn of<F: Flow>() -> Self {
        Self { name: <F as Flow>::NAME, version: <F as Flow>::VERSION, replay: Setup::replay::<F> }
    }

    /// Replays a history, if it is one of this type.
    pub(super) fn run(&self, setup: &Setup, history: &History) -> Option<Result<(), Mismatch>> {
        let is_mine = *history.info.flow_type == *self.name && history.info.version == self.version;
        is_mine.then(|| (self.replay)(setup, history))
    }
}

/// True when two payloads are the same value: a map or a set comes in another order each time it is written.
fn is_same<T: Serialize + DeserializeOwned>(then: &[u8], now: &[u8]) -> bool {
    let sorted = |json: &[u8]| codec::sorted(json).unwrap_or_else(|| json.to_vec());
    if sorted(then) == sorted(now) {
        return true;
    }
    // What a list is and what a set is can be told only by writing it again and again.
    let rewritten = || codec::encode_sorted("", &codec::decode::<T>("", then)?, usize::MAX);
    let first = rewritten().ok();
    let holds_sets = first.is_some() && (0..32).any(|_| rewritten().ok() != first);
    let unordered = |json| {
        let value: Value = serde_json::from_slice(json).ok()?;
        fingerprint(&value, Sequences::Unordered).ok()
    };
    holds_sets && unordered(then) == unordered(now)
}

/// Where a history and the code part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    message: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mismatch {}
