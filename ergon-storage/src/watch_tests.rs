//! That no hint is lost, in whatever order threads come to their turn: what `watch` does is done again with locks at
//! which a scheduler decides who goes on, and a waiter that nobody wakes is a deadlock, which it reports.

use std::sync::Arc;

use shuttle::{
    check_random, future, rand,
    rand::Rng,
    sync::{Mutex, MutexGuard},
    thread,
};

use self::watch::{Topic, WatchHub};
use crate::FlowId;

/// The same code with other locks.
#[path = "watch.rs"]
#[allow(clippy::duplicate_mod, dead_code, unreachable_pub)]
mod watch;
mod sync {
    pub(crate) use std::sync::PoisonError;

    pub(crate) use shuttle::sync::Mutex;
}

/// How many orders are tried.
const ORDERS: usize = 5_000;

/// A log that counts what was written to it.
#[derive(Clone)]
struct Log {
    hub: WatchHub,
    written: Arc<Mutex<u32>>,
}

impl Log {
    fn new() -> Self {
        Self { hub: WatchHub::new(), written: Arc::new(Mutex::new(0)) }
    }

    fn written(&self) -> MutexGuard<'_, u32> {
        self.written.lock().expect("nobody panics")
    }

    /// Writes, then hints: as every log does.
    fn write(&self, hint: impl FnOnce(&WatchHub)) {
        *self.written() += 1;
        hint(&self.hub);
    }

    /// Waits until so much is written: watches first, then looks, as everybody does.
    fn wait_for(&self, topic: Topic, wanted: u32) {
        future::block_on(async {
            let mut watch = self.hub.watch(topic);
            while *self.written() < wanted {
                watch.changed().await;
            }
        });
    }
}

fn flow(name: &str) -> FlowId {
    FlowId::new(name).expect("a name")
}

/// Runs all of them at once, to their ends.
fn run(log: &Log, threads: Vec<Box<dyn FnOnce(Log) + Send>>) {
    let threads: Vec<_> = threads.into_iter().map(|code| (code, log.clone())).collect();
    let threads: Vec<_> = threads.into_iter().map(|(code, log)| thread::spawn(move || code(log))).collect();
    for thread in threads {
        thread.join().expect("it ends");
    }
}

#[test]
fn a_hint_to_a_flow_reaches_all_who_watch_it() {
    check_random(
        || {
            let wait = || -> Box<dyn FnOnce(Log) + Send> { Box::new(|log| log.wait_for(Topic::Flow(flow("a")), 2)) };
            let write =
                || -> Box<dyn FnOnce(Log) + Send> { Box::new(|log| log.write(|hub| hub.notify_flow(&flow("a")))) };
            run(&Log::new(), vec![wait(), write(), wait(), write()]);
        },
        ORDERS,
    );
}

#[test]
fn a_hint_to_the_queue_reaches_all_who_watch_it() {
    check_random(
        || {
            let wait = || -> Box<dyn FnOnce(Log) + Send> { Box::new(|log| log.wait_for(Topic::Queue, 1)) };
            run(&Log::new(), vec![wait(), Box::new(|log| log.write(WatchHub::notify_queue)), wait()]);
        },
        ORDERS,
    );
}

#[test]
fn watches_that_end_take_no_others_along() {
    check_random(
        || {
            let come_and_go = |log: Log| {
                for _ in 0..rand::thread_rng().gen_range(1..4) {
                    drop(log.hub.watch(Topic::Flow(flow("a"))));
                }
            };
            let log = Log::new();
            run(
                &log,
                vec![
                    Box::new(come_and_go),
                    Box::new(|log| log.wait_for(Topic::Flow(flow("a")), 1)),
                    Box::new(come_and_go),
                    Box::new(|log| log.write(WatchHub::notify_all)),
                ],
            );
            assert!(!log.hub.is_watched(&flow("a")), "nothing is kept of watches that have ended");
        },
        ORDERS,
    );
}

#[test]
fn a_hint_reaches_those_who_can_only_be_recognised() {
    check_random(
        || {
            run(
                &Log::new(),
                vec![
                    Box::new(|log| log.wait_for(Topic::Flow(flow("abc")), 1)),
                    Box::new(|log| log.write(|hub| hub.notify_flows(|id| id.as_str().starts_with("ab")))),
                    Box::new(|log| drop(log.hub.watch(Topic::Flow(flow("abd"))))),
                ],
            );
        },
        ORDERS,
    );
}

/// That these tests find what they are for.
#[test]
#[should_panic(expected = "deadlock")]
fn who_looks_first_and_watches_then_may_wait_for_ever() {
    check_random(
        || {
            let look_first = |log: Log| {
                future::block_on(async {
                    if *log.written() == 0 {
                        log.hub.watch(Topic::Flow(flow("a"))).changed().await;
                    }
                });
            };
            run(&Log::new(), vec![Box::new(look_first), Box::new(|log| log.write(|hub| hub.notify_flow(&flow("a"))))]);
        },
        ORDERS,
    );
}
