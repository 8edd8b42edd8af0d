//! What is left of a flow that was cancelled: its scopes that have something to clean up.

use std::{panic::Location, sync::Arc, task::Waker};

use ergon_storage::{Cleanup, Record, Timestamp};

use super::{CallId, CallKey, Journal, State, WhenCancelled};
use crate::{
    error::{Error, ErrorKind},
    flow::FlowEnd,
};

/// The record that a flow was cancelled, or that its time is up.
#[derive(Debug)]
pub(super) struct Cancel {
    seq: u32,
    at: Timestamp,
    name: Arc<str>,
    reason: Arc<str>,
    /// The code has been given all that was recorded before, and its scopes clean up.
    begun: bool,
    /// All scopes have been polled since, so that each stands where it belongs.
    gathered: bool,
}

impl Cancel {
    pub(super) fn new(record: &Record) -> Self {
        Self {
            seq: record.seq,
            at: record.at,
            name: Arc::clone(&record.name),
            reason: String::from_utf8_lossy(&record.payload).into(),
            begun: false,
            gathered: false,
        }
    }
}

/// A scope of the flow's own code that has something to clean up, as long as it is open. In the order in which they were
/// opened: by how many outcomes the code had been given, and for those that were opened at the same time by how many others
/// they are within, then by their place in the source, for a combinator may poll its branches in another order. One that is
/// within another comes after it, even if it was opened before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ScopeId {
    releases: u64,
    depth: u32,
    place: (&'static str, u32, u32),
    opened: u64,
}

#[derive(Debug, Default)]
pub(super) struct OpenScope {
    waker: Option<Waker>,
    /// It has been polled since its turn came.
    taken_up: bool,
}

/// What becomes of code that wants to open a scope.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Opened {
    Scope(ScopeId),
    /// It cleans up itself, which nothing interrupts: it goes on as if there were no cancellation.
    Inside,
    /// It does not go on any more.
    Over,
}

/// How far the clean-up of a flow has come whose code rests.
#[derive(Debug, Clone)]
pub(crate) enum CleaningUp {
    /// There is none.
    No,
    Goes,
    Done,
    /// The scope of this place, whose turn it is, is never polled again.
    Unpolled(ScopeId),
    /// The scope of this place waits for this call, which the cancellation has ended, and for nothing else.
    AwaitsOver(ScopeId, CallKey),
}

/// Why there is a clean-up.
#[derive(Debug, Clone)]
pub(crate) struct CleanupCause {
    pub(crate) is_time_limit: bool,
    pub(crate) reason: Arc<str>,
}

impl ScopeId {
    /// Where it was opened, as `file:line`.
    pub(crate) fn place(&self) -> String {
        let (file, line, _) = self.place;
        format!("{file}:{line}")
    }
}

impl Journal {
    /// What the log knows of the flow.
    pub(crate) fn knows_cleanup(&mut self, cleanup: Cleanup) {
        self.is_flagged = cleanup != Cleanup::None;
    }

    // ---- called by the flow's code -----------------------------------------------------------------------

    /// Opens a scope. That there is one is durable before any body starts that is not durable by now.
    pub(crate) fn open_cleanup_scope(&mut self, location: &'static Location<'static>) -> Opened {
        if self.is_inside {
            return Opened::Inside;
        }
        if self.is_cleaning_up() {
            return Opened::Over;
        }
        if !std::mem::replace(&mut self.is_flagged, true) {
            self.batch.cleanup = Cleanup::Needed;
        }
        self.scopes_opened += 1;
        let place = (location.file(), location.line(), location.column());
        let depth = self.scope.map_or(0, |outer| outer.depth + 1);
        let id = ScopeId { releases: self.releases, depth, place, opened: self.scopes_opened };
        self.scopes.insert(id, OpenScope::default());
        Opened::Scope(id)
    }

