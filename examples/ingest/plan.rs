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

/// What a walk through the folder found.
#[derive(Default)]
pub(crate) struct Planned {
    /// Files that are new or have changed.
    pub(crate) changed: u64,
    /// Files that the index has as they are.
    pub(crate) same: u64,
    /// What could not be looked at, and why.
    pub(crate) left_out: Vec<String>,
}

/// Walks through the folder and sends the files whose state is not in the index yet, until nobody listens.
pub(crate) fn walk(
    folder: &Path,
    db: &Path,
    index: &Index,
    batches: &mpsc::Sender<Vec<Entry<IndexFile>>>,
) -> ergon::Result<Planned> {
    const LEFT_OUT_MAX: usize = 1_000;
    let mut planned = Planned::default();
    let mut batch = Vec::new();
    for entry in WalkDir::new(folder) {
        if batches.is_closed() {
            return Ok(planned);
        }
        match look(entry, db, index) {
            Ok(Look::Work(file)) => {
                planned.changed += 1;
                let id = file.id();
                batch.push(Entry::new(file).id(id));
            }
            Ok(Look::Same) => planned.same += 1,
            Ok(Look::NoFile) => {}
            Err(why) if planned.left_out.len() < LEFT_OUT_MAX => planned.left_out.push(why.to_string()),
            Err(_) => {}
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
}

fn look(entry: walkdir::Result<walkdir::DirEntry>, db: &Path, index: &Index) -> ergon::Result<Look> {
    let entry = entry?;
    // Links, pipes, sockets and devices are not files, and the databases are not for the index.
    let own = entry.path().as_os_str().as_encoded_bytes().starts_with(db.as_os_str().as_encoded_bytes());
    if !entry.file_type().is_file() || own {
        return Ok(Look::NoFile);
    }
    let Some(path) = entry.path().to_str() else {
        return Err(ergon::Error::new(format!("{}: the name is not UTF-8", entry.path().display())));
    };
    let now = entry.metadata()?;
    let (modified, bytes) = (modified(&now), now.len());
    let known = index.known(path)?;
    if known.as_ref().is_some_and(|known| known.present && known.modified == modified && known.bytes == bytes) {
        return Ok(Look::Same);
    }
    let revision = known.map_or(0, |known| known.revision) + 1;
    Ok(Look::Work(IndexFile { path: path.into(), modified, bytes, revision }))
}
