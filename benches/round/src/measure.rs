//! What a round hands out, and how the process looks at itself.

use std::{fs, path::Path, time::Duration};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike},
};
use serde::{Deserialize, Serialize};

/// One figure of a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// What it is a figure of.
    pub metric: String,
    /// Its unit.
    pub unit: String,
    /// How much.
    pub value: f64,
}

impl Measure {
    /// A figure in any unit.
    pub fn new(metric: impl Into<String>, unit: impl Into<String>, value: f64) -> Self {
        Self { metric: metric.into(), unit: unit.into(), value }
    }

    /// How many per second.
    pub fn rate(metric: impl Into<String>, what: &str, count: usize, took: Duration) -> Self {
        Self::new(metric, format!("{what}/s"), number(count) / took.as_secs_f64())
    }

    /// A time, in the unit that suits what is measured.
    pub fn micros(metric: impl Into<String>, time: Duration) -> Self {
        Self::new(metric, "µs", time.as_secs_f64() * 1e6)
    }

    /// A longer time.
    pub fn millis(metric: impl Into<String>, time: Duration) -> Self {
        Self::new(metric, "ms", time.as_secs_f64() * 1e3)
    }
}

/// A count as a float; the counts of a benchmark are far below 2⁵².
#[allow(clippy::cast_precision_loss)]
pub fn number(count: usize) -> f64 {
    count as f64
}

/// A share of a time.
pub fn each(total: Duration, count: usize) -> Duration {
    total / u32::try_from(count.max(1)).unwrap_or(u32::MAX)
}

/// The processor time that this process has used, in user and system mode, over all threads; zero where the system
/// does not tell.
pub fn cpu() -> Duration {
    let time = |value: TimeVal| {
        let micros = value.num_microseconds();
        Duration::from_micros(micros.unsigned_abs())
    };
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| time(usage.user_time()) + time(usage.system_time()))
}

/// The processor time used since then.
pub fn cpu_since(start: Duration) -> Duration {
    cpu().saturating_sub(start)
}

/// The memory that this process holds for itself, without files that are mapped, in bytes; `None` where the system
/// does not tell.
pub fn resident() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The bytes of all files in a folder.
///
/// # Errors
///
/// When the folder cannot be read.
pub fn bytes_in(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
