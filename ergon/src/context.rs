//! What code that runs inside a flow can know about where it runs.

use std::{
    any::{Any, TypeId},
    cell::Cell,
    collections::BTreeMap,
    fmt,
    panic::Location,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicIsize, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use ergon_storage::{CallPath, Clock, ExecutionLog, FlowId, FlowInfo, Labels, Lease, Limits, Timestamp};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    cancel::Watching,
    error::{Error, ErrorKind},
    flow::FlowEnd,
    journal::{CallId, CallKey, Journal, Place, Spec},
    labels::FlowLabels,
    meter::{FlowMeter, Meters},
    middleware::Layers,
    session::Presence,
};

/// The values given with `with_state`, by type.
#[derive(Clone, Default)]
pub(crate) struct States(BTreeMap<TypeId, (Arc<dyn Any + Send + Sync>, &'static str)>);

impl States {
    pub(crate) fn insert<T: Send + Sync + 'static>(&mut self, state: T) {
        self.0.insert(TypeId::of::<T>(), (Arc::new(state), std::any::type_name::<T>()));
    }

    fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let (state, _) = self.0.get(&TypeId::of::<T>())?;
        Arc::clone(state).downcast().ok()
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.values().map(|(_, name)| name)).finish()
    }
}

/// What all flows of one worker or executor share.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) states: States,
    pub(crate) payload_bytes_max: usize,
    /// Under test: who watches the bodies of steps.
    pub(crate) observer: Option<Arc<dyn Observer>>,
    /// The log that the flows are in; `None` where histories are only replayed.
    pub(crate) log: Option<Log>,
    pub(crate) meters: Meters,
    pub(crate) layers: Layers,
    pub(crate) presence: Presence,
}

/// The log, for what a flow's code sends to other flows and for its transactions.
#[derive(Clone)]
pub(crate) struct Log(pub(crate) Arc<dyn ExecutionLog>);

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}

/// Watches the bodies of steps, and puts doubles in their places.
pub(crate) trait Observer: fmt::Debug + Send + Sync {
    /// An attempt of a step is about to begin.
    fn begins(&self, run: BodyRun<'_>) -> Begin;
    /// What stands for the code of the flows of a type, if something does.
    fn stands_for(&self, flow_type: &str, version: u32) -> Option<FlowEnd>;
}

/// What is to become of an attempt of a step.
#[derive(Debug, Default)]
#[cfg_attr(not(feature = "testing"), allow(dead_code))]
pub(crate) struct Begin {
    /// What stands for the body, if something does.
    pub(crate) stand_in: Option<StandIn>,
    /// How many turns the body lets the others have before it begins.
    pub(crate) turns: u32,
}

/// What stands for the body of a step.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "testing"), allow(dead_code))]
pub(crate) enum StandIn {
    /// An encoded value or error.
    Outcome(Result<Bytes, Bytes>),
    /// A panic with this message.
    Panic(Arc<str>),
    /// Nothing, for ever.
    Hang,
}

/// A body that is about to run.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "testing"), allow(dead_code))]
pub(crate) struct BodyRun<'a> {
    pub(crate) flow: &'a FlowId,
    pub(crate) flow_type: &'a str,
    pub(crate) run: u32,
    pub(crate) path: &'a CallPath,
    pub(crate) step: &'static str,
    pub(crate) attempt: u32,
}

impl Env {
    pub(crate) fn new(log: Arc<dyn ExecutionLog>, states: States) -> Self {
        let (clock, payload_bytes_max) = (log.clock(), log.limits().payload_bytes_max);
        let meters = Meters::default();
        Self {
            clock,
            states,
            payload_bytes_max,
            observer: None,
            log: Some(Log(log)),
            meters,
            layers: Layers::default(),
            presence: Presence::default(),
        }
    }

    /// The limits that a child's value must keep.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.payload_bytes_max = self.payload_bytes_max;
        limits
    }
}

/// Why a flow's code must not go on, though it did not end.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The flow fails with this.
    Fault(Error),
    /// The flow is stalled for this reason.
    Stall(String),
    /// The flow begins its next run, with this value.
    Continue(Bytes),
}

