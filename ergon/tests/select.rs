//! An unbiased `select!` over branches that make equal calls.
#![allow(missing_docs)]

use std::sync::atomic::{AtomicU32, Ordering};

use ergon::prelude::*;

#[flow_type]
struct Race {
    rounds: u32,
}

#[derive(Default)]
struct Bodies(AtomicU32);

#[flow_type]
impl Race {
    #[flow]
    async fn run(&self) -> ergon::Result<Vec<String>> {
        let mut winners = Vec::new();
        for round in 0..self.rounds {
            winners.push(self.race(round).await?);
            // Suspends the flow, which is not parked: it comes back by a cold replay.
            sleep(Duration::from_millis(1)).await;
        }
        Ok(winners)
    }

    /// Not seen by the macro of the flow: the order in which the branches are polled is random.
    async fn race(&self, round: u32) -> ergon::Result<String> {
        tokio::select! {
            left = async { self.begin(round).await?; self.left(round).await } => left,
            right = async { self.begin(round).await?; self.right(round).await } => right,
        }
    }

    #[step]
    async fn begin(&self, _round: u32) -> ergon::Result<u32> {
        Ok(state::<Bodies>().0.fetch_add(1, Ordering::Relaxed))
    }

    #[step]
    async fn left(&self, _round: u32) -> ergon::Result<String> {
        Ok(format!("left {}", state::<Bodies>().0.fetch_add(1, Ordering::Relaxed)))
    }

    #[step]
    async fn right(&self, _round: u32) -> ergon::Result<String> {
        Ok(format!("right {}", state::<Bodies>().0.fetch_add(1, Ordering::Relaxed)))
    }
}

#[tokio::test]
async fn equal_calls_in_the_branches_of_an_unbiased_select_are_told_apart() {
    const ROUNDS: u32 = 60;
    let log = InMemoryExecutionLog::new();
    let worker = Worker::new(log.clone()).register::<Race>().with_state(Bodies::default());
    let worker = worker.parked_max(0).moment(Duration::ZERO).start().await.unwrap();
    let races = Scheduler::new(log);
    let mut flows = Vec::new();
    for flow in 0..20 {
        let race = races.schedule(Race { rounds: ROUNDS }).id(format!("race-{flow}")).await.unwrap();
        flows.push(race);
    }
    let (mut left, mut right) = (0, 0);
    for race in flows {
        let winners = tokio::time::timeout(Duration::from_secs(60), race.result()).await.unwrap().unwrap();
        assert_eq!(winners.len(), ROUNDS as usize);
        left += winners.iter().filter(|winner| winner.starts_with("left")).count();
        right += winners.iter().filter(|winner| winner.starts_with("right")).count();
    }
    assert!(left > 0 && right > 0, "either branch wins sometimes: {left} {right}");
    worker.shutdown().await;
}
