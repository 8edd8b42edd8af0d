//! The future of a step.

use std::{
    cell::RefCell,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicU64},
    task::{self, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use ergon_storage::{CallKind, CallPath, Phase};
use futures::future::BoxFuture;
use serde::Serialize;
use tracing::Span;

use crate::{
    codec,
    context::{Begin, BodyRun, Context, Halt, StandIn, StepContext, Within, invalid},
    error::{Error, ErrorKind},
    fingerprint::{Sequences, Tuple, fingerprint},
    flow::{ErrorCaps, Recorded, RecordedError},
    journal::{CallId, CallKey, CallPoll, Outcome, Place, Repeat, Spec, TimeUp},
    meter::{AttemptEnd, StepTimer},
    middleware::{Layers, NotDone, StepRun, Surrounded},
    retry::RetryPolicy,
    spans,
};

/// What the attribute of a step says.
#[derive(Debug, Clone, Copy)]
pub struct StepSpec {
    name: &'static str,
    retry: RetryPolicy,
    timeout: Option<Duration>,
    heartbeat_timeout: Option<Duration>,
    repeat: Repeat,
}

impl StepSpec {
    /// A step of this name with the standard policy and no time limit.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        let (retry, repeat) = (RetryPolicy::STANDARD, Repeat::Allowed);
        Self { name, retry, timeout: None, heartbeat_timeout: None, repeat }
    }

    /// The same step, whose body runs at most once for each attempt, with one attempt unless a policy follows.
    #[must_use]
    pub const fn at_most_once(mut self) -> Self {
        self.repeat = Repeat::Never;
        self.retry = RetryPolicy::NONE;
        self
    }

    /// The same step with another policy.
    #[must_use]
    pub const fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// The same step with a time limit for each attempt, counted from when it begins.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The same step, each attempt of which may go so long without a heartbeat.
    #[must_use]
    pub const fn heartbeat_timeout(mut self, heartbeat_timeout: Duration) -> Self {
        self.heartbeat_timeout = Some(heartbeat_timeout);
        self
    }
}

/// The hash of a step's arguments, taken in one after the other, or why they have none.
#[derive(Debug, Clone)]
pub struct ArgsHash(pub(crate) Result<Tuple, String>);

impl ArgsHash {
    /// That of no arguments.
    #[must_use]
    pub const fn new() -> Self {
        Self(Ok(Tuple::EMPTY))
    }

    /// With one more argument.
    #[must_use]
    pub fn and<T: StepArg>(self, arg: &T) -> Self {
        self.with(arg)
    }

    /// With one more of an argument that need not be copied.
    pub(crate) fn with<T: Serialize + ?Sized>(mut self, arg: &T) -> Self {
        if let Ok(hash) = &mut self.0
            && let Err(error) = hash.add(arg)
        {
            self.0 = Err(error.to_string());
        }
        self
    }
}

impl Default for ArgsHash {
    fn default() -> Self {
        Self::new()
    }
}

/// What an argument of a step must be.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a step",
    label = "an argument must implement `serde::Serialize` and `Clone` and be `Send`",
    note = "the history keeps a hash of the arguments, and each attempt gets its own copy of them",
    note = "for a type of your own, write `#[derive(Clone, serde::Serialize)]`"
)]
pub trait StepArg: Serialize + Clone + Send {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + Clone + Send> StepArg for T {}

/// What an attempt gets of an argument.
pub fn copy_of_arg<T: StepArg>(arg: &T) -> T {
    arg.clone()
}

/// What the type of a blocking step must be.
#[diagnostic::on_unimplemented(
    message = "a blocking step needs a flow type that implements `Clone`",
    label = "`{Self}` must be `Clone + Send + 'static`",
    note = "the body runs on a thread of its own, with a copy of the value"
)]
pub trait BlockingSelf: Clone + Send + 'static {}

#[diagnostic::do_not_recommend]
impl<T: Clone + Send + 'static> BlockingSelf for T {}

/// What an attempt of a blocking step gets of the flow's value.
pub fn copy_of_self<T: BlockingSelf>(this: &T) -> T {
    this.clone()
}