/// What a flow is, whatever it has done so far.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) id: FlowId,
    pub(crate) flow_type: Arc<str>,
    pub(crate) version: u32,
    /// The number of its run.
    pub(crate) run: u32,
    pub(crate) created_at: Timestamp,
    /// Where its children go that name no queue.
    pub(crate) queue: Arc<str>,
    /// As the log has them.
    pub(crate) labels: Labels,
}

impl Identity {
    pub(crate) fn of(info: &FlowInfo) -> Self {
        Self {
            id: info.id.clone(),
            flow_type: Arc::clone(&info.flow_type),
            version: info.version,
            run: info.run,
            created_at: info.created_at,
            queue: Arc::clone(&info.queue),
            labels: info.labels.clone(),
        }
    }
}

/// One flow in memory.
#[derive(Debug)]
pub(crate) struct FlowContext {
    pub(crate) id: FlowId,
    pub(crate) created_at: Timestamp,
    /// The name and the version of its type, and the number of its run.
    pub(crate) flow_type: (Arc<str>, u32),
    pub(crate) run: u32,
    /// Where its children go that name no queue.
    pub(crate) queue: Arc<str>,
    pub(crate) env: Arc<Env>,
    pub(crate) meter: FlowMeter,
    /// What middleware is told of it; `None` where there is none.
    pub(crate) info: Option<Arc<FlowInfo>>,
    pub(crate) labels: FlowLabels,
    /// The key and the epoch of the lease under which it runs.
    lease: [AtomicU64; 2],
    /// In a box, for it is large and a context is moved to where it stays.
    journal: Mutex<Box<Journal>>,
    halt: Mutex<Option<Halt>>,
    /// There is a reason to halt: looked at after each pass.
    halted: AtomicBool,
    /// Why the flow was cancelled, for the bodies that watch, and how many do.
    cancellation: OnceLock<watch::Sender<Option<Arc<str>>>>,
    watchers: AtomicIsize,
    /// Its code is in a session.
    pub(crate) in_session: AtomicBool,
    /// It may be in one when it has caught up with its history.
    pub(crate) was_in_session: bool,
}

impl FlowContext {
    pub(crate) fn new(identity: Identity, env: Arc<Env>, journal: Box<Journal>) -> Self {
        let Identity { id, flow_type, version, run, created_at, queue, labels } = identity;
        Self {
            id,
            created_at,
            run,
            queue,
            meter: env.meters.flow(&flow_type),
            flow_type: (flow_type, version),
            info: None,
            env,
            labels: FlowLabels::new(labels),
            lease: Default::default(),
            journal: Mutex::new(journal),
            halt: Mutex::new(None),
            halted: AtomicBool::new(false),
            cancellation: OnceLock::new(),
            watchers: AtomicIsize::new(0),
            in_session: AtomicBool::new(false),
            was_in_session: false,
        }
    }

    /// True when there is something to write that the journal does not know of.
    pub(crate) fn has_unwritten(&self, journal: &Journal) -> bool {
        // Code that has not caught up with its history sets labels that it has had before.
        self.labels.unwritten().is_some() && !journal.is_behind()
    }

    /// Notes under which lease the flow runs from now on.
    pub(crate) fn leased(&self, lease: &Lease) {
        let [key, epoch] = &self.lease;
        key.store(lease.key, Ordering::Release);
        epoch.store(lease.epoch, Ordering::Release);
    }

    /// How often the flow had been claimed when it got the lease under which it runs.
    pub(crate) fn epoch(&self) -> u64 {
        self.lease[1].load(Ordering::Acquire)
    }

