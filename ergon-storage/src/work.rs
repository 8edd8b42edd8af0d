//! The user's own work in the transactions of a log that is a database.

use std::{any::Any, fmt};

use bytes::Bytes;
#[cfg(feature = "postgres")]
use futures::future::BoxFuture;

/// What a log's transactions are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Database {
    /// SQLite, by the crate `rusqlite`.
    Sqlite,
    /// PostgreSQL, by the crate `tokio-postgres`.
    Postgres,
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        })
    }
}

/// What the user's work results in: an encoded value, or an error of whatever type it has.
pub type WorkResult = std::result::Result<Bytes, Box<dyn Any + Send>>;

/// Work on a PostgreSQL log. It is given the transaction, and a bound which says that what it borrows, for `'w`, outlives
/// that.
#[cfg(feature = "postgres")]
pub type PostgresWork<'w> =
    dyn for<'t> Fn(&'t crate::PostgresTransaction<'t>, Within<'t, 'w>) -> BoxFuture<'t, WorkResult> + Send + Sync + 'w;

/// Says that `'w` outlives `'t`.
#[cfg(feature = "postgres")]
pub type Within<'t, 'w> = std::marker::PhantomData<&'t &'w ()>;

/// Work of the user's for [`ExecutionLog::transact`](crate::ExecutionLog::transact). It may be done again when the
/// transaction that it was a part of has failed.
#[non_exhaustive]
pub enum Work<'w> {
    /// For an SQLite log.
    #[cfg(feature = "sqlite")]
    Sqlite(Box<dyn Fn(&crate::SqliteTransaction<'_>) -> WorkResult + Send>),
    /// For a PostgreSQL log.
    #[cfg(feature = "postgres")]
    Postgres(Box<PostgresWork<'w>>),
    /// For none; keeps the lifetime in use.
    #[doc(hidden)]
    None(std::marker::PhantomData<&'w ()>),
}

impl Work<'_> {
    /// The database that it is for.
    #[must_use]
    pub fn database(&self) -> Option<Database> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => Some(Database::Sqlite),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => Some(Database::Postgres),
            Self::None(_) => None,
        }
    }
}

impl fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("database", &self.database()).finish_non_exhaustive()
    }
}
