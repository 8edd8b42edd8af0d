//! Collecting what many ask for, so that one transaction does it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

use super::error::stopped;
use crate::{Error, Result};

/// How many jobs may wait; callers beyond that wait for room.
const INBOX_JOBS_MAX: usize = 8_192;
/// How many jobs are done together at most.
pub(super) const BATCH_JOBS_MAX: usize = 2_048;
/// How many bytes of payloads are sent together at most, unless one job has more.
pub(super) const BATCH_BYTES_MAX: usize = 16 << 20;

/// What one caller asks, and where the answer is awaited.
pub(super) struct Job<Q, A> {
    pub(super) ask: Q,
    since: Instant,
    reply: oneshot::Sender<Result<A>>,
}

impl<Q, A> Job<Q, A> {
    /// The caller may have gone away, which changes nothing.
    pub(super) fn answer(self, answer: Result<A>) {
        let _ = self.reply.send(answer);
    }
}

/// Where jobs are handed in.
pub(super) struct Inbox<Q, A>(mpsc::Sender<Job<Q, A>>);

impl<Q: Send + 'static, A: Send + 'static> Inbox<Q, A> {
    /// Begins to do jobs: whatever waits is handed to `work`, which answers, or puts back what is to wait for the
    /// next time. While it works, the next group gathers by itself. A job waits for at most `patience` while there is
    /// no connection.
    pub(super) fn open<W>(work: W, patience: Duration) -> (Self, JoinHandle<()>)
    where
        W: Work<Q, A>,
    {
        let (inbox, mut waiting) = mpsc::channel::<Job<Q, A>>(INBOX_JOBS_MAX);
        let worker = tokio::spawn(async move {
            let mut jobs = Vec::with_capacity(BATCH_JOBS_MAX);
            loop {
                let room = BATCH_JOBS_MAX.saturating_sub(jobs.len());
                if jobs.is_empty() {
                    if waiting.recv_many(&mut jobs, room).await == 0 {
                        return;
                    }
                } else {
                    while jobs.len() < BATCH_JOBS_MAX
                        && let Ok(job) = waiting.try_recv()
                    {
                        jobs.push(job);
                    }
                }
                // Nothing begins while there is no connection. Whoever has waited long enough for one is told so,
                // however many wait before him.
                let Some(oldest) = jobs.first() else { continue };
                if let Err(error) = work.ready(oldest.since + patience).await {
                    let expired = jobs.iter().take_while(|job| job.since.elapsed() >= patience).count().max(1);
                    fail_all(jobs.drain(..expired), error);
                    continue;
                }
                work.work(&mut jobs).await;
            }
        });
        (Self(inbox), worker)
    }

    /// Hands in a job and waits for its answer.
    pub(super) async fn submit(&self, ask: Q) -> Result<A> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Job { ask, since: Instant::now(), reply }).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

/// Does jobs together.
pub(super) trait Work<Q, A>: Send + 'static {
    /// Waits until there is a connection to work on, until `deadline` at most.
    fn ready(&self, deadline: Instant) -> impl Future<Output = Result<()>> + Send;

    /// Does at least the first of the jobs; those that are left are done next.
    fn work(&self, jobs: &mut Vec<Job<Q, A>>) -> impl Future<Output = ()> + Send;
}

/// Gives all jobs one error.
pub(super) fn fail_all<Q, A>(jobs: impl IntoIterator<Item = Job<Q, A>>, error: Error) {
    let error = Arc::new(error);
    for job in jobs {
        job.answer(Err(Error::new(error.kind(), error.to_string()).with_source(Arc::clone(&error))));
    }
}
