//! What plain combinators do not do: a bounded number at once, the first that succeeds, a time limit on any block.

use std::{
    future::{Future, IntoFuture, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use futures::{StreamExt, stream};

use crate::{
    error::{Error, Result},
    timer::schedule_timer_named,
};

/// Runs `f` for each item, at most `limit` at once (0 counts as 1), and returns what each came to, in the order of the
/// items.
///
/// The next item is begun as soon as any ends. `f` may return anything that can be awaited: a step, a child flow, a
/// wait, or an `async` block of such. A replay begins and ends them in the same order. Nothing is begun before the
/// future is first polled; see [`try_map_concurrent`] for one that ends with the first error.
///
/// # Cancel safety
///
/// Dropping the future drops what runs: steps end at their next `.await` and leave no outcome, waits take nothing, and
/// child flows go on by themselves.
///
/// # Examples
///
/// ```
/// use ergon::{map_concurrent, prelude::*};
///
/// #[flow]
/// async fn resize_all(names: Vec<String>) -> ergon::Result<u64> {
///     let sizes = map_concurrent(names, 8, |name| resize(name)).await;
///     Ok(sizes.into_iter().filter_map(|size| size.ok()).sum()) // those that failed are left out
/// }
///
/// #[step(retry = none)]
/// async fn resize(name: String) -> ergon::Result<u64> {
///     if name.is_empty() { Err(ergon::Error::new("no name")) } else { Ok(name.len() as u64) }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let names = ["a", "", "bcd"].map(String::from).to_vec();
/// let sum = Executor::new(InMemoryExecutionLog::new()).run(resize_all(names)).await?;
/// assert_eq!(sum, 4);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn map_concurrent<I, F, B>(items: I, limit: usize, f: F) -> Vec<B::Output>
where
    I: IntoIterator,
    F: FnMut(I::Item) -> B,
    B: IntoFuture,
{
    let ended = indexed(items, f).buffer_unordered(limit.max(1)).collect().await;
    in_order(ended)
}

/// As [`map_concurrent`], but ends with the first error, in the order of time, and drops what runs.
///
/// # Errors
///
/// That error.
///
/// # Cancel safety
///
/// As [`map_concurrent`].
///
/// # Examples
///
/// ```
/// use ergon::{prelude::*, try_map_concurrent};
///
/// #[flow]
/// async fn check(sizes: Vec<u64>) -> ergon::Result<Vec<u64>> {
///     try_map_concurrent(sizes, 2, |size| small(size)).await
/// }
///
/// #[step(retry = none)]
/// async fn small(size: u64) -> ergon::Result<u64> {
///     if size > 9 { Err(ergon::Error::new(format!("{size} is too large"))) } else { Ok(size) }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// assert_eq!(executor.run(check(vec![3, 1, 2])).await?, [3, 1, 2]);
/// assert!(executor.run(check(vec![3, 10, 2])).await.unwrap_err().to_string().contains("10 is too large"));
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn try_map_concurrent<I, F, B, T, E>(items: I, limit: usize, f: F) -> Result<Vec<T>, E>
where
    I: IntoIterator,
    F: FnMut(I::Item) -> B,
    B: IntoFuture<Output = Result<T, E>>,
{
    let mut running = pin!(indexed(items, f).buffer_unordered(limit.max(1)));
    let mut ended = Vec::new();
    while let Some((index, outcome)) = running.next().await {
        ended.push((index, outcome?));
    }
    Ok(in_order(ended))
}

/// The calls are made as the items are taken, each with its number.
fn indexed<I, F, B>(items: I, mut f: F) -> impl stream::Stream<Item = impl Future<Output = (usize, B::Output)>>
where
    I: IntoIterator,
    F: FnMut(I::Item) -> B,
    B: IntoFuture,
{
    stream::iter(items.into_iter().enumerate()).map(move |(index, item)| {
        let call = f(item).into_future();
        async move { (index, call.await) }
    })
}

fn in_order<T>(mut ended: Vec<(usize, T)>) -> Vec<T> {
    ended.sort_unstable_by_key(|(index, _)| *index);
    ended.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Runs all at once and returns the first success, in the order of time; the others are dropped.
///
/// A step that loses ends at its next `.await` and leaves no outcome; what it has done by then is done. A wait that loses
/// takes nothing. A child flow that loses goes on by itself.
///
/// # Errors
///
/// All errors, in the order of the items, when none succeeds; an empty list when there is none.
///
/// # Cancel safety
///
/// Dropping the future drops all.
///
/// # Examples
///
/// ```
/// use ergon::{first_ok, prelude::*};
///
/// #[flow]
/// async fn fetch(mirrors: Vec<String>) -> Result<String, Vec<String>> {
///     first_ok(mirrors.into_iter().map(|mirror| download(mirror))).await
/// }
///
/// #[step(retry = none)]
/// async fn download(mirror: String) -> Result<String, String> {
///     if mirror == "down" { Err("no answer".into()) } else { Ok(format!("from {mirror}")) }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// let mirrors = |names: &[&str]| fetch(names.iter().map(|name| (*name).into()).collect());
/// assert_eq!(executor.run(mirrors(&["down", "up"])).await?, "from up");
/// let none = executor.run(mirrors(&["down", "down"])).await.unwrap_err();
/// assert!(matches!(none, ergon::FlowError::Failed(errors) if errors.len() == 2));
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn first_ok<I, T, E>(calls: I) -> impl Future<Output = Result<T, Vec<E>>>
where
    I: IntoIterator,
    I::Item: IntoFuture<Output = Result<T, E>>,
{
    // The iterator is not kept: it may borrow in ways that a flow's future cannot.
    let numbered = |(index, call): (usize, I::Item)| numbered(index, call.into_future());
    race(calls.into_iter().enumerate().map(numbered).collect())
}

async fn numbered<B: Future>(index: usize, call: B) -> (usize, B::Output) {
    (index, call.await)
}

async fn race<B, T, E>(calls: Vec<B>) -> Result<T, Vec<E>>
where
    B: Future<Output = (usize, Result<T, E>)>,
{
    let mut running = pin!(stream::iter(calls).buffer_unordered(usize::MAX));
    let mut errors = Vec::new();
    while let Some((index, outcome)) = running.next().await {
        match outcome {
            Ok(value) => return Ok(value),
            Err(error) => errors.push((index, error)),
        }
    }
    Err(in_order(errors))
}

/// Runs a block for `limit` at most, by a durable timer that begins with this call; then the block is dropped.
///
/// The block may be anything that can be awaited: an `async` block of many calls, a child flow, a wait. The instant is
/// recorded, so the time goes on while no process runs the flow. It limits how long the flow waits: a step that has begun
/// is dropped at its next `.await`, and a child flow goes on by itself. An attempt of a step has a time limit of its own,
/// `#[step(timeout = "10s")]`; so has a flow.
///
/// # Errors
///
/// An error of the kind [`Timeout`](crate::ErrorKind::Timeout) when the time is up before the block has ended.
///
/// # Panics
///
/// Outside a flow.
///
/// # Cancel safety
///
/// Dropping the future drops the block and gives the timer up.
///
/// # Examples
///
/// ```
/// use ergon::{ErrorKind, prelude::*, timeout};
///
/// #[flow]
/// async fn ask(limit: Duration) -> ergon::Result<String> {
///     let answer = timeout(limit, async {
///         question().await?;
///         signal::<String>("answer").await
///     });
///     match answer.await {
///         Ok(answer) => answer,
///         Err(late) => Ok(format!("{:?}", late.kind())),
///     }
/// }
///
/// #[step]
/// async fn question() -> ergon::Result<()> {
///     Ok(())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// assert_eq!(executor.run(ask(Duration::from_millis(20))).await?, "Timeout");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn timeout<B: IntoFuture>(limit: Duration, block: B) -> impl Future<Output = Result<B::Output>> {
    let timer = schedule_timer_named("timeout", limit);
    let block = block.into_future();
    async move {
        let (mut timer, mut block) = (pin!(timer), pin!(block));
        poll_fn(|cx| {
            // One outcome is released at a time, so it matters to nobody which is polled first.
            if let Poll::Ready(outcome) = block.as_mut().poll(cx) {
                return Poll::Ready(Ok(outcome));
            }
            timer.as_mut().poll(cx).map(|()| Err(Error::timeout("the block", limit)))
        })
        .await
    }
}
