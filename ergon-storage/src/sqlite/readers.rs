//! The threads that read, each with a connection of its own.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::{
    error::{Fault, Outcome, stopped},
    lanes::Lanes,
    read::Reading,
    schema,
};
use crate::{Error, ErrorKind, Result};

/// How many connections read at once.
const READERS: usize = 2;
/// How many questions may wait for a reader; callers beyond that wait for room.
const INBOX_QUESTIONS_MAX: usize = 1_024;

type Question = Box<dyn FnOnce(Outcome<Reading<'_>>) + Send>;

/// The threads that answer questions about a file.
pub(super) struct Readers {
    inbox: Option<mpsc::Sender<Question>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(path: &Path, busy: Duration) -> Result<Self> {
        let (inbox, questions) = mpsc::channel(INBOX_QUESTIONS_MAX);
        let questions = Arc::new(Mutex::new(questions));
        let mut threads = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            let (path, questions) = (path.to_path_buf(), Arc::clone(&questions));
            let thread = thread::Builder::new().name("ergon-sqlite-read".into());
            threads.push(thread.spawn(move || run(&path, busy, &questions)).map_err(no_thread)?);
        }
        Ok(Self { inbox: Some(inbox), threads })
    }

    /// Answers a question in a read transaction.
    pub(super) async fn ask<T, F>(&self, question: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Reading<'_>) -> Outcome<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |reading| {
            let answer = reading.and_then(|mut reading| {
                catch_unwind(AssertUnwindSafe(|| question(&mut reading)))
                    .unwrap_or_else(|panic| Err(Fault::from_panic(&*panic)))
            });
            // The caller may have gone away.
            let _ = reply.send(answer.map_err(Fault::into_error));
        });
        let inbox = self.inbox.as_ref().ok_or_else(stopped)?;
        inbox.send(question).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        drop(self.inbox.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a reader of the execution log has panicked");
            }
        }
    }
}

/// The system has no thread for the log.
pub(super) fn no_thread(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "no thread could be started for the SQLite log").with_source(error)
}

fn run(path: &Path, busy: Duration, questions: &Mutex<mpsc::Receiver<Question>>) {
    let mut conn: Option<Connection> = None;
    let mut lanes = Lanes::default();
    loop {
        // One of the idle threads waits for a question, the others for the lock.
        let next = questions.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(question) = next else { break };
        if conn.is_none() {
            match schema::open_reader(path, busy) {
                Ok(opened) => conn = Some(opened),
                Err(error) => {
                    question(Err(error.into()));
                    continue;
                }
            }
        }
        let Some(conn) = &conn else { continue };
        match conn.unchecked_transaction() {
            Ok(transaction) => {
                question(Ok(Reading { conn, lanes: &mut lanes }));
                if let Err(error) = transaction.finish() {
                    tracing::warn!(%error, "a reader could not end its transaction");
                }
            }
            Err(error) => question(Err(error.into())),
        }
    }
}
