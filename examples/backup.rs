//! Heartbeats: a long copy that goes on where it was, however often it is killed.
//!
//! ```text
//! cargo run --example backup -- FROM TO
//! ```
//!
//! Stop it with Ctrl-C, or kill it in any other way, and give the same command again: the step starts again, is told by
//! its last heartbeat how far it had come, and goes on there. The flow is in a file beside TO, TO.db.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    process::ExitCode,
};

use ergon::{heartbeat, last_heartbeat, prelude::*};

/// How much is copied between two heartbeats.
const PIECE: u64 = 256 << 10;

#[flow]
async fn backup(from: String, to: String) -> ergon::Result<u64> {
    copy(from, to).await
}

/// Reads and writes files, which blocks its thread. An attempt that copies nothing for a minute hangs, and is given up.
#[step(blocking, heartbeat_timeout = "1m", retry = persistent)]
fn copy(from: String, to: String) -> ergon::Result<u64> {
    let begun: u64 = last_heartbeat()?.unwrap_or(0);
    println!("begin at {begun}");
    let mut source = File::open(from)?;
    source.seek(SeekFrom::Start(begun))?;
    let mut target = OpenOptions::new().create(true).write(true).truncate(false).open(to)?;
    // What was written after that heartbeat is written again.
    target.set_len(begun)?;
    target.seek(SeekFrom::Start(begun))?;
    let mut done = begun;
    loop {
        let copied = std::io::copy(&mut (&source).take(PIECE), &mut target)?;
        if copied == 0 {
            return Ok(done);
        }
        done += copied;
        target.flush()?;
        target.sync_data()?; // what a heartbeat says must be so after a power cut, too
        heartbeat(&done)?;
        println!("copied {done}");
        std::thread::sleep(Duration::from_millis(40)); // so that there is something to be seen
    }
}

#[tokio::main]
async fn main() -> ergon::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = &args[..] else {
        eprintln!("usage: backup FROM TO");
        return Ok(ExitCode::FAILURE);
    };
    let log = SqliteExecutionLog::open(format!("{to}.db")).await?;
    let worker = Worker::new(log.clone()).register::<backup>().start().await?;
    let flow = Scheduler::new(log).schedule(backup(from.clone(), to.clone())).id("backup").await?;
    let bytes = flow.result().await?;
    println!("{}", flow.history().await?);
    println!("done, {bytes} bytes");
    worker.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