/// Puts middleware around a body.
type Surround<'a, T, E> = fn(&Layers, StepRun, BoxFuture<'a, Result<T, E>>) -> Surrounded<'a, T, E>;

/// Polls a step.
type Proceed<'a, T, E> = fn(&mut Step<'a, T, E>, &mut task::Context<'_>) -> Poll<Result<T, E>>;

type Body<'a, T, E> = Box<dyn FnMut() -> BoxFuture<'a, Result<T, E>> + Send + 'a>;

/// Makes the call of a step. Called by the code that `#[step]` generates.
///
/// # Panics
///
/// Outside a flow, and for a step that runs at most once inside a step.
#[track_caller]
pub fn step<'a, T, E, F>(spec: &'static StepSpec, hash: ArgsHash, caps: ErrorCaps<E>, body: F) -> Step<'a, T, E>
where
    T: Recorded,
    E: RecordedError,
    F: FnMut() -> BoxFuture<'a, Result<T, E>> + Send + 'a,
    Result<T, E>: Send + 'a,
{
    let Some(context) = Context::try_current() else { outside(spec.name) };
    assert!(
        spec.repeat == Repeat::Allowed || context.place == Place::Flow,
        "the step {:?} runs at most once: a flow calls it, not a step, whose body may start again; return from the step \
         and call it from the flow",
        spec.name
    );
    let args_hash = match hash.0 {
        Ok(hash) => hash.digest(),
        Err(error) => {
            let message = format!("the arguments of step {:?} cannot be hashed: {error}", spec.name);
            context.flow.halt(Halt::Fault(Error::of(ErrorKind::Payload, message)));
            0
        }
    };
    let key = CallKey { kind: CallKind::Step, name: interned(spec.name), args_hash };
    let StepSpec { timeout: limit, heartbeat_timeout: silence, repeat, .. } = *spec;
    let call = context.call(key, Spec::Step { limit, silence, repeat }, Location::caller());
    let (body, timer): (Body<'a, T, E>, _) = (Box::new(body), StepTimer::default());
    let (proceed, surround): (Proceed<'a, T, E>, Surround<'a, T, E>) = (Step::proceed, Layers::step::<T, E>);
    Step { context, call, spec, caps, body, proceed, surround, attempt: None, timer, outcome: None, done: false }
}

/// The name of a step to be recorded, which each thread makes once: a history has it many times.
fn interned(name: &'static str) -> Arc<str> {
    const PLACES: usize = 64;
    type Places = [Option<(&'static str, Arc<str>)>; PLACES];
    thread_local! {
        static KNOWN: RefCell<Places> = const { RefCell::new([const { None }; PLACES]) };
    }
    KNOWN.with(|known| {
        // Literals lie side by side, a few bytes each.
        let place = &mut known.borrow_mut()[(name.as_ptr().addr() / 4) % PLACES];
        match place {
            Some((literal, interned)) if std::ptr::eq(*literal, name) => Arc::clone(interned),
            _ => {
                let interned = Arc::<str>::from(name);
                *place = Some((name, Arc::clone(&interned)));
                interned
            }
        }
    })
}

#[track_caller]
fn outside(name: &str) -> ! {
    let what = format!("the step {name:?}");
    Context::current(&what);
    unreachable!("there is no flow")
}

/// Runs the body of a blocking step off the async threads, within the same context.
pub async fn blocking<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    let context = Context::try_current();
    let run = move || match context {
        Some(context) => Within::new(context).run(body),
        None => body(),
    };
    match tokio::task::spawn_blocking(run).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: this task is about to be dropped.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The future of a step: resolves to its outcome, from the history or fresh.
///
/// The call counts from the moment it is made; the body starts when the future is first polled. Dropping the
/// future drops the running body.
#[must_use = "a step does nothing unless it is awaited"]
pub struct Step<'a, T, E> {
    context: Context,
    call: CallId,
    spec: &'static StepSpec,
    caps: ErrorCaps<E>,
    body: Body<'a, T, E>,
    /// [`Step::proceed`] for these types: what they lack is said where the step stands, not at each `.await` too.
    proceed: Proceed<'a, T, E>,
    /// [`Layers::step`] for these types.
    surround: Surround<'a, T, E>,
    attempt: Option<Attempt<'a, T, E>>,
    timer: StepTimer,
    /// The outcome as the body returned it, until it is released.
    outcome: Option<Result<T, E>>,
    done: bool,
}

/// A body that runs.
struct Attempt<'a, T, E> {
    within: Within,
    number: u32,
    body: Running<'a, T, E>,
    wakers: Arc<BodyWaker>,
    waker: Waker,
    /// Under test: how many turns the body lets the others have before it begins.
    turns: u32,
    span: Span,
}

/// The code of an attempt.
enum Running<'a, T, E> {
    Body(BoxFuture<'a, Result<T, E>>),
    Surrounded(Surrounded<'a, T, E>),
}

impl<T, E> Running<'_, T, E> {
    fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<Result<T, E>, NotDone>> {
        match self {
            Self::Body(body) => body.as_mut().poll(cx).map(Ok),
            Self::Surrounded(body) => body.poll(cx),
        }
    }

    /// What the body came to, if it has ended and only its middleware goes on.
    fn ended(&self) -> Option<Result<T, E>> {
        match self {
            Self::Body(_) => None,
            Self::Surrounded(body) => body.ended(),
        }
    }
}

// Nothing is pinned in place: the body is in a box of its own.
impl<T, E> Unpin for Step<'_, T, E> {}

impl<T, E> fmt::Debug for Step<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("name", &self.spec.name).field("call", &self.call).finish_non_exhaustive()
    }
}

