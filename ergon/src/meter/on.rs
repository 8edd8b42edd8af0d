//! What the engine measures of flows, steps and workers.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use ergon_storage::{Clock, FlowInfo, FlowState};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::{AttemptEnd, Origin, names};
use crate::drive::Driven;

/// What one worker or executor measures. Handles are taken from the recorder once, when they are first used: updating
/// them costs an atomic operation or two.
#[derive(Clone)]
pub(crate) struct Meters(Arc<Inner>);

struct Inner {
    /// By type. Only types that were registered are claimed, so they are few.
    flows: Mutex<HashMap<Arc<str>, FlowMeter>>,
    slots: Gauge,
    slots_used: Gauge,
    parked: Gauge,
    /// What was last said about parked flows.
    parked_now: Mutex<usize>,
}

impl Default for Meters {
    fn default() -> Self {
        names::describe();
        Self(Arc::new(Inner {
            flows: Mutex::default(),
            slots: gauge!(names::SLOTS),
            slots_used: gauge!(names::SLOTS_USED),
            parked: gauge!(names::PARKED),
            parked_now: Mutex::default(),
        }))
    }
}

impl Meters {
    /// What is measured of flows of this type.
    pub(crate) fn flow(&self, flow_type: &Arc<str>) -> FlowMeter {
        let mut flows = lock(&self.0.flows);
        if let Some(known) = flows.get(flow_type) {
            return known.clone();
        }
        let new = FlowMeter::new(flow_type);
        flows.insert(Arc::clone(flow_type), new.clone());
        new
    }

    /// A worker has so many slots, as long as this is held.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn slots(&self, slots: usize) -> Held {
        Held::new(&self.0.slots, slots as f64)
    }

    /// A slot is in use, as long as this is held.
    pub(crate) fn slot(&self) -> Held {
        Held::new(&self.0.slots_used, 1.0)
    }

    /// So many flows are parked now.
    pub(crate) fn parked(&self, parked: usize) {
        self.0.parked(parked);
    }
}

impl Inner {
    /// Workers of one process share the gauge: each tells the difference.
    #[allow(clippy::cast_precision_loss)]
    fn parked(&self, parked: usize) {
        let mut before = lock(&self.parked_now);
        self.parked.increment(parked as f64 - *before as f64);
        *before = parked;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.parked(0);
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meters")
    }
}

/// An amount by which a gauge is higher as long as this lives.
pub(crate) struct Held {
    gauge: Gauge,
    amount: f64,
}

impl Held {
    fn new(gauge: &Gauge, amount: f64) -> Self {
        gauge.increment(amount);
        Self { gauge: gauge.clone(), amount }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.decrement(self.amount);
    }
}

/// What is measured of the flows of one type.
#[derive(Clone)]
pub(crate) struct FlowMeter(Arc<FlowHandles>);

struct FlowHandles {
    flow_type: Arc<str>,
    started: Counter,
    from_memory: Counter,
    from_log: Counter,
    suspended: Counter,
    continued: Counter,
    leases_lost: Counter,
    wait: Histogram,
    duration: Histogram,
    /// A type has as many as its code has steps.
    steps: Mutex<HashMap<&'static str, Arc<StepHandles>>>,
}

impl FlowMeter {
    fn new(flow_type: &Arc<str>) -> Self {
        let name = || Arc::clone(flow_type);
        Self(Arc::new(FlowHandles {
            flow_type: name(),
            started: counter!(names::FLOWS_STARTED, "flow_type" => name()),
            from_memory: counter!(names::FLOWS_RESUMED, "flow_type" => name(), "from" => "memory"),
            from_log: counter!(names::FLOWS_RESUMED, "flow_type" => name(), "from" => "log"),
            suspended: counter!(names::FLOWS_SUSPENDED, "flow_type" => name()),
            continued: counter!(names::FLOWS_CONTINUED, "flow_type" => name()),
            leases_lost: counter!(names::LEASES_LOST, "flow_type" => name()),
            wait: histogram!(names::FLOW_WAIT, "flow_type" => name()),
            duration: histogram!(names::FLOW_DURATION, "flow_type" => name()),
            steps: Mutex::default(),
        }))
    }

