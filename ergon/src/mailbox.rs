//! Mailboxes: typed queues of messages, and sending to them from inside flows.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{self, Poll},
    time::Duration,
};

use bytes::Bytes;
use ergon_storage::{Channel, ErrorKind as StorageErrorKind, FlowId, NewMessage};
use futures::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    codec,
    context::{Context, Halt, invalid},
    drive::persist,
    error::{Error, ErrorKind, Result},
    retry::RetryPolicy,
    signal::{self, Signal, SignalTimeout},
    step::{ArgsHash, Step, StepSpec, step},
};

/// A named first-in first-out queue of messages that each flow has, with the type of its messages.
///
/// It is only the name and the type: make it a constant that the flow and those who send to it share. A flow has as
/// many mailboxes as it takes from and others send to; they need not be declared.
///
/// A message is durable once accepted. Each is taken at most once, in the order of arrival, and is never lost: one that
/// comes before its wait is kept, and a wait that is dropped, say because it lost a `select!`, takes nothing. What is
/// left when the flow ends is dropped.
///
/// | | to send | to take |
/// |---|---|---|
/// | outside | [`FlowHandle::send`](crate::FlowHandle::send) or [`Scheduler::send`](crate::Scheduler::send); with a key [`FlowHandle::send_once`](crate::FlowHandle::send_once) | |
/// | in a flow or a step | [`send`]; with a key [`send_once`] | [`recv`](Self::recv), [`recv_timeout`](Self::recv_timeout), [`try_recv`](Self::try_recv) |
///
/// A flow can receive 16,777,215 messages in its life, of all mailboxes and over all its [runs](crate::continue_as_new), the
/// ends of its children included; on PostgreSQL and SQLite what is sent after that is refused as too large. The keys of
/// `send_once` are kept for as long as the flow is: each costs its own length, and nothing else that a flow which goes on for
/// ever has received does. So have such a flow end after some million messages, and another one with a new id take its
/// place.
///
/// A signal is a message to the mailbox of its name: [`signal(name)`](crate::signal()) takes from
/// `Mailbox::new(name)`, and what [`FlowHandle::signal`](crate::FlowHandle::signal) sends arrives there.
///
/// # Examples
///
/// ```
/// use ergon::prelude::*;
///
/// const BIDS: Mailbox<u32> = Mailbox::new("bids");
///
/// /// Takes bids for a day, and returns the highest.
/// #[flow]
/// async fn auction() -> ergon::Result<Option<u32>> {
///     let mut highest = None;
///     while let Some(bid) = BIDS.recv_timeout(Duration::from_millis(50)).await? {
///         highest = highest.max(Some(bid));
///     }
///     Ok(highest)
/// }
///
/// /// Bids in another flow's auction.
/// #[flow]
/// async fn bidder(at: FlowId, cents: u32) -> ergon::Result<()> {
///     send(&at, &BIDS, &cents).await
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let scheduler = Scheduler::new(log.clone());
/// let auction = scheduler.schedule(auction()).await?;
/// auction.send(&BIDS, &5).await?;
/// auction.send_once(&BIDS, &7, "bid-1").await?;
/// let bidder = scheduler.schedule(bidder(auction.id().clone(), 9)).await?;
///
/// let worker = Worker::new(log).register::<auction>().register::<bidder>().start().await?;
/// bidder.result().await?;
/// assert_eq!(auction.result().await?, Some(9));
/// assert!(auction.send(&BIDS, &11).await.is_err()); // it has ended
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mailbox<T> {
    name: Cow<'static, str>,
    message: PhantomData<fn(T) -> T>,
}

impl<T> Mailbox<T> {
    /// The mailbox of this name, 1 to [`SIGNAL_NAME_BYTES_MAX`](crate::SIGNAL_NAME_BYTES_MAX) bytes.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), message: PhantomData }
    }

    /// As [`new`](Self::new), for a name that is made at run time.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Cow::Owned(name.into()), message: PhantomData }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<T: DeserializeOwned> Mailbox<T> {
    /// Waits for the next message and takes it. For this flow's own mailbox, in flows and in steps.
    ///
    /// # Errors
    ///
    /// When the content cannot be read as a `T`; the message has then been taken.
    ///
    /// # Panics
    ///
    /// Outside a flow.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes nothing.
    #[track_caller]
    pub fn recv(&self) -> Signal<T> {
        signal::signal(&self.name)
    }

    /// As [`recv`](Self::recv), for `limit` at most, counted from this call; then the future resolves to `None`. A
    /// message that arrived in time is taken even when the flow comes back late.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    ///
    /// # Panics
    ///
    /// Outside a flow.
    #[track_caller]
    pub fn recv_timeout(&self, limit: Duration) -> SignalTimeout<T> {
        self.recv().timeout(limit)
    }

    /// Takes the next message if one is there. The answer is recorded, that there was none too.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    ///
    /// # Panics
    ///
    /// Outside a flow.
    #[track_caller]
    pub fn try_recv(&self) -> SignalTimeout<T> {
        self.recv_timeout(Duration::ZERO)
    }
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), message: PhantomData }
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mailbox").field(&self.name).finish()
    }
}

