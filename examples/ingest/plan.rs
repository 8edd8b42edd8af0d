//! Which files need work.

use std::path::Path;

use ergon::Entry;
use tokio::sync::mpsc;
use walkdir::WalkDir;

use crate::{
    file::{IndexFile, modified},
    index::Index,
};

/// How many flows are scheduled at once.
const BATCH: usize = 500;
/// How many of the things that could not be looked at are named.
const LEFT_OUT_FIRST: usize = 10;

/// What a walk through the folder found.
#[derive(Default)]
pub(crate) struct Planned {
    /// Files that are new or have changed.
    pub(crate) changed: u64,
    /// Files that the index has as they are.
    pub(crate) same: u64,
    /// How many things could not be looked at, and the first few of them with the reasons.
    pub(crate) left_out: u64,
    pub(crate) left_out_first: Vec<String>,
}

/// Walks through the folder and sends the files whose state is not in the index yet, until nobody listens.
pub(crate) fn walk(
    folder: &Path,
    db: &Path,
    index: &Index,
    batches: &mpsc::Sender<Vec<Entry<IndexFile>>>,
) -> ergon::Result<Planned> {
    let mut planned = Planned::default();
    let mut batch = Vec::new();
    for entry in WalkDir::new(folder) {
        if batches.is_closed() {
            return Ok(planned);
        }
        match look(entry, db, index)? {
            Look::Work(file) => {
                planned.changed += 1;
                let id = file.id();
                batch.push(Entry::new(file).id(id));
            }
            Look::Same => planned.same += 1,
            Look::NoFile => {}
            Look::LeftOut(why) => {
                planned.left_out += 1;
                if planned.left_out_first.len() < LEFT_OUT_FIRST {
                    planned.left_out_first.push(why);
                }
            }
        }
        if batch.len() == BATCH {
            // Waits while the queue has not taken the batches before.
            let _ = batches.blocking_send(std::mem::take(&mut batch));
        }
    }
    let _ = batches.blocking_send(batch);
    Ok(planned)
}

enum Look {
    Work(IndexFile),
    Same,
    NoFile,
    LeftOut(String),
}

fn look(entry: walkdir::Result<walkdir::DirEntry>, db: &Path, index: &Index) -> ergon::Result<Look> {
    let entry = match entry {
        Ok(entry) => entry,
        Err(error) => return Ok(Look::LeftOut(error.to_string())),
    };
    // Links, pipes, sockets and devices are not files, and the databases are not for the index.
    let own = entry.path().as_os_str().as_encoded_bytes().starts_with(db.as_os_str().as_encoded_bytes());
    if !entry.file_type().is_file() || own {
        return Ok(Look::NoFile);
    }
    let Some(path) = entry.path().to_str() else {
        return Ok(Look::LeftOut(format!("{}: the name is not UTF-8", entry.path().display())));
    };
    let now = match entry.metadata() {
        Ok(now) => now,
        Err(error) => return Ok(Look::LeftOut(error.to_string())),
    };
    let (modified, bytes) = (modified(&now), now.len());
    let known = index.known(path)?;
    if known.as_ref().is_some_and(|known| known.settled && known.modified == modified && known.bytes == bytes) {
        return Ok(Look::Same);
    }
    let revision = known.map_or(0, |known| known.revision) + 1;
    Ok(Look::Work(IndexFile { path: path.into(), modified, bytes, revision }))
}