    /// The lease under which the flow runs.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn lease(&self) -> Lease {
        let [key, epoch] = self.lease.each_ref().map(|part| part.load(Ordering::Acquire));
        Lease { flow: self.id.clone(), epoch, key }
    }

    pub(crate) fn journal(&self) -> MutexGuard<'_, Box<Journal>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the reason comes when the flow is cancelled.
    pub(crate) fn cancellation(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.cancellation.get_or_init(watch::Sender::default).subscribe()
    }

    /// So many bodies more watch for the cancellation.
    pub(crate) fn watched(&self, more: isize) {
        self.watchers.fetch_add(more, Ordering::AcqRel);
    }

    /// True while a body runs that watches for the cancellation.
    pub(crate) fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Acquire) > 0
    }

    /// Tells the bodies that watch that the flow was cancelled.
    pub(crate) fn cancel(&self, reason: Arc<str>) {
        self.cancellation.get_or_init(watch::Sender::default).send_replace(Some(reason));
    }

    /// Stops the flow after this pass. The first reason counts.
    pub(crate) fn halt(&self, halt: Halt) {
        self.halt.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(halt);
        self.halted.store(true, Ordering::Release);
    }

    pub(crate) fn take_halt(&self) -> Option<Halt> {
        if !self.halted.load(Ordering::Acquire) {
            return None;
        }
        self.halt.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What the next child of the flow's code is called that is given no id.
    pub(crate) fn child_name(&self) -> String {
        let position = self.journal().next_position();
        match self.run {
            0 | 1 => format!("{}/{position}", self.id),
            run => format!("{}/{run}.{position}", self.id),
        }
    }

    /// A name for a place in this run of the flow that no other run and no other flow has, also none of an earlier flow
    /// of the same id.
    pub(crate) fn key(&self, what: &str) -> Uuid {
        let (id, created_at) = (&self.id, self.created_at.as_micros());
        let name = match self.run {
            0 | 1 => format!("{id}\0{created_at}\0{what}"),
            run => format!("{id}\0{created_at}\0{run}\0{what}"),
        };
        Uuid::new_v5(&NAMESPACE, name.as_bytes())
    }
}

/// The namespace of the UUIDs derived from flows; never changes.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b2f_7a84_31c5_5d0e_9f46_0c1d_2e3f_4a5b);

/// Where in a flow some code runs.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) flow: Arc<FlowContext>,
    pub(crate) place: Place,
    pub(crate) step: Option<Arc<StepContext>>,
}

/// The attempt of a step that runs.
#[derive(Debug)]
pub(crate) struct StepContext {
    pub(crate) path: CallPath,
    pub(crate) name: &'static str,
    pub(crate) args_hash: u64,
    /// Which of the equal calls in its scope it is.
    pub(crate) ordinal: u32,
    /// The step whose body made the call.
    pub(crate) outer: Option<Arc<StepContext>>,
    pub(crate) attempt: u32,
    /// What the last heartbeat had reported when it began.
    pub(crate) progress: Option<Bytes>,
    /// Random numbers drawn so far.
    pub(crate) draws: AtomicU64,
    /// Transactions begun so far.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) transactions: AtomicU64,
    /// Whether the body watches for the cancellation of its flow.
    pub(crate) watches: OnceLock<Watching>,
    /// How often the body has sent each message, by the hash of what is sent.
    pub(crate) sent: Mutex<BTreeMap<u64, u32>>,
}

impl StepContext {
    /// What names this call: the same in every life of the flow.
    pub(crate) fn identity(&self) -> String {
        let Self { path, name, args_hash, ordinal, .. } = self;
        match &self.outer {
            // As long as nothing is recorded, changed code may have another step at the same place.
            None => format!("{path} {name} {args_hash:016x}"),
            // A body may make its calls in another order when it starts again: a place says little about a call.
            Some(outer) => format!("{} {name} {args_hash:016x} {ordinal}", outer.identity()),
        }
    }

    /// How often the body has sent this message by now, this time included.
    pub(crate) fn count_sent(&self, hash: u64) -> u32 {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let times = sent.entry(hash).or_default();
        *times += 1;
        *times
    }
}

thread_local! {
    static CURRENT: Cell<Option<Context>> = const { Cell::new(None) };
}

impl Context {
    /// The context of the flow's own code.
    pub(crate) fn of_flow(flow: Arc<FlowContext>) -> Self {
        Self { flow, place: Place::Flow, step: None }
    }

    /// The context of the running code, if it belongs to a flow.
    pub(crate) fn try_current() -> Option<Self> {
        let current = CURRENT.take();
        CURRENT.set(current.clone());
        current
    }

    /// The context of the running code.
    ///
    /// # Panics
    ///
    /// When the code does not run inside a flow: doing it unrecorded would be wrong, silently.
    #[track_caller]
    pub(crate) fn current(what: &str) -> Self {
        Self::try_current().unwrap_or_else(|| outside(what))
    }

    /// Makes a call from this context.
    pub(crate) fn call(&self, key: CallKey, spec: Spec, location: &'static Location<'static>) -> CallId {
        self.flow.journal().call(self.place, key, spec, location)
    }
}

