//! Nothing is measured.

use std::sync::Arc;

use ergon_storage::{Clock, ExecutionLog, FlowInfo};

use super::{AttemptEnd, Origin};
use crate::drive::Driven;

/// The log itself.
pub(crate) fn metered(log: Arc<dyn ExecutionLog>) -> Arc<dyn ExecutionLog> {
    log
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Meters(());

#[derive(Debug)]
pub(crate) struct Held;

#[derive(Debug, Clone, Default)]
pub(crate) struct FlowMeter(());

#[derive(Debug, Default)]
pub(crate) struct StepTimer(());

#[allow(clippy::unused_self)]
impl Meters {
    pub(crate) fn flow(&self, _: &Arc<str>) -> FlowMeter {
        FlowMeter(())
    }

    pub(crate) fn slots(&self, _: usize) -> Held {
        Held
    }

    pub(crate) fn slot(&self) -> Held {
        Held
    }

    pub(crate) fn parked(&self, _: usize) {}
}

#[allow(clippy::unused_self)]
impl FlowMeter {
    pub(crate) fn claimed(&self, _: &FlowInfo, _: Origin) {}

    pub(crate) fn driven(&self, _: &Driven, _: &FlowInfo, _: &dyn Clock) {}

    pub(crate) fn attempt(&self, _: &'static str) -> StepTimer {
        StepTimer(())
    }
}

#[allow(clippy::unused_self)]
impl StepTimer {
    pub(crate) fn end(&mut self, _: AttemptEnd) {}
}
