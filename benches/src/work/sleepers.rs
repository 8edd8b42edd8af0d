//! Many flows that are suspended on timers which fall due over some seconds.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ergon::{Scheduler, StorageError, Timestamp, flow, flow_type, sleep_until, state, step, storage::Clock};
use ergon_bench_round::{BATCH, Failure, Measure, Round, Times, cpu, cpu_since, each, number, resident};

use super::tally::Tally;
use crate::log::Log;

/// How many flows sleep beyond the end of the round: more than a worker parks, and in a round of full size more than
/// fit into the log's page cache. What those cost that all flows share is there before the memory is looked at.
const BEFORE: std::ops::RangeInclusive<usize> = 10_000..=30_000;
/// How many fall due per second, at least over two seconds.
const DUE_PER_SECOND: usize = 10_000;

#[flow_type]
struct Sleeper {
    due_us: i64,
}

#[flow_type]
impl Sleeper {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        state::<Yard>().asleep.add();
        sleep_until(Timestamp::from_micros(self.due_us)).await;
        self.wake().await
    }

    #[step]
    async fn wake(&self) -> ergon::Result<()> {
        let yard = state::<Yard>();
        let late = yard.clock.now().since(Timestamp::from_micros(self.due_us));
        yard.late.lock().unwrap_or_else(PoisonError::into_inner).push(late);
        yard.awake.add();
        Ok(())
    }
}

/// What the sleepers share.
#[derive(Clone)]
struct Yard {
    clock: Arc<dyn Clock>,
    asleep: Tally,
    awake: Tally,
    late: Arc<Mutex<Vec<Duration>>>,
}

pub(super) async fn ergon(round: &Round) -> Result<Vec<Measure>, Failure> {
    let case = &round.case;
    let log = Log::open(round).await?;
    let clock = log.as_log().clock();
    let late = Arc::new(Mutex::new(Vec::with_capacity(case.size)));
    let yard =
        Yard { clock: Arc::clone(&clock), asleep: Tally::default(), awake: Tally::default(), late: Arc::clone(&late) };
    let worker = log.worker().register::<Sleeper>().with_state(yard.clone()).slots(case.concurrency).start().await?;
    let scheduler = log.scheduler();

    let before_count = case.size.clamp(*BEFORE.start(), *BEFORE.end());
    let start = Instant::now();
    let hour = clock.now().saturating_add(Duration::from_secs(3600));
    put_to_bed(&scheduler, before_count, |_| hour).await?;
    yard.asleep.wait(before_count, &worker).await?;
    let took = start.elapsed();
    let before = resident();

    // Time enough for all to fall asleep before the first is due.
    let bedtime = took.mul_f64(1.5 * number(case.size) / number(before_count)) + Duration::from_secs(2);
    let first_due = clock.now().saturating_add(bedtime);
    let window = Duration::from_secs_f64((number(case.size) / number(DUE_PER_SECOND)).max(2.0));
    let due = |sleeper: usize| first_due.saturating_add(window.mul_f64(number(sleeper) / number(case.size)));
    put_to_bed(&scheduler, case.size, due).await?;
    yard.asleep.wait(before_count + case.size, &worker).await?;
    let after = resident();
    if clock.now() >= first_due {
        return Err(format!("not all were asleep after {bedtime:?}").into());
    }

    clock.sleep_until(first_due).await;
    let cpu_start = cpu();
    yard.awake.wait(case.size, &worker).await?;
    let used = cpu_since(cpu_start);
    worker.shutdown().await;
    let times = Times::new(std::mem::take(&mut *late.lock().unwrap_or_else(PoisonError::into_inner)));
    let mut measures = vec![
        Measure::millis("lateness p50", times.p50()),
        Measure::millis("lateness p99", times.p99()),
        Measure::micros("CPU per wake-up", each(used, case.size)),
    ];
    if let Some((before, after)) = before.zip(after) {
        let bytes = number(after.saturating_sub(before));
        measures.push(Measure::new("memory per sleeper", "bytes", bytes / number(case.size)));
    }
    Ok(measures)
}

async fn put_to_bed(scheduler: &Scheduler, count: usize, due: impl Fn(usize) -> Timestamp) -> Result<(), StorageError> {
    for first in (0..count).step_by(BATCH) {
        let numbers = first..count.min(first + BATCH);
        scheduler.schedule_all(numbers.map(|number| Sleeper { due_us: due(number).as_micros() })).await?;
    }
    Ok(())
}
