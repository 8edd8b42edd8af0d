//! Code of the user's around flows and steps.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
    thread,
    time::Duration,
};

use ergon_storage::{
    self as storage, CallPath, Clock, Commit, Committed, Error as StorageError, ExecutionLog, FlowInfo, FlowState,
    Lease, Wake,
};
use futures::{FutureExt, future::BoxFuture};

use crate::{
    drive::{Driven, deadline_of},
    error::{Error, ErrorKind, Result},
    step::shorten,
};

/// Code around the runs of flows and the attempts of steps, for what all of them need: a line in a log, a measurement, a
/// span, a check of rights. Given to [`Worker::middleware`](crate::Worker::middleware) and
/// [`Executor::middleware`](crate::Executor::middleware); the first one given is the outermost.
///
/// Implement one method or both as an `async fn`. What comes before `next.run().await` happens before, what follows
/// happens after, with the outcome in hand.
///
/// A step's outcome that is replayed comes from the history, and no middleware sees it: only bodies that run are
/// surrounded. Nothing that a middleware does is recorded.
///
/// # What it must not do
///
/// - Change what flows do: they are replayed by workers that may have other middleware, or none. An outcome cannot be
///   changed, only looked at.
/// - Call steps, timers, signals or anything else of this crate that is recorded. In [`step`](Self::step) one may
///   ask where one is: [`flow_id`](crate::flow_id), [`attempt`](crate::attempt), [`state`](crate::state),
///   [`idempotency_key`](crate::idempotency_key).
/// - Rely on what follows `next.run().await`: when an attempt exceeds its time limit, when a step loses a `select!`, when
///   a lease is lost and when the process dies, the future is dropped where it is. Use a guard's `Drop` for what must be
///   undone; against the last one nothing helps.
///
/// # Examples
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use ergon::{prelude::*, NextStep, StepRun};
///
/// #[derive(Clone, Default)]
/// struct Notes(Arc<Mutex<Vec<String>>>);
///
/// impl Middleware for Notes {
///     async fn step(&self, step: &StepRun, next: NextStep<'_>) -> ergon::Result<()> {
///         let outcome = next.run().await;
///         let how = if outcome.is_ok() { "went well" } else { "failed" };
///         self.0.lock().unwrap().push(format!("{} of {} {how}", step.name, step.flow.id));
///         outcome
///     }
/// }
///
/// #[flow]
/// async fn greet(name: String) -> ergon::Result<String> {
///     greeting(&name).await
/// }
///
/// #[step]
/// async fn greeting(name: &str) -> ergon::Result<String> {
///     Ok(format!("Hello {name}!"))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let notes = Notes::default();
/// let executor = Executor::new(InMemoryExecutionLog::new()).middleware(notes.clone());
/// assert_eq!(executor.run(greet("Ada".into())).id("ada").await?, "Hello Ada!");
/// assert_eq!(*notes.0.lock().unwrap(), ["greeting of ada went well"]);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Middleware: Send + Sync + 'static {
    /// Around a flow's time in a slot: from its claim until it ends, is suspended or let go. A flow that waits is claimed
    /// again for each of its turns, by whichever worker.
    ///
    /// `flow` is the flow as it was claimed.
    ///
    /// # Errors
    ///
    /// An error in place of `next.run()` keeps the flow from running, and nothing is lost. One that is
    /// [permanent](Error::permanent), or a panic, stalls the flow, with the error as its reason. Any other lets go of the
    /// flow, for any worker to claim it again: after the time that the error [asks for](Error::with_retry_after), or
    /// else after a second. A message does not wake it before. After `next.run()`, what is returned is of no consequence.
    ///
    /// A flow whose [time limit](macro@crate::flow) has passed fails by it, and no middleware is asked.
    fn flow(&self, flow: &FlowInfo, next: NextFlow<'_>) -> impl Future<Output = Result<RunEnd>> + Send {
        let _ = flow;
        async { Ok(next.run().await) }
    }

    /// Around an attempt of a step. A body that waits for something durable begins again after its flow was suspended,
    /// and its middleware with it.
    ///
    /// `next.run()` says how the body ended: its error as it is shown by `Debug`, or its panic.
    ///
    /// # Errors
    ///
    /// An error in place of `next.run()` keeps the body from running: the attempt has failed with it, and is followed by
    /// another one unless it is [permanent](Error::permanent) or there are none left; so has it with a panic. Once the body
    /// has ended, nothing here changes what it came to, and when the step's time limit passes, what is left here is cut off.
    ///
    /// A middleware that drops `next.run()` half-way cuts the body off: that is a failed attempt, and for a step that runs
    /// [at most once](macro@crate::step#at-most-once) an unknown outcome.
    fn step(&self, step: &StepRun, next: NextStep<'_>) -> impl Future<Output = Result<()>> + Send {
        let _ = step;
        next.run()
    }
}

