//! What a server's errors mean to the caller.

use tokio_postgres::error::SqlState;

use crate::{Error, ErrorKind};

/// What can be done about a failed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The server has undone it: the same statement at once.
    Repeat,
    /// The connection is gone or useless; whether the statement was applied is not known.
    Reconnect,
    /// Nothing but telling the caller.
    Tell(ErrorKind),
}

/// What can be done about this error.
pub(super) fn remedy(error: &tokio_postgres::Error) -> Remedy {
    let Some(state) = error.code() else {
        // The driver itself: a connection that is broken or closed, or a message that it cannot send.
        return if is_too_large(error) { Remedy::Tell(ErrorKind::TooLarge) } else { Remedy::Reconnect };
    };
    if [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE].contains(state) {
        return Remedy::Repeat;
    }
    match state.code() {
        // The server stops, starts or cannot write any more, or has not heard of us for too long; or another build has
        // changed the schema; or a pooler has given the connection to someone else, who does not know our statements.
        "25P03" | "25P04" | "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25006" | "0A000" | "26000" | "42P05" => {
            Remedy::Reconnect
        }
        code if code.starts_with("08") => Remedy::Reconnect,
        // Canceled, locked, out of something.
        "57014" | "55P03" | "55006" => Remedy::Tell(ErrorKind::Unavailable),
        code if code.starts_with("53") || code.starts_with("58") => Remedy::Tell(ErrorKind::Unavailable),
        // Too long for a message or a field.
        "54000" | "22001" | "ER001" => Remedy::Tell(ErrorKind::TooLarge),
        "42501" => Remedy::Tell(ErrorKind::Invalid),
        _ => Remedy::Tell(ErrorKind::Corrupt),
    }
}

fn is_too_large(error: &tokio_postgres::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidInput)
}

/// The error of a call whose statement failed for good.
pub(super) fn failed(error: tokio_postgres::Error) -> Error {
    let kind = match remedy(&error) {
        Remedy::Repeat | Remedy::Reconnect => ErrorKind::Unavailable,
        Remedy::Tell(kind) => kind,
    };
    Error::new(kind, "the PostgreSQL log could not do this").with_source(error)
}

/// What is wrong with a place where connections are not connections of the server.
pub(super) const BEHIND_A_POOLER: &str = "is behind a pooler that takes connections back after each transaction or \
    statement, and with them what the log relies on: prepared statements, LISTEN and its settings; use session mode";

/// The error of a connection that cannot be made to `place`.
pub(super) fn no_connection(place: &impl std::fmt::Display, error: tokio_postgres::Error) -> Error {
    let (kind, what) = match error.code().map(SqlState::code) {
        Some("28P01" | "28000") => (ErrorKind::Invalid, "does not accept the user or the password"),
        Some("3D000") => (ErrorKind::Invalid, "does not exist"),
        // Nobody else prepares statements on a connection of ours.
        Some("42P05" | "26000") => (ErrorKind::Unsupported, BEHIND_A_POOLER),
        Some("57014") => (ErrorKind::Unavailable, "takes too long to answer"),
        Some("42501") => (ErrorKind::Invalid, "denies the user a privilege that an execution log needs"),
        Some(_) if remedy(&error) == Remedy::Tell(ErrorKind::Corrupt) => {
            (ErrorKind::Corrupt, "does not hold what an execution log needs")
        }
        _ => (ErrorKind::Unavailable, "cannot be reached"),
    };
    Error::new(kind, format!("{place} {what}")).with_source(error)
}

/// The log's tasks are gone, which only happens while the log is dropped or its runtime ends.
pub(super) fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "the PostgreSQL log has stopped")
}
