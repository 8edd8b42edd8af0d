//! Flows whose histories are kept as each release has written them, in the folder `golden`: the code of today must go
//! on with them.
//!
//! `cargo run -p ergon-tests --bin golden -- tests/golden/VERSION` writes those of this version, once, when it is
//! released. From then on neither they nor what a [`Journey`] calls may change.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ergon::{
    Admin, Filter, FlowHandle, FlowState, SqliteExecutionLog, SqliteOptions, map_concurrent, on_cancel, patched,
    prelude::*,
    saga,
    storage::{Clock, ExecutionLog, SystemClock},
};
use futures::TryStreamExt;

use crate::{TestClock, state_of};

/// The log, in a release's folder.
pub const LOG: &str = "log.sqlite";
/// The same flows as lines, in a release's folder.
pub const LINES: &str = "flows.jsonl";

const WORDS: Mailbox<String> = Mailbox::new("words");
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
/// Nobody waits for so long before the history is read again.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// A flow of everything, up to a place that its name tells.
#[flow_type(name = "golden-journey")]
#[derive(Clone)]
pub struct Journey {
    /// What becomes of it.
    pub how: String,
}

/// The flows, with the state in which they were left, and what becomes of them then: the result, or how they end.
pub const FLOWS: [(&str, FlowState, Result<&str, FlowState>); 9] = [
    ("completed", FlowState::Completed, Ok("ab, a parcel, word, none")),
    ("failed", FlowState::Failed, Err(FlowState::Failed)),
    ("cancelled", FlowState::Cancelled, Err(FlowState::Cancelled)),
    ("cancelling", FlowState::Suspended, Err(FlowState::Cancelled)),
    ("sleeping", FlowState::Suspended, Ok("ab, a parcel, word, none")),
    ("listening", FlowState::Suspended, Ok("ab, a parcel, word, now")),
    ("retrying", FlowState::Suspended, Ok("on the second attempt")),
    ("continued", FlowState::Suspended, Ok("in run 3")),
    ("scheduled", FlowState::Scheduled, Ok("ab, a parcel, word, none")),
];

#[flow_type]
impl Journey {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        match self.how.as_str() {
            "failed" => {
                self.everything().await?;
                Err(ergon::Error::permanent("as it must"))
            }
            "cancelled" | "cancelling" => {
                let booked = saga(async |saga| {
                    self.note("booked").await?;
                    saga.undo(async || {
                        if self.how == "cancelling" {
                            sleep(FAR).await;
                        }
                        self.note("undone").await
                    });
                    signal::<String>("never").await
                });
                on_cancel(booked, async |reason| self.note(&reason).await).await.map_err(Into::into)
            }
            "retrying" => self.works_later().await,
            how if how.starts_with("continued") => match ergon::run_number() {
                3 => Ok("in run 3".into()),
                run => {
                    self.note(&format!("run {run}")).await?;
                    if run == 2 {
                        sleep(FAR).await;
                    }
                    ergon::continue_as_new(self.clone()).await
                }
            },
            _ => self.everything().await,
        }
    }

    async fn everything(&self) -> ergon::Result<String> {
        ergon::set_status("under way")?;
        ergon::set_label("kind", "golden");
        // What is drawn is an argument, which a replay compares.
        let drawn = format!("{} {} {}", ergon::uuid(), ergon::random(), ergon::now().as_micros());
        self.note(&drawn).await?;
        let (a, b) = tokio::try_join!(self.letter('a'), self.letter('b'))?;
        let equal = map_concurrent(0..3, 2, async |_| self.letter('e').await).await;
        assert_eq!(equal.len(), 3);
        ergon::emit("letters", &a)?;
        self.once().await?;
        let first = tokio::select! {
            biased;
            never = signal::<String>("never") => never?,
            () = sleep(Duration::from_millis(5)) => self.nests().await?,
        };
        let parcel = child(parcel(first)).await?;
        if patched("words") {
            self.note("patched").await?;
        }
        let word = WORDS.recv().await?;
        let late = match self.how.as_str() {
            "sleeping" => {
                sleep(FAR).await;
                "none".to_owned()
            }
            "listening" => WORDS.recv().await?,
            _ => WORDS.recv_timeout(Duration::from_millis(1)).await?.unwrap_or("none".into()),
        };
        ergon::set_status("done")?;
        Ok(format!("{a}{b}, {parcel}, {word}, {late}"))
    }

    #[step]
    async fn note(&self, text: &str) -> ergon::Result<()> {
        let _ = text;
        Ok(())
    }

    #[step(retry(max_attempts = 3, backoff = "1ms"))]
    async fn letter(&self, letter: char) -> ergon::Result<char> {
        if letter == 'b' && attempt() == 1 { Err(ergon::Error::new("not yet")) } else { Ok(letter) }
    }

    #[step(at_most_once)]
    async fn once(&self) -> ergon::Result<()> {
        Ok(())
    }

    #[step]
    async fn nests(&self) -> ergon::Result<String> {
        sleep(Duration::from_millis(5)).await;
        self.letter('a').await.map(String::from)
    }

    #[step(retry(max_attempts = 2, backoff = "3650d"))]
    async fn works_later(&self) -> ergon::Result<String> {
        if attempt() == 1 { Err(ergon::Error::new("not yet")) } else { Ok("on the second attempt".into()) }
    }
}

