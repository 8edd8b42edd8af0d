//! A download from a server that is busy: the error says when to come back, and a cancelled flow leaves no half a file.
//!
//! ```text
//! cargo run --example download
//! ```
//!
//! One sees two flows: one that the server first sends away for a while, as with the status 429 and its `Retry-After`, and
//! one that is cancelled in the midst of it, whose step hears of that and removes what it has written.

use std::path::PathBuf;

use ergon::{FlowError, Retryable, cancelled, prelude::*};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
enum DownloadError {
    /// The server has said when to ask again.
    Busy {
        again_in_ms: u64,
    },
    Gone,
    Disk(String),
}

impl Retryable for DownloadError {
    fn is_retryable(&self) -> bool {
        !matches!(self, Self::Gone)
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { again_in_ms } => Some(Duration::from_millis(*again_in_ms)),
            Self::Gone | Self::Disk(_) => None, // when the policy says
        }
    }
}

impl From<std::io::Error> for DownloadError {
    fn from(error: std::io::Error) -> Self {
        Self::Disk(error.to_string())
    }
}

/// Downloads a file of so many blocks, and returns how many bytes it has.
#[flow]
async fn download(file: PathBuf, blocks: u32) -> Result<u64, DownloadError> {
    fetch(file.clone(), blocks).await
}

#[step(retry(max_attempts = 10, backoff = "1s..60s"))]
async fn fetch(file: PathBuf, blocks: u32) -> Result<u64, DownloadError> {
    if attempt() == 1 {
        println!("the server is busy");
        return Err(DownloadError::Busy { again_in_ms: 100 });
    }
    let mut written = 0;
    std::fs::write(&file, b"")?;
    let mut end = cancelled();
    for block in 0..blocks {
        tokio::select! {
            bytes = next_block(block) => {
                written += bytes.len() as u64;
                let mut all = std::fs::read(&file)?;
                all.extend(bytes);
                std::fs::write(&file, all)?;
            }
            reason = &mut end => {
                std::fs::remove_file(&file)?;
                println!("cancelled ({reason}): what there was of {} is removed", file.display());
                return Err(DownloadError::Gone); // nobody reads it any more
            }
        }
    }
    Ok(written)
}

/// As slow as a server.
async fn next_block(block: u32) -> [u8; 1024] {
    tokio::time::sleep(Duration::from_millis(20)).await;
    [block.to_le_bytes()[0]; 1024]
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("ergon-download-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let log = SqliteExecutionLog::open_in_memory().await?;
    // How soon a cancellation is heard of is a matter of the lease; how long a step may take over it, of the grace.
    let worker = Worker::new(log.clone()).register::<download>().lease(Duration::from_millis(300));
    let worker = worker.cancel_grace(Duration::from_secs(5)).start().await?;
    let scheduler = Scheduler::new(log);

    let small = scheduler.schedule(download(folder.join("small"), 3)).await?;
    println!("{} bytes\n", small.result().await.map_err(|error| error.to_string())?);
    println!("{}\n", small.history().await?);

    let large = folder.join("large");
    let flow = scheduler.schedule(download(large.clone(), 100_000)).await?;
    while !large.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    flow.cancel("no longer wanted").await?;
    if let Err(FlowError::Cancelled(reason)) = flow.result().await {
        println!("the flow is cancelled: {reason}");
    }
    // The worker hears of it a moment later.
    while large.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("no half a file is there");
    worker.shutdown().await;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
