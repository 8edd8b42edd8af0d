//! Which of the logs on a file are alive.
//!
//! All processes that share a file run on one machine, so its kernel knows which of them are gone. Each log holds
//! a lock on a small file of its own, `orders.db-owner-<id>` beside `orders.db`, and writes the id into the row of
//! each flow that it claims. However a process ends, the kernel lets go of its locks. Whoever gets the lock of
//! another log therefore knows that this one is gone for good: its flows become claimable, as if their leases had
//! ended, and its file is removed. Nothing else changes, above all not the fencing: this is a way to learn earlier
//! that a lease will not be renewed, and a mistake in it could only make a flow run twice, as any lease can.
//!
//! What cannot be told counts as alive and is left to its lease: a process that was stopped, a lock that a forked
//! child holds on to, a file that was removed by hand, a file system without locks.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, TryLockError},
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use rusqlite::params;

use super::{
    error::Outcome,
    row,
    statements::Statements,
    writer::{Tx, Work},
};
use crate::Error;

/// How often a log that finds nothing due looks whether others are gone, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How many names for its file a log tries.
const NAMES_MAX: u32 = 8;
/// The digits of an id in the name of its file.
const ID_DIGITS: usize = 16;

/// How a lock is asked for: [`File::try_lock`], other than in tests.
pub(super) type TryLock = fn(&File) -> Result<(), TryLockError>;

/// This log's part among those on its file. A log without a part, which is one in memory or where locks do not
/// work, claims for nobody and never looks at the others.
#[derive(Debug, Default)]
pub(super) struct Owners {
    part: Option<Part>,
    looked_at: Option<Instant>,
    /// Those that are gone and whose flows are not free yet.
    dead: Vec<Held>,
}

#[derive(Debug)]
struct Part {
    place: Place,
    own: Held,
}

/// The lock of one log, held by whoever has this. It ends when the file is closed and never by an unlock, which
/// a forked child would do to its parent too.
#[derive(Debug)]
struct Held {
    id: i64,
    path: PathBuf,
    _lock: File,
}

impl Held {
    /// Removes the file. The lock ends afterwards, so that nobody finds the file unlocked.
    fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, path = %self.path.display(), "a lock file was left behind");
        }
    }
}

impl Owners {
    /// Takes a part on the file of a log, which must be there.
    pub(super) fn join(file: &Path, try_lock: TryLock) -> Self {
        let part = Place::of(file, try_lock).and_then(|place| Ok(Part { own: place.take()?, place }));
        let part = part.inspect_err(|error| {
            let log = file.display();
            tracing::warn!(%error, %log, "no lock files here: flows of a process that died wait until their leases end");
        });
        Self { part: part.ok(), ..Self::default() }
    }

    /// For whom this log claims flows.
    pub(super) fn id(&self) -> Option<i64> {
        Some(self.part.as_ref()?.own.id)
    }

    /// Finds the logs that left their files behind, also those without flows.
    pub(super) fn find_files(&mut self) {
        let Some(part) = &self.part else { return };
        let ids = match part.place.ids() {
            Ok(ids) => ids,
            Err(error) => return tracing::debug!(%error, "the lock files of other logs were not looked at"),
        };
        self.dead.extend(ids.filter_map(|id| part.take_over(id)));
    }

    /// Finds the logs that are gone among those that have running flows.
    pub(super) fn find(&mut self, st: &mut Statements<'_>) -> Outcome<()> {
        let Some(part) = &self.part else { return Ok(()) };
        let mut last = i64::MIN;
        while let Some(id) = st.owner_after.query_row([last], |row| row.get(0))? {
            last = id;
            self.dead.extend(part.take_over(id));
        }
        Ok(())
    }