/// What a [`Middleware`] surrounds.
#[must_use = "what is surrounded does not run unless `run` is called"]
pub struct Next<'a, T>(BoxFuture<'a, T>);

/// What a [`Middleware`] surrounds of a flow.
pub type NextFlow<'a> = Next<'a, RunEnd>;

/// What a [`Middleware`] surrounds of a step.
pub type NextStep<'a> = Next<'a, Result<()>>;

impl<T> Next<'_, T> {
    /// Runs it, with the middleware inside, and says how it ended.
    pub fn run(self) -> impl Future<Output = T> + Send {
        self.0
    }
}

impl<T> fmt::Debug for Next<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Next")
    }
}

/// How a flow left its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunEnd {
    /// It is in this final state, or stalled.
    Ended(FlowState),
    /// It has begun again, with another value, and is in its queue.
    Continued,
    /// It waits in the log.
    Suspended,
    /// It was given back, or its lease is gone: it goes on elsewhere, unless it was cancelled.
    LetGo,
}

/// An attempt of a step.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StepRun {
    /// The flow, as it was when this worker loaded it.
    pub flow: Arc<FlowInfo>,
    /// The step's name.
    pub name: &'static str,
    /// Its place in the flow.
    pub path: CallPath,
    /// The number of the attempt, from 1.
    pub attempt: u32,
}

/// [`Middleware`], as it is kept.
trait Layer: Send + Sync {
    fn flow<'a>(&'a self, flow: &'a FlowInfo, next: NextFlow<'a>) -> BoxFuture<'a, Result<RunEnd>>;
    fn step<'a>(&'a self, step: &'a StepRun, next: NextStep<'a>) -> BoxFuture<'a, Result<()>>;
}

impl<M: Middleware> Layer for M {
    fn flow<'a>(&'a self, flow: &'a FlowInfo, next: NextFlow<'a>) -> BoxFuture<'a, Result<RunEnd>> {
        Box::pin(Middleware::flow(self, flow, next))
    }

    fn step<'a>(&'a self, step: &'a StepRun, next: NextStep<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(Middleware::step(self, step, next))
    }
}

/// All middleware of a worker, the outermost first.
#[derive(Clone, Default)]
pub(crate) struct Layers(Vec<Arc<dyn Layer>>);

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} layers", self.0.len())
    }
}

impl Layers {
    pub(crate) fn push(&mut self, middleware: impl Middleware) {
        self.0.push(Arc::new(middleware));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when there is middleware for this run of the flow. A flow whose time is up only fails: it would be refused
    /// again and again; if it cleans up, that is a run like any other.
    pub(crate) fn surround(&self, flow: &FlowInfo, clock: &dyn Clock) -> bool {
        !self.is_empty() && deadline_of(flow).is_none_or(|deadline| deadline > clock.now())
    }

    /// The body of a step, surrounded.
    pub(crate) fn step<'a, T, E>(&self, step: StepRun, body: BoxFuture<'a, Result<T, E>>) -> Surrounded<'a, T, E>
    where
        E: fmt::Debug,
        Result<T, E>: Send + 'a,
    {
        let (step, began, outcome) = (Arc::new(step), Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let (inner_began, inner_outcome, name) = (Arc::clone(&began), Arc::clone(&outcome), step.name);
        let mut next: BoxFuture<'a, Result<()>> = Box::pin(async move {
            inner_began.store(true, Ordering::Relaxed);
            let ended = AssertUnwindSafe(body).catch_unwind().await;
            let said = match &ended {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(catch_unwind(AssertUnwindSafe(|| Error::new(shorten(format!("{error:?}")))))
                    .unwrap_or_else(|panic| Error::panic(&format!("the error of step {name:?}"), &*panic))),
                Err(panic) => Err(Error::panic(&format!("step {name:?}"), &**panic)),
            };
            *inner_outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
            said
        });
        for layer in self.0.iter().rev() {
            let (layer, step) = (Arc::clone(layer), Arc::clone(&step));
            next = Box::pin(async move { layer.step(&step, Next(next)).await });
        }
        Surrounded { around: next, began, outcome, name }
    }

    /// A flow's time in its slot, surrounded. The error is why it was not run.
    pub(crate) async fn flow(&self, info: &FlowInfo, drive: impl Future<Output = Driven> + Send) -> Result<Driven> {
        let (began, refused) = (Mutex::new(None), Mutex::new(None));
        let mut next: BoxFuture<'_, RunEnd> = Box::pin(async {
            // Dropped before its end, it is let go.
            *began.lock().unwrap_or_else(PoisonError::into_inner) = Some(Driven::Lost);
            let driven = drive.await;
            let end = match &driven {
                Driven::Ended(state) => RunEnd::Ended(*state),
                Driven::Continued => RunEnd::Continued,
                Driven::Suspended(_) => RunEnd::Suspended,
                Driven::Released | Driven::Lost | Driven::Refused => RunEnd::LetGo,
            };
            *began.lock().unwrap_or_else(PoisonError::into_inner) = Some(driven);
            end
        });
        for layer in self.0.iter().rev() {
            let (inner, refused) = (next, &refused);
            next = Box::pin(async move {
                let said = AssertUnwindSafe(async { layer.flow(info, Next(inner)).await }).catch_unwind().await;
                let error = match said {
                    Ok(Ok(end)) => return end,
                    Ok(Err(error)) => error,
                    Err(panic) => Error::panic("a middleware of the flow", &*panic).into_permanent(),
                };
                tracing::warn!(flow = %info.id, %error, "a middleware ended with an error");
                refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                RunEnd::LetGo
            });
        }
        next.await;
        if let Some(driven) = began.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Ok(driven);
        }
        let refused = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
        Err(refused.unwrap_or_else(|| skipped("the flow")))
    }
}

