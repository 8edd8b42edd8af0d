//! Code that cleans up when its flow is cancelled.

use std::{
    fmt,
    future::Future,
    panic::Location,
    pin::{Pin, pin},
    sync::Arc,
    task::{self, Poll},
};

use crate::{
    context::{Context, FlowContext, Halt},
    error::{Error, ErrorKind},
    journal::{CleanupCause, Opened, Place, ScopeId},
};

/// Runs `body`, and if the flow is cancelled meanwhile, or its time is up, `cleanup` in its place, with the reason.
///
/// The clean-up is code of the flow like any other: it may call steps, wait, and start children, and is recorded. After a
/// crash it goes on where it was, on whichever worker. Only when it is over the flow is cancelled for good; until then
/// [`Admin::describe`](crate::Admin::describe) calls it *cancelling*. A second cancellation changes nothing, and the time limit
/// of the flow does not count any more.
///
/// A scope that is left has nothing to clean up: when `body` has ended, or this future was dropped. Of several that are open,
/// those of [sagas](crate::saga) included, the one that was opened last cleans up first, then the one before it, one after
/// another; of those opened at the same time, in branches of a `join!`, the one that comes last in the source. Whatever else
/// the flow's code was about ends with the cancellation: nothing is recorded of it any more, and no outcome comes.
///
/// Outcomes that were durable when the flow was cancelled are known to the code as it cleans up; those that were not, never
/// were: a step that was running may have done its work all the same, and its worker has let go of it when the clean-up
/// begins, or has lost its lease. (A blocking step is a thread, which nobody can stop.)
///
/// Steps in `cleanup` are tried again by their own policy. When one fails for good, and `cleanup` with it, those that are left
/// do not run, and the flow has failed, for a reason that names both: a [retry](crate::FlowHandle::retry) makes the clean-up go
/// on there. [`Admin::abandon`](crate::Admin::abandon) ends a flow whose clean-up cannot end.
///
/// In the body of a step, which has [`cancelled`](crate::cancelled()), and in code that cleans up, this runs `body` and nothing
/// else.
///
/// The code is brought to where it was before it cleans up. When it waits for something that is not durable (a channel, a
/// task) before it comes to its scopes, and for nothing else, that is waited for, for a moment; then the flow is stalled, and a
/// retry cleans up. When another branch waits for a call meanwhile, nothing tells that a scope is missing, and the flow is
/// cancelled without it. Such a wait belongs into a step, or behind what is to be cleaned up.
///
/// # Panics
///
/// Outside a flow, when it is polled.
///
/// # Cancel safety
///
/// Dropping the future drops `body`, and its clean-up does not run. So a flow should not hold it without polling it: a
/// cancellation that finds it so fails the flow, and says where the scope is.
///
/// # Examples
///
/// ```
/// use ergon::{on_cancel, prelude::*};
///
/// #[flow]
/// async fn exhibit(piece: String) -> ergon::Result<()> {
///     lend(piece.clone()).await?;
///     on_cancel(sleep(Duration::from_secs(90 * 86_400)), async |reason| {
///         println!("closed early: {reason}");
///         give_back(piece.clone()).await
///     })
///     .await;
///     give_back(piece.clone()).await
/// }
///
/// #[step]
/// async fn lend(piece: String) -> ergon::Result<()> {
///     Ok(println!("{piece} is lent"))
/// }
///
/// #[step(retry = persistent)]
/// async fn give_back(piece: String) -> ergon::Result<()> {
///     Ok(println!("{piece} is back"))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<exhibit>().start().await?;
/// let show = Scheduler::new(log).schedule(exhibit("a vase".into())).await?;
/// # while show.history().await?.records.is_empty() { tokio::task::yield_now().await }
/// show.cancel("water damage").await?;
/// # if show.history().await?.info.cleanup != ergon::storage::Cleanup::None {
/// assert_eq!(show.result().await.unwrap_err().to_string(), "the flow was cancelled: water damage");
/// assert_eq!(show.history().await?.calls().last().unwrap().name.as_ref(), "give_back");
/// # }
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn on_cancel<B, F, C, T, E>(body: B, cleanup: F) -> impl Future<Output = B::Output>
where
    B: Future,
    F: FnOnce(Arc<str>) -> C,
    C: Future<Output = Result<T, E>>,
    E: fmt::Debug,
{
    let location = Location::caller();
    async move {
        let mut body = pin!(Some(body));
        let mut scope = Scope::open("ergon::on_cancel()", location);
        if let Some(output) = scope.body(body.as_mut()).await {
            return output;
        }
        body.set(None);
        let reason = scope.reason();
        let cleanup = scope.enter(|| cleanup(reason));
        if let Err(error) = scope.run(pin!(cleanup)).await {
            scope.fail(&format_args!("{error:?}"));
        } else {
            scope.close();
        }
        // The flow ends without an outcome for whoever waits for this.
        std::future::pending().await
    }
}

