//! Random flows, of everything that a flow can wait for, under workers that crash, stop, and lose answers.
//!
//! `ERGON_SEED` runs one seed only.

use std::{collections::HashSet, time::Duration};

use ergon::{
    prelude::*,
    storage::{ExecutionLog, Filter, FlowState},
};
use ergon_tests::{Fault, Place, TestClock, within};
use futures::{
    StreamExt,
    future::{BoxFuture, join_all, select_all},
    stream::FuturesUnordered,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;

/// What a flow does.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Op {
    Work(u64),
    /// In a step that has five seconds.
    Limited(Vec<Op>),
    Nested(Vec<Op>),
    Sleep(u64),
    Signal(u64),
    Child(Vec<Op>),
    Dropped(Vec<Op>),
    Detached,
    Join(Vec<Op>),
    Race(Vec<Op>),
    Unordered(Vec<Op>),
}

fn ops(rng: &mut StdRng, depth: u32) -> Vec<Op> {
    let length = rng.random_range(1..=3);
    (0..length).map(|_| op(rng, depth)).collect()
}

fn op(rng: &mut StdRng, depth: u32) -> Op {
    let choice = if depth == 0 { rng.random_range(0..5) } else { rng.random_range(0..14) };
    match choice {
        0 | 1 => Op::Work(rng.random_range(0..3)),
        2 => Op::Sleep(rng.random_range(0..4) * 700),
        3 => Op::Signal(rng.random_range(0..4) * 900),
        4 => Op::Detached,
        5 | 6 => Op::Limited(ops(rng, depth - 1)),
        7 => Op::Nested(ops(rng, depth - 1)),
        8 => Op::Child(ops(rng, depth - 1)),
        9 => Op::Dropped(ops(rng, depth - 1)),
        10 => Op::Join(ops(rng, depth - 1)),
        11 | 12 => Op::Race(ops(rng, depth - 1)),
        _ => Op::Unordered(ops(rng, depth - 1)),
    }
}

/// Does it.
fn run(op: Op, in_step: bool) -> BoxFuture<'static, u64> {
    let all = move |ops: Vec<Op>| ops.into_iter().map(move |op| run(op, in_step)).collect::<Vec<_>>();
    Box::pin(async move {
        match op {
            // Children are started by flows only.
            Op::Child(_) | Op::Dropped(_) | Op::Detached if in_step => work(7).await.unwrap_or(1),
            Op::Work(number) => work(number).await.unwrap_or(1),
            Op::Limited(ops) => limited(ops).await.unwrap_or(2),
            Op::Nested(ops) => nested(ops).await.unwrap_or(3),
            Op::Sleep(millis) => {
                sleep(Duration::from_millis(millis)).await;
                4
            }
            Op::Signal(millis) => {
                let heard = signal::<u64>("word").timeout(Duration::from_millis(millis)).await;
                heard.ok().flatten().unwrap_or(5)
            }
            Op::Child(ops) => child(Random { ops }).await.unwrap_or(6),
            Op::Dropped(ops) => {
                drop(child(Random { ops }).start());
                7
            }
            // Often taken by another flow of the test.
            Op::Detached => match child(Random { ops: Vec::new() }).id("detached").start_detached().await {
                Ok(_) => 8,
                Err(error) => u64::from(error.kind() == ergon::ErrorKind::Conflict) + 8,
            },
            Op::Join(ops) => join_all(all(ops)).await.into_iter().sum(),
            Op::Race(ops) => select_all(all(ops)).await.0,
            Op::Unordered(ops) => {
                let mut unordered: FuturesUnordered<_> = all(ops).into_iter().collect();
                let mut sum = 0;
                while let Some(value) = unordered.next().await {
                    // What came so far goes into the history, in its order.
                    sum = sum * 3 + value;
                    let _ = kept(sum).await;
                }
                sum
            }
        }
    })
}

#[step(retry(max_attempts = 3, backoff = "300ms"))]
async fn work(number: u64) -> Result<u64, String> {
    tokio::time::sleep(Duration::from_millis(number * 200)).await;
    if number == 2 && attempt() == 1 { Err("not yet".into()) } else { Ok(number) }
}

