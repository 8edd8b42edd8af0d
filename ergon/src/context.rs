//! What code that runs inside a flow can know about where it runs.

use std::{
    any::{Any, TypeId},
    cell::RefCell,
    collections::HashMap,
    fmt,
    panic::Location,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ergon_storage::{CallPath, Clock, FlowId, Limits, Timestamp};
use uuid::Uuid;

use crate::{
    error::{Error, ErrorKind},
    journal::{CallId, CallKey, Journal, Place, Spec},
};

/// The values given with `with_state`, by type.
#[derive(Clone, Default)]
pub(crate) struct States(HashMap<TypeId, (Arc<dyn Any + Send + Sync>, &'static str)>);

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
}

impl Env {
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
}

/// One flow in memory.
#[derive(Debug)]
pub(crate) struct FlowContext {
    pub(crate) id: FlowId,
    pub(crate) created_at: Timestamp,
    pub(crate) queue: Arc<str>,
    pub(crate) env: Arc<Env>,
    journal: Mutex<Journal>,
    halt: Mutex<Option<Halt>>,
}

impl FlowContext {
    pub(crate) fn new(id: FlowId, created_at: Timestamp, queue: Arc<str>, env: Arc<Env>, journal: Journal) -> Self {
        let journal = Mutex::new(journal);
        Self { id, created_at, queue, env, journal, halt: Mutex::new(None) }
    }

    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the flow after this pass. The first reason counts.
    pub(crate) fn halt(&self, halt: Halt) {
        self.halt.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(halt);
    }

    pub(crate) fn take_halt(&self) -> Option<Halt> {
        self.halt.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A name for a place in this flow that no other flow has, also none of an earlier flow of the same id.
    fn key(&self, what: &str) -> Uuid {
        let name = format!("{}\0{}\0{what}", self.id, self.created_at.as_micros());
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
    pub(crate) attempt: u32,
    /// Random numbers drawn so far.
    pub(crate) draws: AtomicU64,
}

thread_local! {
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

impl Context {
    /// The context of the flow's own code.
    pub(crate) fn of_flow(flow: Arc<FlowContext>) -> Self {
        Self { flow, place: Place::Flow, step: None }
    }

    /// Runs code within this context.
    pub(crate) fn enter<R>(&self, code: impl FnOnce() -> R) -> R {
        // Put back even when the code panics.
        struct Restore(Option<Context>);
        impl Drop for Restore {
            fn drop(&mut self) {
                let outer = self.0.take();
                CURRENT.with(|current| *current.borrow_mut() = outer);
            }
        }
        let _restore = Restore(CURRENT.with(|current| current.borrow_mut().replace(self.clone())));
        code()
    }

    /// The context of the running code, if it belongs to a flow.
    pub(crate) fn try_current() -> Option<Self> {
        CURRENT.with(|current| current.borrow().clone())
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
#[track_caller]
pub fn flow_id() -> FlowId {
    Context::current("ergon::flow_id()").flow.id.clone()
}

/// The number of the running attempt of the enclosing step, from 1; 1 in a flow's own code.
///
/// # Panics
///
/// Outside a flow.
#[track_caller]
pub fn attempt() -> u32 {
    Context::current("ergon::attempt()").step.map_or(1, |step| step.attempt)
}

/// A text that names this call of the enclosing step and no other: equal over its attempts, over crashes and
/// machines, distinct for each call, also for calls with the same arguments. Give it to a service that drops
/// repeated requests. In a flow's own code it names the flow.
///
/// # Panics
///
/// Outside a flow.
#[track_caller]
pub fn idempotency_key() -> String {
    let context = Context::current("ergon::idempotency_key()");
    let key = match &context.step {
        Some(step) => context.flow.key(&step.path.to_string()),
        None => context.flow.key(""),
    };
    key.to_string()
}

/// What the worker or executor was given with `with_state`.
///
/// # Panics
///
/// Outside a flow, and when no state of this type was given; within a step the panic is a failed attempt.
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