/// A context to run code in, time and again.
#[derive(Debug)]
pub(crate) struct Within(Option<Context>);

impl Within {
    pub(crate) fn new(context: Context) -> Self {
        Self(Some(context))
    }

    /// Runs code within the context, which is moved there and back: this is done several times a step.
    pub(crate) fn run<R>(&mut self, code: impl FnOnce() -> R) -> R {
        // Put back even when the code panics.
        struct Restore<'a> {
            within: &'a mut Option<Context>,
            outer: Option<Context>,
        }
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                *self.within = CURRENT.replace(self.outer.take());
            }
        }
        let outer = CURRENT.replace(self.0.take());
        let _restore = Restore { within: &mut self.0, outer };
        code()
    }
}

#[track_caller]
fn outside(what: &str) -> ! {
    panic!(
        "{what} was called outside a flow. Run the flow with a Worker or an Executor; to test a step by itself, \
         run a flow that calls it on an InMemoryExecutionLog. A task or thread started with spawn is outside: \
         what is needed there must be passed in"
    )
}

/// The id of the flow that this code runs in.
///
/// # Panics
///
/// Outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::prelude::*;
///
/// #[flow]
/// async fn whoami() -> ergon::Result<String> {
///     Ok(flow_id().to_string())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// assert_eq!(executor.run(whoami()).id("order-7").await?, "order-7");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn flow_id() -> FlowId {
    Context::current("ergon::flow_id()").flow.id.clone()
}

/// The number of this run of the flow, from 1: it rises each time that the flow
/// [begins again](crate::continue_as_new).
///
/// # Panics
///
/// Outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::{prelude::*, run_number};
///
/// #[flow]
/// async fn rounds() -> ergon::Result<u32> {
///     if run_number() < 3 { continue_as_new(rounds()).await } else { Ok(run_number()) }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// assert_eq!(executor.run(rounds()).await?, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn run_number() -> u32 {
    Context::current("ergon::run_number()").flow.run
}

/// The number of the running attempt of the enclosing step, from 1; 1 in a flow's own code.
///
/// # Panics
///
/// Outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::prelude::*;
///
/// #[flow]
/// async fn insist() -> ergon::Result<u32> {
///     call().await
/// }
///
/// #[step(retry(max_attempts = 3, backoff = "1ms"))]
/// async fn call() -> ergon::Result<u32> {
///     if attempt() < 3 { Err(ergon::Error::new("not yet")) } else { Ok(attempt()) }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// assert_eq!(executor.run(insist()).await?, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn attempt() -> u32 {
    Context::current("ergon::attempt()").step.map_or(1, |step| step.attempt)
}

/// A text that names this call of the enclosing step and no other: equal over its attempts, over crashes and
/// machines, distinct for each call, also for calls with the same arguments. Give it to a service that drops
/// repeated requests. In a flow's own code it names the flow and its run.
///
/// # Panics
///
/// Outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::{idempotency_key, prelude::*};
///
/// #[flow]
/// async fn pay() -> ergon::Result<[String; 2]> {
///     Ok([charge(100).await?, charge(100).await?])
/// }
///
/// #[step]
/// async fn charge(cents: u64) -> ergon::Result<String> {
///     let key = idempotency_key(); // to be sent along, so that a second attempt charges nobody twice
///     Ok(format!("{cents} {key}"))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let [first, second] = Executor::new(InMemoryExecutionLog::new()).run(pay()).await?;
/// assert_ne!(first, second);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn idempotency_key() -> String {
    let context = Context::current("ergon::idempotency_key()");
    let key = match context.step.as_deref() {
        Some(step) => context.flow.key(&step.identity()),
        None => context.flow.key(""),
    };
    key.to_string()
}

/// What the worker or executor was given with `with_state`.
///
/// # Panics
///
/// Outside a flow, and when no state of this type was given; within a step the panic is a failed attempt.
///
/// # Examples
///
/// ```
/// use ergon::{prelude::*, state};
///
/// struct Prices(u64);
///
/// #[flow]
/// async fn quote(pounds: u64) -> ergon::Result<u64> {
///     price(pounds).await
/// }
///
/// #[step]
/// async fn price(pounds: u64) -> ergon::Result<u64> {
///     Ok(pounds * state::<Prices>().0)
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new()).with_state(Prices(3));
/// assert_eq!(executor.run(quote(7)).await?, 21);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn state<T: Send + Sync + 'static>() -> Arc<T> {
    let context = Context::current("ergon::state()");
    context.flow.env.states.get::<T>().unwrap_or_else(|| {
        let (wanted, known) = (std::any::type_name::<T>(), &context.flow.env.states);
        panic!("no state of type {wanted} was given to this worker; add .with_state(…) to it; it has {known:?}")
    })
}

