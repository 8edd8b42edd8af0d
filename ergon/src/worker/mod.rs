//! Claiming flows and running them.

mod engine;
pub(crate) mod leases;
mod parking;
mod retention;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use ergon_storage::{ExecutionLog, NewFlow, PrunePolicy};

use self::{engine::Engine, retention::Retention};
use crate::{
    StorageError,
    context::{Env, Observer, States},
    drive::DriveOptions,
    flow::{Flow, FlowDef},
    meter::metered,
    middleware::{Layers, Middleware},
    session::Presence,
};

/// Claims flows of the registered types and runs them. A builder: [`start`](Worker::start) starts it.
///
/// Any number of workers may share a log, in one process or many. Each flow is run by one of them at a time.
///
/// # Examples
///
/// See [`Scheduler`](crate::Scheduler).
#[must_use = "a worker does nothing unless it is started"]
pub struct Worker {
    log: Arc<dyn ExecutionLog>,
    flows: Vec<FlowDef>,
    states: States,
    observer: Option<Arc<dyn Observer>>,
    layers: Layers,
    options: WorkerOptions,
}

/// The settings of a worker.
#[derive(Debug, Clone)]
struct WorkerOptions {
    name: Arc<str>,
    slots: usize,
    queues: Vec<Arc<str>>,
    lease: Duration,
    deliveries_max: u32,
    parked_max: usize,
    grace: Duration,
    fallback: Duration,
    retention: Vec<PrunePolicy>,
    retention_interval: Duration,
    #[cfg(feature = "metrics")]
    sampling: Option<Duration>,
    drive: DriveOptions,
}

impl Worker {
    /// The shortest accepted lease.
    pub const LEASE_MIN: Duration = Duration::from_millis(100);

    /// A worker on this log, with 256 slots, for the queue `default`.
    pub fn new(log: impl ExecutionLog) -> Self {
        Self {
            log: metered(Arc::new(log)),
            flows: Vec::new(),
            states: States::default(),
            observer: None,
            layers: Layers::default(),
            options: WorkerOptions {
                name: format!("{}-{}", std::process::id(), uuid::Uuid::now_v7().simple()).into(),
                slots: 256,
                queues: vec![NewFlow::DEFAULT_QUEUE.into()],
                lease: Duration::from_secs(10),
                deliveries_max: 10,
                parked_max: 1_000,
                grace: Duration::from_secs(10),
                fallback: Duration::from_secs(10),
                retention: Vec::new(),
                retention_interval: Duration::from_secs(60),
                #[cfg(feature = "metrics")]
                sampling: None,
                drive: DriveOptions {
                    moment: Duration::from_millis(50),
                    patience: Duration::from_secs(1),
                    cancel_grace: Duration::from_secs(5),
                    build: build_id(),
                },
            },
        }
    }

    /// Lets the worker run flows of this type and version. Flows of others are left alone.
    pub fn register<F: Flow>(mut self) -> Self {
        self.flows.push(FlowDef::of::<F>());
        self
    }