    /// True when it is time to look again; counts as having looked.
    fn is_due(&mut self) -> bool {
        let due = self.part.is_some() && self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL);
        if due {
            self.looked_at = Some(Instant::now());
        }
        due
    }

    /// True when a log was found that has flows which are not free yet.
    pub(super) fn has_flows(&self, st: &mut Statements<'_>) -> Outcome<bool> {
        for owner in &self.dead {
            if st.owns.query_row([owner.id], |row| row.get(0))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes this log to be gone.
    pub(super) fn leave(&mut self) {
        self.dead.extend(self.part.take().map(|part| part.own));
    }

    /// The flows of those that were found are free.
    pub(super) fn committed(&mut self) {
        self.dead.drain(..).for_each(Held::remove);
    }

    /// They are not: whoever looks next finds them again.
    pub(super) fn rolled_back(&mut self) {
        self.dead.clear();
        self.looked_at = None;
    }
}

impl Part {
    /// The lock of another log that is gone.
    fn take_over(&self, id: i64) -> Option<Held> {
        if id == self.own.id { None } else { self.place.take_over(id) }
    }
}

/// Makes the flows of logs that are gone claimable, if it is time to look for such. True when there was one.
pub(super) fn look(tx: &mut Tx<'_, '_>) -> Outcome<bool> {
    if !tx.owners.is_due() {
        return Ok(false);
    }
    tx.owners.find(tx.st)?;
    free(tx)?;
    Ok(!tx.owners.dead.is_empty())
}

/// Makes the flows of the logs that were found claimable.
fn free(tx: &mut Tx<'_, '_>) -> Outcome<()> {
    if tx.owners.dead.is_empty() {
        return Ok(());
    }
    let now = tx.now().as_micros();
    for owner in &tx.owners.dead {
        let mut rows = tx.st.free.query(params![owner.id, now])?;
        let mut flows = 0;
        while let Some(row) = rows.next()? {
            flows += 1;
            tx.hints.queue = true;
            tx.hints.flows.extend(row::flow_id(row, 0));
        }
        if flows > 0 {
            let owner = owner.path.display();
            tracing::info!(%owner, flows, "a log is gone, and the flows it was running are offered again");
        }
    }
    Ok(())
}

/// [`free`] as the only job of a transaction.
pub(super) struct Free;

impl Work for Free {
    fn apply(&mut self, tx: &mut Tx<'_, '_>) -> Outcome<()> {
        free(tx)
    }

    fn fail(&mut self, _: Error) {}

    fn answer(self: Box<Self>) {}
}

/// Where the lock files of the logs on one file are, and how they are locked.
#[derive(Debug)]
struct Place {
    directory: PathBuf,
    /// What their names begin with.
    prefix: OsString,
    try_lock: TryLock,
}

impl Place {
    fn of(file: &Path, try_lock: TryLock) -> io::Result<Self> {
        // Beside the file itself, not beside a link to it.
        let file = file.canonicalize()?;
        let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else {
            return Err(io::ErrorKind::InvalidFilename.into());
        };
        let mut prefix = name.to_os_string();
        prefix.push("-owner-");
        Ok(Self { directory: directory.into(), prefix, try_lock })
    }

    fn name(&self, id: i64) -> OsString {
        let mut name = self.prefix.clone();
        name.push(format!("{id:0ID_DIGITS$x}"));
        name
    }

    /// The id in the name of a file; `None` for a file of another kind.
    fn id(&self, name: &OsStr) -> Option<i64> {
        let digits = name.as_encoded_bytes().strip_prefix(self.prefix.as_encoded_bytes())?;
        let id = i64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        (self.name(id) == name).then_some(id)
    }

    /// The ids of all lock files.
    fn ids(&self) -> io::Result<impl Iterator<Item = i64>> {
        let entries = fs::read_dir(&self.directory)?;
        Ok(entries.filter_map(|entry| self.id(&entry.ok()?.file_name())))
    }

    /// Makes a lock file under a new name, and locks it.
    fn take(&self) -> io::Result<Held> {
        for _ in 0..NAMES_MAX {
            let random = RandomState::new().hash_one(process::id());
            let id = (random >> 1).cast_signed();
            let path = self.directory.join(self.name(id));
            let mut lock = match File::create_new(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            };
            let held = match self.lock(&path, &lock) {
                Ok(held) => held,
                Err(error) => {
                    drop(lock);
                    let _ = fs::remove_file(&path);
                    return Err(error);
                }
            };
            if held {
                // For people who wonder; nobody reads it, and some systems let nobody.
                let _ = writeln!(lock, "process {} has the execution log open", process::id());
                return Ok(Held { id, path, _lock: lock });
            }
        }
        Err(io::Error::other("each lock file was taken away while it was new"))
    }

    /// Locks a file that was just made. False when another log has found it before it was locked, and taken it
    /// for that of a dead one.
    fn lock(&self, path: &Path, lock: &File) -> io::Result<bool> {
        match (self.try_lock)(lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The file is still the one that others find, and they find it locked. Some file systems let everybody
        // lock, or everybody in this process: then a lock says nothing.
        match File::open(path) {
            Ok(seen) => match (self.try_lock)(&seen) {
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(error)) => Err(error),
                Ok(()) => Err(io::Error::new(io::ErrorKind::Unsupported, "locks exclude nobody here")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gets the lock of a log that is gone.
    fn take_over(&self, id: i64) -> Option<Held> {
        let path = self.directory.join(self.name(id));
        // Opening anything else might wait.
        path.symlink_metadata().ok().filter(fs::Metadata::is_file)?;
        let lock = File::open(&path).ok()?;
        (self.try_lock)(&lock).ok()?;
        Some(Held { id, path, _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, sync::Arc};

    use tempfile::TempDir;

    use super::*;
    use crate::{ClaimRequest, ClaimTarget, ExecutionLog, FlowId, ManualClock, NewFlow, SqliteOptions};

    fn place(directory: &TempDir, try_lock: TryLock) -> Place {
        let file = directory.path().join("log.db");
        File::create(&file).unwrap();
        Place::of(&file, try_lock).unwrap()
    }

    fn files(directory: &Path) -> Vec<PathBuf> {
        let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.to_string_lossy().contains("-owner-")).collect()
    }

    #[test]
    fn names_and_ids_belong_together() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, File::try_lock);
        for id in [0, 1, 0x0123_4567_89ab_cdef, i64::MAX] {
            assert_eq!(place.id(&place.name(id)), Some(id));
        }
        assert_eq!(place.name(255), "log.db-owner-00000000000000ff");
        for name in ["log.db", "log.db-owner-", "log.db-owner-ff", "log.db-owner-00000000000000FF"] {
            assert_eq!(place.id(OsStr::new(name)), None, "{name}");
        }
    }

    #[test]
    fn a_lock_is_held_against_the_same_process_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, File::try_lock);
        let held = place.take().unwrap();
        let id = held.id;
        assert!(place.take_over(id).is_none());
        drop(held);
        let found = place.take_over(id).unwrap();
        assert!(place.take_over(id).is_none(), "one finds it at a time");
        found.remove();
        assert!(place.take_over(id).is_none());
        assert_eq!(files(directory.path()), [] as [PathBuf; 0]);
    }

    thread_local! {
        /// Where another log comes upon the next file that is new.
        static INTRUDED: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
    }

    /// Another log has the lock of the new file.
    fn intruded(file: &File) -> Result<(), TryLockError> {
        if INTRUDED.take().is_some() { Err(TryLockError::WouldBlock) } else { file.try_lock() }
    }

    /// Another log had the lock of the new file, and has removed it.
    fn removed(file: &File) -> Result<(), TryLockError> {
        if let Some(directory) = INTRUDED.take() {
            for path in files(&directory) {
                fs::remove_file(path).unwrap();
            }
        }
        file.try_lock()
    }

    #[test]
    fn a_new_file_that_another_log_finds_unlocked_is_given_up() {
        for try_lock in [intruded as TryLock, removed] {
            let directory = tempfile::tempdir().unwrap();
            let place = place(&directory, try_lock);
            INTRUDED.set(Some(directory.path().into()));
            let held = place.take().unwrap();
            assert!(held.path.exists());
            assert!(place.take_over(held.id).is_none(), "the second one is locked");
        }
    }

    /// A file system without locks.
    fn unsupported(_: &File) -> Result<(), TryLockError> {
        Err(TryLockError::Error(io::ErrorKind::Unsupported.into()))
    }

    /// A file system that pretends, or one whose locks are of the whole process.
    #[allow(clippy::unnecessary_wraps)]
    fn anybody(_: &File) -> Result<(), TryLockError> {
        Ok(())
    }

    #[tokio::test]
    async fn where_locks_do_not_work_leases_decide() {
        for try_lock in [unsupported as TryLock, anybody] {
            let directory = tempfile::tempdir().unwrap();
            let clock = ManualClock::new();
            let mut options = SqliteOptions::new(directory.path().join("log.db")).clock(Arc::new(clock.clone()));
            options.try_lock = try_lock;
            let (one, two) = (options.clone().open().await.unwrap(), options.open().await.unwrap());
            one.enqueue(vec![NewFlow::new(FlowId::new("a").unwrap(), "Order", 1, &b""[..])]).await.unwrap();
            let request = ClaimRequest::new("w", ClaimTarget::Flow(FlowId::new("a").unwrap()));
            assert_eq!(one.claim(request.clone()).await.unwrap().flows.len(), 1);
            assert_eq!(two.claim(request.clone()).await.unwrap().flows.len(), 0);
            drop(one);
            assert_eq!(two.claim(request.clone()).await.unwrap().flows.len(), 0);
            clock.advance(request.lease);
            assert_eq!(two.claim(request).await.unwrap().flows.len(), 1);
            assert_eq!(files(directory.path()), [] as [PathBuf; 0]);
        }
    }
}
