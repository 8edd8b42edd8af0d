//! Items of streams cost few commits: those that come while one is under way share the next one.

use ergon::prelude::*;
use ergon_tests::{FaultyLog, Place, Trace, both, note, soon, until};
use futures::TryStreamExt;

both!(
    items_of_a_flow_share_the_commit_of_what_comes_next,
    items_of_a_body_share_a_commit,
    items_that_come_while_one_is_under_way_share_the_next,
);

/// As many tokens as an answer of some length has.
const TOKENS: u32 = 1_000;

#[flow_type]
enum Answers {
    Itself,
    InAStep,
    TokenByToken,
}

#[flow_type]
impl Answers {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        match self {
            Self::Itself => (1..=TOKENS).try_for_each(|token| emit("tokens", &token)),
            Self::InAStep => self.at_once().await,
            Self::TokenByToken => self.one_by_one().await,
        }
    }

    #[step]
    async fn at_once(&self) -> ergon::Result<()> {
        (1..=TOKENS).try_for_each(|token| emit("tokens", &token))
    }

    /// As one does who reads them from elsewhere: others have their turn after each.
    #[step]
    async fn one_by_one(&self) -> ergon::Result<()> {
        for token in 1..=TOKENS {
            emit("tokens", &token)?;
            tokio::task::yield_now().await;
        }
        note("said");
        Ok(())
    }
}

/// Runs it to its end, perhaps with its commits held until all is said. Says how many commits there were.
async fn commits(log: &FaultyLog, answers: Answers, held: bool) -> u64 {
    let trace = Trace::new();
    let process = log.another();
    let flow = Scheduler::new(log.clone()).schedule(answers).await.unwrap();
    if held {
        process.hold("commit");
    }
    let worker = Worker::new(process.clone()).register::<Answers>().with_state(trace.clone()).start().await.unwrap();
    if held {
        until("all to be said", || async { trace.count("said") == 1 }).await;
        process.free("commit");
    }
    soon("the result", flow.result()).await.unwrap();
    worker.shutdown().await;
    let tokens: Vec<u32> = flow.stream::<u32>("tokens").map_ok(|token| token.value).try_collect().await.unwrap();
    assert!(tokens.into_iter().eq(1..=TOKENS), "each of them, in order");
    process.calls()["commit"]
}

async fn items_of_a_flow_share_the_commit_of_what_comes_next(place: Place) {
    assert_eq!(commits(&place.log().await, Answers::Itself, false).await, 1);
}

async fn items_of_a_body_share_a_commit(place: Place) {
    let commits = commits(&place.log().await, Answers::InAStep, false).await;
    assert!(commits <= 3, "{commits}");
}

async fn items_that_come_while_one_is_under_way_share_the_next(place: Place) {
    let log = place.log().await;
    let commits = commits(&log, Answers::TokenByToken, true).await;
    assert!(commits <= 3, "{commits}");
}
