//! Sessions: blocks of a flow that stay where they begin.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use ergon_storage::{
    Affinity, CallKind, Channel, ErrorKind as LogErrorKind, ExecutionLog, Labels, Lease, Message, NewMessage, Record,
    Takeover,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    Error, StorageError, codec,
    context::{Context, Halt, invalid},
    executor::Executor,
    fingerprint::{Sequences, fingerprint},
    journal::Place,
    retry::RetryPolicy,
    signal::signal,
    step::{ArgsHash, StepSpec, step},
};

/// The label that says which session a flow is in, and where it began.
const PLACE_LABEL: &str = "ergon.session.at";
/// The name of the step that a session begins with.
const BEGIN_NAME: &str = "ergon.session";
const BEGIN: StepSpec = StepSpec::new(BEGIN_NAME).retry(RetryPolicy::NONE);
/// What the names of the channels begin with on which sessions are told of their loss.
const CHANNELS: &str = "ergon.session/";

/// Runs a block of the flow on one worker: from here until the block has ended, the flow goes on where it is now. What
/// its steps leave there (a file, a loaded model, a connection to a device) is there for the steps that follow, also after
/// a wait, and after a restart of the worker under the same [name](crate::Worker::name).
///
/// When the log has not heard of the worker for a minute, another one takes over. The block is then dropped, before any
/// step of it begins there, and the session ends with [`SessionLost`]: time to do again what was local. That is recorded,
/// so a replay takes the same way. See [`session_with`] for another time, and for work that must never move.
///
/// A flow is in one session at a time, which begins when the returned future is first polled; a second one inside of it
/// fails the flow. A session is no lock: what must not happen twice outside is protected as in any other step.
///
/// The semantics are those of [Temporal's worker sessions](https://docs.temporal.io/develop/go/sessions), but for waits, which
/// cost nothing here, and for the end, which the block's end is.
///
/// # Errors
///
/// [`SessionLost`] when another worker has taken over.
///
/// # Panics
///
/// Outside a flow, and inside a step.
///
/// # What is not known to it yet
///
/// - A flow that has failed or ended inside a session is bound to nobody. When it is retried, reset or forked, whichever
///   worker is free goes on with it; on another one than before, the session is lost as by a takeover.
/// - A worker that goes on with a flow looks at once whether its session began elsewhere. Where the code waits for something
///   that is not durable (a channel, a task) before it comes to its session again, there is none yet: the block then goes on
///   here, on the wrong worker, and hears of that when the flow is next claimed. Such a wait belongs into a step.
///
/// # Cancel safety
///
/// Dropping the future drops the block and ends the session.
///
/// # Examples
///
/// ```
/// use ergon::{prelude::*, session};
///
/// #[flow]
/// async fn convert(video: String) -> ergon::Result<String> {
///     loop {
///         let converted = session(async || {
///             let file = download(&video).await?;
///             let file = transcode(&file).await?;
///             upload(&file).await
///         });
///         match converted.await {
///             Ok(outcome) => return outcome,
///             Err(lost) => println!("{lost}: once more"),
///         }
///     }
/// }
///
/// #[step]
/// async fn download(video: &str) -> ergon::Result<String> { Ok(format!("/tmp/{video}")) }
/// #[step]
/// async fn transcode(file: &str) -> ergon::Result<String> { Ok(format!("{file}.webm")) }
/// #[step]
/// async fn upload(file: &str) -> ergon::Result<String> { Ok(format!("uploaded {file}")) }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<convert>().name("gpu-1").start().await?;
/// let flow = Scheduler::new(log).schedule(convert("cat".into())).await?;
/// assert_eq!(flow.result().await?, "uploaded /tmp/cat.webm");
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn session<F, B>(block: F) -> impl Future<Output = Result<B::Output, SessionLost>>
where
    F: FnOnce() -> B,
    B: Future,
{
    session_with(Takeover::default(), block)
}

