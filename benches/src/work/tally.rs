//! How flows tell the benchmark how far they are, without a look into the log.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ergon::WorkerHandle;
use ergon_bench_round::Failure;
use tokio::sync::Notify;

/// How long flows may take to get somewhere.
const PATIENCE: Duration = Duration::from_secs(600);

/// Counts flows that have come to some point. Clones are the same tally.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    count: AtomicUsize,
    target: AtomicUsize,
    reached: Notify,
}

impl Tally {
    /// One more.
    pub(crate) fn add(&self) {
        let count = self.inner.count.fetch_add(1, Ordering::AcqRel) + 1;
        if count == self.inner.target.load(Ordering::Acquire) {
            self.inner.reached.notify_one();
        }
    }

    /// Waits until so many have been counted in all, and until the worker has written what they did and has let
    /// them go.
    pub(crate) async fn wait(&self, target: usize, worker: &WorkerHandle) -> Result<(), Failure> {
        self.inner.target.store(target, Ordering::Release);
        let reached = async {
            while self.inner.count.load(Ordering::Acquire) < target {
                self.inner.reached.notified().await;
            }
            while worker.running() > 0 {
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.map_err(|_| {
            let count = self.inner.count.load(Ordering::Acquire);
            format!("only {count} of {target} flows got there within {PATIENCE:?}").into()
        })
    }
}

/// The instants at which flows or steps came to some point. Clones are the same marks.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks(Arc<Mutex<Vec<(usize, Instant)>>>);

impl Marks {
    /// Number `number` is there now.
    pub(super) fn mark(&self, number: usize) {
        let now = Instant::now();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((number, now));
    }

    /// Takes all marks, by their numbers.
    pub(super) fn take(&self) -> Vec<(usize, Instant)> {
        let mut marks = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        marks.sort_unstable();
        marks
    }
}
