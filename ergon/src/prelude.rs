//! What most programs need: `use ergon::prelude::*;`.

pub use std::time::Duration;

#[cfg(feature = "sqlite")]
pub use crate::SqliteExecutionLog;
pub use crate::{
    Executor, FlowHandle, FlowId, InMemoryExecutionLog, RetryPolicy, Retryable, Scheduler, Worker, attempt,
    await_external_signal, child, flow, flow_id, flow_type, idempotency_key, schedule_timer, schedule_timer_named,
    signal, sleep, sleep_until, state, step,
};
