//! Things that come at an unlucky moment.
#![allow(missing_docs)]

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ergon::{FlowError, prelude::*, storage::Phase};
use futures::{FutureExt, StreamExt, future::Either, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

#[derive(Default)]
struct Bodies(AtomicU32);

/// Where a body waits for the test.
#[derive(Clone)]
struct Go(Arc<Semaphore>);

#[flow_type]
enum Case {
    SignalWhileAStepRuns,
    ManyReadyOperations,
    TakenLate,
    BodyBehindACombinator,
    LossyError,
    PolledAgain,
    TooDeep,
    BesideABackoff,
    NeverWaits,
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
                let mut winners = String::new();
                for operations in (100..=130).chain([300, 1_000]) {
                    let late = pin!(self.operations(operations));
                    // This one looks at what is left of the task's turn, the other one does not.
                    let early = pin!(async {
                        tokio::select! {
                            early = self.quick("early") => early,
                            () = std::future::pending() => self.quick("never").await,
                        }
                    });
                    let won = match futures::future::select(late, early).await {
                        Either::Left((late, _)) => late?,
                        Either::Right((early, _)) => early?,
                    };
                    winners += &won[..1];
                    // The winners become part of the history: a replay that finds another one is stalled.
                    self.quick(&winners).await?;
                    sleep(Duration::from_millis(1)).await;
                }
                Ok(winners)
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
            Self::BesideABackoff => self.works_beside().await,
            Self::NeverWaits => {
                while !self.may_go().await? {}
                Ok("gone".into())
            }
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
        note();
        std::future::pending().await
    }

    #[step]
    async fn quick(&self, what: &str) -> ergon::Result<String> {
        note();
        Ok(what.to_owned())
    }

    #[step]
    async fn operations(&self, operations: u32) -> ergon::Result<String> {
        tokio::task::yield_now().await;
        // Tokio lets a task do 128 of them before others have a turn. Some of these bodies end with the last one.
        let semaphore = Semaphore::new(1);
        for _ in 0..operations {
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
                note();
                drop(state::<Go>().0.acquire().await?);
                Ok("done".to_owned())
            }
            .boxed(),
        );
        branches.next().await.unwrap_or_else(|| Ok("nothing".into()))
    }

    #[step]
    async fn may_go(&self) -> ergon::Result<bool> {
        note();
        Ok(state::<Go>().0.try_acquire().is_ok())
    }

    #[step]
    async fn works_beside(&self) -> ergon::Result<String> {
        tokio::select! {
            failed = self.fails_after_a_wait() => failed,
            done = async {
                note();
                drop(state::<Go>().0.acquire().await?);
                Ok("done".to_owned())
            } => done,
        }
    }

    #[step(retry(max_attempts = 2, backoff = "1h"))]
    async fn fails_after_a_wait(&self) -> ergon::Result<String> {
        sleep(Duration::from_millis(1)).await;
        Err(ergon::Error::new("not yet"))
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

/// Counts the bodies.
fn note() {
    state::<Arc<Bodies>>().0.fetch_add(1, Ordering::Relaxed);
}

/// What the test has in its hands while a flow runs.
struct Meanwhile {
    flow: FlowHandle<String, ergon::Error>,
    bodies: Arc<Bodies>,
    go: Go,
}

impl Meanwhile {
    /// Waits until a body has begun.
    async fn begun(&self) {
        let begun = async {
            while self.bodies.0.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), begun).await.expect("a body begins");
    }
}

/// Runs a case with a replay after every suspension, and lets the test do something meanwhile.
async fn run<F, G>(case: Case, meanwhile: G) -> Result<String, FlowError<ergon::Error>>
where
    G: FnOnce(Meanwhile) -> F,
    F: Future<Output = ()>,
{
    let log = InMemoryExecutionLog::new();
    let (bodies, go) = (Arc::new(Bodies::default()), Go(Arc::new(Semaphore::new(0))));
    let worker = Worker::new(log.clone()).register::<Case>().with_state(Arc::clone(&bodies)).with_state(go.clone());
    let worker = worker.parked_max(0).moment(Duration::ZERO).grace(Duration::ZERO).start().await.unwrap();
    let flow = Scheduler::new(log).schedule(case).await.unwrap();
    meanwhile(Meanwhile { flow: flow.clone(), bodies, go }).await;
    let result = tokio::time::timeout(Duration::from_secs(10), flow.result()).await.expect("the flow ends in time");
    worker.shutdown().await;
    result
}

async fn nothing(_: Meanwhile) {}

#[tokio::test]
async fn a_signal_is_heard_while_a_step_runs() {
    let result = run(Case::SignalWhileAStepRuns, |test| async move {
        test.begun().await;
        test.flow.signal("abort", "aborted").await.unwrap();
    });
    assert_eq!(result.await.unwrap(), "aborted");
}

#[tokio::test]
async fn a_body_that_uses_up_its_turn_changes_no_winner() {
    let won = run(Case::ManyReadyOperations, nothing).await.unwrap();
    // Of an outcome that was there first, every branch hears first.
    assert_eq!(won, "e".repeat(33));
}

#[tokio::test]
async fn a_signal_that_was_handed_over_and_not_taken_is_not_lost() {
    let result = run(Case::TakenLate, |test| async move {
        test.flow.signal("x", "kept").await.unwrap();
        test.flow.signal("sent", &1).await.unwrap();
    });
    assert_eq!(result.await.unwrap(), "kept");
}

#[tokio::test]
async fn a_body_behind_a_combinator_is_not_suspended_in_its_work() {
    let result = run(Case::BodyBehindACombinator, |test| async move {
        test.begun().await;
        // The worker has all the time it needs to take the flow for one that only waits.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        test.go.0.add_permits(1);
    });
    assert_eq!(result.await.unwrap(), "done");
}

#[tokio::test]
async fn a_body_beside_a_backoff_is_not_suspended_in_its_work() {
    let result = run(Case::BesideABackoff, |test| async move {
        let failed = async {
            while test.flow.history().await.unwrap().records.iter().all(|record| record.phase != Phase::Attempt) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), failed).await.expect("the inner step fails");
        test.go.0.add_permits(1);
    });
    assert_eq!(result.await.unwrap(), "done");
}

/// Neither its steps nor the log keep it waiting, and there is one thread.
#[tokio::test]
async fn a_flow_that_never_waits_leaves_others_a_turn() {
    let result = run(Case::NeverWaits, |test| async move {
        test.begun().await;
        test.go.0.add_permits(1);
    });
    assert_eq!(result.await.unwrap(), "gone");
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
