//! Flows whose payloads are encoded: nothing of them is in the log, whatever happens to their workers.

use std::{path::Path, sync::Arc, time::Duration};

use ergon::{
    CodecError, CodecExecutionLog, FlowError, PayloadCodec, PayloadContext,
    prelude::*,
    sqlite as database,
    storage::{ExecutionLog, FlowState, ManualClock},
};
use ergon_tests::{Fault, Place, Trace, both, note, soon, state_of, until};
use serde::{Deserialize, Serialize};

const HOUR: Duration = Duration::from_secs(3600);
const SECRET: &str = "s3cret";

both!(flows_go_on_behind_a_codec_after_a_crash_at_any_write, a_message_that_cannot_be_decoded_stalls_a_running_flow);

/// Hides payloads from the eye.
struct Veil {
    id: &'static str,
    key: u8,
}

impl PayloadCodec for Veil {
    fn id(&self) -> &str {
        self.id
    }

    fn encode(&self, context: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        let context = [context.associated_data(), vec![0]].concat();
        Ok(context.iter().chain(payload).map(|byte| byte ^ self.key).collect())
    }

    fn decode(&self, context: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        let decoded: Vec<u8> = payload.iter().map(|byte| byte ^ self.key).collect();
        let context = [context.associated_data(), vec![0]].concat();
        Ok(decoded.strip_prefix(&context[..]).ok_or("it is not what was encoded here")?.into())
    }
}

fn veiled(log: impl ExecutionLog) -> CodecExecutionLog {
    CodecExecutionLog::new(log, Veil { id: "veil", key: 0x55 }).refusing_plain().hiding_reasons()
}

/// An error that says much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Talkative {
    said: String,
}

/// Has secrets everywhere.
#[flow_type]
#[derive(Clone)]
struct Keeper {
    secret: String,
    round: u32,
}

#[flow_type]
impl Keeper {
    #[flow]
    async fn run(&self) -> Result<String, Talkative> {
        note("run");
        ergon::set_status(&self.secret).unwrap();
        ergon::emit("notes", &self.secret).unwrap();
        let looked = self.look(self.secret.clone()).await?;
        assert_eq!(self.tells().await, Err(Talkative { said: looked.clone() }));
        let kept = child(Kept { secret: looked.clone() }).await;
        assert_eq!(kept.unwrap(), looked);
        let lost = child(Lost { secret: looked.clone() }).await;
        assert_eq!(lost.unwrap_err().said, looked);
        let word: String = signal("word").await.unwrap();
        sleep(HOUR).await;
        if self.round == 0 {
            return ergon::continue_as_new(Self { secret: word, round: 1 }).await;
        }
        Err(Talkative { said: word })
    }

    #[step]
    async fn look(&self, secret: String) -> Result<String, Talkative> {
        ergon::emit("notes", &secret).unwrap();
        Ok(secret)
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"))]
    async fn tells(&self) -> Result<(), Talkative> {
        Err(Talkative { said: self.secret.clone() })
    }
}

#[flow_type]
struct Kept {
    secret: String,
}

#[flow_type]
impl Kept {
    #[flow]
    async fn run(&self) -> Result<String, Talkative> {
        Ok(self.secret.clone())
    }
}

#[flow_type]
struct Lost {
    secret: String,
}

#[flow_type]
impl Lost {
    #[flow]
    async fn run(&self) -> Result<(), Talkative> {
        Err(Talkative { said: self.secret.clone() })
    }
}

/// Puts a secret into a transaction of the log's, as its outcome only.
#[flow_type]
#[derive(Clone)]
struct Clerk {
    secret: String,
}

#[flow_type]
impl Clerk {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        self.enter().await
    }

    #[step(transaction)]
    fn enter(&self, tx: &database::Transaction<'_>) -> ergon::Result<String> {
        tx.execute_batch("CREATE TABLE IF NOT EXISTS ledger (what TEXT)")?;
        tx.execute("INSERT INTO ledger VALUES (?1)", [self.secret.len().to_string()])?;
        Ok(self.secret.clone())
    }
}

fn worker(log: impl ExecutionLog) -> Worker {
    Worker::new(log).register::<Keeper>().register::<Kept>().register::<Lost>().with_state(Trace::new())
}

fn talkative<T: std::fmt::Debug>(ended: Result<T, FlowError<Talkative>>) -> String {
    match ended.unwrap_err() {
        FlowError::Failed(error) => error.said,
        other => panic!("{other:?}"),
    }
}

