//! A deterministic simulation of ergon.
//!
//! The real engine, with several workers, schedulers and clients, runs on a virtual clock, in one thread, over the log
//! in memory behind a network that misbehaves. A seed decides all of it, so that a run can be had again, line by line.
//! `plan` is what a seed decides, `program` the flows and what they may come to, `told` what bodies of steps tell, `world` what a run shares,
//! `process`
//! and `network` what stands still, dies, delays and loses, and `laws` what must hold after every event. `simulation`
//! is one run and `shrink` makes a failing one smaller.

mod client;
mod code;
mod laws;
mod network;
mod plan;
mod process;
mod program;
mod shrink;
mod simulation;
mod told;
mod world;

use std::{
    hash::Hasher,
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use plan::Plan;

/// Runs the seeds from `first`, on all cores. `Err` tells of the smallest seed that failed, how to repeat it, and what
/// happened.
///
/// # Errors
///
/// When a run breaks a law.
pub fn run_seeds(first: u64, seeds: u64) -> Result<(), String> {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let failed: Mutex<Option<u64>> = Mutex::new(None);
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= seeds {
                        return;
                    }
                    let seed = first.wrapping_add(number);
                    if simulation::run(&Plan::new(seed), false).failure.is_some() {
                        stop.store(true, Ordering::Relaxed);
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        *failed = Some(failed.map_or(seed, |failed| failed.min(seed)));
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(()),
        Some(seed) => Err(report(seed)),
    }
}

/// Runs one seed, and tells what happened, line by line.
///
/// # Errors
///
/// When it breaks a law; then of a run that was made smaller.
pub fn run_seed(seed: u64) -> Result<String, String> {
    let outcome = simulation::run(&Plan::new(seed), true);
    if outcome.failure.is_none() { Ok(outcome.trace) } else { Err(report(seed)) }
}

/// True when this seed gives the same run twice.
pub fn is_repeatable(seed: u64) -> bool {
    let run = || simulation::run(&Plan::new(seed), true);
    run() == run()
}

/// A number for all that happens in a run, equal in each process and on each machine.
pub fn digest(seed: u64) -> u64 {
    let mut hasher = code::Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(simulation::run(&Plan::new(seed), true).trace.as_bytes());
    hasher.finish()
}

fn report(seed: u64) -> String {
    let whole = Plan::new(seed);
    let first = simulation::run(&whole, false).failure;
    let smallest = shrink::shrink(&whole);
    let outcome = simulation::run(&smallest, true);
    let what = outcome.failure.unwrap_or_else(|| "it does not fail again".into());
    format!(
        "seed {seed} fails: {}\n\nmade smaller, from {} operations to {}: {what}\n\n{smallest:#?}\n\n{}\nseed {seed} \
         fails: {what}\nrepeat it with: cargo xtask sim --seed {seed}",
        first.unwrap_or_default(),
        whole.size(),
        smallest.size(),
        outcome.trace,
    )
}
