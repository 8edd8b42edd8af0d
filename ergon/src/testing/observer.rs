//! What a test sees of the bodies of steps, and what it puts in their place.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::RangeInclusive,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use ergon_storage::{CallPath, Commit, FlowId, Next};
use serde::Serialize;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    context::{self, Begin, BodyRun, StandIn},
    flow::{Failure, Flow, FlowEnd},
};

/// One run of a step's body, or of its double.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StepRun {
    /// The flow.
    pub flow: FlowId,
    /// The number of the flow's run, from 1.
    pub run: u32,
    /// The place of the call in the flow.
    pub path: CallPath,
    /// The name of the step.
    pub step: &'static str,
    /// The number of the attempt, from 1.
    pub attempt: u32,
}

impl fmt::Display for StepRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flow, run, path, step, attempt } = self;
        write!(f, "attempt {attempt} of step {step:?}, call {path} of flow {flow:?}")?;
        if *run > 1 { write!(f, " in run {run}") } else { Ok(()) }
    }
}

/// What stands in for the body of a step.
#[derive(Debug, Clone)]
pub(super) struct Double {
    step: String,
    attempts: RangeInclusive<u32>,
    stand_in: StandIn,
}

impl Double {
    pub(super) fn returns<T: Serialize + ?Sized>(step: &str, value: &T) -> Self {
        let value = encode(format_args!("step {step:?}"), value);
        Self { step: step.into(), attempts: 1..=u32::MAX, stand_in: StandIn::Outcome(Ok(value)) }
    }

    pub(super) fn fails<E: Serialize + ?Sized>(step: &str, attempts: RangeInclusive<u32>, error: &E) -> Self {
        let error = encode(format_args!("step {step:?}"), error);
        Self { step: step.into(), attempts, stand_in: StandIn::Outcome(Err(error)) }
    }

    pub(super) fn panics(step: &str, attempts: RangeInclusive<u32>, message: &str) -> Self {
        Self { step: step.into(), attempts, stand_in: StandIn::Panic(message.into()) }
    }

    pub(super) fn hangs(step: &str, attempts: RangeInclusive<u32>) -> Self {
        Self { step: step.into(), attempts, stand_in: StandIn::Hang }
    }
}

/// What stands for the code of a flow type.
#[derive(Debug, Clone)]
pub(super) struct FlowDouble {
    pub(super) name: &'static str,
    pub(super) version: u32,
    pub(super) end: FlowEnd,
}

impl FlowDouble {
    pub(super) fn returns<F: Flow>(output: &F::Output) -> Self {
        let end = FlowEnd::Completed { result: encode(format_args!("flow {:?}", <F as Flow>::NAME), output) };
        Self { name: <F as Flow>::NAME, version: <F as Flow>::VERSION, end }
    }

    pub(super) fn fails<F: Flow>(error: F::Error) -> Self {
        let reason = crate::step::shorten(format!("{error:?}"));
        let error = encode(format_args!("flow {:?}", <F as Flow>::NAME), &Failure::Error(error));
        Self { name: <F as Flow>::NAME, version: <F as Flow>::VERSION, end: FlowEnd::Failed { error, reason } }
    }
}

fn encode<T: Serialize + ?Sized>(of: fmt::Arguments<'_>, value: &T) -> Bytes {
    match serde_json::to_vec(value) {
        Ok(json) => json.into(),
        Err(error) => panic!("the double of {of} cannot be written as JSON: {error}"),
    }
}

/// Watches the bodies of steps.
#[derive(Debug)]
pub(super) struct Observer {
    doubles: Vec<Double>,
    flow_doubles: Vec<FlowDouble>,
    /// The order in which concurrent bodies begin; without one that of the code.
    order: Option<u64>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    runs: Vec<StepRun>,
    /// The calls whose outcome the log has taken in.
    durable: HashMap<FlowId, HashSet<CallPath>>,
    /// The first body that ran though its outcome was durable.
    again: Option<StepRun>,
}

impl Observer {
    pub(super) fn new(doubles: Vec<Double>, flow_doubles: Vec<FlowDouble>, order: Option<u64>) -> Self {
        Self { doubles, flow_doubles, order, inner: Mutex::default() }
    }

    /// How many turns the body waits.
    fn turns(&self, BodyRun { flow, flow_type, run, path, attempt, .. }: BodyRun<'_>) -> u32 {
        /// More than there are bodies at once in most flows: those that wait equally long keep their order.
        const TURNS_MAX: u64 = 64;
        let Some(order) = self.order else { return 0 };
        // A child's place in its parent, without the parent's id, which may be another one each time.
        let child = flow.as_str().rsplit_once('/').map_or("", |(_, place)| place);
        let place = xxh3_64_with_seed(format!("{flow_type} {child} {run} {path} {attempt}").as_bytes(), order);
        u32::try_from(place % TURNS_MAX).unwrap_or_default()
    }

    /// The log has applied this commit.
    pub(super) fn applied(&self, commit: &Commit) {
        let mut inner = self.inner();
        let durable = inner.durable.entry(commit.lease.flow.clone()).or_default();
        for record in commit.records.iter().filter(|record| record.phase.is_outcome()) {
            durable.insert(record.path.clone());
        }
        // The next run makes calls of its own.
        if let Next::Continue { .. } = &commit.next {
            durable.clear();
        }
        // A retry, the only way on from here, makes these calls again.
        if let Next::Fail { again, .. } = &commit.next {
            for path in again {
                durable.remove(path);
            }
        }
    }

    /// The flow is claimed for the first time: what is known of this id was another flow's.
    pub(super) fn is_new(&self, flow: &FlowId) {
        self.inner().durable.remove(flow);
    }

    /// How many bodies have begun.
    pub(super) fn runs_begun(&self) -> usize {
        self.inner().runs.len()
    }

    pub(super) fn runs(&self) -> Vec<StepRun> {
        self.inner().runs.clone()
    }

    /// The first body that ran though its outcome was durable.
    pub(super) fn again(&self) -> Option<StepRun> {
        self.inner().again.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl context::Observer for Observer {
    fn begins(&self, body: BodyRun<'_>) -> Begin {
        let BodyRun { flow, run, path, step, attempt, .. } = body;
        let run = StepRun { flow: flow.clone(), run, path: path.clone(), step, attempt };
        // The last one that was given counts.
        let double = self.doubles.iter().rev().find(|it| it.step == step && it.attempts.contains(&attempt));
        let mut inner = self.inner();
        if inner.durable.get(flow).is_some_and(|durable| durable.contains(path)) {
            inner.again.get_or_insert_with(|| run.clone());
        }
        inner.runs.push(run);
        Begin { stand_in: double.map(|double| double.stand_in.clone()), turns: self.turns(body) }
    }

    fn stands_for(&self, flow_type: &str, version: u32) -> Option<FlowEnd> {
        let mut doubles = self.flow_doubles.iter().rev();
        doubles.find(|double| double.name == flow_type && double.version == version).map(|double| double.end.clone())
    }
}