    /// Gives flows and steps a value that they reach with [`state`](crate::state). One per type; a second one of
    /// the same type replaces the first.
    pub fn with_state<T: Send + Sync + 'static>(mut self, state: T) -> Self {
        self.states.insert(state);
        self
    }

    /// Surrounds flows and steps with this code, inside of what was given before it.
    pub fn middleware(mut self, middleware: impl Middleware) -> Self {
        self.layers.push(middleware);
        self
    }

    /// Runs these flows, watched.
    #[cfg(feature = "testing")]
    pub(crate) fn observed(
        mut self,
        flows: Vec<FlowDef>,
        states: States,
        layers: Layers,
        observer: Arc<dyn Observer>,
    ) -> Self {
        (self.flows, self.states, self.layers, self.observer) = (flows, states, layers, Some(observer));
        self
    }

    /// How many flows run at once, at least 1; 256 by default. A flow that waits holds no slot. When there are more
    /// flows than slots, the one that has been due the longest goes first: new flows get their turn before those that
    /// come back from a wait later on.
    pub fn slots(mut self, slots: usize) -> Self {
        self.options.slots = slots;
        self
    }

    /// The queues to claim from, instead of `default`.
    pub fn queues<Q: Into<Arc<str>>>(mut self, queues: impl IntoIterator<Item = Q>) -> Self {
        self.options.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// The name of the worker, in listings and traces; by default another one for each. Workers of one name are still
    /// different workers, of which one at a time has a flow, but the same place for flows that are bound to one, by their
    /// [`Affinity`](crate::Affinity) or a [`session`](crate::session): name it after what it is bound to, such as the machine.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.options.name = name.into();
        self
    }

    /// How long after this process died its flows are claimed by others; 10 s by default, at least
    /// [`Worker::LEASE_MIN`]. Leases are renewed at a third of it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.options.lease = lease;
        self
    }

    /// How often a flow may be claimed without making progress, because its workers died over it, before it is
    /// stalled; 10 by default, at least 1.
    pub fn deliveries_max(mut self, deliveries_max: u32) -> Self {
        self.options.deliveries_max = deliveries_max;
        self
    }

    /// How many suspended flows stay in memory, to go on without a replay; 1,000 by default. 0 turns it off.
    ///
    /// They take at most this number times what the largest flow holds while it waits: its value, its variables, and the
    /// part of its history that its code has not been given yet. A flow that goes on, ends or is cancelled on another worker
    /// keeps its place here until as many others were suspended since, for nobody tells this worker; it goes on from the
    /// log all the same.
    pub fn parked_max(mut self, parked_max: usize) -> Self {
        self.options.parked_max = parked_max;
        self
    }

    /// How short a wait must be for the flow to keep its slot and its lease meanwhile; 50 ms by default.
    pub fn moment(mut self, moment: Duration) -> Self {
        self.options.drive.moment = moment;
        self
    }

    /// How long running steps may go on at a shutdown; 10 s by default. Those that do not end are dropped, and
    /// run again elsewhere.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.options.grace = grace;
        self
    }

    /// How long a step that watches for the cancellation of its flow may go on after it; 5 s by default, by the log's
    /// clock. See [`cancelled`](crate::cancelled()).
    pub fn cancel_grace(mut self, cancel_grace: Duration) -> Self {
        self.options.drive.cancel_grace = cancel_grace;
        self
    }

    /// How often the worker looks by itself, in case a hint was lost; 10 s by default, more than 0.
    pub fn fallback(mut self, fallback: Duration) -> Self {
        self.options.fallback = fallback;
        self
    }

    /// Lets the worker forget flows that have ended, with everything that belongs to them, in the background. By default
    /// nothing is forgotten but flows of types with a [retention](macro@crate::flow#options) of their own.
    ///
    /// To be called once or several times. A policy for a [type](PrunePolicy::with_flow_type), also for one that the worker
    /// has not, takes the place of the retention that the type has. A policy that names no type is for each of the worker's
    /// types that has no other, each by itself: `PrunePolicy::all_but(100)` keeps a hundred flows of each. All policies of a
    /// type are applied, so completed flows may go earlier than failed ones.
    ///
    /// A flow that has not ended is never touched, nor one that a live parent waits for. As many workers may do so as there
    /// are: each looks about once a [minute](Self::retention_interval), at moments of its own and by the log's clock, forgets
    /// at most 100 flows in one call, and leaves the log alone after it for twenty times as long as the call took. The stop of
    /// the worker ends it.
    ///
    /// # Examples
    ///
    /// ```
    /// use ergon::{prelude::*, storage::{FlowState, PrunePolicy}};
    ///
    /// #[flow(retention = "7days")]
    /// async fn import(file: String) -> ergon::Result<()> { Ok(()) }
    /// #[flow]
    /// async fn order(cents: u64) -> ergon::Result<()> { Ok(()) }
    ///
    /// # async fn example(log: SqliteExecutionLog) -> Result<(), Box<dyn std::error::Error>> {
    /// let day = Duration::from_secs(24 * 3600);
    /// let worker = Worker::new(log)
    ///     .register::<import>()
    ///     .register::<order>()
    ///     .retention(PrunePolicy::older_than(30 * day).with_flow_type("order").with_state(FlowState::Completed))
    ///     .retention(PrunePolicy::older_than(365 * day).with_flow_type("order"));
    /// # worker.start().await?.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub fn retention(mut self, policy: PrunePolicy) -> Self {
        self.options.retention.push(policy);
        self
    }

    /// How often the worker looks, on average, for flows to be forgotten; a minute by default, more than 0. See
    /// [`retention`](Self::retention).
    pub fn retention_interval(mut self, interval: Duration) -> Self {
        self.options.retention_interval = interval;
        self
    }

    /// Lets the worker count what the log holds, so often, for the gauges of flows and queues; by default it does not. A
    /// log that takes long to count is asked less often: it is left alone for 20 times as long. All workers of a log would
    /// see the same, so one of them is enough. Cargo feature `metrics`.
    #[cfg(feature = "metrics")]
    pub fn sampling(mut self, every: Duration) -> Self {
        self.options.sampling = Some(every);
        self
    }

    /// Names the build of the program, by default derived from the executable file. A flow that one build
    /// stalled, because its code does not match the history, is offered again when another build starts.
    pub fn build(mut self, build: impl Into<Arc<str>>) -> Self {
        self.options.drive.build = build.into();
        self
    }

    /// Starts to claim flows, in tasks of the current runtime.
    ///
    /// # Errors
    ///
    /// [`StartError`] for settings that cannot be, or when the log does not answer.
    pub async fn start(self) -> Result<WorkerHandle, StartError> {
        let Self { log, flows, states, observer, layers, options } = self;
        check(&options)?;
        let mut defs: BTreeMap<(Arc<str>, u32), FlowDef> = BTreeMap::new();
        for def in flows {
            // Doubles need no database.
            if observer.is_none() {
                def.check(&*log)?;
            }
            if let Some(first) = defs.insert((def.name.into(), def.version), def) {
                return Err(StartError::DuplicateFlow {
                    name: def.name,
                    version: def.version,
                    types: [first.rust_type, def.rust_type],
                });
            }
        }
        if defs.is_empty() {
            return Err(StartError::NoFlows);
        }
        let types: Arc<[_]> = defs.keys().cloned().collect();
        let offered = log.reoffer(&types, &options.drive.build).await?;
        if offered > 0 {
            tracing::info!(worker = %options.name, offered, "flows that another build stalled are offered again");
        }
        // Under test a flow stays until the test has looked at it.
        let retention = match observer {
            None => {
                let WorkerOptions { name, retention, retention_interval: interval, .. } = &options;
                Retention::new(Arc::clone(&log), Arc::clone(name), retention, *interval, &defs)
            }
            Some(_) => None,
        };
        let env = Env {
            observer,
            layers,
            presence: Presence::of(Arc::clone(&options.name)),
            ..Env::new(Arc::clone(&log), states)
        };
        let engine = Engine::new(log, Arc::new(env), defs, types, options);
        Ok(WorkerHandle { engine: engine.start(retention) })
    }
}

