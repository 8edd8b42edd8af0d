//! Hearing of the commits of other processes.
//!
//! The system tells of each change of the write-ahead log, also of our own, and it does so while the change is not
//! yet a commit: SQLite writes the pages, waits for the disk, and only then, still under the write lock, publishes
//! them in memory that nobody can watch. So the writer is asked to take the lock and see whose the change was.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use notify::{
    Config, EventHandler, EventKind, PollWatcher, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::mpsc;

use super::writer::Request;

/// The pause after an event, in which the system merges the next ones: under load the file changes all the time.
const NAP: Duration = Duration::from_millis(2);
/// The pause after a connection was closed, in which a process that ends gets rid of the rest of what it holds.
const END_NAP: Duration = Duration::from_millis(5);
/// How often the file is looked at where the system does not tell of changes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Asks the writer to look whenever the write-ahead log changes. Nothing happens while nobody writes.
pub(super) struct WalWatch {
    _watcher: Box<dyn Watcher + Send + Sync>,
}

impl WalWatch {
    /// Watches the write-ahead log of a file. `None`, after a warning, when the system has no way to: then other
    /// processes' commits are found by whoever looks.
    pub(super) fn start(file: &Path, poke: &Poke) -> Option<Self> {
        let log = log_of(file);
        let told = watch::<RecommendedWatcher>(&log, poke.clone(), Config::default());
        let watcher = told.or_else(|error| {
            tracing::debug!(%error, "the write-ahead log is looked at now and then");
            watch::<PollWatcher>(&log, poke.clone(), Config::default().with_poll_interval(POLL_INTERVAL))
        });
        match watcher {
            Ok(watcher) => Some(Self { _watcher: watcher }),
            Err(error) => {
                tracing::warn!(%error, log = %log.display(), "commits of other processes are not noticed at once");
                None
            }
        }
    }
}

fn watch<W: Watcher + Send + Sync + 'static>(
    log: &Path,
    poke: Poke,
    config: Config,
) -> notify::Result<Box<dyn Watcher + Send + Sync>> {
    let mut watcher = W::new(poke, config)?;
    watcher.watch(log, RecursiveMode::NonRecursive)?;
    Ok(Box::new(watcher))
}

/// SQLite's name for the write-ahead log of a file. It stays in place while a connection is open.
fn log_of(file: &Path) -> PathBuf {
    // It lies beside the file itself, not beside a link to it.
    let mut name = OsString::from(file.canonicalize().unwrap_or_else(|_| file.to_path_buf()));
    name.push("-wal");
    name.into()
}

/// The way to the writer.
#[derive(Clone)]
pub(super) struct Poke {
    /// Weak, so that the watch does not keep the writer alive.
    pub(super) inbox: mpsc::WeakSender<Request>,
    /// True while a [`Request::Look`] waits.
    pub(super) looking: Arc<AtomicBool>,
    /// True when a connection was closed and the writer has not seen to it.
    pub(super) closed: Arc<AtomicBool>,
}

impl EventHandler for Poke {
    fn handle_event(&mut self, event: notify::Result<notify::Event>) {
        match event.map(|event| event.kind) {
            Ok(EventKind::Access(AccessKind::Close(AccessMode::Write))) => {
                thread::sleep(END_NAP);
                self.closed.store(true, Ordering::Release);
            }
            Ok(EventKind::Access(_)) => return,
            _ => {}
        }
        if !self.looking.swap(true, Ordering::AcqRel) {
            let sent = self.inbox.upgrade().is_some_and(|inbox| inbox.try_send(Request::Look).is_ok());
            if !sent {
                // A full inbox: the writer looks with every transaction, and sees then what was closed.
                self.looking.store(false, Ordering::Release);
            }
        }
        thread::sleep(NAP);
    }
}
