//! Flows that begin again.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{self, Poll},
};

use bytes::Bytes;

use crate::{
    codec,
    context::{Context, Halt, invalid},
    error::Error,
    flow::Flow,
    journal::Place,
};

/// Ends this run of the flow and begins the next one with another value of its type: for flows that go on for ever, or
/// for so long that their histories would become too long to be replayed.
///
/// The future never resolves, and the flow's code does not go on. Its type is that of the flow's own result, so that it
/// can be returned:
///
/// ```
/// use ergon::prelude::*;
///
/// const EVENTS: Mailbox<String> = Mailbox::new("events");
///
/// #[flow_type]
/// struct Digest { sent: u32 }
///
/// #[flow_type]
/// impl Digest {
///     /// Sends a digest of every three events, for as long as there are any.
///     #[flow]
///     async fn run(&self) -> ergon::Result<u32> {
///         let mut events = Vec::new();
///         while events.len() < 3 {
///             match EVENTS.recv_timeout(Duration::from_millis(50)).await? {
///                 Some(event) => events.push(event),
///                 None => return Ok(self.sent),
///             }
///         }
///         self.send(events).await?;
///         continue_as_new(Self { sent: self.sent + 1 }).await
///     }
///
///     #[step]
///     async fn send(&self, events: Vec<String>) -> ergon::Result<()> {
///         println!("{}", events.join(", "));
///         Ok(())
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let digest = Scheduler::new(log.clone()).schedule(Digest { sent: 0 }).id("digest").await?;
/// for number in 0..7 {
///     digest.send(&EVENTS, &format!("event {number}")).await?;
/// }
/// let worker = Worker::new(log).register::<Digest>().start().await?;
/// assert_eq!(digest.result().await?, 2);
/// assert_eq!(digest.status().await?.run, 3);
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A flow that is a function is called for its next value: `continue_as_new(digest(sent + 1)).await`.
///
/// # What a run is
///
/// | | |
/// |---|---|
/// | of the run | its value and its history, which the next run begins without; random numbers and ids, [`idempotency_key`](crate::idempotency_key), the changes of the code that it [has taken up](crate::patched) |
/// | of the flow | its id, queue, priority, parent and [labels](crate::set_label), which stay until a run removes them, its time limit, which counts over all runs, and its mailboxes: what no run has taken waits for the next one, in its order, and senders' keys stay known; so what is kept for a flow still grows with the messages that it receives, see [`Mailbox`](crate::Mailbox) |
///
/// The end of a run, what it has taken from the mailboxes and the beginning of the next one are one commit: whatever
/// crashes, no message is lost or taken twice, and each run begins once. The next run goes through the queue. Handles
/// and references to the flow go on working; its [`result`](crate::FlowHandle::result) is that of its last run.
/// [`run_number`](crate::run_number) tells the runs apart.
///
/// # Children
///
/// Children that the run has started go on, belong to the flow, and are cancelled with it, but later runs do not hear of
/// their ends: await what is needed first. A [`FlowRef`](crate::FlowRef) in the next value keeps a child in reach. A child
/// that is given an id which a living child of an earlier run has is refused with an error of the kind
/// [`Conflict`](crate::ErrorKind::Conflict); ids that are not given are distinct over the runs.
///
/// # Errors
///
/// None: but the flow fails when the value is of another flow type or version than the flow, or too large.
///
/// # Panics
///
/// When it is polled outside a flow or in a step.
///
/// # Cancel safety
///
/// Nothing happens before the future is first polled; after that, dropping it changes nothing.
pub fn continue_as_new<F: Flow>(next: F) -> ContinueAsNew<F> {
    ContinueAsNew { next: Some(next), flow: PhantomData }
}

/// The future of [`continue_as_new`].
#[must_use = "a run ends when this is awaited"]
pub struct ContinueAsNew<F> {
    next: Option<F>,
    flow: PhantomData<fn() -> F>,
}

// Nothing is pinned in place.
impl<F> Unpin for ContinueAsNew<F> {}

impl<F: Flow> Future for ContinueAsNew<F> {
    type Output = Result<F::Output, F::Error>;

    fn poll(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<Self::Output> {
        let context = Context::current("ergon::continue_as_new()");
        assert!(
            context.place == Place::Flow,
            "a flow begins again, not a step; return from the step and call continue_as_new() in the flow"
        );
        if let Some(next) = self.get_mut().next.take() {
            context.flow.halt(match input(&context, &next) {
                Ok(input) => Halt::Continue(input),
                Err(error) => Halt::Fault(error),
            });
        }
        Poll::Pending
    }
}

/// The value of the next run, if it is one of the flow's own type.
fn input<F: Flow>(context: &Context, next: &F) -> Result<Bytes, Error> {
    let flow = &context.flow;
    let (name, version) = (<F as Flow>::NAME, <F as Flow>::VERSION);
    let (own_name, own_version) = (&flow.flow_type.0, flow.flow_type.1);
    if (&**own_name, own_version) != (name, version) {
        return Err(invalid(format!(
            "the flow is of type {own_name:?} version {own_version} and cannot begin again as {name:?} version \
             {version}; give continue_as_new() a value of its own type, or start the other flow as a child"
        )));
    }
    if flow.journal().is_cleaning_up() {
        return Err(invalid("a flow that cleans up after its cancellation has no next run"));
    }
    codec::encode_sorted("the value of the next run", next, flow.env.payload_bytes_max)
}

impl<F> fmt::Debug for ContinueAsNew<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContinueAsNew").finish_non_exhaustive()
    }
}
