//! What ran.

use std::sync::{Arc, Mutex, PoisonError};

/// Where the bodies of steps note that they run. Clones share the same notes; give one to each worker with
/// `with_state`.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    notes: Arc<Mutex<Vec<String>>>,
}

impl Trace {
    /// Without notes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a note.
    pub fn add(&self, note: impl Into<String>) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note.into());
    }

    /// Takes the notes, in the order in which they were made.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The notes so far.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often this was noted.
    #[must_use]
    pub fn count(&self, note: &str) -> usize {
        self.notes().iter().filter(|known| *known == note).count()
    }
}

/// The trace of the worker that runs the calling code.
#[track_caller]
#[must_use]
pub fn trace() -> Trace {
    Trace::clone(&ergon::state::<Trace>())
}

/// Adds a note to the trace of the worker that runs the calling code.
#[track_caller]
pub fn note(note: impl Into<String>) {
    trace().add(note);
}