fn check(options: &WorkerOptions) -> Result<(), StartError> {
    if options.slots == 0 {
        return Err(StartError::NoSlots);
    }
    let length_is_bad = |queue: &Arc<str>| queue.is_empty() || queue.len() > NewFlow::NAME_BYTES_MAX;
    if options.queues.is_empty() || options.queues.iter().any(length_is_bad) {
        return Err(StartError::NoQueues);
    }
    if options.fallback.is_zero() {
        return Err(StartError::NoFallback);
    }
    if options.retention_interval.is_zero() {
        return Err(StartError::NoRetentionInterval);
    }
    if options.lease < Worker::LEASE_MIN {
        return Err(StartError::LeaseTooShort { lease: options.lease });
    }
    if options.deliveries_max == 0 {
        return Err(StartError::NoDeliveries);
    }
    Ok(())
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flows: Vec<_> = self.flows.iter().map(|def| (def.name, def.version)).collect();
        f.debug_struct("Worker")
            .field("flows", &flows)
            .field("states", &self.states)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A worker that runs. Dropping the handle stops it as [`shutdown`](Self::shutdown) does, without waiting.
#[must_use = "the worker stops when its handle is dropped"]
pub struct WorkerHandle {
    engine: engine::Running,
}

impl WorkerHandle {
    /// Stops claiming, lets running steps end within the grace period, writes what they resulted in, and gives
    /// all flows back, so that others go on at once. Returns when that is done, and also when the log does not answer:
    /// at the latest a second after the grace period, and what could not be given back waits for its lease to end.
    pub async fn shutdown(mut self) {
        self.engine.shutdown().await;
    }

    /// How many flows the worker runs at this moment.
    pub fn running(&self) -> usize {
        self.engine.running()
    }
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").field("running", &self.running()).finish_non_exhaustive()
    }
}

