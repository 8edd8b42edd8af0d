//! The limit itself: steps per second that the backend records when each is awaited.

use std::time::Instant;

use ergon_bench_round::{Failure, Measure, Round, Times};

use crate::limit::{Limit, Write};

pub(super) async fn raw(round: &Round) -> Result<Vec<Measure>, Failure> {
    let case = &round.case;
    let limit = Limit::start(round).await?;
    let tasks = i64::try_from(case.concurrency)?;
    // Whoever is alone waits for the disk each time: fewer of them take as long.
    let each = if tasks == 1 { i64::try_from(case.size)? / 10 } else { (i64::try_from(case.size)? / tasks).max(20) };
    limit.write(Write::Enqueue { first: 1, count: tasks }).await?;
    for flow in 1..=tasks {
        limit.write(Write::Claim { flow }).await?;
    }
    let start = Instant::now();
    let tasks: Vec<_> = (1..=tasks)
        .map(|flow| {
            let limit = limit.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                for seq in 1..=each {
                    let start = Instant::now();
                    limit.write(Write::Step { flow, seq }).await?;
                    times.push(start.elapsed());
                }
                Ok::<_, Failure>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let took = start.elapsed();
    Ok(vec![
        Measure::rate("awaited steps", "steps", times.len(), took),
        Measure::micros("one step p50", Times::new(times).p50()),
    ])
}
