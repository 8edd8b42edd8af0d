//! Heartbeats: how far a step has come, and that it is alive.

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    codec,
    context::{Context, StepContext},
    error::{Error, ErrorKind, Result},
};

/// Says how far the body of this step has come, and that it is alive. Whoever tries the step again, after a failed
/// attempt, a crash or on another worker, is told the last progress by [`last_heartbeat`] and can go on from there.
///
/// To be called as often as you like, from async and from blocking bodies: it waits for nothing, and costs about what it
/// takes to write the value as JSON. A value equal to the last one is a sign of life and nothing else.
///
/// # What is durable
///
/// The newest value, soon: the first one of a body is written at once, and of those that follow the newest one, at most
/// once in a [`HEARTBEAT_INTERVAL`](crate::HEARTBEAT_INTERVAL), earlier when the flow has something else to write. When
/// an attempt fails, its last value is written with the failure. So the next attempt of a body that failed, in whatever
/// way, sees the very last one; after a crash it may be one that is older by that interval. A step that sends no
/// heartbeats costs nothing, and one that has its outcome before the first is written neither.
///
/// It is kept in the record of the call, in place of the one before, so that the history does not grow; the
/// [timeline](crate::History) shows it. It belongs to the call: a call that fails for good and is made again by a
/// [retry](crate::FlowHandle::retry) of its flow begins without. A heartbeat wakes no flow and changes nothing in the
/// order in which a flow's code is given its outcomes.
///
/// # How long a body may go without
///
/// With the option `heartbeat_timeout = "30s"` of [`#[step]`](macro@crate::step), an attempt that sends none for that long
/// fails with an error of the kind [`Timeout`](ErrorKind::Timeout), by the log's clock, and the policy decides about the
/// next one. Time in which the body waits for a call of its own does not count. A heartbeat of a step that another step
/// has called is a sign of life of both. A body that blocks its async thread keeps the worker from looking; make it
/// `blocking`.
///
/// It is for bodies that hang. A worker that dies is found by its lease, whatever the option says: that takes no
/// heartbeat at all, and no step needs them for that.
///
/// Those who know activity heartbeats from Temporal: there they are how a dead worker is found, here they are not needed
/// for that. There the client sends the details that have come in a good part of the heartbeat time limit, here in a
/// second, and those that a failure finds unsent go with it. There a heartbeat brings the cancellation, here
/// [`cancelled`](crate::cancelled) does.
///
/// # Blocking steps
///
/// They may send heartbeats, and read the last one, from the thread that the body runs on; threads and tasks that it
/// spawns are outside. Nobody can end a thread: when the attempt is over, because its time was up or the flow was
/// cancelled, the body goes on unheard. A heartbeat is how it learns of that: it is then refused, and the body should
/// return.
///
/// # Errors
///
/// [`Payload`](ErrorKind::Payload) when the value cannot be written as JSON or is too large;
/// [`Cancelled`](ErrorKind::Cancelled) when this attempt of the step is over, which only a blocking body lives to see.
///
/// # Panics
///
/// Outside a step.
///
/// # Examples
///
/// ```
/// use ergon::{heartbeat, last_heartbeat, prelude::*};
///
/// #[step(heartbeat_timeout = "30s", retry(max_attempts = 3, backoff = "1ms"))]
/// async fn download(parts: u32) -> ergon::Result<Vec<u32>> {
///     let begun = last_heartbeat()?.unwrap_or(0);
///     for part in begun..parts {
///         if part == 2 && attempt() == 1 {
///             return Err(ergon::Error::new("connection lost"));
///         }
///         heartbeat(&(part + 1))?;
///     }
///     Ok((begun..parts).collect())
/// }
///
/// #[flow]
/// async fn fetch(parts: u32) -> ergon::Result<Vec<u32>> {
///     download(parts).await
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let done = Executor::new(InMemoryExecutionLog::new()).run(fetch(4)).await?;
/// assert_eq!(done, [2, 3], "the second attempt began where the first one had come to");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn heartbeat<T: Serialize + ?Sized>(progress: &T) -> Result<()> {
    let context = Context::current("ergon::heartbeat()");
    let step = step_of(&context, "ergon::heartbeat()");
    let flow = &context.flow;
    let what = format_args!("the progress of step {:?}", step.name);
    let progress = codec::encode(what, progress, flow.env.payload_bytes_max)?;
    let now = flow.env.clock.now();
    if flow.journal().beat(context.place, &step.path, step.attempt, progress, now) {
        return Ok(());
    }
    let StepContext { name, attempt, .. } = step;
    let message = format!(
        "attempt {attempt} of step {name:?} is over, which sends a heartbeat: its time was up, or its flow was cancelled or \
         goes on elsewhere; return, for nobody waits for the outcome"
    );
    Err(Error::of(ErrorKind::Cancelled, message).into_permanent())
}

/// What the last heartbeat had reported when this body began: of an earlier attempt, or of this one when its process has
/// died since; see [`heartbeat`]. `None` when there was none. What this body itself reports does not change it.
///
/// # Errors
///
/// [`Payload`](ErrorKind::Payload) when it cannot be read as a `T`: other code has sent it.
///
/// # Panics
///
/// Outside a step.
///
/// # Examples
///
/// ```
/// use ergon::{last_heartbeat, prelude::*};
///
/// #[step]
/// async fn first() -> ergon::Result<Option<u64>> {
///     last_heartbeat()
/// }
///
/// #[flow]
/// async fn asks() -> ergon::Result<Option<u64>> {
///     first().await
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// assert_eq!(Executor::new(InMemoryExecutionLog::new()).run(asks()).await?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn last_heartbeat<T: DeserializeOwned>() -> Result<Option<T>> {
    let context = Context::current("ergon::last_heartbeat()");
    let step = step_of(&context, "ergon::last_heartbeat()");
    let decode = |progress| codec::decode(format_args!("the last heartbeat of step {:?}", step.name), progress);
    step.progress.as_ref().map(|progress| decode(progress)).transpose()
}

#[track_caller]
fn step_of<'a>(context: &'a Context, what: &str) -> &'a StepContext {
    let Some(step) = context.step.as_deref() else {
        panic!("{what} was called in a flow's own code, which needs none; call it in a step")
    };
    step
}
