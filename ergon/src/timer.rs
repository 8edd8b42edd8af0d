//! Durable timers.

use std::{
    future::Future,
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use ergon_storage::{CallKind, Record, Timestamp};

use crate::{
    context::{Context, Halt, invalid},
    fingerprint::{Sequences, fingerprint},
    journal::{CallId, CallKey, CallPoll, Due, Spec},
};

/// A durable timer that is due after `duration`, counted from this call.
///
/// The instant is recorded: a restart neither shortens nor prolongs the wait, and a timer that became due while
/// nothing ran fires at once. It is never early. Works in flows and in steps. A duration of zero is due at once;
/// one that ends after the year 9999 fails the flow.
///
/// # Panics
///
/// Outside a flow.
///
/// # Cancel safety
///
/// Dropping the future gives the timer up.
///
/// # Examples
///
/// ```
/// use ergon::prelude::*;
///
/// #[flow]
/// async fn remind(name: String) -> ergon::Result<String> {
///     sleep(Duration::from_millis(20)).await; // could be a month, in which nothing needs to run
///     Ok(format!("{name}, it is time"))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let text = Executor::new(InMemoryExecutionLog::new()).run(remind("Ada".into())).await?;
/// assert_eq!(text, "Ada, it is time");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn sleep(duration: Duration) -> Sleep {
    timer("sleep", Due::After(duration), Location::caller())
}

/// A durable timer that is due at `at`; at once when that has passed.
///
/// As [`sleep`] otherwise.
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
/// #[flow]
/// async fn wait() -> ergon::Result<bool> {
///     let due = now().saturating_add(Duration::from_millis(20));
///     sleep_until(due).await;
///     Ok(now() >= due) // never early
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// assert!(Executor::new(InMemoryExecutionLog::new()).run(wait()).await?);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn sleep_until(at: impl Into<Timestamp>) -> Sleep {
    timer("sleep_until", Due::At(at.into()), Location::caller())
}

/// A second name of [`sleep`], for those who know it from other frameworks; new code says `sleep`.
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
/// async fn boil() -> ergon::Result<String> {
///     schedule_timer(Duration::from_millis(5)).await;
///     Ok("done".into())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// assert_eq!(Executor::new(InMemoryExecutionLog::new()).run(boil()).await?, "done");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn schedule_timer(duration: Duration) -> Sleep {
    sleep(duration)
}

/// The same as [`sleep`], under a name of its own in the history; 1 to 255 bytes.
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
/// async fn cool() -> ergon::Result<()> {
///     schedule_timer_named("cooling", Duration::from_millis(5)).await;
///     Ok(())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// Executor::new(log.clone()).run(cool()).id("oven").await?;
/// let history = Scheduler::new(log).history(&FlowId::new("oven")?).await?;
/// assert_eq!(&*history.calls()[0].name, "cooling");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn schedule_timer_named(name: &str, duration: Duration) -> Sleep {
    timer(name, Due::After(duration), Location::caller())
}

#[track_caller]
fn timer(name: &str, due: Due, location: &'static Location<'static>) -> Sleep {
    let context = Context::current("a durable timer");
    if name.is_empty() || name.len() > Record::NAME_BYTES_MAX {
        let message = format!("a timer's name has 1 to {} bytes, {name:?} has {}", Record::NAME_BYTES_MAX, name.len());
        context.flow.halt(Halt::Fault(invalid(message)));
    }
    let args_hash = match due {
        Due::After(duration) => fingerprint(&(0_u8, duration), Sequences::Ordered),
        Due::At(at) => fingerprint(&(1_u8, at), Sequences::Ordered),
    };
    let key = CallKey { kind: CallKind::Timer, name: Arc::from(name), args_hash: args_hash.unwrap_or_default() };
    let call = context.call(key, Spec::Timer(due), location);
    Sleep { context, call, done: false }
}

/// The future of [`sleep`].
#[derive(Debug)]
#[must_use = "a timer does nothing unless it is awaited"]
pub struct Sleep {
    context: Context,
    call: CallId,
    done: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(());
        }
        let poll = this.context.flow.journal().poll(this.call, cx.waker());
        match poll {
            CallPoll::Ready(_) => {
                this.done = true;
                Poll::Ready(())
            }
            CallPoll::Pending | CallPoll::Run { .. } | CallPoll::Lost { .. } => Poll::Pending,
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if !self.done {
            self.context.flow.journal().drop_call(self.call);
        }
    }
}
