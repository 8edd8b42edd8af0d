//! What most programs need: `use ergon::prelude::*;`.

pub use std::time::Duration;

#[cfg(feature = "sqlite")]
pub use crate::SqliteExecutionLog;
pub use crate::{
    Executor, FlowHandle, FlowId, InMemoryExecutionLog, Mailbox, Middleware, RetryPolicy, Retryable, Scheduler, Worker,
    attempt, await_external_signal, child, continue_as_new, emit, flow, flow_id, flow_type, idempotency_key,
    schedule_timer, schedule_timer_named, send, set_status, signal, sleep, sleep_until, state, step,
};
