//! The flow of one file.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    path::Path,
    time::UNIX_EPOCH,
};

use ergon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    index::{Document, IndexWriter, State},
    words::{self, Words},
};

/// Larger files are skipped.
const BYTES_MAX: u64 = 2 << 20;

/// A file as it was found. Everything in it goes into the flow's id: a file that changed is another flow.
#[flow_type]
#[derive(Clone)]
pub(crate) struct IndexFile {
    pub(crate) path: String,
    /// Microseconds since 1970.
    pub(crate) modified: i64,
    pub(crate) bytes: u64,
    /// How often the index has had this path, this time included.
    pub(crate) revision: u32,
}

/// What a look at the file results in.
#[derive(Debug, Serialize, Deserialize)]
enum Content {
    /// It is a text with this hash.
    Text(String),
    /// It is not for the index, for this reason.
    Unfit(String),
    /// It is not what was scheduled any more: gone, or changed and soon a flow of its own.
    Other,
}

/// What became of the file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Fate {
    Indexed { words: u64 },
    Skipped { reason: String },
    Superseded,
}

#[flow_type]
impl IndexFile {
    #[flow]
    async fn run(&self) -> ergon::Result<Fate> {
        let (state, words) = match self.read().await {
            Err(error) => (State::Unreadable { reason: error.to_string() }, Words::new()),
            Ok(Content::Other) => return Ok(Fate::Superseded),
            Ok(Content::Unfit(reason)) => (State::Skipped { reason }, Words::new()),
            Ok(Content::Text(hash)) => match self.extract(hash.clone()).await? {
                Some(words) => (State::Indexed { hash }, words),
                None => return Ok(Fate::Superseded),
            },
        };
        self.store(&state, &words).await?;
        Ok(match state {
            State::Indexed { .. } => Fate::Indexed { words: words.values().map(|count| u64::from(*count)).sum() },
            State::Skipped { reason } | State::Unreadable { reason } => Fate::Skipped { reason },
        })
    }

    /// Reads the file and hashes it. What a step returns is recorded, so it returns the hash and not the text.
    #[step(blocking, timeout = "60s")]
    fn read(&self) -> ergon::Result<Content> {
        if self.bytes > BYTES_MAX {
            return Ok(Content::Unfit(format!("larger than {} MiB", BYTES_MAX >> 20)));
        }
        match self.text() {
            Ok(Some(text)) if text.contains(&0) => Ok(Content::Unfit("binary".into())),
            Ok(Some(text)) => Ok(Content::Text(hash(&text))),
            Ok(None) => Ok(Content::Other),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(ergon::Error::from(error).into_permanent())
            }
            // Tried again, a few times.
            Err(error) => Err(error.into()),
        }
    }

    /// Counts the words of the text that has this hash; `None` when the file is another one by now.
    #[step(blocking, timeout = "60s")]
    fn extract(&self, expected: String) -> ergon::Result<Option<Words>> {
        let text = self.text()?.filter(|text| hash(text) == expected);
        Ok(text.map(|text| words::count(&String::from_utf8_lossy(&text))))
    }

    /// Puts the file into the index, in place of what the index had of it. So it may run twice: after a crash
    /// between the index's commit and the log's, it will.
    #[step]
    async fn store(&self, state: &State, words: &Words) -> ergon::Result<()> {
        let document = Document { file: self.clone(), state: state.clone(), words: words.clone() };
        ergon::state::<IndexWriter>().put(document).await
    }
}

impl IndexFile {
    /// The file's content, if it still is the file that was scheduled.
    fn text(&self) -> io::Result<Option<Vec<u8>>> {
        let path = Path::new(&self.path);
        let same = |now: io::Result<Metadata>| match now {
            Ok(now) => Ok(now.is_file() && now.len() == self.bytes && modified(&now) == self.modified),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        // Looked at before it is opened: opening a pipe would wait for its other end.
        if !same(fs::symlink_metadata(path))? {
            return Ok(None);
        }
        let mut text = Vec::new();
        let file = File::open(path)?;
        (&file).take(BYTES_MAX + 1).read_to_end(&mut text)?;
        let whole = text.len() as u64 == self.bytes && same(file.metadata())?;
        Ok(whole.then_some(text))
    }

    /// The flow's id: readable, and another one for every state of the file.
    pub(crate) fn id(&self) -> String {
        const TAIL_BYTES_MAX: usize = 180;
        let state = format!("{}\0{}\0{}\0{}", self.path, self.modified, self.bytes, self.revision);
        let mut tail = self.path.len().saturating_sub(TAIL_BYTES_MAX);
        while !self.path.is_char_boundary(tail) {
            tail += 1;
        }
        format!("{}#{}", &self.path[tail..], &hash(state.as_bytes())[..32])
    }
}

/// When a file was last changed, in microseconds since 1970.
pub(crate) fn modified(file: &Metadata) -> i64 {
    let modified = file.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    modified.and_then(|since| i64::try_from(since.as_micros()).ok()).unwrap_or(0)
}

fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
