//! The spans of flows and steps, for whoever listens to `tracing`.
//!
//! With the cargo feature `opentelemetry` those of one flow are in one trace, whichever processes they are made in;
//! `docs/tracing.md` tells users about it.

#[cfg(not(feature = "opentelemetry"))]
mod off;
#[cfg(feature = "opentelemetry")]
mod on;

#[cfg(not(feature = "opentelemetry"))]
pub(crate) use off::{flow, in_executor, step};
#[cfg(feature = "opentelemetry")]
pub(crate) use on::{child, flow, in_executor, scheduled, step};

use ergon_storage::Labels;

/// The label that carries the trace of a flow, as the header of the W3C's Trace Context does.
const TRACE_LABEL: &str = "traceparent";

/// Takes the trace away from a flow whose own labels need its place: who listens must not decide what becomes of it.
pub(crate) fn make_room(labels: &mut Labels) {
    if labels.len() > Labels::COUNT_MAX {
        labels.remove(TRACE_LABEL);
    }
}
