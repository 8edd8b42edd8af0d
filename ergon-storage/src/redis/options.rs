//! How a log is opened.

use std::{fmt, sync::Arc, time::Duration};

use redis::{ConnectionInfo, IntoConnectionInfo};
use rustls::crypto::CryptoProvider;

use super::RedisExecutionLog;
use crate::{Clock, Error, ErrorKind, Limits, Result};

/// How to connect to a [`RedisExecutionLog`].
///
/// # Examples
///
/// ```
/// use ergon_storage::{ErrorKind, RedisOptions};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let error = RedisOptions::new("postgres://localhost").connect().await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Invalid);
///
/// let error = RedisOptions::new("redis://localhost").namespace("{orders}").connect().await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Invalid);
/// # });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct RedisOptions {
    url: String,
    pub(super) namespace: String,
    pub(super) connections: usize,
    pub(super) connect_timeout: Duration,
    pub(super) answer_timeout: Duration,
    pub(super) clock: Option<Arc<dyn Clock>>,
    pub(super) limits: Limits,
}

impl RedisOptions {
    /// The namespace of logs that name none.
    pub const NAMESPACE: &'static str = "ergon";
    /// How many connections carry writes by default. More gain nothing: while one waits, the other gathers.
    pub const CONNECTIONS: usize = 2;
    /// How long an attempt to connect may take by default.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    /// How long an answer may take by default.
    pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

    /// A log on the server at this URL: `redis://[user:password@]host[:port][/database]`, the same with `rediss:` for
    /// TLS, or `unix:///path[?db=database]`.
    ///
    /// With TLS the server's certificate must be good for the host, by the authorities that the system trusts
    /// (`SSL_CERT_FILE` names others). A process that has installed no [`CryptoProvider`] for rustls gets ring's.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            namespace: Self::NAMESPACE.into(),
            connections: Self::CONNECTIONS,
            connect_timeout: Self::CONNECT_TIMEOUT,
            answer_timeout: Self::ANSWER_TIMEOUT,
            clock: None,
            limits: Limits::default(),
        }
    }

    /// The name of this log among others on the same server, by default [`RedisOptions::NAMESPACE`]: 1 to 64
    /// bytes without spaces, braces, brackets, backslashes and wildcards. All its keys begin with the name as a
    /// hash tag, so that a cluster keeps them on one node.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// How many connections carry writes, from 1; by default [`RedisOptions::CONNECTIONS`]. One more is opened for
    /// hints when something is watched.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// How long an attempt to connect may take; by default [`RedisOptions::CONNECT_TIMEOUT`].
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long an answer may take before the call fails as [`Unavailable`](ErrorKind::Unavailable); by default
    /// [`RedisOptions::ANSWER_TIMEOUT`]. It must leave the server the time for the largest call.
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// A clock of this process to decide by, for tests. By default the server's own clock decides, so that the
    /// clocks of several machines need not agree.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The bounds of what the log accepts.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Connects to the log, or begins it. Must be called in a Tokio runtime that lives as long as the log.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a URL, a namespace, a user name or a password that is not accepted.
    /// [`ErrorKind::Unsupported`] for a server older than Redis 7, a namespace that another program uses, a log
    /// with a newer schema, or a user who lacks a permission. [`ErrorKind::Unavailable`] when the server cannot be
    /// reached, is loading its data, or is a read-only replica.
    pub async fn connect(self) -> Result<RedisExecutionLog> {
        RedisExecutionLog::start(self).await
    }

    /// Where to connect to. No error shows the URL, for it may hold a password.
    pub(super) fn info(&self) -> Result<ConnectionInfo> {
        let invalid = |message: &str| Error::new(ErrorKind::Invalid, message);
        if self.connections == 0 {
            return Err(invalid("a Redis log needs at least one connection"));
        }
        if self.connect_timeout.is_zero() || self.answer_timeout.is_zero() {
            return Err(invalid("the time limits of a Redis log must not be zero"));
        }
        let is_tls = self.url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("rediss:"));
        if is_tls && CryptoProvider::get_default().is_none() {
            // Another thread that installs one at this moment has done it for us.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let not_a_url = "this is no URL of a Redis server, such as redis://localhost:6379/0";
        let info = self.url.as_str().into_connection_info().map_err(|_| invalid(not_a_url))?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        Ok(info.set_tcp_settings(tcp))
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("RedisOptions").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
