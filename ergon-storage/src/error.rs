//! The errors of a log.

use std::{error::Error as StdError, fmt};

use crate::FlowId;

/// What [`ExecutionLog`](crate::ExecutionLog)'s methods return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller of a log can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such flow. Refused; nothing was changed.
    NotFound,
    /// The flow is not in a state that allows the operation, or something else holds the place. Refused.
    Conflict,
    /// The lease is not the flow's current one: another worker has it, or it was cancelled, finished or deleted.
    /// Refused; nothing was changed.
    LeaseLost,
    /// The flow has reached its final state. Refused; nothing was changed.
    Finished,
    /// The log cannot answer right now (busy, full, connection lost). The same call may succeed later; whether
    /// this one was applied is not known.
    Unavailable,
    /// What is stored cannot be read. Trying again does not help.
    Corrupt,
    /// The log does not do this, for instance because its schema is newer than this program.
    Unsupported,
    /// Something exceeds one of the log's [`Limits`](crate::Limits). Refused; nothing was changed.
    TooLarge,
    /// An argument makes no sense. Refused; nothing was changed.
    Invalid,
}

/// A refused or failed call to an execution log.
pub struct Error {
    kind: ErrorKind,
    flow: Option<FlowId>,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind; the message is lower case, without a full stop, and names what it is about.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, flow: None, message: message.into(), source: None }
    }

    /// The same error, about this flow. The message need not repeat the id.
    #[must_use]
    pub fn with_flow(mut self, flow: &FlowId) -> Self {
        self.flow = Some(flow.clone());
        self
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The flow is unknown.
    pub fn not_found(flow: &FlowId) -> Self {
        Self::new(ErrorKind::NotFound, "there is no such flow").with_flow(flow)
    }

    /// The lease is not the current one.
    pub fn lease_lost(flow: &FlowId) -> Self {
        Self::new(ErrorKind::LeaseLost, "the lease is no longer held").with_flow(flow)
    }

    /// The flow has ended.
    pub fn finished(flow: &FlowId, state: crate::FlowState) -> Self {
        Self::new(ErrorKind::Finished, format!("the flow is {state} already")).with_flow(flow)
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The flow that the call was about, if it was about one.
    pub fn flow(&self) -> Option<&FlowId> {
        self.flow.as_ref()
    }

    /// True when the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable)
    }

    /// True when the log itself is unusable for this program, whatever it is asked.
    pub fn is_fatal(&self) -> bool {
        matches!(self.kind, ErrorKind::Corrupt | ErrorKind::Unsupported)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(flow) = &self.flow {
            write!(f, "flow {flow:?}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

impl From<crate::InvalidId> for Error {
    fn from(error: crate::InvalidId) -> Self {
        Self::new(ErrorKind::Invalid, error.to_string())
    }
}