/// A child of a [`Journey`].
#[flow(name = "golden-parcel")]
pub async fn parcel(what: String) -> ergon::Result<String> {
    wrap(&what).await
}

#[step]
async fn wrap(what: &str) -> ergon::Result<String> {
    Ok(format!("{what} parcel"))
}

/// A worker for them.
pub fn worker(log: impl ExecutionLog + 'static) -> Worker {
    Worker::new(log).register::<Journey>().register::<parcel>()
}

/// A flow of [`FLOWS`].
///
/// # Panics
///
/// Not with a name of those.
pub fn handle(log: impl ExecutionLog + 'static, how: &str) -> FlowHandle<String, ergon::Error> {
    Scheduler::new(log).handle::<Journey>(FlowId::new(how).expect("a name is an id"))
}

/// Writes the log and the lines of this version.
///
/// # Panics
///
/// When that cannot be done, or the folder has some already.
pub async fn write(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    assert!(!folder.join(LOG).exists(), "what a release has written stays: {}", folder.display());
    let path = folder.join(LOG);
    let log = SqliteExecutionLog::open(&path).await.expect("a log");
    let running = worker(log.clone()).start().await.expect("a worker");
    let scheduler = Scheduler::new(log.clone());
    for (how, state, _) in FLOWS {
        let journey = scheduler.schedule(Journey { how: how.into() }).id(how);
        let journey = if state == FlowState::Scheduled { journey.delay(FAR) } else { journey };
        let flow = journey.await.expect("it is scheduled");
        flow.send(&WORDS, &"word".to_owned()).await.expect("it is sent");
    }
    for how in ["cancelled", "cancelling"] {
        state_of(&log, &FlowId::new(how).unwrap(), FlowState::Suspended).await;
        handle(log.clone(), how).cancel("no more").await.expect("it is cancelled");
    }
    for (how, state, _) in FLOWS {
        state_of(&log, &FlowId::new(how).unwrap(), state).await;
    }
    // In the second run, or the clean-up.
    for how in ["continued", "cancelling"] {
        crate::until("the last wait", || async {
            let history = handle(log.clone(), how).history().await.expect("there is one");
            history.info.state == FlowState::Suspended
                && history.records.last().is_some_and(|record| record.due_at.is_some())
        })
        .await;
    }
    running.shutdown().await;
    let lines: Vec<String> = Admin::new(log).export_live(Filter::all()).try_collect().await.expect("it is exported");
    fs::write(folder.join(LINES), lines.join("\n") + "\n").expect("the lines are written");
}

/// The folders of all releases.
///
/// # Panics
///
/// When there is none.
pub fn releases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut releases: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    assert!(!releases.is_empty(), "there is nothing in {}", folder.display());
    releases.sort();
    releases
}

/// A clock by which all that the flows wait for is due.
pub fn later() -> Arc<dyn Clock> {
    let clock = TestClock::new(1);
    clock.enter(SystemClock.now(), FAR + YEAR);
    Arc::new(clock)
}

/// A release's log, in a file that may be changed, at [`later`].
///
/// # Panics
///
/// When it cannot be opened.
pub async fn log_of(release: &Path, folder: &Path) -> SqliteExecutionLog {
    let path = folder.join(LOG);
    fs::copy(release.join(LOG), &path).expect("a copy");
    SqliteOptions::new(path).clock(later()).open().await.expect("today's code opens it")
}

/// Sends what is still waited for.
///
/// # Panics
///
/// When it cannot be sent.
pub async fn send_the_last(log: impl ExecutionLog + 'static) {
    handle(log, "listening").send(&WORDS, &"now".to_owned()).await.expect("it is sent");
}
