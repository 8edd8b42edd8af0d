//! The flow that the helper process runs, and the diary that its steps keep.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    time::Duration,
};

use ergon::prelude::*;

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
        let diary = state::<Diary>();
        diary.write("begin", name);
        tokio::time::sleep(Duration::from_millis(u64::from(self.number % 3))).await;
        diary.write("end", name);
        Ok(value)
    }

    /// Fails at its first attempt.
    #[step(retry(max_attempts = 50, backoff = "5ms", max = "20ms"))]
    async fn flaky(&self, value: u32) -> ergon::Result<u32> {
        let diary = state::<Diary>();
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

/// A file to which the bodies of steps append a line each time they begin and end: `flow event name process time`.
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

    fn write(&self, event: &str, name: &str) {
        let (flow, process) = (ergon::flow_id(), std::process::id());
        let line = format!("{flow} {event} {name} {process} {}\n", ergon::now().as_micros());
        // One write of a short line to a file opened for appending is not torn.
        (&self.file).write_all(line.as_bytes()).expect("the diary can be written");
    }
}
