//! The flow that the helper process runs, and the diary that its steps keep.

use std::{
    borrow::Cow,
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::Arc,
    time::Duration,
};

use ergon::{
    StorageError, Timestamp,
    prelude::*,
    storage::{Durability, ExecutionLog, SqliteOptions},
};

/// A job of a few steps, parallel ones and waits among them.
#[flow_type]
#[derive(Debug, Clone)]
pub struct Job {
    /// Its number.
    pub number: u32,
}

#[flow_type]
impl Job {
    /// Runs it.
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        let first = self.work("first", 1).await?;
        let (left, right) = tokio::try_join!(self.work("left", 2), self.work("right", 3))?;
        sleep(Duration::from_millis(u64::from(self.number % 5) * 10)).await;
        let quick = tokio::select! {
            quick = self.work("quick", 4) => quick?,
            () = sleep(Duration::from_secs(3600)) => 0,
        };
        let flaky = self.flaky(5).await?;
        let last = self.work("last", 6).await?;
        Ok(first + left + right + quick + flaky + last)
    }

    /// Takes a moment.
    #[step]
    async fn work(&self, name: &str, value: u32) -> ergon::Result<u32> {
        let diary = state::<Arc<Diary>>();
        diary.write("begin", name);
        tokio::time::sleep(Duration::from_millis(u64::from(self.number % 3))).await;
        diary.write("end", name);
        Ok(value)
    }

    /// Fails at its first attempt.
    #[step(retry(max_attempts = 50, backoff = "5ms", max = "20ms"))]
    async fn flaky(&self, value: u32) -> ergon::Result<u32> {
        let diary = state::<Arc<Diary>>();
        diary.write("begin", "flaky");
        if attempt() == 1 {
            return Err(ergon::Error::new("the first attempt fails"));
        }
        diary.write("end", "flaky");
        Ok(value)
    }
}

/// What a job results in.
pub const RESULT: u32 = 1 + 2 + 3 + 4 + 5 + 6;

/// The step whose outcome this is: outcomes that are texts name it.
#[must_use]
pub fn step_of(outcome: &[u8]) -> Cow<'static, str> {
    let name = match outcome {
        [b'"', name @ .., b'"'] => return String::from_utf8_lossy(name).into_owned().into(),
        b"1" => "first",
        b"2" => "left",
        b"3" => "right",
        b"4" => "quick",
        b"5" => "flaky",
        _ => "last",
    };
    name.into()
}

/// Opens the log at a URL.
///
/// # Errors
///
/// As [`ergon::open`].
pub async fn open(url: &str) -> Result<Arc<dyn ExecutionLog>, StorageError> {
    match url.strip_prefix("sqlite:") {
        // What a power cut takes is not what these tests are about. A process that is stopped may hold the lock.
        Some(path) => {
            let options = SqliteOptions::new(path).durability(Durability::Normal);
            Ok(Arc::new(options.busy_timeout(Duration::from_millis(300)).open().await?))
        }
        None => ergon::open(url).await,
    }
}

/// A file to which processes append a line each time something happens: `flow event what process time`.
#[derive(Debug)]
pub struct Diary {
    file: File,
}

impl Diary {
    /// The diary in this file.
    ///
    /// # Panics
    ///
    /// When it cannot be opened.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self { file: file.expect("the diary can be opened") }
    }

    /// The body of a step notes something.
    pub(crate) fn write(&self, event: &str, what: &str) {
        self.note(&ergon::flow_id(), event, what, ergon::now());
    }

    /// Notes that this process is ready to work.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn note_ready(&self) {
        self.note(&FlowId::new("nobody").expect("an id"), "ready", "-", Timestamp::from_micros(0));
    }

    /// Notes something.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn note(&self, flow: &FlowId, event: &str, what: &str, at: Timestamp) {
        let process = std::process::id();
        let line = format!("{flow} {event} {what} {process} {}\n", at.as_micros());
        // One write of a short line to a file opened for appending is not torn.
        (&self.file).write_all(line.as_bytes()).expect("the diary can be written");
    }
}
