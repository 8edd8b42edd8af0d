//! Durable execution for Rust.
extern crate self as ergon;
mod child;
mod codec;
mod context;
mod drive;
mod error;
mod executor;
mod fingerprint;
mod flow;
mod handle;
mod journal;
mod machine;
mod retry;
mod scheduler;
mod signal;
mod step;
mod timeline;
mod timer;
mod worker;

pub mod prelude;

pub use child::{Child, ChildHandle, Detached, child};
pub use context::{attempt, flow_id, idempotency_key, is_replaying, now, random, state, uuid};
pub use ergon_macros::{flow, flow_type, step};
pub use ergon_storage::{self as storage, Error as StorageError, FlowId, FlowState, InMemoryExecutionLog, Timestamp};
#[cfg(feature = "sqlite")]
pub use ergon_storage::{Durability, SqliteExecutionLog, SqliteOptions};
pub use error::{Error, ErrorKind, Result};
pub use executor::{Executor, Running};
pub use flow::{Flow, FlowType};
pub use handle::{FlowError, FlowHandle};
pub use retry::{RetryPolicy, Retryable};
pub use scheduler::{Entry, Scheduler, Scheduling};
pub use signal::{SIGNAL_NAME_BYTES_MAX, Signal, SignalTimeout, await_external_signal, signal};
pub use step::Step;
pub use timeline::{CallSummary, History};
pub use timer::{Sleep, schedule_timer, schedule_timer_named, sleep, sleep_until};
pub use worker::{StartError, Worker, WorkerHandle};

/// What the macros expand to. Not for direct use; may change in any release.
#[doc(hidden)]
pub mod __private {
    pub use serde;

    pub use crate::{
        __error_caps as error_caps,
        flow::{ErrorCaps, FromErrorNo, FromErrorYes, Outcome, Probe, RetryableNo, RetryableYes},
        step::{ArgsHash, StepArg, StepSpec, args_hash, assert_blocking_self, assert_step_arg, blocking, step},
    };
}

#[cfg(test)]
mod replay_tests;
