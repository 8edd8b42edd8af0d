//! Durable execution for Rust.
extern crate self as ergon;
mod child;
mod codec;
mod context;
mod error;
mod fingerprint;
mod flow;
mod journal;
mod machine;
mod retry;
mod signal;
mod step;
mod timer;

pub use child::{Child, ChildHandle, Detached, child};
pub use context::{attempt, flow_id, idempotency_key, now, random, state, uuid};
pub use error::{Error, ErrorKind, Result};
pub use ergon_macros::{flow, flow_type, step};
pub use ergon_storage::{self as storage, FlowId, FlowState, InMemoryExecutionLog, Timestamp};
pub use flow::{Flow, FlowType};
pub use retry::{RetryPolicy, Retryable};
pub use signal::{SIGNAL_NAME_BYTES_MAX, Signal, SignalTimeout, await_external_signal, signal};
pub use step::Step;
pub use timer::{Sleep, schedule_timer, schedule_timer_named, sleep, sleep_until};

/// What the macros expand to. Not for direct use; may change in any release.
#[doc(hidden)]
pub mod __private {
    pub use serde;

    pub use crate::{
        __error_caps as error_caps,
        flow::{
            ErrorCaps, FromErrorNo, FromErrorYes, Outcome, Probe, RetryableNo, RetryableYes,
        },
        step::{
            ArgsHash, StepArg, StepSpec, args_hash, assert_blocking_self, assert_step_arg, blocking, step,
        },
    };
}