#[step(retry(max_attempts = 2, backoff = "400ms"), timeout = "2s")]
async fn limited(ops: Vec<Op>) -> ergon::Result<u64> {
    let mut sum = 0;
    for op in ops {
        sum += run(op, true).await;
    }
    Ok(sum)
}

#[step(retry = none)]
async fn nested(ops: Vec<Op>) -> Result<u64, String> {
    Ok(join_all(ops.into_iter().map(|op| run(op, true))).await.into_iter().sum())
}

#[step]
async fn kept(value: u64) -> Result<u64, String> {
    Ok(value)
}

/// Does all of it in order.
#[flow_type]
struct Random {
    ops: Vec<Op>,
}

#[flow_type]
impl Random {
    #[flow]
    async fn run(&self) -> ergon::Result<u64> {
        let mut sum = 0;
        for op in &self.ops {
            sum = kept(sum * 3 + run(op.clone(), false).await).await.map_err(ergon::Error::new)?;
        }
        Ok(sum)
    }
}

async fn survive(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let log = Place::memory().log_at(TestClock::new(1)).await;
    let scheduler = Scheduler::new(log.clone());
    let mut flows = Vec::new();
    for _ in 0..3 {
        flows.push(scheduler.schedule(Random { ops: ops(&mut rng, 3) }).await.unwrap());
    }
    let words = {
        let (flows, pause) = (flows.clone(), rng.random_range(100..1_500));
        tokio::spawn(async move {
            for word in 0..20 {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                let _ = flows[word % flows.len()].signal("word", &word).await;
            }
        })
    };
    let ended =
        async |flow: &FlowHandle<u64, ergon::Error>| flow.try_result().await.is_ok_and(|result| result.is_some());
    for life in 0.. {
        assert!(life < 200, "seed {seed}: it never ends");
        let process = log.another();
        // The first lives are hard.
        for write in (1..40).filter(|_| life < 12 && rng.random_bool(0.2)).collect::<Vec<_>>() {
            let faults = [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseAnswer, Fault::Refuse];
            process.order(write, faults[rng.random_range(0..4)]);
        }
        let worker =
            Worker::new(process.clone()).register::<Random>().lease(Duration::from_secs(5)).deliveries_max(1_000);
        let worker =
            worker.parked_max(rng.random_range(0..3)).moment(Duration::from_millis(rng.random_range(0..2) * 500));
        let worker = worker.grace(Duration::from_millis(100)).start().await.unwrap();
        let some_time = Duration::from_millis(rng.random_range(100..if life < 12 { 6_000 } else { 60_000 }));
        tokio::select! {
            () = process.crashed() => drop(worker),
            () = tokio::time::sleep(some_time) => worker.shutdown().await,
        }
        let mut left = 0;
        for flow in &flows {
            let state = flow.status().await.unwrap();
            assert!(!matches!(state.state, FlowState::Stalled | FlowState::Failed), "seed {seed}: {state:#?}");
            left += usize::from(!ended(flow).await);
        }
        if left == 0 {
            break;
        }
    }
    words.abort();
    for info in log.list(&Filter::all(), None, 1_000).await.unwrap().flows {
        assert!(!matches!(info.state, FlowState::Stalled | FlowState::Failed), "seed {seed}: {info:#?}");
        let history = log.history(&info.id, 0, 10_000).await.unwrap();
        let mut ended = HashSet::new();
        for record in &history {
            assert!(!ended.contains(&record.path), "seed {seed}: call {} goes on after its end", record.path);
            if record.phase.is_outcome() {
                ended.insert(record.path.clone());
            }
        }
    }
}

#[test]
fn random_flows_survive_whatever_happens_to_their_workers() {
    let one = std::env::var("ERGON_SEED").ok().map(|seed| seed.parse().expect("ERGON_SEED is a number"));
    let first = one.unwrap_or_else(|| rand::random::<u64>() >> 16);
    let seeds = if one.is_some() { 1 } else { 100 };
    for seed in first..first + seeds {
        println!("ERGON_SEED={seed}");
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(within(Duration::from_secs(1_000_000), "all flows to end", survive(seed)));
    }
}
