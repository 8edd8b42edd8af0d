//! What is counted and measured, for the recorder of the [`metrics`] facade that the program has installed.
//!
//! Without the cargo feature `metrics` everything here is empty. The names are documented in `docs/metrics.md`.

#[cfg(feature = "metrics")]
mod log;
#[cfg(feature = "metrics")]
mod names;
#[cfg(not(feature = "metrics"))]
mod off;
#[cfg(feature = "metrics")]
mod on;
#[cfg(feature = "metrics")]
mod queues;

#[cfg(not(feature = "metrics"))]
pub(crate) use off::{FlowMeter, Meters, StepTimer, metered};
#[cfg(feature = "metrics")]
pub(crate) use {
    log::metered,
    on::{FlowMeter, Meters, StepTimer},
    queues::sample,
};

/// How an attempt of a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptEnd {
    Completed,
    /// It failed, and there is another one.
    Retried,
    /// It failed, and the step with it.
    Failed,
    /// It was dropped while it ran.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
    Dropped,
}

/// Where a claimed flow was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In the memory of this worker.
    Memory,
    /// In the log alone.
    Log,
}
