//! What the engine says in the trace of a program.

use std::{
    fmt::{Debug, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use ergon::prelude::*;
use ergon_tests::{Place, TestClock, soon};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Keeps the warnings of the thread.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}: {value:?}, ").unwrap();
    }
}

/// Waits for things that are durable, or not.
#[flow_type]
struct Waits {
    durably: bool,
}

#[flow_type]
impl Waits {
    #[flow(allow(nondeterminism))]
    async fn run(&self) -> ergon::Result<u32> {
        let mut sum = 0;
        for round in 0..3 {
            if self.durably {
                sleep(Duration::from_millis(5)).await;
            } else {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            sum += self.work(round).await?;
        }
        Ok(sum)
    }

    #[step]
    async fn work(&self, round: u32) -> ergon::Result<u32> {
        // What a step waits for is its own affair.
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(round)
    }
}

async fn warnings(durably: bool) -> Vec<String> {
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let log = Place::memory().log_at(TestClock::new(1)).await;
    let worker = Worker::new(log.clone()).register::<Waits>().start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Waits { durably }).id("waits").await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 3);
    worker.shutdown().await;
    let warnings = warnings.0.lock().unwrap();
    warnings.clone()
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_not_durable_is_noticed_once() {
    let warnings = warnings(false).await;
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    for part in ["flow: waits", "is not durable before it called step \"work\"", "do the waiting in a step"] {
        assert!(warnings[0].contains(part), "{part:?} is not in {warnings:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn durable_waits_are_not_complained_of() {
    let warnings = warnings(true).await;
    assert!(warnings.is_empty(), "{warnings:#?}");
}
