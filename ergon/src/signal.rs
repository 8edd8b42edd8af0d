//! Signals: values that reach a flow from outside.

use std::{
    future::Future,
    marker::PhantomData,
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use ergon_storage::{CallKind, Channel, Phase};
use serde::de::DeserializeOwned;

use crate::{
    codec,
    context::{Context, Halt, invalid},
    error::Error,
    fingerprint::{Sequences, fingerprint},
    journal::{CallId, CallKey, CallPoll, Spec},
};

/// The longest name of a signal, in bytes.
pub const SIGNAL_NAME_BYTES_MAX: usize = Channel::BYTES_MAX - "signal:".len();

/// Waits for a signal of this name, sent with [`FlowHandle::signal`](crate::FlowHandle::signal) or
/// [`Scheduler::signal`](crate::Scheduler::signal).
///
/// Signals are durable once accepted: one that was sent before the wait is taken at once. Those of one name are
/// taken first in, first out, each at most once. A wait that is dropped takes nothing. Works in flows and in
/// steps.
///
/// A signal is a message to the [mailbox](crate::Mailbox) of its name, which gives the name a type of its own and can
/// be sent to from inside flows.
///
/// # Errors
///
/// When the content cannot be read as a `T`; the signal has then been taken.
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
/// async fn order() -> ergon::Result<String> {
///     let by: String = signal("approval").await?;
///     Ok(format!("approved by {by}"))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<order>().start().await?;
/// let order = Scheduler::new(log).schedule(order()).await?;
/// order.signal("approval", "Ada").await?; // whether or not the flow waits for it yet
/// assert_eq!(order.result().await?, "approved by Ada");
/// worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn signal<T: DeserializeOwned>(name: &str) -> Signal<T> {
    let context = Context::current("ergon::signal()");
    if let Err(error) = check_name(name) {
        context.flow.halt(Halt::Fault(error));
    }
    let key = CallKey { kind: CallKind::Signal, name: Arc::from(name), args_hash: hash(None) };
    let call = context.call(key, Spec::Signal { limit: None }, Location::caller());
    Signal { wait: Wait { context, call, done: false }, name: name.into(), value: PhantomData }
}

/// A second name of [`signal`](fn@signal), for those who know it from other frameworks; new code says `signal`.
///
/// # Errors
///
/// As [`signal`](fn@signal).
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
/// async fn order() -> ergon::Result<String> {
///     await_external_signal("approval").await
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<order>().start().await?;
/// let order = Scheduler::new(log).schedule(order()).await?;
/// order.signal("approval", "Ada").await?;
/// assert_eq!(order.result().await?, "Ada");
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn await_external_signal<T: DeserializeOwned>(name: &str) -> Signal<T> {
    signal(name)
}

/// Refuses what cannot be the name of a signal.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > SIGNAL_NAME_BYTES_MAX {
        let len = name.len();
        return Err(invalid(format!("a signal's name has 1 to {SIGNAL_NAME_BYTES_MAX} bytes, {name:?} has {len}")));
    }
    Ok(())
}

fn hash(limit: Option<Duration>) -> u64 {
    fingerprint(&limit, Sequences::Ordered).unwrap_or_default()
}

/// The future of [`signal`].
#[derive(Debug)]
#[must_use = "a wait does nothing unless it is awaited"]
pub struct Signal<T> {
    wait: Wait,
    name: Arc<str>,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Signal<T> {
    /// The same wait with a time limit, counted from the call of [`signal`]; the future then resolves to `None`
    /// once the limit has passed. A signal that arrived in time is taken even when the flow comes back late.
    ///
    /// Must follow on the call at once, before anything is awaited.
    ///
    /// # Examples
    ///
    /// ```
    /// use ergon::prelude::*;
    ///
    /// #[flow]
    /// async fn order() -> ergon::Result<String> {
    ///     match signal::<String>("approval").timeout(Duration::from_millis(20)).await? {
    ///         Some(by) => Ok(format!("approved by {by}")),
    ///         None => Ok("nobody answered".into()),
    ///     }
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let executor = Executor::new(InMemoryExecutionLog::new());
    /// assert_eq!(executor.run(order()).await?, "nobody answered");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn timeout(self, limit: Duration) -> SignalTimeout<T> {
        let Wait { context, call, .. } = &self.wait;
        let known = context.flow.journal().set_limit(*call, limit, hash(Some(limit)));
        if !known {
            context.flow.halt(Halt::Fault(invalid(
                "a signal's time limit must be set where the wait is made, before anything is awaited",
            )));
        }
        SignalTimeout { signal: self }
    }

    fn open(&self, payload: &[u8]) -> Result<T, Error> {
        codec::decode(format_args!("the signal {:?}", self.name), payload)
    }
}

impl<T: DeserializeOwned> Future for Signal<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match this.wait.poll(cx) {
            Some((_, payload)) => Poll::Ready(this.open(&payload)),
            None => Poll::Pending,
        }
    }
}

/// The future of [`Signal::timeout`].
#[derive(Debug)]
#[must_use = "a wait does nothing unless it is awaited"]
pub struct SignalTimeout<T> {
    signal: Signal<T>,
}

impl<T: DeserializeOwned> Future for SignalTimeout<T> {
    type Output = Result<Option<T>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let signal = &mut self.get_mut().signal;
        match signal.wait.poll(cx) {
            Some((Phase::Failed, _)) => Poll::Ready(Ok(None)),
            Some((_, payload)) => Poll::Ready(signal.open(&payload).map(Some)),
            None => Poll::Pending,
        }
    }
}

/// A call that waits.
#[derive(Debug)]
struct Wait {
    context: Context,
    call: CallId,
    done: bool,
}

impl Wait {
    fn poll(&mut self, cx: &mut task::Context<'_>) -> Option<(Phase, bytes::Bytes)> {
        assert!(!self.done, "a wait for a signal was polled after it had ended");
        let poll = self.context.flow.journal().poll(self.call, cx.waker());
        let CallPoll::Ready(outcome) = poll else { return None };
        self.done = true;
        Some((outcome.phase, outcome.payload))
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if !self.done {
            self.context.flow.journal().drop_call(self.call);
        }
    }
}
