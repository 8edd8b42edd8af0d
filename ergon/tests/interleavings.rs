//! Things that come at an unlucky moment.
#![allow(missing_docs)]

use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use ergon::{FlowError, prelude::*};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};

#[derive(Default)]
struct Bodies(AtomicU32);

#[flow_type]
enum Case {
    SignalWhileAStepRuns,
    ManyReadyOperations,
    TakenLate,
    BodyBehindACombinator,
    LossyError,
    PolledAgain,
    TooDeep,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Lossy {
    kept: u32,
    #[serde(skip)]
    skipped: u32,
}

#[flow_type]
impl Case {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        match self {
            Self::SignalWhileAStepRuns => {
                tokio::select! {
                    abort = signal::<String>("abort") => abort,
                    slow = self.slow() => slow,
                }
            }
            Self::ManyReadyOperations => {
                let (early, late) = (pin!(self.quick("early")), pin!(self.many_operations()));
                let won = tokio::select! {
                    late = late => late?,
                    early = early => early?,
                };
                sleep(Duration::from_millis(1)).await;
                Ok(won)
            }
            Self::TakenLate => self.taken_late().await,
            Self::BodyBehindACombinator => self.fans_out().await,
            Self::LossyError => match self.lossy().await {
                Ok(_) => Ok("no error".into()),
                Err(error) => {
                    sleep(Duration::from_millis(1)).await;
                    Ok(format!("{error:?}"))
                }
            },
            Self::PolledAgain => {
                let mut timer = pin!(sleep(Duration::from_millis(1)));
                timer.as_mut().await;
                let step = self.quick("step").await?;
                timer.await;
                Ok(step)
            }
            Self::TooDeep => self.deeper(0).await.map(|depth| depth.to_string()),
        }
    }

    /// A wait gets its signal while it is not polled, and is dropped: the next wait gets it.
    async fn taken_late(&self) -> ergon::Result<String> {
        {
            let mut wait = pin!(signal::<String>("x"));
            assert!(wait.as_mut().now_or_never().is_none());
            let _: u32 = signal("sent").await?;
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_millis(1)).await;
        signal("x").await
    }

    #[step]
    async fn slow(&self) -> ergon::Result<String> {
        tokio::time::sleep(Duration::from_secs(20)).await;
        Ok("slow".into())
    }

    #[step]
    async fn quick(&self, what: &str) -> ergon::Result<String> {
        state::<Bodies>().0.fetch_add(1, Ordering::Relaxed);
        Ok(what.to_owned())
    }

    #[step]
    async fn many_operations(&self) -> ergon::Result<String> {
        // More than tokio lets one task do before others have a turn.
        let semaphore = tokio::sync::Semaphore::new(1);
        for _ in 0..1_000 {
            drop(semaphore.acquire().await?);
        }
        Ok("late".into())
    }

    #[step]
    async fn fans_out(&self) -> ergon::Result<String> {
        let mut branches = FuturesUnordered::new();
        branches.push(signal::<String>("never").boxed());
        branches.push(
            async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok("done".to_owned())
            }
            .boxed(),
        );
        branches.next().await.unwrap_or_else(|| Ok("nothing".into()))
    }

    #[step(retry = none)]
    async fn lossy(&self) -> Result<u32, Lossy> {
        Err(Lossy { kept: 1, skipped: 7 })
    }

    #[step(retry = none)]
    async fn deeper(&self, depth: u32) -> ergon::Result<u32> {
        self.next(depth).await
    }

    #[step(retry = none)]
    async fn next(&self, depth: u32) -> ergon::Result<u32> {
        if depth < 40 { self.deeper_still(depth + 1).await } else { Ok(depth) }
    }
}

impl Case {
    fn deeper_still(&self, depth: u32) -> std::pin::Pin<Box<dyn Future<Output = ergon::Result<u32>> + Send + '_>> {
        Box::pin(self.next(depth))
    }
}

/// Runs a case with a replay after every suspension, and gives the test the handle once the flow waits.
async fn run<F, G>(case: Case, meanwhile: G) -> Result<String, FlowError<ergon::Error>>
where
    G: FnOnce(FlowHandle<String, ergon::Error>) -> F,
    F: Future<Output = ()>,
{
    let log = InMemoryExecutionLog::new();
    let worker = Worker::new(log.clone()).register::<Case>().with_state(Bodies::default());
    let worker = worker.parked_max(0).moment(Duration::ZERO).grace(Duration::ZERO).start().await.unwrap();
    let flow = Scheduler::new(log).schedule(case).await.unwrap();
    meanwhile(flow.clone()).await;
    let result = tokio::time::timeout(Duration::from_secs(10), flow.result()).await.expect("the flow ends in time");
    worker.shutdown().await;
    result
}

async fn nothing(_: FlowHandle<String, ergon::Error>) {}

#[tokio::test]
async fn a_signal_is_heard_while_a_step_runs() {
    let began = Instant::now();
    let result = run(Case::SignalWhileAStepRuns, |flow| async move {
        while flow.status().await.unwrap().started_at.is_none() {
            tokio::task::yield_now().await;
        }
        flow.signal("abort", "aborted").await.unwrap();
    });
    assert_eq!(result.await.unwrap(), "aborted");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_body_that_uses_up_its_turn_changes_no_winner() {
    let won = run(Case::ManyReadyOperations, nothing).await.unwrap();
    assert!(won == "early" || won == "late", "{won}");
}

#[tokio::test]
async fn a_signal_that_was_handed_over_and_not_taken_is_not_lost() {
    let result = run(Case::TakenLate, |flow| async move {
        flow.signal("x", "kept").await.unwrap();
        flow.signal("sent", &1).await.unwrap();
    });
    assert_eq!(result.await.unwrap(), "kept");
}

#[tokio::test]
async fn a_body_behind_a_combinator_is_not_suspended_in_its_work() {
    assert_eq!(run(Case::BodyBehindACombinator, nothing).await.unwrap(), "done");
}

#[tokio::test]
async fn the_flow_sees_an_error_as_a_replay_will() {
    assert_eq!(run(Case::LossyError, nothing).await.unwrap(), "Lossy { kept: 1, skipped: 0 }");
}

#[tokio::test]
async fn a_timer_that_fired_stays_fired() {
    assert_eq!(run(Case::PolledAgain, nothing).await.unwrap(), "step");
}

#[tokio::test]
async fn steps_that_nest_too_deep_fail_the_flow_and_say_so() {
    let error = run(Case::TooDeep, nothing).await.unwrap_err();
    assert!(error.to_string().contains("calls nest at most 16 deep"), "{error}");
}
