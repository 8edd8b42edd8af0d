//! What comes from outside the program, broken at random: it is refused with an error or taken whole, and whatever is
//! taken never makes the engine panic.
//!
//! `ERGON_MUTATIONS=1000000 cargo test -p ergon-tests --test hostile` breaks more; `cargo xtask fuzz` lets a fuzzer
//! choose what to break.

use std::path::Path;

use ergon::{Filter, FlowState, SqliteExecutionLog, StorageError, prelude::*, storage::ExecutionLog};
use ergon_tests::{
    mutate::{Mutator, mutations},
    outside::{self, Order, expect_no_panic, watch_for_panics, worker},
};

#[tokio::test(start_paused = true)]
async fn flows_to_be_imported() {
    watch_for_panics();
    let valid = outside::exported().await;
    let mut taken = 0;
    for seed in 0..mutations(3_000) {
        taken += outside::import(&Mutator::new(seed, &valid).text()).await;
    }
    assert!(taken > 0, "nothing that was broken was still a flow");
}

#[tokio::test(start_paused = true)]
async fn values_of_flows() {
    watch_for_panics();
    let valid = [r#"{"address":"here","lines":[1,2,3]}"#, r#"{"address":"nowhere","lines":[]}"#];
    for seed in 0..mutations(3_000) {
        outside::payload(&Mutator::new(seed, valid).bytes()).await;
    }
}

#[tokio::test]
async fn addresses_of_logs() {
    watch_for_panics();
    let valid = ["memory:", "sqlite::memory:", "sqlite:orders.db", "memory://", "sqlite:///", "orders.db"];
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..mutations(2_000) {
        let url = Mutator::new(seed, valid).text();
        let (scheme, rest) = url.split_once(':').unwrap_or_default();
        if scheme.eq_ignore_ascii_case("sqlite") && rest.strip_prefix("//").unwrap_or(rest) != ":memory:" {
            // In a folder of its own.
            let name = rest.replace(['/', '\\'], "");
            let _ = ergon::open(&format!("sqlite:{}/{name}", dir.path().display())).await;
        } else {
            let _ = ergon::open(&url).await;
        }
        expect_no_panic(&url);
    }
}

#[test]
fn addresses_of_servers() {
    watch_for_panics();
    let valid = [
        "redis://localhost",
        "rediss://ada:secret@db.example.com:6379/0",
        "postgres://user:password@host:5432/database?sslmode=require",
        "postgresql://host/db?connect_timeout=10",
    ];
    for seed in 0..mutations(20_000) {
        outside::server(&Mutator::new(seed, valid).text());
    }
}

#[test]
fn names_of_calls_and_flows() {
    watch_for_panics();
    for seed in 0..mutations(50_000) {
        outside::name(&Mutator::new(seed, ["1", "3.1", "4294967295.2.7", "1.1.1.1.1.1.1.1"]).text());
    }
}

/// A log with an order in the middle, as the bytes of its file.
async fn file(dir: &Path) -> Vec<u8> {
    let path = dir.join("valid.db");
    {
        let log = SqliteExecutionLog::open(&path).await.unwrap();
        let worker = worker(log.clone()).start().await.unwrap();
        let scheduler = Scheduler::new(log.clone());
        let order = Order { address: "here".into(), lines: vec![1] };
        let order = scheduler.schedule(order).id("order").label("customer", "7").await.unwrap();
        ergon_tests::state_of(&log, order.id(), FlowState::Suspended).await;
        worker.shutdown().await;
    }
    std::fs::read(&path).unwrap()
}

#[tokio::test]
async fn files_that_are_damaged() {
    async fn look(path: &Path) -> Result<(), StorageError> {
        let log = SqliteExecutionLog::open(path).await?;
        let flow = FlowId::new("order").unwrap();
        let _ = log.flow(&flow).await?;
        let _ = log.history(&flow, 0, 100).await?;
        let _ = log.list(&Filter::all(), None, 100).await?;
        let worker = worker(log.clone()).start().await.map_err(|_| StorageError::not_found(&flow))?;
        log.send(ergon::storage::NewMessage::new(flow, ergon::storage::Channel::signal("x"), "1")).await?;
        worker.shutdown().await;
        Ok(())
    }
    watch_for_panics();
    let dir = tempfile::tempdir().unwrap();
    let valid = [file(dir.path()).await];
    for seed in 0..mutations(300) {
        let path = dir.path().join(format!("{seed}.db"));
        std::fs::write(&path, Mutator::new(seed, &valid).bytes()).unwrap();
        // Whatever the answer is, it comes.
        let _ = ergon_tests::soon("an answer", look(&path)).await;
        expect_no_panic(&seed);
    }
}
