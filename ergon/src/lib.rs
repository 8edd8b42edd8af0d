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
//! step, or has a durable form: [`now`], [`random`], [`uuid()`], [`sleep`], [`signal()`], [`Mailbox`], [`child()`]. The macros refuse
//! the usual mistakes at compile time. Any combinator that runs within the flow's task works as it is:
//! `tokio::join!`, `try_join!`, `select!`, `FuturesUnordered`, `buffer_unordered`; and there are [`map_concurrent`],
//! [`first_ok`] and [`timeout`]. Outcomes are released to the
//! flow one at a time, in the order in which they were recorded, so a replay sees what the first run saw.
//!
//! A step runs at least once, and again only when the process dies, or loses its lease, before the outcome is
//! recorded. [`idempotency_key`] makes that harmless for services that know such keys.
//!
//! A long step reports how far it has come with [`heartbeat`]; whoever runs it next goes on from there.
//!
//! What was done can be undone when the rest fails: see [`saga()`].
//!
//! A flow that is under way when its code changes must still make the calls that its history has. Put a change behind
//! [`patched`], or give the flow a new version. A change that was missed is found: the flow is stalled, both sides
//! are named, and nothing is lost.
//!
//! A flow that goes on for ever, or for very long, [begins again](continue_as_new) with another value before its history
//! is too long to be replayed.
//!
//! A flow that needs no type of its own is a function. Its arguments are its value, and calling it makes a value of the
//! flow type that has its name:
//!
//! ```
//! use ergon::prelude::*;
//!
//! #[flow]
//! async fn greet(names: Vec<String>) -> ergon::Result<String> {
//!     let mut text = String::new();
//!     for name in names {
//!         text += &greeting(&name).await?;
//!     }
//!     Ok(text)
//! }
//!
//! #[step]
//! async fn greeting(name: &str) -> ergon::Result<String> {
//!     Ok(format!("Hello {name}! "))
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let log = InMemoryExecutionLog::new();
//! let worker = Worker::new(log.clone()).register::<greet>().start().await?;
//! let greeting = Scheduler::new(log).schedule(greet(vec!["Ada".into(), "Bob".into()])).await?;
//! assert_eq!(greeting.result().await?, "Hello Ada! Hello Bob! ");
//! # worker.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Running flows
//!
//! | | |
//! |---|---|
//! | [`Scheduler`] | puts flows on a queue, idempotent on their ids |
//! | [`Worker`] | claims flows of the types it knows and runs them |
//! | [`Executor`] | runs one flow in the calling task, without a queue |
//! | [`FlowHandle`] | waits for a flow's result, sends it signals, cancels it, shows its history |
//! | [`Admin`] | lists, counts and explains flows, for those who look after them |
//!
//! Each takes a log, of which any number of handles may be open. A URL in a setting can say which one:
//!
//! ```
//! # use ergon::prelude::*;
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
//! let url = std::env::var("LOG_URL").unwrap_or("memory:".into()); // or sqlite:orders.db
//! let log = ergon::open(&url).await?;
//! let scheduler = Scheduler::new(log.clone());
//! # #[flow_type]
//! # struct Order {}
//! # #[flow_type]
//! # impl Order {
//! #     #[flow]
//! #     async fn run(&self) -> ergon::Result<u32> { Ok(7) }
//! # }
//! let worker = Worker::new(log).register::<Order>().start().await?;
//! let order = scheduler.schedule(Order {}).await?;
//! assert_eq!(order.result().await?, 7);
//! # worker.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`CodecExecutionLog`] before any log encrypts or compresses what it is given.
//!
//! # Cargo features
//!
//! - `sqlite` (default): the embedded log in a file, `SqliteExecutionLog`.
//! - `redis`: the log on a Redis server, for any number of machines, `RedisExecutionLog`.
//! - `postgres`: the log on a PostgreSQL server, for any number of machines, `PostgresExecutionLog`.
//! - `metrics`: counters, gauges and histograms for the recorder of the `metrics` facade that the program installs before
//!   it makes a worker, a scheduler or an executor; docs/metrics.md has their names.
//! - `opentelemetry`: the spans of a flow and of its children are in one trace, over processes and suspensions; see
//!   docs/tracing.md.
//! - `testing`: time that skips, crashes at every write and doubles for steps, for the tests of flows.