/// A scope of the flow's code that has something to clean up, until it is closed or dropped.
pub(crate) struct Scope {
    flow: Arc<FlowContext>,
    opened: Opened,
    /// In the flow's own code, not in the body of a step.
    is_flows: bool,
}

impl Scope {
    pub(crate) fn open(what: &str, location: &'static Location<'static>) -> Self {
        let context = Context::current(what);
        let is_flows = context.place == Place::Flow;
        let opened = if is_flows { context.flow.journal().open_cleanup_scope(location) } else { Opened::Inside };
        Self { flow: context.flow, opened, is_flows }
    }

    fn id(&self) -> Option<ScopeId> {
        match self.opened {
            Opened::Scope(id) => Some(id),
            Opened::Inside | Opened::Over => None,
        }
    }

    /// Runs what is to be cleaned up after, until it ends; `None` when it is the turn of this scope to do so.
    pub(crate) async fn body<B: Future>(&mut self, mut body: Pin<&mut Option<B>>) -> Option<B::Output> {
        let mut has_ended = false;
        std::future::poll_fn(move |cx| {
            if matches!(self.opened, Opened::Over) {
                return Poll::Pending;
            }
            if let Opened::Scope(id) = &mut self.opened {
                let mut journal = self.flow.journal();
                *id = journal.put_within(*id);
                if journal.is_turn_of(*id, cx.waker()) {
                    return Poll::Ready(None);
                }
            }
            // Scopes within it are polled with it, and theirs is the turn before.
            let polled = match body.as_mut().as_pin_mut() {
                Some(body) if !has_ended => self.within(|| body.poll(cx)),
                _ => return Poll::Pending,
            };
            let Poll::Ready(output) = polled else { return Poll::Pending };
            if self.is_cancelled() {
                // It has ended for a reason that is not durable.
                has_ended = true;
                return Poll::Pending;
            }
            Poll::Ready(Some(output))
        })
        .await
    }

    /// Polls code whose scopes are within this one.
    fn within<R>(&self, poll: impl FnOnce() -> R) -> R {
        struct Restore<'a>(&'a FlowContext, Option<ScopeId>);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.journal().set_scope(self.1);
            }
        }
        let Some(id) = self.id() else { return poll() };
        let before = self.flow.journal().set_scope(Some(id));
        let _restore = Restore(&self.flow, before);
        poll()
    }

    /// Runs code that cleans up: its calls are not ended by a cancellation.
    pub(crate) async fn run<C: Future>(&self, mut cleanup: Pin<&mut C>) -> C::Output {
        std::future::poll_fn(move |cx| self.poll(cx, |cx| cleanup.as_mut().poll(cx))).await
    }

    fn poll<T>(&self, cx: &mut task::Context<'_>, poll: impl FnOnce(&mut task::Context<'_>) -> Poll<T>) -> Poll<T> {
        if let Some(id) = self.id() {
            self.flow.journal().is_turn_of(id, cx.waker());
        }
        self.enter(|| poll(cx))
    }

    /// Makes what cleans up.
    pub(crate) fn enter<R>(&self, make: impl FnOnce() -> R) -> R {
        struct Restore<'a>(&'a FlowContext, bool);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.journal().set_inside(self.1);
            }
        }
        if !self.is_flows {
            return make();
        }
        let before = self.flow.journal().set_inside(true);
        let _restore = Restore(&self.flow, before);
        make()
    }

    /// True when the flow was cancelled, or its time is up: what comes of this scope is nobody's any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.id().is_some() && self.flow.journal().is_cleaning_up()
    }

    pub(crate) fn reason(&self) -> Arc<str> {
        self.flow.journal().cleanup_cause().map(|cause| cause.reason).unwrap_or_default()
    }

    /// Nothing is left to be cleaned up here.
    pub(crate) fn close(&mut self) {
        if let Some(id) = self.id() {
            self.flow.journal().close_cleanup_scope(id);
            self.opened = Opened::Inside;
        }
    }

    /// The clean-up has failed, and the flow with it.
    pub(crate) fn fail(&self, why: &dyn fmt::Display) {
        let cause = self.flow.journal().cleanup_cause();
        self.flow.halt(Halt::Fault(cleanup_failed(cause.as_ref(), why)));
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.close();
    }
}

/// The error of a flow whose clean-up has failed.
pub(crate) fn cleanup_failed(cause: Option<&CleanupCause>, why: &dyn fmt::Display) -> Error {
    const CHARS_MAX: usize = 300;
    let cause = match cause {
        Some(CleanupCause { is_time_limit: true, reason }) => reason.to_string(),
        Some(CleanupCause { reason, .. }) if reason.is_empty() => "the flow was cancelled".to_owned(),
        Some(CleanupCause { reason, .. }) => {
            let shown: String = reason.chars().take(CHARS_MAX).collect();
            let more = if shown.len() < reason.len() { "…" } else { "" };
            format!("the flow was cancelled: {shown}{more}")
        }
        None => "the flow ended".to_owned(),
    };
    Error::of(ErrorKind::Cleanup, format!("{cause}; its clean-up failed: {why}")).into_permanent()
}
