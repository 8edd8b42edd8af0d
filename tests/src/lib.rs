//! What the end-to-end tests of ergon share.
//!
//! [`FaultyLog`] stands between an engine and its log and breaks what is asked of it. [`TestClock`] lets hours pass
//! in moments. [`Trace`] is where step bodies note that they ran. [`Place`] is a log to run on, in memory, in a file or
//! on a server. [`mutate`] breaks input at random, and [`outside`] looks at what becomes of it. [`fleet`] starts worker
//! processes on any log, makes trouble, and looks at what they did; [`job`] is what they run.

mod clock;
mod faulty;
pub mod fleet;
mod gate;
pub mod golden;
pub mod job;
mod measured;
pub mod mutate;
pub mod outside;
mod place;
pub mod skew;
pub mod soak;
mod trace;

use std::{future::Future, time::Duration};

use ergon::{
    FlowId, FlowState,
    storage::{ExecutionLog, FlowInfo},
};

pub use clock::TestClock;
pub use faulty::{Fault, FaultyLog};
pub use gate::Gate;
pub use measured::Measured;
pub use place::Place;
pub use trace::{Trace, note, trace};

/// How long a test waits for what must come, before it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for what must come.
///
/// # Panics
///
/// When it does not come.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    within(PATIENCE, what, future).await
}

/// As [`soon`], with another patience: in a runtime whose time is paused it should be a long one.
///
/// # Panics
///
/// When it does not come.
pub async fn within<T>(patience: Duration, what: &str, future: impl Future<Output = T>) -> T {
    let in_time = tokio::time::timeout(patience, future).await.ok();
    in_time.unwrap_or_else(|| panic!("waited {patience:?} in vain for {what}"))
}

/// Looks again and again until the answer is yes.
///
/// # Panics
///
/// When it never is.
pub async fn until<F, T>(what: &str, mut look: F)
where
    F: FnMut() -> T,
    T: Future<Output = bool>,
{
    soon(what, async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Waits until the workers of a process have looked for flows so many times more: what they could claim, they have.
///
/// # Panics
///
/// When they do not.
pub async fn looks(process: &FaultyLog, times: u64) {
    let looked = || process.calls().get("claim").copied().unwrap_or_default();
    let before = looked();
    until("the workers to look for flows", || async { looked() >= before + times }).await;
}

/// Waits until a flow is in a state, and returns it.
///
/// # Panics
///
/// When it never is.
pub async fn state_of(log: &dyn ExecutionLog, id: &FlowId, wanted: FlowState) -> FlowInfo {
    let mut last = None;
    let look = async {
        loop {
            let record = log.flow(id).await.expect("the log answers").expect("there is such a flow");
            if record.info.state == wanted {
                return record.info;
            }
            last = Some(record.info);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, look).await.ok();
    in_time.unwrap_or_else(|| panic!("flow {id} is never {wanted}; it is {last:#?}"))
}

/// Tests that run in memory and on an SQLite file: `both!(name, …)` for `async fn name(place: Place)`, and
/// `both!(threads: name, …)` for those that run on several threads too.
#[macro_export]
macro_rules! both {
    (threads: $($test:ident),* $(,)?) => {
        mod memory_threads {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $test() {
                super::$test($crate::Place::memory()).await;
            })*
        }

        mod sqlite_threads {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $test() {
                super::$test($crate::Place::sqlite()).await;
            })*
        }
    };
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::Place::memory()).await;
            })*
        }

        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::Place::sqlite()).await;
            })*
        }
    };
}