// The macros name this crate by its path; its own tests and examples do too.
extern crate self as ergon;

pub mod admin;
mod cancel;
mod child;
mod cleanup;
mod codec;
mod concurrent;
mod context;
mod continuation;
mod drive;
mod error;
mod executor;
mod fingerprint;
mod flow;
mod flow_ref;
mod handle;
mod heartbeat;
mod journal;
mod labels;
mod machine;
mod mailbox;
mod meter;
mod middleware;
mod numbers;
mod patch;
mod progress;
mod retry;
mod saga;
mod scheduler;
mod session;
mod signal;
mod spans;
mod step;
mod timeline;
mod timer;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod transact;
mod worker;

pub mod prelude;
#[cfg(feature = "testing")]
pub mod testing;

pub use admin::Admin;
pub use cancel::{Cancellation, cancelled};
pub use child::{Child, ChildHandle, Detached, child};
pub use cleanup::on_cancel;
pub use concurrent::{first_ok, map_concurrent, timeout, try_map_concurrent};
pub use context::{attempt, flow_id, idempotency_key, is_replaying, now, random, run_number, state, uuid};
pub use continuation::{ContinueAsNew, continue_as_new};
pub use ergon_macros::{flow, flow_type, step};
pub use ergon_storage::{
    self as storage, Affinity, CodecError, CodecExecutionLog, Count, Cursor, Error as StorageError, Filter, FlowId,
    FlowInfo, FlowPage, FlowState, InMemoryExecutionLog, Labels, PayloadCodec, PayloadContext, PayloadKind, Takeover,
    Timestamp, open,
};
#[cfg(feature = "sqlite")]
pub use ergon_storage::{Durability, SqliteExecutionLog, SqliteOptions};
#[cfg(feature = "postgres")]
pub use ergon_storage::{PostgresExecutionLog, PostgresOptions, SynchronousCommit};
#[cfg(feature = "redis")]
pub use ergon_storage::{RedisExecutionLog, RedisOptions};
pub use error::{Error, ErrorKind, Result};
pub use executor::{Executor, Running};
pub use flow::{Flow, FlowType};
pub use flow_ref::FlowRef;
pub use handle::{FlowError, FlowHandle};
pub use heartbeat::{heartbeat, last_heartbeat};
pub use journal::HEARTBEAT_INTERVAL;
pub use labels::{remove_label, set_label};
pub use mailbox::{Mailbox, Sending, send, send_once};
pub use middleware::{Middleware, Next, NextFlow, NextStep, RunEnd, StepRun};
pub use patch::{deprecate_patch, patched};
pub use progress::{Items, STREAM_NAME_BYTES_MAX, Source, Status, StatusWatch, StreamItem, emit, set_status};
pub use retry::{RetryPolicy, Retryable};
pub use saga::{FailedCompensation, Saga, SagaError, saga};
pub use scheduler::{Entry, Scheduler, Scheduling};
pub use session::{SessionLost, session, session_with, set_affinity};
pub use signal::{SIGNAL_NAME_BYTES_MAX, Signal, SignalTimeout, await_external_signal, signal};
pub use step::Step;
pub use timeline::{CallSummary, History};
pub use timer::{Sleep, schedule_timer, schedule_timer_named, sleep, sleep_until};
/// Tokio's combinators, for crates that depend on `ergon` alone.
#[doc(no_inline)]
pub use tokio::{join, select, try_join};
#[cfg(feature = "postgres")]
pub use transact::postgres;
#[cfg(feature = "sqlite")]
pub use transact::sqlite;
pub use worker::{StartError, Worker, WorkerHandle};

/// What the macros expand to. Not for direct use; may change in any release.
#[doc(hidden)]
pub mod __private {
    pub use serde;

    pub use crate::{
        __error_caps as error_caps,
        flow::{
            ErrorCaps, FromErrorNo, FromErrorYes, Outcome, Probe, Recorded, RecordedError, RetryableNo, RetryableYes,
        },
        step::{ArgsHash, BlockingSelf, StepArg, StepSpec, blocking, copy_of_arg, copy_of_self, step},
    };
}

#[cfg(test)]
mod replay_tests;

/// The program in the readme compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