/// As [`session`], with another time after which others take over, at least [`Affinity::TAKEOVER_MIN`]; or none: then the
/// flow waits until a worker of the same name is there again, and
/// [`Admin::attention`](crate::Admin::attention) tells of it.
///
/// A takeover out of range fails the flow.
///
/// # Errors
///
/// [`SessionLost`] when another worker has taken over.
///
/// # Panics
///
/// Outside a flow, and inside a step.
///
/// # Cancel safety
///
/// Dropping the future drops the block and ends the session.
pub async fn session_with<F, B>(takeover: Takeover, block: F) -> Result<B::Output, SessionLost>
where
    F: FnOnce() -> B,
    B: Future,
{
    let context = Context::current("ergon::session()");
    assert!(
        context.place == Place::Flow,
        "ergon::session() is for a flow's own code, not for a step; return from the step and begin the session in the flow"
    );
    let label = Affinity::Require { takeover }.to_label().unwrap_or_default();
    let Some(_open) = Open::new(&context, &label) else { return std::future::pending().await };
    let Begun { worker, id } = begin(&context).await;
    change(&context, |labels| {
        labels.set(Affinity::SESSION_LABEL, label);
        labels.set(PLACE_LABEL, format!("{id} {}", place_of(&worker)));
    });
    context.flow.env.presence.begin();
    let lost = signal::<String>(&channel_name(&id));
    let (mut block, mut lost) = (pin!(block()), pin!(lost));
    poll_fn(|cx| {
        // One outcome is released at a time, so it matters to nobody which is polled first.
        if let Poll::Ready(outcome) = block.as_mut().poll(cx) {
            return Poll::Ready(Ok(outcome));
        }
        lost.as_mut().poll(cx).map(|by| {
            let by = by.unwrap_or_else(|_| "another worker".into());
            Err(SessionLost { worker: worker.clone(), by })
        })
    })
    .await
}

/// Gives the flow another [`Affinity`], in place of the one that it was scheduled with, from its next commit on.
///
/// It is no call: it leaves no record, and may be added to code of live flows and removed from it. One that is out of range
/// fails the flow.
///
/// # Panics
///
/// Outside a flow, and inside a step.
#[track_caller]
pub fn set_affinity(affinity: Affinity) {
    match affinity.to_label() {
        Some(label) => crate::set_label(Affinity::LABEL, label),
        None => crate::remove_label(Affinity::LABEL),
    }
    if let Affinity::Require { .. } = affinity {
        // Else the log would not hear of the worker while all its slots are taken, and think that it is gone.
        Context::current("ergon::set_affinity()").flow.env.presence.begin();
    }
}

/// A [`session`] was taken over by another worker, because the one that it was on had not been heard of. What was local to
/// that one is not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SessionLost {
    /// The worker on which the session began.
    pub worker: String,
    /// The worker that has taken over.
    pub by: String,
}

impl fmt::Display for SessionLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the session on worker {:?} is lost, {:?} has taken over", self.worker, self.by)
    }
}

impl std::error::Error for SessionLost {}

/// What the beginning of a session leaves in the history.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    worker: String,
    id: String,
}

/// Notes where the flow is.
#[track_caller]
fn begin(context: &Context) -> impl Future<Output = Begun> + use<> {
    let (flow, worker) = (Arc::clone(&context.flow), Arc::clone(&context.flow.env.presence.worker));
    let here = Arc::clone(&flow);
    let begun = step(&BEGIN, ArgsHash::new(), crate::__error_caps!(Error), move || {
        let (worker, epoch) = (worker.to_string(), here.epoch());
        Box::pin(async move {
            // Another one for each call, and when the flow was taken back and comes here again.
            let id = fingerprint(&(crate::idempotency_key(), epoch), Sequences::Ordered).unwrap_or_default();
            Ok(Begun { worker, id: format!("{id:016x}") })
        })
    });
    async move {
        match begun.await {
            Ok(begun) => begun,
            Err(error) => {
                flow.halt(Halt::Fault(error));
                std::future::pending().await
            }
        }
    }
}

/// The flow is in a session as long as this lives.
struct Open {
    context: Context,
}

impl Open {
    /// `None`, and the flow fails, when there cannot be one.
    fn new(context: &Context, label: &str) -> Option<Self> {
        let flow = &context.flow;
        if let Err(error) = Labels::from([(Affinity::SESSION_LABEL, label)]).check() {
            flow.halt(Halt::Fault(invalid(error.to_string())));
            return None;
        }
        if flow.in_session.swap(true, Ordering::AcqRel) {
            let message = "the flow is in a session already, and has one at a time; end the first one before";
            flow.halt(Halt::Fault(invalid(message)));
            return None;
        }
        Some(Self { context: context.clone() })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.context.flow.in_session.store(false, Ordering::Release);
        change(&self.context, forget);
    }
}

fn change(context: &Context, change: impl FnOnce(&mut Labels)) {
    if let Err(error) = context.flow.labels.change(change) {
        context.flow.halt(Halt::Fault(invalid(error.to_string())));
    }
}

