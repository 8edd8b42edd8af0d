//! Makes a failing plan smaller.

use std::time::{Duration, Instant};

use crate::{plan::Plan, simulation};

/// How many runs of a smaller plan are tried, each with other luck.
const SALTS: u64 = 12;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The smallest plan found that fails, in whatever way.
pub(crate) fn shrink(plan: &Plan) -> Plan {
    let began_at = Instant::now();
    let mut smallest = plan.clone();
    'smaller: loop {
        for candidate in smallest.smaller() {
            for salt in 0..SALTS {
                if began_at.elapsed() > PATIENCE {
                    return smallest;
                }
                let candidate = Plan { salt, ..candidate.clone() };
                if simulation::run(&candidate, false).failure.is_some() {
                    smallest = candidate;
                    continue 'smaller;
                }
            }
        }
        return smallest;
    }
}
