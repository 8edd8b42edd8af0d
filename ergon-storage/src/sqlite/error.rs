//! What can go wrong inside this backend, and what the caller hears of it.

use std::any::Any;

use rusqlite::ErrorCode;

use crate::{Error, ErrorKind};

/// The outcome of work on a connection.
pub(super) type Outcome<T> = std::result::Result<T, Fault>;

/// Why work on a connection did not succeed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The call was refused before it changed anything.
    Refused(Error),
    /// SQLite failed.
    Sqlite(rusqlite::Error),
    /// The user's work has failed and rolled the transaction back, which its answer tells.
    RolledBack,
    /// A row does not hold what this program has written.
    Unreadable(String),
    /// Our own bug, or one of a user's [`Clock`](crate::Clock).
    Panicked(String),
}

impl Fault {
    /// From the payload of a caught panic.
    pub(super) fn from_panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self::Panicked(text.unwrap_or("no message").into())
    }

    /// True when the transaction is lost whatever the other jobs in it do: the disk, the memory or the lock.
    pub(super) fn is_about_the_file(&self) -> bool {
        matches!(self, Self::Sqlite(error) if kind_of(error) == ErrorKind::Unavailable)
    }

    /// The public error.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Refused(error) => error,
            Self::Sqlite(error) => from_sqlite("the SQLite log could not do this", error),
            Self::RolledBack => Error::new(ErrorKind::Unavailable, "another's work has rolled the transaction back"),
            Self::Unreadable(what) => Error::new(ErrorKind::Corrupt, what),
            Self::Panicked(text) => Error::new(ErrorKind::Unavailable, format!("the SQLite log panicked: {text}")),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// The public error for one of SQLite's, which stays its source.
pub(super) fn from_sqlite(message: impl Into<String>, error: rusqlite::Error) -> Error {
    Error::new(kind_of(&error), message).with_source(error)
}

/// The log's threads are gone, which only happens while the log is dropped or after a bug.
pub(super) fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "the SQLite log has stopped")
}

fn kind_of(error: &rusqlite::Error) -> ErrorKind {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory
            | ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::OperationInterrupted
            | ErrorCode::OperationAborted
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::SchemaChanged,
        ) => ErrorKind::Unavailable,
        Some(ErrorCode::TooBig) => ErrorKind::TooLarge,
        _ => ErrorKind::Corrupt,
    }
}
