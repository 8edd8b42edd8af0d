//! Durable execution for Rust: annotate a struct's methods, and a flow survives crashes, restarts and deploys, on
//! an embedded SQLite file, with no server to run.
//!
//! A *flow* is the `#[flow]` method of a `#[flow_type]`; the methods it calls that must not be repeated are
//! `#[step]`s. The outcome of each step is recorded in an *execution log*. A process can be killed at any
//! instant: another one claims the flow, replays the recorded outcomes without repeating the work, and goes on
//! at the first call that has none.
//!
//! ```
//! use ergon::prelude::*;
//! use serde::{Deserialize, Serialize};
//!
//! #[flow_type]
//! struct Order { id: String, cents: u64 }
//!
//! #[derive(Serialize, Deserialize)]
//! struct Approval { by: String }
//!
//! #[flow_type]
//! impl Order {
//!     #[flow]
//!     async fn run(&self) -> ergon::Result<String> {
//!         let stock = self.reserve().await?;
//!         let (payment, label) = tokio::try_join!(self.charge(self.cents), self.print_label(&stock))?;
//!         sleep(Duration::from_millis(20)).await; // a durable timer: minutes or months work alike
//!         let approval: Approval = signal("approval").await?;
//!         Ok(format!("{payment}, {label}, approved by {}", approval.by))
//!     }
//!
//!     #[step]
//!     async fn reserve(&self) -> ergon::Result<String> {
//!         Ok(format!("stock of {}", self.id))
//!     }
//!
//!     #[step(retry(max_attempts = 5, backoff = "1s..30s"), timeout = "10s")]
//!     async fn charge(&self, cents: u64) -> ergon::Result<String> {
//!         // Equal over attempts and crashes: give it to the payment service.
//!         let _key = idempotency_key();
//!         Ok(format!("charged {cents}"))
//!     }
//!
//!     #[step]
//!     async fn print_label(&self, stock: &str) -> ergon::Result<String> {
//!         Ok(format!("label for {stock}"))
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
//! let log = InMemoryExecutionLog::new(); // or SqliteExecutionLog::open("orders.db").await?
//! let worker = Worker::new(log.clone()).register::<Order>().start().await?;
//! let order = Scheduler::new(log).schedule(Order { id: "7".into(), cents: 4200 }).id("order-7").await?;
//! order.signal("approval", &Approval { by: "ada".into() }).await?;
//! assert_eq!(order.result().await?, "charged 4200, label for stock of 7, approved by ada");
//! worker.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Writing flows
//!
//! A flow's own code must take the same way when it is replayed. What changes from run to run belongs into a
//! step, or has a durable form: [`now`], [`random`], [`uuid()`], [`sleep`], [`signal()`], [`child()`]. The macros refuse
//! the usual mistakes at compile time. Any combinator that runs within the flow's task works as it is:
//! `tokio::join!`, `try_join!`, `select!`, `FuturesUnordered`, `buffer_unordered`. Outcomes are released to the
//! flow one at a time, in the order in which they were recorded, so a replay sees what the first run saw.
//!
//! A step runs at least once, and again only when the process dies, or loses its lease, before the outcome is
//! recorded. [`idempotency_key`] makes that harmless for services that know such keys.
//!
//! # Running flows
//!
//! | | |
//! |---|---|
//! | [`Scheduler`] | puts flows on a queue, idempotent on their ids |
//! | [`Worker`] | claims flows of the types it knows and runs them |
//! | [`Executor`] | runs one flow in the calling task, without a queue |
//! | [`FlowHandle`] | waits for a flow's result, sends it signals, cancels it, shows its history |
//!
//! # Cargo features
//!
//! `sqlite` (default): the embedded log in a file, [`SqliteExecutionLog`].

// The macros name this crate by its path; its own tests and examples do too.
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
        step::{
            ArgsHash, BlockingSelf, StepArg, StepSpec, args_hash, assert_blocking_self, assert_step_arg, blocking, step,
        },
    };
}

#[cfg(test)]
mod replay_tests;

/// The program in the readme compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
