//! What can go wrong between this backend and its server, and what the caller hears of it.

use redis::{RedisError, ServerErrorKind};

use super::link::Server;
use crate::{Error, ErrorKind, Result};

/// What the server's error means for the caller, and for the connection it came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The connection is gone, or was not made; whether the call was applied is not known. With more of why, if that
    /// is known.
    Connection(&'static str),
    /// The call was not applied, and may succeed later here.
    Later(&'static str),
    /// The call was not applied, and may succeed on another server: this one does not take writes.
    Elsewhere(&'static str),
    /// The namespace is on another node of the cluster.
    Moved,
    /// The server does not know the functions: it was restarted or emptied.
    NoFunction,
    /// The user may not do this, or the password is wrong.
    Forbidden(ErrorKind, &'static str),
    /// The server found something that this program did not write, or there is a bug.
    Broken,
}

/// What this error means.
pub(super) fn trouble(error: &RedisError) -> Trouble {
    use redis::ErrorKind as Kind;
    match error.kind() {
        Kind::Server(ServerErrorKind::BusyLoading) => Trouble::Later("the Redis server is loading its data"),
        Kind::Server(ServerErrorKind::TryAgain | ServerErrorKind::Ask) => {
            Trouble::Later("the Redis cluster is moving the namespace to another node")
        }
        Kind::Server(ServerErrorKind::ClusterDown) => Trouble::Elsewhere("the Redis cluster is down"),
        Kind::Server(ServerErrorKind::MasterDown) => Trouble::Elsewhere("the Redis replica has lost its master"),
        Kind::Server(ServerErrorKind::ReadOnly) => {
            Trouble::Elsewhere("the Redis server is a read-only replica; connect to its master")
        }
        Kind::Server(ServerErrorKind::Moved) => Trouble::Moved,
        Kind::Server(ServerErrorKind::NoScript) => Trouble::NoFunction,
        Kind::Server(ServerErrorKind::NoPerm) => NO_PERMISSION,
        Kind::AuthenticationFailed => {
            Trouble::Forbidden(ErrorKind::Invalid, "the Redis server refuses the user name or the password")
        }
        Kind::InvalidClientConfig => Trouble::Forbidden(ErrorKind::Invalid, "the Redis URL cannot be used"),
        Kind::Io | Kind::Parse | Kind::Client => Trouble::Connection(""),
        _ => by_code(error),
    }
}

/// What every refusal for want of a permission says.
const NO_PERMISSION: Trouble = Trouble::Forbidden(
    ErrorKind::Unsupported,
    "the Redis user lacks a permission; it needs the keys and channels of the namespace, functions or scripts, and the \
     commands that they call",
);

// The codes that the crate does not tell apart. They are the protocol, not a text for people.
fn by_code(error: &RedisError) -> Trouble {
    by_text(error.code().unwrap_or_default(), error.detail().unwrap_or_default())
}

/// What an error of this code and text means.
fn by_text(code: &str, text: &str) -> Trouble {
    match code {
        "LOADING" => Trouble::Later("the Redis server is loading its data"),
        "BUSY" => Trouble::Later("the Redis server is busy with a script"),
        "OOM" => Trouble::Later("the Redis server has used up its memory (maxmemory); prune, or give it more"),
        "MISCONF" => Trouble::Later("the Redis server refuses writes because it cannot persist them"),
        "NOREPLICAS" => Trouble::Later("the Redis server refuses writes because too few replicas are connected"),
        "READONLY" => Trouble::Elsewhere("the Redis server is a read-only replica; connect to its master"),
        "NOAUTH" | "WRONGPASS" => {
            Trouble::Forbidden(ErrorKind::Invalid, "the Redis server refuses the user name or the password")
        }
        "NOPERM" => NO_PERMISSION,
        "DENIED" => Trouble::Forbidden(
            ErrorKind::Unsupported,
            "the Redis server runs in protected mode and takes no connections from other machines; give it a password, \
             or set protected-mode to no",
        ),
        // These have no code of their own; the texts have been the same since they exist.
        _ if text.contains("Function not found") => Trouble::NoFunction,
        _ if text.contains("user executing the script") || text.contains("executing the function can") => NO_PERMISSION,
        _ if text.contains("max number of clients") => {
            Trouble::Connection("it has as many clients as it takes (maxclients)")
        }
        _ if text.contains("Script killed by user") => {
            Trouble::Later("a call to the Redis server was ended by FUNCTION KILL or SCRIPT KILL")
        }
        _ if text.contains("DB index is out of range") || text.contains("SELECT is not allowed in cluster mode") => {
            Trouble::Forbidden(ErrorKind::Invalid, "the Redis server does not have the database that the URL names")
        }
        _ => Trouble::Broken,
    }
}

/// The public error for one of the server's or the connection's.
pub(super) fn from_redis(error: RedisError, server: &Server) -> Error {
    let (kind, message) = match trouble(&error) {
        Trouble::Connection(why) => {
            let at = server.address();
            let message = match why {
                _ if error.is_timeout() => format!("the Redis server at {at} does not answer in time"),
                "" => format!("the connection to the Redis server at {at} failed"),
                why => format!("the Redis server at {at} takes no connection: {why}"),
            };
            // The error and its source say the same.
            return Error::new(ErrorKind::Unavailable, message).with_source(error.to_string());
        }
        Trouble::Later(message) | Trouble::Elsewhere(message) => (ErrorKind::Unavailable, message),
        Trouble::Moved => (ErrorKind::Unavailable, "the Redis cluster has moved the namespace to another node"),
        Trouble::NoFunction => (ErrorKind::Unavailable, "the Redis server has lost the functions of this log"),
        Trouble::Forbidden(kind, message) => (kind, message),
        Trouble::Broken => (ErrorKind::Corrupt, "the Redis log could not do this"),
    };
    Error::new(kind, message).with_source(error)
}

/// The public error for what a function has refused, whose text is either the server's or says which flow cannot be
/// read.
pub(super) fn from_function(why: String) -> Error {
    let code = why.split(' ').next().unwrap_or_default();
    match by_text(code, &why) {
        Trouble::Later(message) | Trouble::Elsewhere(message) => {
            Error::new(ErrorKind::Unavailable, message).with_source(why)
        }
        Trouble::Forbidden(kind, message) => Error::new(kind, message).with_source(why),
        _ if why.starts_with("flow ") => Error::new(ErrorKind::Corrupt, why),
        _ => Error::new(ErrorKind::Corrupt, "the Redis log could not do this").with_source(why),
    }
}

/// The log was dropped, which only happens to calls that outlive it.
pub(super) fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "the Redis log has stopped")
}

/// What the server holds or answers is not what this program has written.
pub(super) fn unreadable<T>(what: impl std::fmt::Display) -> Result<T> {
    Err(Error::new(ErrorKind::Corrupt, format!("{what} cannot be read")))
}
