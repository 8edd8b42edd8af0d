//! How a log is opened.

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use super::{SqliteExecutionLog, owners::TryLock};
use crate::{Clock, Limits, Result, SystemClock};

/// What survives a power cut. A killed process loses nothing under either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Everything that was acknowledged is on the disk: each group of commits waits for the disk once
    /// (`synchronous = FULL`).
    #[default]
    Full,
    /// Acknowledged commits reach the disk at the next checkpoint or when the system writes them
    /// (`synchronous = NORMAL`). A power cut or a crash of the operating system may take the latest ones back, in
    /// their order: the file stays consistent, as it was a moment earlier, and steps whose outcomes were lost run
    /// again.
    Normal,
}

/// Whether a missing file is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Create {
    IfMissing,
    Never,
}

/// How to open a [`SqliteExecutionLog`].
///
/// # Examples
///
/// ```
/// use ergon_storage::{Durability, ErrorKind, SqliteOptions};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("orders.db");
/// let log = SqliteOptions::new(&path).durability(Durability::Normal).open().await?;
/// drop(log);
///
/// let nowhere = directory.path().join("missing/orders.db");
/// let error = SqliteOptions::new(nowhere).open().await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Invalid);
/// assert!(error.to_string().contains("missing of the execution log"), "{error}");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct SqliteOptions {
    pub(super) path: Option<PathBuf>,
    pub(super) create: Create,
    pub(super) durability: Durability,
    pub(super) busy_timeout: Duration,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Limits,
    pub(super) try_lock: TryLock,
}

impl SqliteOptions {
    /// How long a write waits for another process by default.
    pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

    /// A log in this file, which is made when it is missing; its directory must be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::in_memory() }
    }

    /// A log in the memory of this process, gone with its last handle.
    pub fn in_memory() -> Self {
        Self {
            path: None,
            create: Create::IfMissing,
            durability: Durability::default(),
            busy_timeout: Self::BUSY_TIMEOUT,
            clock: Arc::new(SystemClock),
            limits: Limits::default(),
            try_lock: File::try_lock,
        }
    }

    /// What survives a power cut; by default [`Durability::Full`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The clock by which the log decides; by default [`SystemClock`].
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The bounds of what the log accepts.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How long a write waits while another process writes, before it fails as
    /// [`Unavailable`](crate::ErrorKind::Unavailable); by default [`SqliteOptions::BUSY_TIMEOUT`].
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Whether a missing file is made; by default it is.
    pub fn create(mut self, create: bool) -> Self {
        self.create = if create { Create::IfMissing } else { Create::Never };
        self
    }

    /// Opens the log.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a path that cannot be a log: its directory does not
    /// exist, it is a directory itself, it may only be read, it is missing and must not be made.
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) for a file that is not an SQLite database.
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for the database of another program, or a log
    /// with a newer schema. [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when the system does not
    /// let it be opened now.
    pub async fn open(self) -> Result<SqliteExecutionLog> {
        SqliteExecutionLog::start(self).await
    }
}