    /// A flow was claimed.
    pub(crate) fn claimed(&self, info: &FlowInfo, origin: Origin) {
        match origin {
            _ if info.epoch == 1 => {
                self.0.started.increment(1);
                let since = info.start_at.max(info.created_at);
                self.0.wait.record(info.started_at.map_or(0.0, |at| at.since(since).as_secs_f64()));
            }
            Origin::Memory => self.0.from_memory.increment(1),
            Origin::Log => self.0.from_log.increment(1),
        }
    }

    /// A flow has left its slot at this instant.
    pub(crate) fn driven(&self, driven: &Driven, info: &FlowInfo, clock: &dyn Clock) {
        match driven {
            Driven::Ended(state) => {
                self.ended(*state);
                if state.is_final() {
                    let since = info.started_at.unwrap_or(info.created_at);
                    self.0.duration.record(clock.now().since(since).as_secs_f64());
                }
            }
            Driven::Suspended(_) => self.0.suspended.increment(1),
            Driven::Lost | Driven::Refused => self.0.leases_lost.increment(1),
            // Its next run is claimed like a flow that goes on.
            Driven::Continued => self.0.continued.increment(1),
            Driven::Released => {}
        }
    }

    fn ended(&self, state: FlowState) {
        ended(&self.0.flow_type, state);
    }

    /// An attempt of a step begins.
    pub(crate) fn attempt(&self, step: &'static str) -> StepTimer {
        let mut steps = lock(&self.0.steps);
        let handles = steps.entry(step).or_insert_with(|| Arc::new(StepHandles::new(&self.0.flow_type, step)));
        StepTimer(Some((Arc::clone(handles), Instant::now())))
    }
}

impl fmt::Debug for FlowMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FlowMeter").field(&self.0.flow_type).finish()
    }
}

/// A flow has ended, or was stalled.
pub(super) fn ended(flow_type: &Arc<str>, state: FlowState) {
    let state = match state {
        FlowState::Completed => "completed",
        FlowState::Failed => "failed",
        FlowState::Cancelled => "cancelled",
        FlowState::Stalled => "stalled",
        FlowState::Scheduled | FlowState::Running | FlowState::Suspended => return,
    };
    counter!(names::FLOWS_ENDED, "flow_type" => Arc::clone(flow_type), "state" => state).increment(1);
}

struct StepHandles {
    completed: Counter,
    retried: Counter,
    failed: Counter,
    dropped: Counter,
    duration: Histogram,
}

impl StepHandles {
    fn new(flow_type: &Arc<str>, step: &'static str) -> Self {
        let attempts = |outcome: &'static str| counter!(names::STEP_ATTEMPTS, "flow_type" => Arc::clone(flow_type), "step" => step, "outcome" => outcome);
        Self {
            completed: attempts("completed"),
            retried: attempts("retried"),
            failed: attempts("failed"),
            dropped: attempts("dropped"),
            duration: histogram!(names::STEP_DURATION, "flow_type" => Arc::clone(flow_type), "step" => step),
        }
    }
}

/// An attempt of a step that runs; none after its end.
#[derive(Default)]
pub(crate) struct StepTimer(Option<(Arc<StepHandles>, Instant)>);

impl StepTimer {
    /// The attempt has ended. Only the first word counts.
    pub(crate) fn end(&mut self, end: AttemptEnd) {
        let Some((handles, began_at)) = self.0.take() else { return };
        let attempts = match end {
            AttemptEnd::Completed => &handles.completed,
            AttemptEnd::Retried => &handles.retried,
            AttemptEnd::Failed => &handles.failed,
            AttemptEnd::Dropped => &handles.dropped,
        };
        attempts.increment(1);
        handles.duration.record(began_at.elapsed().as_secs_f64());
    }
}

impl Drop for StepTimer {
    fn drop(&mut self) {
        self.end(AttemptEnd::Dropped);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