impl<T, E> Future for Step<'_, T, E> {
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<T, E>> {
        let this = self.get_mut();
        assert!(!this.done, "the step {:?} was polled after it had its outcome", this.spec.name);
        (this.proceed)(this, cx)
    }
}

impl<'a, T: Recorded, E: RecordedError> Step<'a, T, E> {
    fn proceed(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<T, E>> {
        let poll = self.context.flow.journal().poll(self.call, cx.waker());
        match poll {
            CallPoll::Pending => Poll::Pending,
            CallPoll::Ready(outcome) => self.open(&outcome),
            CallPoll::Run { attempt, time_is_up } => {
                self.run(cx, attempt, time_is_up);
                Poll::Pending
            }
            CallPoll::Lost { attempt } => {
                self.trouble(attempt, Error::unknown_outcome(&format!("step {:?}", self.spec.name)));
                Poll::Pending
            }
        }
    }

    /// The outcome as the user's types.
    fn open(&mut self, outcome: &Outcome) -> Poll<Result<T, E>> {
        self.done = true;
        if let Some(outcome) = self.outcome.take() {
            return Poll::Ready(outcome);
        }
        let what = format_args!("the recorded outcome of step {:?}", self.spec.name);
        let result = match outcome.phase {
            Phase::Failed => codec::decode(what, &outcome.payload).map(Err),
            _ => codec::decode(what, &outcome.payload).map(Ok),
        };
        match result {
            Ok(result) => Poll::Ready(result),
            Err(error) => {
                let message = format!(
                    "{error}; give the changed type the old form, or give the flow a new version and let workers \
                     with the old code finish what is under way"
                );
                self.context.flow.halt(Halt::Stall(message));
                Poll::Pending
            }
        }
    }

    /// Polls the body of the running attempt, and records what became of it.
    fn run(&mut self, cx: &mut task::Context<'_>, number: u32, time_is_up: Option<TimeUp>) {
        if self.attempt.as_ref().is_none_or(|attempt| attempt.number != number) {
            match self.begin(number) {
                Ok(attempt) => self.attempt = Some(attempt),
                Err(error) => return self.trouble(number, error),
            }
        }
        let Some(attempt) = &mut self.attempt else { return };
        let _span = attempt.span.clone().entered();
        attempt.wakers.pass_on_to(cx.waker());
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let Attempt { within, body, waker, turns, .. } = attempt;
            if *turns > 0 {
                *turns -= 1;
                waker.wake_by_ref();
                return Poll::Pending;
            }
            within.run(|| {
                let polled = body.poll(&mut task::Context::from_waker(waker));
                if polled.is_pending() && time_is_up.is_some() {
                    return body.ended().map_or(Poll::Pending, |ended| Poll::Ready(Ok(ended)));
                }
                polled
            })
        }));
        match (polled, time_is_up) {
            (Ok(Poll::Ready(ended)), _) => {
                self.end_attempt();
                match ended {
                    Ok(result) => self.finish(number, result),
                    Err(NotDone::Refused(error)) => self.refuse(number, error),
                    Err(NotDone::CutOff(error)) => self.trouble(number, error),
                }
            }
            (Ok(Poll::Pending), Some(time_is_up)) => {
                self.end_attempt();
                let (what, spec) = (format!("step {:?}", self.spec.name), self.spec);
                let error = match time_is_up {
                    TimeUp::Limit => Error::timeout(&what, spec.timeout.unwrap_or_default()),
                    TimeUp::Silence => Error::silence(&what, spec.heartbeat_timeout.unwrap_or_default()),
                };
                self.trouble(number, error);
            }
            (Ok(Poll::Pending), None) => {
                // The attempt itself holds two: one to hand out, one to count.
                let held = Arc::strong_count(&attempt.wakers) - 2;
                let flow = &self.context.flow;
                flow.journal().note_wakers(self.call, held, &attempt.waker, &*flow.env.clock);
            }
            (Err(panic), _) => {
                self.end_attempt();
                self.trouble(number, Error::panic(&format!("step {:?}", self.spec.name), &*panic));
            }
        }
    }

    fn begin(&mut self, number: u32) -> Result<Attempt<'a, T, E>, Error> {
        let flow = &self.context.flow;
        self.timer = flow.meter.attempt(self.spec.name);
        let (path, args_hash, ordinal, progress) = flow.journal().identity(self.call);
        let span = spans::step(self.spec.name, &path, number);
        let step = StepContext {
            path,
            name: self.spec.name,
            args_hash,
            ordinal,
            outer: self.context.step.clone(),
            attempt: number,
            progress,
            draws: AtomicU64::new(0),
            watches: OnceLock::new(),
            sent: Mutex::default(),
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            transactions: AtomicU64::new(0),
        };
        let context = Context { flow: Arc::clone(flow), place: Place::Step(self.call), step: Some(Arc::new(step)) };
        let place = context.step.as_ref().map_or_else(|| CallPath::top(0), |step| step.path.clone());
        let (double, turns) = self.double(&context);
        let (mut within, body) = (Within::new(context), &mut self.body);
        let body = catch_unwind(AssertUnwindSafe(|| double.unwrap_or_else(|| within.run(body))))
            .map_err(|panic| Error::panic(&format!("step {:?}", self.spec.name), &*panic))?;
        let body = match &flow.info {
            None => Running::Body(body),
            Some(info) => {
                let (info, name) = (Arc::clone(info), self.spec.name);
                let run = StepRun { flow: info, name, path: place, attempt: number };
                Running::Surrounded((self.surround)(&flow.env.layers, run, body))
            }
        };
        tracing::debug!(parent: &span, "step starts");
        let wakers = Arc::new(BodyWaker { outer: Mutex::new(None) });
        let waker = Waker::from(Arc::clone(&wakers));
        Ok(Attempt { within, number, body, wakers, waker, turns, span })
    }

    /// What stands for the body under test, and how many turns it is late.
    fn double(&self, context: &Context) -> (Option<BoxFuture<'a, Result<T, E>>>, u32) {
        let (Some(observer), Some(step)) = (&self.context.flow.env.observer, &context.step) else { return (None, 0) };
        let StepContext { path, attempt, .. } = &**step;
        let run = BodyRun {
            flow: &context.flow.id,
            flow_type: &context.flow.flow_type.0,
            run: context.flow.run,
            path,
            step: self.spec.name,
            attempt: *attempt,
        };
        let Begin { stand_in, turns } = observer.begins(run);
        let what = format!("what stands for step {:?}", self.spec.name);
        let double = stand_in.map(|stand_in| -> BoxFuture<'a, _> {
            Box::pin(async move {
                let outcome = match stand_in {
                    StandIn::Outcome(Ok(value)) => codec::decode(&what, &value).map(Ok),
                    StandIn::Outcome(Err(error)) => codec::decode(&what, &error).map(Err),
                    StandIn::Panic(message) => panic!("{message}"),
                    StandIn::Hang => std::future::pending().await,
                };
                outcome.unwrap_or_else(|error| panic!("{error}"))
            })
        });
        (double, turns)
    }

    /// Drops the body, within its context: what it made is dropped with it.
    fn end_attempt(&mut self) {
        if let Some(Attempt { mut within, body, .. }) = self.attempt.take() {
            let dropped = catch_unwind(AssertUnwindSafe(|| within.run(|| drop(body))));
            if dropped.is_err() {
                tracing::warn!(step = self.spec.name, "a value of the step's body panicked when it was dropped");
            }
        }
    }

    /// The body returned.
    fn finish(&mut self, number: u32, result: Result<T, E>) {
        let name = self.spec.name;
        let limit = self.context.flow.env.payload_bytes_max;
        match result {
            Ok(value) => {
                let encoded = catch_unwind(AssertUnwindSafe(|| {
                    codec::encode_exact(format_args!("the outcome of step {name:?}"), &value, limit)
                }));
                match encoded {
                    // What the flow sees now is what it will see when it is replayed.
                    Ok(Ok((payload, copy))) => self.record(Phase::Completed, payload, Ok(copy)),
                    Ok(Err(error)) => self.trouble(number, error),
                    Err(panic) => self.trouble(number, Error::panic(&format!("step {name:?}"), &*panic)),
                }
            }
            Err(error) => {
                let looked_at = catch_unwind(AssertUnwindSafe(|| {
                    let retryable = self.caps.is_retryable.is_none_or(|is_retryable| is_retryable(&error));
                    let after = self.caps.retry_after.and_then(|retry_after| retry_after(&error));
                    (retryable, after, shorten(format!("{error:?}")))
                }));
                match looked_at {
                    Ok((true, after, text)) => match self.again(number, &Error::new(text.clone()), after) {
                        Ok(true) => {}
                        Ok(false) => self.fail(number, &error, &text),
                        Err(refused) => self.give_up(number, refused),
                    },
                    Ok((false, _, text)) => self.fail(number, &error, &text),
                    Err(panic) => self.trouble(number, Error::panic(&format!("the error of step {name:?}"), &*panic)),
                }
            }
        }
    }

    /// The attempt failed for a reason that the body did not return.
    fn trouble(&mut self, number: u32, error: Error) {
        if self.spec.repeat == Repeat::Never {
            self.context.flow.journal().note_uncertain(self.call);
        } else if error.is_retryable() && matches!(self.again(number, &error, None), Ok(true)) {
            return;
        }
        self.give_up(number, error);
    }

    /// A middleware has not let the body run.
    fn refuse(&mut self, number: u32, error: Error) {
        if !error.is_retryable() || !matches!(self.again(number, &error, error.retry_after()), Ok(true)) {
            self.give_up(number, error);
        }
    }

    /// The step fails for good, with an error of ours.
    fn give_up(&mut self, number: u32, error: Error) {
        self.timer.end(AttemptEnd::Failed);
        let Some(from_error) = self.caps.from_error else { return self.context.flow.halt(Halt::Fault(error)) };
        let text = error.to_string();
        match catch_unwind(AssertUnwindSafe(|| from_error(error))) {
            Ok(error) => self.fail(number, &error, &text),
            Err(panic) => {
                let what = format!("making the error of step {:?}", self.spec.name);
                self.context.flow.halt(Halt::Fault(Error::panic(&what, &*panic)));
            }
        }
    }

    /// Arranges for another attempt, if the policy has one: `after` the time that the error asks for, or after the
    /// policy's. An error when that is past the end of time.
    fn again(&mut self, number: u32, error: &Error, after: Option<Duration>) -> Result<bool, Error> {
        let flow = &self.context.flow;
        let seed = fingerprint(&(flow.id.as_str(), self.call_text(), number), Sequences::Ordered).unwrap_or(0);
        // The upper 53 bits as a fraction: exact in a double.
        #[allow(clippy::cast_precision_loss)]
        let chance = (seed >> 11) as f64 / (1_u64 << 53) as f64;
        let Some(delay) = self.spec.retry.delay_after(number, chance) else {
            return Ok(false);
        };
        let now = flow.env.clock.now();
        let (delay, retry_at) = match after {
            None => (delay, now.saturating_add(delay)),
            Some(after) => {
                let past_the_end = || {
                    let name = self.spec.name;
                    invalid(format!(
                        "the error of step {name:?} asks for another attempt in {after:?}, past the end of time: {error}"
                    ))
                };
                (after, now.checked_add(after).ok_or_else(past_the_end)?)
            }
        };
        tracing::info!(flow = %flow.id, step = self.spec.name, attempt = number, %error, ?delay, "step failed, will be tried again");
        let payload = serde_json::to_vec(error).unwrap_or_default();
        flow.journal().attempt_failed(self.call, payload.into(), retry_at, now);
        self.timer.end(AttemptEnd::Retried);
        Ok(true)
    }

    fn call_text(&self) -> String {
        self.context.flow.journal().path(self.call).map(ToString::to_string).unwrap_or_default()
    }

    /// The step has failed for good.
    fn fail(&mut self, number: u32, error: &E, text: &str) {
        self.timer.end(AttemptEnd::Failed);
        let flow = &self.context.flow;
        tracing::info!(flow = %flow.id, step = self.spec.name, attempt = number, error = text, "step failed");
        let what = format!("the error of step {:?}", self.spec.name);
        let limit = flow.env.payload_bytes_max;
        let encoded = catch_unwind(AssertUnwindSafe(|| codec::encode_exact(&what, error, limit)));
        match encoded {
            Ok(Ok((payload, copy))) => self.record(Phase::Failed, payload, Err(copy)),
            Ok(Err(encoding)) => flow.halt(Halt::Fault(encoding)),
            Err(panic) => flow.halt(Halt::Fault(Error::panic(&what, &*panic))),
        }
    }

    fn record(&mut self, phase: Phase, payload: Bytes, outcome: Result<T, E>) {
        let flow = &self.context.flow;
        let now = flow.env.clock.now();
        tracing::debug!(flow = %flow.id, step = self.spec.name, ?phase, "step ended");
        self.timer.end(AttemptEnd::Completed);
        self.outcome = Some(outcome);
        flow.journal().finish(self.call, phase, payload, now);
    }
}