/// Takes the labels of a session away; true when there were some.
pub(crate) fn forget_session(labels: &mut Labels) -> bool {
    let had = labels.remove(Affinity::SESSION_LABEL);
    labels.remove(PLACE_LABEL) || had
}

fn forget(labels: &mut Labels) {
    forget_session(labels);
}

/// What stands for a worker in a label, which its name may be too long for.
fn place_of(worker: &str) -> String {
    format!("{:016x}", fingerprint(&worker, Sequences::Ordered).unwrap_or_default())
}

fn channel_name(id: &str) -> String {
    format!("{CHANNELS}{id}")
}

/// The session that the code is in, if it began on another worker than this one, by the labels that it wants.
pub(crate) fn lost_session(labels: &Labels, worker: &str) -> Option<String> {
    labels.get(Affinity::SESSION_LABEL)?;
    let (id, place) = labels.get(PLACE_LABEL)?.split_once(' ')?;
    (place != place_of(worker)).then(|| id.to_owned())
}

/// Where the code is told of the loss of this session.
pub(crate) fn channel_of(id: &str) -> Channel {
    Channel::signal(&channel_name(id))
}

/// True for what sessions are told of by the engine itself: none of it is a message that somebody has sent.
pub(crate) fn is_channel_of_sessions(name: &str) -> bool {
    name.starts_with(CHANNELS)
}

/// True when the history has the beginning of a session: the code may be in it when it has caught up.
pub(crate) fn is_in(history: &[Record]) -> bool {
    history.iter().any(|record| *record.name == *BEGIN_NAME && record.kind == CallKind::Step)
}

/// Tells a flow that this worker has taken its session over, unless it has been told. Returns what it is told.
pub(crate) async fn tell(
    log: &dyn ExecutionLog,
    lease: &Lease,
    id: &str,
    worker: &str,
) -> Result<Vec<Message>, StorageError> {
    let (flow, channel) = (&lease.flow, channel_of(id));
    let told = log.messages(flow, std::slice::from_ref(&channel), 0, 1).await?;
    if !told.is_empty() {
        return Ok(told);
    }
    tracing::info!(%flow, worker, "the flow is taken over; its session is lost");
    let payload = codec::encode("the worker's name", &worker, usize::MAX).unwrap_or_default();
    let message = NewMessage::new(flow.clone(), channel.clone(), payload);
    // A flow that was taken back may lose the same session again.
    match log.send(message.with_key(format!("{}/{}", channel_name(id), lease.epoch))).await {
        // It was cancelled meanwhile, which whoever drives it will find.
        Err(error) if matches!(error.kind(), LogErrorKind::Finished | LogErrorKind::NotFound) => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(_) => log.messages(flow, &[channel], 0, 1).await,
    }
}

/// The place that flows run on, and whether it is to be heard of, for what is bound to it.
#[derive(Debug)]
pub(crate) struct Presence {
    /// The name of the worker; executors are all one place.
    pub(crate) worker: Arc<str>,
    is_place: AtomicBool,
    began: Notify,
}

impl Default for Presence {
    fn default() -> Self {
        Self::of(Executor::NAME.into())
    }
}

impl Presence {
    pub(crate) fn of(worker: Arc<str>) -> Self {
        Self { worker, is_place: AtomicBool::new(false), began: Notify::new() }
    }

    /// From now on it is.
    pub(crate) fn begin(&self) {
        if !self.is_place.swap(true, Ordering::AcqRel) {
            self.began.notify_one();
        }
    }

    pub(crate) fn is_place(&self) -> bool {
        self.is_place.load(Ordering::Acquire)
    }

    /// Waits until it is.
    pub(crate) async fn began(&self) {
        while !self.is_place() {
            self.began.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_lost_elsewhere_alone() {
        let lost = |labels: &Labels, worker: &str| lost_session(labels, worker);
        let mut labels = Labels::from([(PLACE_LABEL, format!("7 {}", place_of("ann")))]);
        assert_eq!(lost(&labels, "bob"), None, "it is in no session");
        labels.set(Affinity::SESSION_LABEL, "require never");
        assert_eq!((lost(&labels, "ann"), lost(&labels, "bob")), (None, Some("7".into())));
        assert!(labels.check().is_ok());
        assert!(forget_session(&mut labels) && labels.is_empty() && !forget_session(&mut labels));
    }
}
