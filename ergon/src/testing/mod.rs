//! Testing flows: time that skips, crashes at every write, other orders, doubles, and histories replayed by new code.
//!
//! With the feature `testing`, best among the `[dev-dependencies]`:
//!
//! ```toml
//! [dev-dependencies]
//! ergon = { version = "0.1", features = ["testing"] }
//! ```
//!
//! A [`Setup`] names the flow types and what they need, as a [`Worker`](crate::Worker) does. It starts a
//! [`TestRuntime`]: a log in memory, a worker, and a clock that stands still until a test waits for something:
//!
//! ```
//! use ergon::{prelude::*, testing::{Setup, crash_everywhere}};
//!
//! #[flow_type]
//! struct Trial { user: String }
//!
//! #[flow_type]
//! impl Trial {
//!     #[flow]
//!     async fn run(&self) -> ergon::Result<String> {
//!         let mut asked = 0;
//!         while asked < 3 {
//!             sleep(Duration::from_secs(30 * 24 * 3600)).await;
//!             self.remind().await?;
//!             asked += 1;
//!         }
//!         Ok(format!("asked {} {asked} times", self.user))
//!     }
//!
//!     #[step]
//!     async fn remind(&self) -> ergon::Result<()> {
//!         Ok(())
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! // Ninety days in a moment.
//! let runtime = Setup::new().register::<Trial>().start().await;
//! let trial = runtime.scheduler().schedule(Trial { user: "ada".into() }).await?;
//! assert_eq!(runtime.result(&trial).await?, "asked ada 3 times");
//! assert_eq!(runtime.runs("remind"), 3);
//!
//! // The same, once for every point at which the process could die.
//! let setup = || Setup::new().register::<Trial>();
//! let report = crash_everywhere(setup, async |runtime| {
//!     let trial = runtime.scheduler().schedule(Trial { user: "ada".into() }).await.unwrap();
//!     runtime.result(&trial).await.unwrap()
//! })
//! .await;
//! assert_eq!(report.result, "asked ada 3 times");
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! And with the steps that run at the same time ending in one order after the other: [`check_determinism`].
//!
//! Under test a flow that waits for something which is not durable is an error, not a warning: it fails.

mod clock;
mod crash;
mod observer;
mod orders;
mod replay;
mod runtime;

use std::{fmt, ops::RangeInclusive, sync::Arc};

use ergon_storage::{NewFlow, PayloadCodec};
use serde::Serialize;

pub use self::{
    crash::{CrashReport, crash_everywhere},
    observer::StepRun,
    orders::{OrderReport, check_determinism},
    replay::Mismatch,
    runtime::TestRuntime,
};
use self::{
    observer::{Double, FlowDouble, Observer},
    replay::Check,
};
use crate::{
    context::States,
    flow::{Flow, FlowDef},
    middleware::{Layers, Middleware},
};

/// What a test runs: flow types, their state, and doubles for their steps.
///
/// Each [`start`](Self::start) begins with an empty log.
#[derive(Clone)]
#[must_use = "a setup does nothing unless it is started"]
pub struct Setup {
    flows: Vec<FlowDef>,
    states: States,
    doubles: Vec<Double>,
    flow_doubles: Vec<FlowDouble>,
    queues: Vec<Arc<str>>,
    codec: Option<Arc<dyn PayloadCodec>>,
    /// How the histories of its flow types are replayed.
    checks: Vec<Check>,
    /// The order in which the bodies of concurrent steps end; without one that of the code.
    order: Option<u64>,
    layers: Layers,
}

impl Setup {
    /// A setup without flow types, for the queue `default`.
    pub fn new() -> Self {
        Self {
            flows: Vec::new(),
            states: States::default(),
            doubles: Vec::new(),
            flow_doubles: Vec::new(),
            queues: vec![NewFlow::DEFAULT_QUEUE.into()],
            codec: None,
            checks: Vec::new(),
            order: None,
            layers: Layers::default(),
        }
    }

    /// Runs flows of this type, as [`Worker::register`](crate::Worker::register).
    pub fn register<F: Flow>(mut self) -> Self {
        self.flows.push(FlowDef::of::<F>());
        self.checks.push(Check::of::<F>());
        self
    }