/// Sends a message to a mailbox of a flow, from inside another flow, or the same, or from a step: exactly once.
///
/// It is a call of its own in the history, and its place there is the message's idempotency key: when the process dies
/// after the log has accepted the message and before that is recorded, the repeat is known for one. A step that is tried
/// again does not send again what it has sent before.
///
/// Nothing is sent before the future is first polled. While the log cannot be reached, the flow waits.
///
/// # Errors
///
/// Of the kind [`NotFound`](ErrorKind::NotFound) or [`Finished`](ErrorKind::Finished) when the receiver is unknown or has
/// ended, and [`Invalid`](ErrorKind::Invalid) for a name that cannot be. The answer is recorded.
///
/// # Panics
///
/// Outside a flow; there it is [`Scheduler::send`](crate::Scheduler::send).
///
/// # Examples
///
/// See [`Mailbox`].
#[track_caller]
pub fn send<T: Serialize>(to: impl Into<FlowId>, mailbox: &Mailbox<T>, message: &T) -> Sending {
    sending(to.into(), mailbox, message, None)
}

/// As [`send`], with an idempotency key of the sender's own, 1 to 255 bytes, in place of the call's: of all messages with
/// this key to that flow, from whomever, the first one is accepted and the others are dropped.
///
/// # Errors
///
/// As [`send`].
///
/// # Panics
///
/// As [`send`].
///
/// # Examples
///
/// ```
/// use ergon::{prelude::*, send_once};
///
/// const WORDS: Mailbox<String> = Mailbox::new("words");
///
/// #[flow]
/// async fn echo() -> ergon::Result<(Option<String>, Option<String>)> {
///     send_once(flow_id(), &WORDS, &"once".into(), "key").await?;
///     send_once(flow_id(), &WORDS, &"twice".into(), "key").await?;
///     Ok((WORDS.try_recv().await?, WORDS.try_recv().await?))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// assert_eq!(executor.run(echo()).await?, (Some("once".into()), None));
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn send_once<T: Serialize>(to: impl Into<FlowId>, mailbox: &Mailbox<T>, message: &T, key: &str) -> Sending {
    sending(to.into(), mailbox, message, Some(key.to_owned()))
}

/// What the history calls it.
const SEND: StepSpec = StepSpec::new("send").retry(RetryPolicy::NONE);

#[track_caller]
fn sending<T: Serialize>(to: FlowId, mailbox: &Mailbox<T>, message: &T, key: Option<String>) -> Sending {
    let context = Context::current("ergon::send()");
    let flow = &context.flow;
    if let Err(error) = signal::check_name(&mailbox.name) {
        flow.halt(Halt::Fault(error));
    }
    let what = format_args!("the message to mailbox {:?}", mailbox.name);
    let payload = codec::encode(what, message, flow.env.payload_bytes_max).unwrap_or_else(|error| {
        flow.halt(Halt::Fault(error));
        Bytes::new()
    });
    let hash = ArgsHash::new().with(to.as_str()).with(&mailbox.name).with(message).with(&key);
    // Within a body, which may do other things when it starts again, a message is known by what it is, and by how often
    // it was sent; in a flow's own code by its place.
    let nth = match (&context.step, &hash.0) {
        (Some(step), Ok(hash)) => Some((step.identity(), step.count_sent(hash.digest()))),
        _ => None,
    };
    let mut draft = NewMessage::new(to, Channel::signal(&mailbox.name), payload);
    draft.key = key;
    let body = move || -> BoxFuture<'static, Result<()>> {
        let mut message = draft.clone();
        let context = Context::current("ergon::send()");
        if message.key.is_none()
            && let Some(call) = &context.step
        {
            let place = match &nth {
                Some((step, nth)) => format!("send {step} {:016x} {nth}", call.args_hash),
                None => format!("send {} {:016x}", call.path, call.args_hash),
            };
            message.key = Some(context.flow.key(&place).to_string());
        }
        Box::pin(deliver(context, message))
    };
    Sending { call: step(const { &SEND }, hash, crate::__error_caps!(Error), body) }
}

async fn deliver(context: Context, message: NewMessage) -> Result<()> {
    let Some(log) = &context.flow.env.log else {
        return Err(invalid("nothing can be sent where a history is only replayed"));
    };
    match persist(|| log.0.send(message.clone()), &context.flow.id).await {
        // A duplicate is this message, accepted before a crash, or one that was to count for it.
        Ok(_) => Ok(()),
        Err(error) => {
            let kind = match error.kind() {
                StorageErrorKind::NotFound => ErrorKind::NotFound,
                StorageErrorKind::Finished => ErrorKind::Finished,
                _ => ErrorKind::Invalid,
            };
            let text = format!("the message was not sent to flow {:?}: {error}", message.to);
            Err(Error::of(kind, text).into_permanent())
        }
    }
}

/// The future of [`send`].
#[must_use = "nothing is sent unless this is awaited"]
pub struct Sending {
    call: Step<'static, (), Error>,
}

impl Future for Sending {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.call).poll(cx)
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sending").field(&self.call).finish()
    }
}
