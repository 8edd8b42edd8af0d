//! Undoing what was done when the rest fails.

use std::{
    fmt,
    future::Future,
    panic::Location,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    cleanup::Scope,
    context::Context,
    error::{Error, Result},
};

/// Runs `body`, and when it fails undoes what it has done so far: the compensations that it has registered with
/// [`Saga::undo`] run in reverse order, one after another.
///
/// A compensation is a call like any other in the flow's code, in nearly all cases a step: it is recorded, is tried
/// again by its own policy, and is not repeated after a crash once its outcome is durable. `retry = persistent` suits
/// what must succeed in the end.
///
/// They also run when the flow is cancelled, or its time is up, while `body` runs: the flow has ended only when all are done.
/// See [`on_cancel`](crate::on_cancel()) for what that means, which holds for sagas too: sagas within sagas, and several at the
/// same time, undo what was done last first. Sagas that fail by themselves at the same time undo at the same time, each in its
/// own order. Nothing undoes what a saga has done that has succeeded. A flow that fails for a
/// reason that its code is not told of ends at once, without any compensation.
///
/// # Errors
///
/// [`SagaError`] with the error of `body`. When a compensation fails for good, those that are left do not run, and the
/// error says so: a flow that fails with it goes on with the compensation that failed, and then with those that are left,
/// when it is [retried](crate::FlowHandle::retry). One that has undone everything stays as it is; only where there was
/// nothing to undo, a retry makes the call again that has failed.
///
/// With `?` it becomes an [`ergon::Error`](Error) where the error of `body` does; and
/// [`into_error`](SagaError::into_error) gives that error itself.
///
/// # Cancel safety
///
/// Dropping the future drops `body` and its compensations, which do not run. So a time limit belongs inside, around what
/// `body` does. And what holds the future must poll it: see [`on_cancel`](crate::on_cancel()).
///
/// # Examples
///
/// ```
/// use ergon::{prelude::*, saga};
///
/// #[flow]
/// async fn travel(days: u32) -> ergon::Result<String> {
///     let trip = saga(async |saga| {
///         let flight = book("flight".into(), days).await?;
///         saga.undo(move || release(flight));
///         let hotel = book("hotel".into(), days).await?;
///         saga.undo(move || release(hotel));
///         Ok(format!("flight {flight}, hotel {hotel}"))
///     });
///     Ok(trip.await?)
/// }
///
/// #[step(retry = none)]
/// async fn book(what: String, days: u32) -> ergon::Result<u64> {
///     if what == "hotel" && days > 9 { Err(ergon::Error::new("sold out")) } else { Ok(u64::from(days) * 100) }
/// }
///
/// #[step(retry = persistent)]
/// async fn release(number: u64) -> ergon::Result<()> {
///     println!("booking {number} is released");
///     Ok(())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// assert_eq!(executor.run(travel(7)).await?, "flight 700, hotel 700");
/// assert!(executor.run(travel(14)).id("long").await.unwrap_err().to_string().contains("sold out"));
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn saga<'a, T, E, F, B>(body: F) -> impl Future<Output = Result<T, SagaError<E>>>
where
    F: FnOnce(Saga<'a, E>) -> B,
    B: Future<Output = Result<T, E>>,
    E: fmt::Debug,
{
    let location = Location::caller();
    async move {
        let saga = Saga { compensations: Arc::default() };
        let mut body = pin!(Some(body(saga.clone())));
        let mut scope = Scope::open("a saga", location);
        let error = match scope.body(body.as_mut()).await {
            Some(Ok(value)) => return Ok(value),
            Some(Err(error)) => Some(error),
            // The flow was cancelled.
            None => None,
        };
        body.set(None);
        let failed = loop {
            // The lock is let go before the compensation is made.
            let Some((compensation, left)) = saga.last() else { break None };
            let compensation = scope.enter(compensation);
            if let Err(failed) = scope.run(pin!(compensation)).await {
                let flow = &Context::current("a saga").flow;
                if !flow.journal().is_behind() {
                    tracing::warn!(
                        flow = %flow.id,
                        "compensation {} of a saga failed, and those before it did not run: a retry of the flow goes on \
                         there",
                        left + 1
                    );
                }
                break Some(FailedCompensation { error: failed, number: left + 1 });
            }
        };
        match (error, failed) {
            (Some(error), compensation) if !scope.is_cancelled() => Err(SagaError { error, compensation }),
            (_, failed) => {
                match failed {
                    Some(FailedCompensation { error, number }) => {
                        scope.fail(&format_args!("compensation {number} of the saga at {location}: {error:?}"));
                    }
                    None => scope.close(),
                }
                // The flow ends without an outcome for whoever waits for this.
                std::future::pending().await
            }
        }
    }
}

type Compensation<'a, E> = Box<dyn FnOnce() -> BoxFuture<'a, Result<(), E>> + Send + 'a>;

/// What the body of a [`saga`] registers its compensations with. Clones are the same saga.
pub struct Saga<'a, E> {
    compensations: Arc<Mutex<Vec<Compensation<'a, E>>>>,
}

