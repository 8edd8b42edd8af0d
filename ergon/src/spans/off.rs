//! Spans, each for itself.

use ergon_storage::{CallPath, FlowInfo};
use tracing::Span;

/// The span of a flow's time in a slot.
pub(crate) fn flow(info: &FlowInfo, epoch: u64) -> Span {
    tracing::info_span!("flow", id = %info.id, flow_type = %info.flow_type, epoch)
}

/// An executor's flows are in the span of whoever runs them.
pub(crate) fn in_executor<F: Future>(_: &FlowInfo, _: u64, run: F) -> F {
    run
}

/// The span of an attempt of a step.
pub(crate) fn step(name: &'static str, path: &CallPath, attempt: u32) -> Span {
    tracing::debug_span!("step", name, path = %path, attempt)
}
