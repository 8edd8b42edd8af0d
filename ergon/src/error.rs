//! The error of flows and steps.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// What flows and steps return that use [`ergon::Error`](Error).
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of trouble an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The user's own error, converted or made with [`Error::new`].
    Failed,
    /// User code panicked.
    Panic,
    /// A time limit has passed, or a step has sent no [heartbeat](crate::heartbeat) for too long.
    Timeout,
    /// A value could not be encoded or decoded, or is too large.
    Payload,
    /// A flow was cancelled, or the attempt of a step is over that goes on all the same.
    Cancelled,
    /// Something was asked for that cannot be done.
    Invalid,
    /// A child flow was not started, because its id belongs to another flow.
    Conflict,
    /// There is no such flow.
    NotFound,
    /// The flow has ended.
    Finished,
    /// Whether a step that runs at most once has done its work is unknown: its process died, or lost its lease, before
    /// the outcome was durable.
    UnknownOutcome,
    /// A flow was cancelled, or its time was up, and what it had to clean up then has failed.
    Cleanup,
}

/// An error that can be recorded: what steps and flows fail with that have no error type of their own.
///
/// Any [`std::error::Error`] converts into it with `?`; it keeps the message and the messages of its causes.
/// Therefore it is not itself a `std::error::Error`, just as `anyhow::Error` is not.
///
/// It is also what the engine hands to user code when a step panics, exceeds its time limit or cannot be
/// recorded: such trouble becomes the step's own error type where that implements `From<ergon::Error>`, and
/// otherwise fails the flow.
///
/// # Examples
///
/// ```
/// use ergon::{Error, ErrorKind};
///
/// fn parse(text: &str) -> ergon::Result<u32> {
///     Ok(text.parse()?)
/// }
///
/// let error = parse("x").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Failed);
/// assert!(error.is_retryable());
/// assert_eq!(error.to_string(), "invalid digit found in string");
/// assert!(!Error::permanent("no such customer").is_retryable());
/// let busy = Error::new("too many requests").with_retry_after(std::time::Duration::from_secs(30));
/// assert_eq!(busy.retry_after(), Some(std::time::Duration::from_secs(30)));
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    causes: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    permanent: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after: Option<Duration>,
}

impl Error {
    /// An error with this message; a step that fails with it is tried again.
    pub fn new(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Failed, message)
    }

    /// An error with this message; a step that fails with it is not tried again.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(message).into_permanent()
    }

    /// The same error; a step that fails with it is not tried again.
    #[must_use]
    pub fn into_permanent(mut self) -> Self {
        self.permanent = true;
        self
    }

    /// The same error; a step that fails with it is tried again this much later, if the policy has another attempt: see
    /// [`Retryable::retry_after`](crate::Retryable::retry_after).
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    pub(crate) fn of(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new(), permanent: false, retry_after: None }
    }

    /// The same error, with something else to be said about it.
    pub(crate) fn and(mut self, more: &impl fmt::Display) -> Self {
        self.message = format!("{}; {more}", self.message);
        self
    }

    pub(crate) fn timeout(what: &str, limit: Duration) -> Self {
        Self::of(ErrorKind::Timeout, format!("{what} exceeded its time limit of {}", humantime::format_duration(limit)))
    }

    pub(crate) fn silence(what: &str, limit: Duration) -> Self {
        let limit = humantime::format_duration(limit);
        let message = format!(
            "{what} sent no heartbeat for {limit}: it hangs, or should call ergon::heartbeat() more often, or have a longer \
             heartbeat_timeout"
        );
        Self::of(ErrorKind::Timeout, message)
    }

    pub(crate) fn unknown_outcome(what: &str) -> Self {
        let message = format!(
            "the outcome of {what} is unknown: its process died, or lost its lease, before it was recorded, and it runs \
             at most once; find out what it has done, and have the flow go on from there"
        );
        Self::of(ErrorKind::UnknownOutcome, message).into_permanent()
    }

    pub(crate) fn panic(what: &str, payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Self::of(ErrorKind::Panic, format!("{what} panicked: {text}"))
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// True unless it was declared permanent: whether a step that fails with it is tried again.
    pub fn is_retryable(&self) -> bool {
        !self.permanent
    }

    /// After how long a step that fails with it is tried again, in place of what the policy says; `None` leaves that to
    /// the policy.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The messages of the causes, nearest first.
    pub fn causes(&self) -> &[String] {
        &self.causes
    }
}

impl fmt::Display for Error {
    /// The message; with `{:#}` the causes too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if f.alternate() {
            for cause in &self.causes {
                write!(f, ": {cause}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#}")
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self { causes, ..Self::new(error.to_string()) }
    }
}