/// As much of a text as belongs into a history.
pub(crate) fn shorten(mut text: String) -> String {
    const BYTES_MAX: usize = 4_096;
    if text.len() > BYTES_MAX {
        let end = (0..=BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The waker that a body is polled with. Whoever holds a clone of it is what the body waits for.
struct BodyWaker {
    outer: Mutex<Option<Waker>>,
}

impl BodyWaker {
    fn pass_on_to(&self, outer: &Waker) {
        let mut known = self.outer.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.as_ref().is_some_and(|known| known.will_wake(outer)) {
            *known = Some(outer.clone());
        }
    }
}

impl Wake for BodyWaker {
    fn wake(self: Arc<Self>) {
        let outer = self.outer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(outer) = outer {
            outer.wake();
        }
    }
}

impl<T, E> Drop for Step<'_, T, E> {
    fn drop(&mut self) {
        if let Some(Attempt { mut within, body, .. }) = self.attempt.take() {
            // A panic in dropping a loser's body must not take the flow along.
            if catch_unwind(AssertUnwindSafe(|| within.run(|| drop(body)))).is_err() {
                tracing::warn!(step = self.spec.name, "a value of the step's body panicked when it was dropped");
            }
        }
        if !self.done {
            self.context.flow.journal().drop_call(self.call);
        }
    }
}