impl<'a, E> Saga<'a, E> {
    /// Registers what undoes something that was done. It is called, and what it returns is awaited, when the body of the
    /// saga fails, after all that were registered later.
    ///
    /// Register it when the step that it undoes has succeeded; or before that, if it does no harm then, where the step
    /// may have done its work though it fails, or where a combinator such as `try_join!` drops it when another fails.
    ///
    /// What borrows from the flow's value can be called at once, `move || self.release(number)`; what borrows from its own
    /// needs an `async` closure, `async move || self.release(&name).await`.
    pub fn undo<F, B, T>(&self, compensation: F)
    where
        F: FnOnce() -> B + Send + 'a,
        B: Future<Output = Result<T, E>> + Send + 'a,
        T: 'a,
        E: 'a,
    {
        let compensation = move || -> BoxFuture<'a, Result<(), E>> {
            let undone = compensation();
            Box::pin(async move { undone.await.map(drop) })
        };
        self.lock().push(Box::new(compensation));
    }

    /// The compensation that was registered last, and how many are left.
    fn last(&self) -> Option<(Compensation<'a, E>, usize)> {
        let mut compensations = self.lock();
        let last = compensations.pop()?;
        Some((last, compensations.len()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Compensation<'a, E>>> {
        self.compensations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> Clone for Saga<'_, E> {
    fn clone(&self) -> Self {
        Self { compensations: Arc::clone(&self.compensations) }
    }
}

impl<E> fmt::Debug for Saga<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saga").field("compensations", &self.lock().len()).finish()
    }
}

/// How a [`saga`] failed, and whether everything was undone.
///
/// It can be the error of a flow or a step, if `E` can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaError<E> {
    /// What the body failed with.
    pub error: E,
    /// The compensation that failed for good; `None` when all have run.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub compensation: Option<FailedCompensation<E>>,
}

/// A compensation of a [`saga`] that failed for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCompensation<E> {
    /// What it failed with.
    pub error: E,
    /// Its number among those of the saga as they were registered, from 1. Those with higher numbers have run, those
    /// with lower ones have not.
    pub number: usize,
}

fn none<T>() -> Option<T> {
    None
}

impl<E> SagaError<E> {
    /// What the body failed with. Whether everything was undone is lost with the rest: look at
    /// [`compensation`](Self::compensation) first.
    pub fn into_error(self) -> E {
        self.error
    }
}

impl<E: fmt::Display> fmt::Display for SagaError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)?;
        self.compensation.as_ref().map_or(Ok(()), |compensation| write!(f, "; {compensation}"))
    }
}

impl<E: fmt::Display> fmt::Display for FailedCompensation<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { error, number } = self;
        write!(f, "compensation {number} failed too, and those before it did not run: {error}")
    }
}

// Not a `std::error::Error`, for it becomes an `ergon::Error` in its own way, with the kind of the body's error.
impl<E: Into<Error>> From<SagaError<E>> for Error {
    fn from(SagaError { error, compensation }: SagaError<E>) -> Self {
        let error = error.into();
        match compensation {
            None => error,
            Some(FailedCompensation { error: failed, number }) => {
                let failed = FailedCompensation { error: failed.into(), number };
                error.and(&failed)
            }
        }
    }
}