    /// The scope with its new place if it is polled within one that was opened later: `select!` may have polled it by
    /// reference before.
    pub(crate) fn put_within(&mut self, id: ScopeId) -> ScopeId {
        let Some(outer) = self.scope.filter(|outer| *outer > id) else { return id };
        let Some(scope) = self.scopes.remove(&id) else { return id };
        let id = ScopeId { releases: outer.releases, depth: outer.depth + 1, ..id };
        self.scopes.insert(id, scope);
        id
    }

    /// Whether it is the turn of this scope to clean up; the waker will be woken when it is.
    pub(crate) fn is_turn_of(&mut self, id: ScopeId, waker: &Waker) -> bool {
        let is_time = self.cancel.as_ref().is_some_and(|cancel| cancel.gathered);
        let is_turn = is_time && self.scopes.last_key_value().is_some_and(|(last, _)| *last == id);
        if let Some(scope) = self.scopes.get_mut(&id) {
            scope.taken_up |= is_turn;
            if !scope.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                scope.waker = Some(waker.clone());
            }
        }
        is_turn
    }

    /// Closes a scope: it has nothing to clean up any more, or its future is gone.
    pub(crate) fn close_cleanup_scope(&mut self, id: ScopeId) {
        self.scopes.remove(&id);
        if self.is_cleaning_up() {
            self.wake_next();
        }
    }

    /// Whether the code that is polled from now on cleans up: a cancellation leaves its calls alone. Returns what was
    /// before.
    pub(crate) fn set_inside(&mut self, is_inside: bool) -> bool {
        std::mem::replace(&mut self.is_inside, is_inside)
    }

    /// The scope that the code is within which is polled from now on. Returns what it was before.
    pub(crate) fn set_scope(&mut self, scope: Option<ScopeId>) -> Option<ScopeId> {
        std::mem::replace(&mut self.scope, scope)
    }

    /// True when the scopes of the code clean up.
    pub(crate) fn is_cleaning_up(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.begun)
    }

    /// Why the flow is cleaning up, or is going to.
    pub(crate) fn cleanup_cause(&self) -> Option<CleanupCause> {
        let cancel = self.cancel.as_ref()?;
        Some(CleanupCause { is_time_limit: *cancel.name == *Record::TIME_IS_UP, reason: Arc::clone(&cancel.reason) })
    }

    // ---- called by the driver between two passes ---------------------------------------------------------

    /// True when the history has a cancellation that the code has not come to yet.
    pub(super) fn awaits_cancel(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| !cancel.begun)
    }

    /// True when the code has been given all that was recorded before its cancellation.
    pub(super) fn has_come_to_cancel(&self) -> bool {
        let seq = self.cancel.as_ref().filter(|cancel| !cancel.begun).map(|cancel| cancel.seq);
        seq.is_some_and(|seq| self.replay.front().is_none_or(|(next, _)| *next > seq))
    }

    /// True for what was recorded after the cancellation that the code has not come to yet.
    pub(super) fn is_behind_cancel(&self, seq: u32) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| !cancel.begun && seq > cancel.seq)
    }

    /// Begins the clean-up, if the code, which rests, has come to its cancellation. All its calls end without an outcome,
    /// but for those that clean up already.
    pub(crate) fn begin_cleanup(&mut self) -> bool {
        if let Some(cancel) = self.cancel.as_mut().filter(|cancel| cancel.begun && !cancel.gathered) {
            cancel.gathered = true;
            self.wake_next();
            return !self.scopes.is_empty();
        }
        if !self.has_come_to_cancel() || self.missing_call().is_some() || self.misses_scopes() {
            return false;
        }
        let over: Vec<CallId> = self
            .calls
            .iter()
            .filter(|(_, call)| call.when_cancelled == WhenCancelled::Ends)
            .map(|(id, _)| CallId(id))
            .collect();
        for id in over {
            self.end_call(id);
        }
        self.failures = (0, Vec::new());
        self.beginnings += 1;
        self.releases += 1;
        self.draws = 0;
        if let Some(cancel) = &mut self.cancel {
            cancel.begun = true;
            self.now = self.now.max(cancel.at);
        }
        // First each of them finds its place.
        for waker in self.scopes.values().filter_map(|scope| scope.waker.as_ref()) {
            waker.wake_by_ref();
        }
        true
    }

    /// True when the code, which rests, has come to its cancellation, but not to what it has to clean up, for it waits for
    /// something that is not durable.
    pub(crate) fn misses_scopes(&self) -> bool {
        self.is_flagged && self.scopes_opened == 0 && self.calls.is_empty() && self.has_come_to_cancel()
    }

    /// How far the clean-up has come, of code that rests.
    pub(crate) fn cleaning_up(&self) -> CleaningUp {
        if !self.is_cleaning_up() {
            return CleaningUp::No;
        }
        match self.scopes.last_key_value() {
            None => CleaningUp::Done,
            Some((id, scope)) if scope.taken_up => match &self.awaited_over {
                Some(call) if self.waits_for_nothing() => CleaningUp::AwaitsOver(*id, call.clone()),
                _ => CleaningUp::Goes,
            },
            Some((id, _)) => CleaningUp::Unpolled(*id),
        }
    }

    /// True when nothing can come that would have the code go on.
    fn waits_for_nothing(&self) -> bool {
        let wake = self.wake();
        let is_at_rest = !self.is_busy() && !self.has_fresh() && !self.has_batch() && !self.in_flight;
        is_at_rest && self.startable.is_empty() && !self.has_intended() && wake.at.is_none() && wake.channels.is_empty()
    }

    /// What becomes of a flow whose code has ended: one that was cancelled has nothing left to clean up.
    pub(crate) fn end_of(&mut self, end: FlowEnd) -> FlowEnd {
        if self.cancel.is_none() {
            return end;
        }
        self.begin_cleanup();
        self.end_of_cleanup()
    }

    /// How a flow ends that has cleaned up.
    pub(crate) fn end_of_cleanup(&mut self) -> FlowEnd {
        // What failed on the way was dealt with.
        self.failures = (0, Vec::new());
        let Some(CleanupCause { is_time_limit, reason }) = self.cleanup_cause() else {
            return FlowEnd::Cancelled { reason: Arc::default() };
        };
        if is_time_limit {
            return FlowEnd::fault(&Error::of(ErrorKind::Timeout, &*reason).into_permanent());
        }
        FlowEnd::Cancelled { reason }
    }

    /// True while the code has something to clean up.
    pub(crate) fn has_scopes(&self) -> bool {
        !self.scopes.is_empty()
    }

    /// True when the log knows, or is about to, that the flow has something to clean up.
    pub(crate) fn is_flagged(&self) -> bool {
        self.is_flagged
    }

    fn wake_next(&mut self) {
        if let Some(scope) = self.scopes.last_entry()
            && let Some(waker) = &scope.get().waker
        {
            waker.wake_by_ref();
        }
    }

    /// Ends a call without an outcome; its future may live on.
    fn end_call(&mut self, id: CallId) {
        self.unwatch(id);
        self.give_back_of(id);
        self.nested.remove(&id);
        self.unrecorded.remove(&id);
        self.handed_over.take_if(|last| *last == id);
        if let Some(at) = self.calls[id.0].pulse.as_ref().and_then(|pulse| pulse.held()) {
            self.held.remove(&(at, id));
        }
        let call = &mut self.calls[id.0];
        let is_busy = matches!(call.state, State::Running) && !call.quiet;
        let position = call.path.as_ref().map(ergon_storage::CallPath::position);
        call.quiet = false;
        match std::mem::replace(&mut call.state, State::Over) {
            State::Recorded { seq, .. } => self.fresh.retain(|fresh| fresh.seq != seq),
            State::Replaying { .. } => self.matched.extend(position.map(|position| (position, None))),
            // Whoever cleans up may take it.
            State::Released { message: Some(message), .. } => {
                let path = self.calls[id.0].path.clone();
                self.let_go(message.seq, path.as_ref());
                self.put_back(*message);
            }
            _ => {}
        }
        self.busy -= usize::from(is_busy);
    }
}