/// Why a worker cannot start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// It has no slot to run a flow in.
    NoSlots,
    /// It names no queue, or one whose name is empty or too long.
    NoQueues,
    /// It would look into its queues without a pause.
    NoFallback,
    /// It would look for flows to be forgotten without a pause.
    NoRetentionInterval,
    /// It has no flow type.
    NoFlows,
    /// It allows no delivery.
    NoDeliveries,
    /// The lease is shorter than [`Worker::LEASE_MIN`].
    LeaseTooShort {
        /// The lease that was asked for.
        lease: Duration,
    },
    /// A name and version were registered twice.
    DuplicateFlow {
        /// The name.
        name: &'static str,
        /// The version.
        version: u32,
        /// The Rust types that have it.
        types: [&'static str; 2],
    },
    /// The log did not answer, or refused.
    Log(StorageError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlots => f.write_str("a worker needs at least one slot: call .slots(n) with n >= 1"),
            Self::NoQueues => write!(
                f,
                "a worker needs at least one queue, and the names of queues have 1 to {} bytes",
                NewFlow::NAME_BYTES_MAX
            ),
            Self::NoFallback => f.write_str("the fallback interval must not be zero"),
            Self::NoRetentionInterval => f.write_str("the retention interval must not be zero"),
            Self::NoFlows => f.write_str("a worker needs at least one flow type: call .register::<MyFlow>()"),
            Self::NoDeliveries => {
                f.write_str("a flow must be delivered at least once: call .deliveries_max(n) with n >= 1")
            }
            Self::LeaseTooShort { lease } => {
                write!(f, "a lease of {lease:?} is too short, the least is {:?}", Worker::LEASE_MIN)
            }
            Self::DuplicateFlow { name, version, types: [first, second] } if first == second => {
                write!(f, "the flow type {first} ({name:?} version {version}) was registered twice")
            }
            Self::DuplicateFlow { name, version, types: [first, second] } => write!(
                f,
                "the flow types {first} and {second} have the same name {name:?} and version {version}; give one of \
                 them another name with #[flow_type(name = \"…\")]"
            ),
            Self::Log(_) => f.write_str("the execution log cannot be used"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Log(error) => Some(error),
            _ => None,
        }
    }
}

impl From<StorageError> for StartError {
    fn from(error: StorageError) -> Self {
        Self::Log(error)
    }
}

/// Tells builds of a program apart: the size and age of its executable file.
pub(crate) fn build_id() -> Arc<str> {
    let file = std::env::current_exe().and_then(std::fs::metadata);
    let Ok(file) = file else { return "unknown".into() };
    let modified = file.modified().ok().map_or(0, |at| ergon_storage::Timestamp::from(at).as_micros());
    format!("{:x}-{modified:x}", file.len()).into()
}
