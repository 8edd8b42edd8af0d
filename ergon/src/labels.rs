//! What a flow is listed by, set from inside.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use ergon_storage::Labels;

use crate::{
    context::{Context, Halt, invalid},
    journal::Place,
};

/// Gives the flow a label, or another value for one that it has, for whoever lists or counts flows: see
/// [`Filter::with_label`](crate::Filter::with_label).
///
/// The label is durable with the flow's next commit, which comes at the latest when the flow waits for something, be
/// it a step. It is no call: it leaves no record, and may be added to code of live flows and removed from it.
///
/// Labels that break their [bounds](Labels::check), 16 short ones for a flow, fail the flow.
///
/// # Panics
///
/// Outside a flow, and inside a step: a step is not made again when the flow is replayed, and its label would be lost.
/// Return from the step and set the label in the flow.
///
/// # Examples
///
/// ```
/// use ergon::{Admin, Filter, prelude::*};
///
/// #[flow]
/// async fn order(customer: String) -> ergon::Result<()> {
///     ergon::set_label("stage", "waits for approval");
///     let _by: String = signal("approval").await?;
///     ergon::set_label("stage", "approved");
///     Ok(())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<order>().start().await?;
/// let handle = Scheduler::new(log.clone()).schedule(order("ada".into())).label("customer", "ada").await?;
/// handle.signal("approval", "bob").await?;
/// handle.result().await?;
/// let approved = Filter::all().with_label("customer", "ada").with_label("stage", "approved");
/// assert_eq!(Admin::new(log).count(&approved).await?, 1);
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn set_label(name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) {
    change("ergon::set_label()", |labels| labels.set(name, value));
}

/// Takes a label away from the flow, as [`set_label`] gives one; nothing when there is none of this name.
///
/// # Panics
///
/// Outside a flow, and inside a step.
///
/// # Examples
///
/// ```
/// use ergon::{Admin, Filter, prelude::*, remove_label, set_label};
///
/// #[flow]
/// async fn order() -> ergon::Result<()> {
///     set_label("stage", "waiting");
///     sleep(Duration::from_millis(5)).await;
///     remove_label("stage"); // with what is recorded next, here the end
///     Ok(())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// Executor::new(log.clone()).run(order()).await?;
/// assert_eq!(Admin::new(log).count(&Filter::all().with_label("stage", "waiting")).await?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn remove_label(name: impl AsRef<str>) {
    change("ergon::remove_label()", |labels| _ = labels.remove(name.as_ref()));
}

#[track_caller]
fn change(what: &str, change: impl FnOnce(&mut Labels)) {
    let context = Context::current(what);
    assert!(
        context.place == Place::Flow,
        "{what} is for a flow's own code, not for a step; return from the step and set the label in the flow"
    );
    if let Err(error) = context.flow.labels.change(change) {
        context.flow.halt(Halt::Fault(invalid(error.to_string())));
    }
}

/// The labels of one flow in memory.
#[derive(Debug, Default)]
pub(crate) struct FlowLabels {
    state: Mutex<State>,
    /// The code has set some: looked at before each commit.
    touched: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// As the log has them.
    written: Labels,
    /// As the code wants them. Code that is replayed sets them again, from the first to the last.
    wanted: Labels,
}

impl FlowLabels {
    /// The labels that the log has.
    pub(crate) fn new(written: Labels) -> Self {
        let mut state = State { wanted: written.clone(), written };
        // Code that is in a session says so when it comes there again.
        let touched = !state.wanted.is_empty() && crate::session::forget_session(&mut state.wanted);
        Self { state: Mutex::new(state), touched: AtomicBool::new(touched) }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Labels)) -> Result<(), ergon_storage::Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state.wanted);
        crate::spans::make_room(&mut state.wanted);
        self.touched.store(true, Ordering::Release);
        state.wanted.check()
    }

    /// Looks at the labels that the log has.
    #[cfg(feature = "opentelemetry")]
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Labels) -> R) -> R {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner).written)
    }

    /// The labels that the next commit is to write, if they differ from those of the log.
    pub(crate) fn unwritten(&self) -> Option<Labels> {
        if !self.touched.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.wanted != state.written && state.wanted.check().is_ok()).then(|| state.wanted.clone())
    }

    /// The session that the code is in, if it began on another worker than this one.
    pub(crate) fn lost_session(&self, worker: &str) -> Option<String> {
        if !self.touched.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        crate::session::lost_session(&state.wanted, worker)
    }

    /// The log has these by now.
    pub(crate) fn written(&self, labels: Labels) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).written = labels;
    }
}
