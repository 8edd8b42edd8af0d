//! How a log is connected.

use std::{fmt, sync::Arc, time::Duration};

use super::{PostgresExecutionLog, run::LANES, target::Target};
use crate::{Clock, Error, ErrorKind, Limits, Result};

/// Those of the commit lanes, and one.
const CONNECTIONS_MIN: usize = LANES + 1;

/// What an answered call has survived when it is answered: PostgreSQL's `synchronous_commit`.
///
/// All of them are safe against the death of any process, of ergon or of the server, except that
/// [`Off`](Self::Off) is not safe against the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SynchronousCommit {
    /// It is on the server's disk, and on that of the synchronous standby where there is one (`on`).
    #[default]
    On,
    /// As [`On`](Self::On), and queries on the standby see it (`remote_apply`).
    RemoteApply,
    /// It is on the server's disk, and the standby has handed it to its operating system (`remote_write`).
    RemoteWrite,
    /// It is on the server's disk, whatever standbys do (`local`): a failover may take the latest calls back.
    Local,
    /// It is in the server's memory (`off`): when the server dies, the calls of about its last half second may be
    /// taken back, in their order. The log stays consistent, as it was a moment earlier, and steps whose outcomes
    /// were lost run again.
    Off,
}

impl SynchronousCommit {
    /// The setting's value.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::RemoteApply => "remote_apply",
            Self::RemoteWrite => "remote_write",
            Self::Local => "local",
            Self::Off => "off",
        }
    }
}

/// How to connect a [`PostgresExecutionLog`].
///
/// # Examples
///
/// ```no_run
/// use ergon_storage::{PostgresOptions, SynchronousCommit};
///
/// # async fn connect() -> ergon_storage::Result<()> {
/// let log = PostgresOptions::new("postgres://worker:secret@db.example:5432/orders?sslmode=verify-full")
///     .schema("orders_ergon")
///     .synchronous_commit(SynchronousCommit::Off)
///     .connect()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct PostgresOptions {
    pub(super) url: String,
    pub(super) schema: String,
    pub(super) connections: usize,
    pub(super) synchronous_commit: SynchronousCommit,
    pub(super) connect_timeout: Duration,
    pub(super) answer_timeout: Duration,
    pub(super) clock: Option<Arc<dyn Clock>>,
    pub(super) limits: Limits,
}

impl PostgresOptions {
    /// The schema that a log lives in by default.
    pub const SCHEMA: &'static str = "ergon";
    /// How many connections a log has by default, beside the one that listens.
    pub const CONNECTIONS: usize = 5;
    /// How long a log tries to connect by default.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
    /// How long a call waits for its answer by default.
    pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

    /// A log in the database at this URL: `postgres://user:password@host:port/database?options`, as PostgreSQL's own
    /// programs take it, or its `key=value` form. Several hosts may be named, for a failover. TLS goes by `sslmode`
    /// (`disable`, `prefer`, which is the default, `require`, `verify-ca`, `verify-full`) and `sslrootcert` (a file
    /// in PEM form, or `system`).
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            schema: Self::SCHEMA.into(),
            connections: Self::CONNECTIONS,
            synchronous_commit: SynchronousCommit::default(),
            connect_timeout: Self::CONNECT_TIMEOUT,
            answer_timeout: Self::ANSWER_TIMEOUT,
            clock: None,
            limits: Limits::default(),
        }
    }

    /// The schema that the log has for itself, which is made when it is missing; by default
    /// [`PostgresOptions::SCHEMA`]. Logs in different schemas share nothing.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// How many connections the log has, beside the one that listens for what other processes do; by default
    /// [`PostgresOptions::CONNECTIONS`]. Two write commits, one claims, one takes flows and messages in, and those
    /// beyond it answer questions and prune, which have none for themselves where there are fewer than 5: more of them
    /// only help where many reads are slow. Fewer than 3 count as 3: nobody shares a connection with the transactions of commits.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(CONNECTIONS_MIN);
        self
    }

    /// What an answered call has survived; by default [`SynchronousCommit::On`], whatever the server's own default.
    pub fn synchronous_commit(mut self, synchronous_commit: SynchronousCommit) -> Self {
        self.synchronous_commit = synchronous_commit;
        self
    }

    /// How long it may take to make a connection, and how long a call waits for a lost one to come back, however many
    /// others wait before it, before it fails as [`Unavailable`](crate::ErrorKind::Unavailable); by default
    /// [`PostgresOptions::CONNECT_TIMEOUT`]. Where the URL names several hosts they share the time, so that one that
    /// is silent, even after it has accepted the connection, does not hide the others.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long the server may take to answer a call, or a step of the migration, before that fails as
    /// [`Unavailable`](crate::ErrorKind::Unavailable); by default [`PostgresOptions::ANSWER_TIMEOUT`]. The time begins
    /// when the server has answered what was asked on the same connection before: to wait for others is no outage. The
    /// connection of a server that does not answer in time is given up and made anew.
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// A clock instead of the server's, for tests. All processes on the log must have the same one.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The bounds of what the log accepts.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Connects, brings the schema to the present version, and begins to listen. The log lives on the runtime of
    /// the caller.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a URL that makes no sense, a user, password or database
    /// that the server does not accept, a missing privilege, and a server that may only be read.
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a server before PostgreSQL 14, a database whose
    /// encoding is not UTF-8, a pooler that is not in session mode, a schema that belongs to something else, and a log
    /// with a newer schema.
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when the server does not answer in time, and when
    /// another process that changes the schema does not end in time. No error names the password.
    pub async fn connect(self) -> Result<PostgresExecutionLog> {
        PostgresExecutionLog::start(self).await
    }

    /// Refuses a schema name that the server would not take.
    pub(super) fn check_schema(&self) -> Result<()> {
        // PostgreSQL cuts longer names without a word.
        let refused = match self.schema.len() {
            0 => Some("is empty"),
            64.. => Some("exceeds 63 bytes"),
            _ if self.schema.starts_with("pg_") => Some("begins with pg_, which PostgreSQL keeps for itself"),
            // It stands in statements and functions.
            _ if self.schema.contains(['\0', '\'', '"', '\\', '$', '{']) => Some("holds what quotes or ends names"),
            _ => None,
        };
        match refused {
            None => Ok(()),
            Some(why) => Err(Error::new(ErrorKind::Invalid, format!("the schema name {:?} {why}", self.schema))),
        }
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = Target::parse(&self.url).map_or_else(|_| "?".to_owned(), |target| target.to_string());
        f.debug_struct("PostgresOptions")
            .field("place", &place)
            .field("schema", &self.schema)
            .field("connections", &self.connections)
            .field("synchronous_commit", &self.synchronous_commit)
            .field("connect_timeout", &self.connect_timeout)
            .field("answer_timeout", &self.answer_timeout)
            .field("clock", &self.clock)
            .field("limits", &self.limits)
            .finish()
    }
}
