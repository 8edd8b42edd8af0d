//! The figures of the works that every system does.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    Failure,
    case::{Backend, Case},
    measure::{Measure, bytes_in, cpu, cpu_since, each, number},
    stats::Times,
};

/// The steps of a flow.
pub const STEPS: u64 = 5;
/// How many flows are scheduled at once, where a system can.
pub const BATCH: usize = 1_000;

/// The clock of a drain: made before the first flow is accepted.
#[derive(Debug)]
pub struct Drained {
    start: Instant,
    cpu: Duration,
    enqueued: Option<Instant>,
    end: Option<(Instant, Duration)>,
}

impl Drained {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now(), cpu: cpu(), enqueued: None, end: None }
    }

    /// Every flow is accepted and none has begun. Not called for a system that runs what it is given at once.
    pub fn enqueued(&mut self) {
        self.enqueued = Some(Instant::now());
    }

    /// Every flow has ended.
    pub fn end(&mut self) {
        self.end = Some((Instant::now(), cpu_since(self.cpu)));
    }

    /// The figures of so many flows, or jobs; called when the files are closed.
    ///
    /// # Errors
    ///
    /// When it has not ended or the files cannot be looked at.
    pub fn figures(self, case: &Case, dir: &Path, what: &str) -> Result<Vec<Measure>, Failure> {
        let (end, cpu) = self.end.ok_or("the drain has not ended")?;
        let mut measures = vec![Measure::rate("enqueue to end", what, case.size, end - self.start)];
        if let Some(enqueued) = self.enqueued {
            measures.push(Measure::rate("enqueue", what, case.size, enqueued - self.start));
            measures.push(Measure::rate("claim to end", what, case.size, end - enqueued));
        }
        measures.push(Measure::micros("CPU per flow", each(cpu, case.size)));
        if case.backend == Backend::Sqlite {
            let bytes = number(usize::try_from(bytes_in(dir)?)?);
            measures.push(Measure::new("file per flow", "bytes", bytes / number(case.size)));
        }
        Ok(measures)
    }
}

/// Times flows one by one.
#[derive(Debug)]
pub struct Alone {
    warm_up: usize,
    size: usize,
    times: Vec<Duration>,
    cpu: Duration,
}

impl Alone {
    /// So many flows that do not count, then those of the case.
    #[must_use]
    pub fn new(warm_up: usize, case: &Case) -> Self {
        Self { warm_up, size: case.size, times: Vec::with_capacity(warm_up + case.size), cpu: Duration::ZERO }
    }

    /// The number of the next flow, or `None` when it is enough.
    pub fn number(&mut self) -> Option<u64> {
        let number = self.times.len();
        if number == self.warm_up {
            self.cpu = cpu();
        }
        (number < self.warm_up + self.size).then_some(number as u64)
    }

    /// A flow took so long.
    pub fn took(&mut self, time: Duration) {
        self.times.push(time);
    }

    /// The figures, right after the last flow.
    #[must_use]
    pub fn figures(mut self) -> Vec<Measure> {
        let used = cpu_since(self.cpu);
        let times = Times::new(self.times.split_off(self.warm_up));
        vec![
            Measure::micros("p50", times.p50()),
            Measure::micros("p99", times.p99()),
            Measure::micros("CPU per flow", each(used, self.size)),
        ]
    }
}