/// Does with a flow that a middleware has refused what its error wants: lets go of it for a while, or stalls it.
pub(crate) async fn refused(
    log: &dyn ExecutionLog,
    lease: &Lease,
    build: &Arc<str>,
    error: &Error,
) -> Result<Driven, StorageError> {
    /// How long a flow is left alone when the error does not say, and at least.
    const PAUSE: Duration = Duration::from_secs(1);
    const PAUSE_MIN: Duration = Duration::from_millis(10);
    let mut commit = Commit::new(lease.clone(), 1);
    if error.is_retryable() {
        let at = log.clock().now().saturating_add(error.retry_after().unwrap_or(PAUSE).max(PAUSE_MIN));
        commit.next = storage::Next::suspend(Wake { at: Some(at), channels: Vec::new() });
        if log.commit(commit).await? == Committed::Awake {
            // Its time limit has passed, say.
            log.release(lease).await?;
        }
        tracing::info!(flow = %lease.flow, %error, until = %at, "a middleware refused the flow for now");
        return Ok(Driven::Released);
    }
    let reason = format!("a middleware refused the flow: {error:#}");
    commit.next = storage::Next::Stall { reason: reason.into(), build: Arc::clone(build) };
    log.commit(commit).await?;
    Ok(Driven::Ended(FlowState::Stalled))
}

/// The outcome of a body, or its panic.
type Ended<T, E> = thread::Result<Result<T, E>>;

/// The body of a step with middleware around it.
pub(crate) struct Surrounded<'a, T, E> {
    around: BoxFuture<'a, Result<()>>,
    /// The body has begun.
    began: Arc<AtomicBool>,
    /// What the body came to.
    outcome: Arc<Mutex<Option<Ended<T, E>>>>,
    name: &'static str,
}

/// Why a body has no outcome.
#[derive(Debug)]
pub(crate) enum NotDone {
    /// It was not run.
    Refused(Error),
    /// It was dropped in its midst.
    CutOff(Error),
}

impl<T, E> Surrounded<'_, T, E> {
    pub(crate) fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<Result<T, E>, NotDone>> {
        let said = match catch_unwind(AssertUnwindSafe(|| self.around.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(said)) => Ok(said),
            Err(panic) => Err(panic),
        };
        if let Some(outcome) = self.ended() {
            if let Err(panic) = said {
                let error = Error::panic("a middleware", &*panic);
                tracing::warn!(step = self.name, %error, "a middleware panicked after the body had ended");
            }
            return Poll::Ready(Ok(outcome));
        }
        let error = match said {
            Ok(said) => said.err(),
            Err(panic) => resume_unwind(panic),
        };
        Poll::Ready(Err(if self.began.load(Ordering::Relaxed) {
            NotDone::CutOff(error.unwrap_or_else(|| {
                Error::new(format!("a middleware dropped the body of step {:?} half-way", self.name))
            }))
        } else {
            NotDone::Refused(error.unwrap_or_else(|| skipped(&format!("step {:?}", self.name))))
        }))
    }

    /// What the body came to, if it has ended. Its panic goes on here.
    pub(crate) fn ended(&self) -> Option<Result<T, E>> {
        let ended = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(ended.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

fn skipped(what: &str) -> Error {
    Error::of(ErrorKind::Invalid, format!("a middleware did not run {what}, and gave no error for it")).into_permanent()
}