/// The present time, durably: in a flow's own code the instant at which the last awaited outcome was recorded,
/// which is the same in every replay; in a step the log's clock.
///
/// # Panics
///
/// Outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::{now, prelude::*};
///
/// /// Time passes for the flow where something has been awaited.
/// #[flow]
/// async fn measure() -> ergon::Result<Duration> {
///     let begun = now();
///     assert_eq!(now(), begun);
///     sleep(Duration::from_millis(20)).await;
///     Ok(now().since(begun))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// assert!(executor.run(measure()).await? >= Duration::from_millis(20));
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn now() -> Timestamp {
    let context = Context::current("ergon::now()");
    match context.place {
        Place::Flow => context.flow.journal().now(),
        Place::Step(_) => context.flow.env.clock.now(),
    }
}

/// True while the flow's own code catches up with its history. Good for logging a thing once; a flow that does
/// something else when it is replayed is stalled.
///
/// # Panics
///
/// Outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::{is_replaying, prelude::*};
///
/// #[flow]
/// async fn report() -> ergon::Result<bool> {
///     if !is_replaying() {
///         println!("the report is begun"); // not again when the flow goes on after a restart
///     }
///     sleep(Duration::from_millis(5)).await;
///     Ok(is_replaying())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// // Nothing was recorded of this flow before.
/// assert!(!Executor::new(InMemoryExecutionLog::new()).run(report()).await?);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn is_replaying() -> bool {
    let context = Context::current("ergon::is_replaying()");
    context.place == Place::Flow && context.flow.journal().is_replaying()
}

/// A random number, durably: derived from the flow's id and its progress, the same in every replay. Good for
/// sampling and for seeding a generator; not a secret.
///
/// # Panics
///
/// Outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::{prelude::*, random};
///
/// #[flow]
/// async fn draw() -> ergon::Result<(u64, u64)> {
///     Ok((random(), random()))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// let (first, second) = executor.run(draw()).id("draw-1").await?;
/// assert_ne!(first, second);
/// assert_ne!(executor.run(draw()).id("draw-2").await?.0, first, "another flow draws others");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn random() -> u64 {
    let (high, _) = draw("ergon::random()").as_u64_pair();
    // The version bits of a UUID are not random; fold the halves.
    let (_, low) = draw("ergon::random()").as_u64_pair();
    high ^ low.rotate_left(32)
}

/// A random UUID (version 4 in form), durably: derived from the flow's id and its progress, the same in every
/// replay.
///
/// # Panics
///
/// Outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::{now, prelude::*, random, uuid};
///
/// #[flow]
/// async fn draw() -> ergon::Result<bool> {
///     let (first, second) = (uuid(), uuid());
///     let lot = random() % 6 + 1; // whenever the flow is replayed, it is this one again
///     Ok(first != second && (1..=6).contains(&lot) && now() == now())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// assert!(Executor::new(InMemoryExecutionLog::new()).run(draw()).await?);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn uuid() -> Uuid {
    let random = draw("ergon::uuid()");
    uuid::Builder::from_random_bytes(*random.as_bytes()).into_uuid()
}

#[track_caller]
fn draw(what: &str) -> Uuid {
    let context = Context::current(what);
    if let Some(step) = &context.step {
        let draw = step.draws.fetch_add(1, Ordering::Relaxed);
        return context.flow.key(&format!("draw {} {} {draw}", step.path, step.attempt));
    }
    let (releases, draw) = context.flow.journal().draw();
    context.flow.key(&format!("draw {releases} {draw}"))
}

/// An error for a call that cannot be made.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::of(ErrorKind::Invalid, message).into_permanent()
}

/// A short id for a child of a flow whose own id leaves no room for the number of the call.
pub(crate) fn child_key(flow: &FlowContext) -> Uuid {
    let position = flow.journal().next_position();
    flow.key(&format!("child {position}"))
}