    /// Has every flow of this type complete with `output` instead of running its code: a double for a child that a
    /// flow starts. In place of [`register`](Self::register), or after it.
    ///
    /// # Panics
    ///
    /// When the output cannot be written as JSON.
    pub fn flow_returns<F: Flow>(self, output: &F::Output) -> Self {
        self.double_flow::<F>(FlowDouble::returns::<F>(output))
    }

    /// Has every flow of this type fail with `error` instead of running its code, as
    /// [`flow_returns`](Self::flow_returns).
    ///
    /// # Panics
    ///
    /// When the error cannot be written as JSON.
    pub fn flow_fails<F: Flow>(self, error: F::Error) -> Self {
        self.double_flow::<F>(FlowDouble::fails::<F>(error))
    }

    fn double_flow<F: Flow>(mut self, double: FlowDouble) -> Self {
        let is_known = |def: &FlowDef| (def.name, def.version) == (double.name, double.version);
        if !self.flows.iter().any(is_known) {
            self.flows.push(FlowDef::of::<F>());
        }
        // Its code does not run: there is nothing to compare.
        self.checks.retain(|check| (check.name, check.version) != (double.name, double.version));
        self.flow_doubles.push(double);
        self
    }

    /// Gives flows and steps a value, as [`Worker::with_state`](crate::Worker::with_state). Clones of the setup and
    /// all its runtimes share it.
    pub fn with_state<T: Send + Sync + 'static>(mut self, state: T) -> Self {
        self.states.insert(state);
        self
    }

    /// The queues to run, instead of `default`.
    pub fn queues<Q: Into<Arc<str>>>(mut self, queues: impl IntoIterator<Item = Q>) -> Self {
        self.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// Surrounds flows and steps with this code, as [`Worker::middleware`](crate::Worker::middleware). Doubles of steps are
    /// surrounded as bodies are. Clones of the setup and all its runtimes share it.
    pub fn middleware(mut self, middleware: impl Middleware) -> Self {
        self.layers.push(middleware);
        self
    }

    /// Puts a codec before the log, as [`CodecExecutionLog::new`](crate::CodecExecutionLog::new).
    pub fn codec(mut self, codec: impl PayloadCodec) -> Self {
        self.codec = Some(Arc::new(codec));
        self
    }

    /// Has every call of the steps of this name return `value` instead of running their bodies. Nothing else
    /// changes: the outcome is recorded and replayed.
    ///
    /// # Panics
    ///
    /// When the value cannot be written as JSON. When it cannot be read as what the step returns, the attempt fails
    /// and says so.
    pub fn step_returns<T: Serialize + ?Sized>(mut self, step: &str, value: &T) -> Self {
        self.doubles.push(Double::returns(step, value));
        self
    }

    /// Has these attempts, counted from 1, of every call of the steps of this name fail with `error` instead of
    /// running their bodies.
    ///
    /// # Panics
    ///
    /// As [`step_returns`](Self::step_returns).
    pub fn step_fails<E: Serialize + ?Sized>(mut self, step: &str, attempts: RangeInclusive<u32>, error: &E) -> Self {
        self.doubles.push(Double::fails(step, attempts, error));
        self
    }

    /// Has these attempts, counted from 1, of every call of the steps of this name panic with `message` instead of
    /// running their bodies.
    pub fn step_panics(mut self, step: &str, attempts: RangeInclusive<u32>, message: &str) -> Self {
        self.doubles.push(Double::panics(step, attempts, message));
        self
    }

    /// Has these attempts, counted from 1, of every call of the steps of this name wait for ever instead of running
    /// their bodies, so that their time limit passes.
    pub fn step_hangs(mut self, step: &str, attempts: RangeInclusive<u32>) -> Self {
        self.doubles.push(Double::hangs(step, attempts));
        self
    }

    /// Starts a worker on an empty log.
    ///
    /// # Panics
    ///
    /// When the worker cannot start, as [`Worker::start`](crate::Worker::start) would say: no flow type, or one
    /// twice.
    pub async fn start(self) -> TestRuntime {
        TestRuntime::start(self, None).await
    }

    fn observer(&self) -> Arc<Observer> {
        Arc::new(Observer::new(self.doubles.clone(), self.flow_doubles.clone(), self.order))
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flows: Vec<_> = self.flows.iter().map(|def| (def.name, def.version)).collect();
        f.debug_struct("Setup").field("flows", &flows).field("states", &self.states).finish_non_exhaustive()
    }
}