async fn flows_go_on_behind_a_codec_after_a_crash_at_any_write(place: Place) {
    for fault in [Fault::CrashBefore, Fault::CrashAfter] {
        for write in 1.. {
            let clock = ManualClock::new();
            let log = place.log_at(clock.clone()).await;
            let keeper = Keeper { secret: SECRET.into(), round: 0 };
            let flow = Scheduler::new(veiled(log.clone())).schedule(keeper).await.unwrap();
            for word in [SECRET, "the last word"] {
                flow.signal("word", word).await.unwrap();
            }
            let dies = log.another();
            dies.order(write, fault);
            let first = worker(veiled(dies.clone())).lease(HOUR * 1_000).start().await.unwrap();
            for _ in 0..8 {
                dies.at_rest().await;
                clock.advance(HOUR);
            }
            dies.at_rest().await;
            let crashed = dies.has_crashed();
            drop(first);
            clock.advance(HOUR * 1_000);
            let next = worker(veiled(log.clone())).lease(HOUR * 1_000).start().await.unwrap();
            for _ in 0..8 {
                log.at_rest().await;
                clock.advance(HOUR);
            }
            let said = talkative(soon("the end", flow.result()).await);
            assert_eq!(said, "the last word", "{fault:?} at write {write}");
            let info = flow.status().await.unwrap();
            assert_eq!(info.run, 2);
            next.shutdown().await;
            if !crashed {
                break;
            }
        }
    }
}

/// All bytes of the files in a folder.
fn bytes_in(folder: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.is_file()).flat_map(|file| std::fs::read(file).unwrap()).collect()
}

#[tokio::test]
async fn no_file_tells_anything() {
    let folder = tempfile::tempdir().unwrap();
    for hides in [false, true] {
        let path = folder.path().join(format!("{hides}")).join("log.db");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let clock = ManualClock::new();
        let inner = ergon::SqliteOptions::new(&path).clock(Arc::new(clock.clone())).open().await.unwrap();
        let log: Arc<dyn ExecutionLog> = if hides { Arc::new(veiled(inner)) } else { Arc::new(inner) };
        let worker = worker(Arc::clone(&log)).register::<Clerk>().lease(HOUR * 1_000).start().await.unwrap();
        let scheduler = Scheduler::new(Arc::clone(&log));
        let flow = scheduler.schedule(Keeper { secret: SECRET.into(), round: 0 }).await.unwrap();
        let clerk = scheduler.schedule(Clerk { secret: SECRET.into() }).await.unwrap();
        assert_eq!(soon("the clerk", clerk.result()).await.unwrap(), SECRET);
        for _ in 0..2 {
            flow.signal("word", SECRET).await.unwrap();
        }
        until("the end", || async {
            clock.advance(HOUR);
            tokio::time::sleep(Duration::from_millis(10)).await;
            flow.status().await.unwrap().state.is_final()
        })
        .await;
        assert_eq!(talkative(soon("the end", flow.result()).await), SECRET);
        let history = flow.history().await.unwrap().to_string();
        assert!(history.contains(SECRET), "whoever has the key sees it:\n{history}");
        assert_eq!(flow.status_value::<String>().await.unwrap().unwrap().value, SECRET);
        worker.shutdown().await;
        drop((flow, clerk, scheduler, log));
        let bytes = bytes_in(path.parent().unwrap());
        let told = bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
        assert_eq!(told, !hides, "a secret is in the file where nothing hides it, and nowhere else");
    }
}

/// Waits for a word, in memory.
#[flow_type]
struct Waits {}

#[flow_type]
impl Waits {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        Ok(signal("word").timeout(HOUR).await?.unwrap_or_default())
    }
}

async fn a_message_that_cannot_be_decoded_stalls_a_running_flow(place: Place) {
    let log = place.log().await;
    let other = || Veil { id: "other", key: 0x33 };
    // So long a wait keeps its slot.
    let start = async |log| Worker::new(log).register::<Waits>().moment(HOUR * 2).start().await.unwrap();
    let worker = start(veiled(log.clone())).await;
    let flow = Scheduler::new(veiled(log.clone())).schedule(Waits {}).id("waits").await.unwrap();
    until("it to wait", || async { log.calls().contains_key("messages") }).await;
    let sender = Scheduler::new(CodecExecutionLog::new(log.clone(), other()));
    sender.signal(flow.id(), "word", "x").await.unwrap();
    let reason = state_of(&log, flow.id(), FlowState::Stalled).await.reason.unwrap();
    assert!(
        reason.contains("flow \"waits\": the message was encoded by codec \"other\", which this log does not have"),
        "{reason}"
    );
    worker.shutdown().await;
    // Nothing is lost: with that codec it goes on.
    let worker = start(veiled(log.clone()).reading(other())).await;
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "x");
    worker.shutdown().await;
}
