//! Steps that hear of the cancellation of their flow.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
};

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::context::{Context, FlowContext};

/// The cancellation of the flow that this step belongs to: await it, beside what the step does, to stop what goes on
/// elsewhere on its account, such as a process, a remote job or a half-written file. It resolves to the reason.
///
/// A cancelled flow is over from that instant: nothing of it is recorded any more, neither the outcome of this step. The
/// worker hears of it within a third of its lease, or with the next thing that it would
/// record. The body of a step that has called this may then go on until it ends, but no longer than
/// [`Worker::cancel_grace`](crate::Worker::cancel_grace), and when none is left, the flow's other steps are dropped, as
/// they are at once when none has called it. Calls of steps, timers or signals that it makes then never begin. Nobody is told when the process dies, or when the worker is shut down or loses its lease for another reason: the
/// body may begin anew after that, or not. So this is for the sake of a clean house, and not for what must happen.
///
/// It never resolves otherwise. In a blocking step, see [`Cancellation::reason`].
///
/// # Panics
///
/// Outside a step.
///
/// # Cancel safety
///
/// Dropping the future changes nothing; the body goes on to count as one that wants time.
///
/// # Examples
///
/// ```
/// use ergon::{cancelled, prelude::*};
///
/// #[step]
/// async fn render(scene: String) -> ergon::Result<String> {
///     let job = farm::submit(&scene).await?;
///     tokio::select! {
///         image = farm::image_of(job) => image,
///         reason = cancelled() => {
///             farm::stop(job, &reason).await?;
///             Err(ergon::Error::permanent("stopped")) // nobody reads it any more
///         }
///     }
/// }
/// # mod farm {
/// #     pub async fn submit(_: &str) -> ergon::Result<u32> { Ok(7) }
/// #     pub async fn image_of(job: u32) -> ergon::Result<String> { Ok(job.to_string()) }
/// #     pub async fn stop(_: u32, _: &str) -> ergon::Result<()> { Ok(()) }
/// # }
/// ```
#[track_caller]
pub fn cancelled() -> Cancellation {
    let context = Context::current("ergon::cancelled()");
    let Some(step) = &context.step else {
        panic!(
            "ergon::cancelled() was called in a flow's own code, which ends when the flow is cancelled; call it in a step"
        )
    };
    step.watches.get_or_init(|| Watching::new(&context.flow));
    let told = context.flow.cancellation();
    let mut tells = told.clone();
    let future = Box::pin(async move {
        loop {
            if let Some(reason) = tells.borrow_and_update().clone() {
                return reason;
            }
            if tells.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    });
    Cancellation { told, future }
}

/// The future of [`cancelled`]: resolves to the reason.
#[must_use = "await it, or ask for its reason"]
pub struct Cancellation {
    told: watch::Receiver<Option<Arc<str>>>,
    future: BoxFuture<'static, Arc<str>>,
}

impl Cancellation {
    /// The reason, if the flow was cancelled by now, as far as its worker knows: for a blocking step to look at now and
    /// then. It may be empty.
    pub fn reason(&self) -> Option<Arc<str>> {
        self.told.borrow().clone()
    }
}

impl Future for Cancellation {
    type Output = Arc<str>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Arc<str>> {
        self.future.as_mut().poll(cx)
    }
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancellation").field(&self.reason()).finish()
    }
}

/// A running attempt that watches for the cancellation, until it ends.
#[derive(Debug)]
pub(crate) struct Watching(Arc<FlowContext>);

impl Watching {
    fn new(flow: &Arc<FlowContext>) -> Self {
        flow.watched(1);
        Self(Arc::clone(flow))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watched(-1);
    }
}
