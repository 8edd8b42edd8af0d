//! A small round of each work that does not go by the clock: the benchmark must not break unseen.

use std::process::Command;

use ergon_test_servers::{Persistence, Postgres, Redis};

/// What has a raw limit, and what does not.
const LIMITED: [&str; 2] = ["drain", "alone"];
const OTHERS: [&str; 3] = ["wide", "long", "signals"];

fn round(work: &str, system: &str, backend: &str, server: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ergon-benches"));
    command.args(["round", "--work", work, "--system", system, "--backend", backend]);
    command.args(["--durability", if backend == "memory" { "none" } else { "full" }]);
    // The long flow has marks by the thousand.
    let size = if work == "long" { "2000" } else { "20" };
    command.args(["--concurrency", "8", "--size", size, "--dir"]).arg(dir.path());
    command.args(server.map(|server| format!("--server={server}")));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{work} {system} {backend}: {said}");
    let figures: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!figures.is_empty(), "{work} {system} {backend} has no figures");
}

#[test]
fn on_memory() {
    for work in LIMITED.iter().chain(&OTHERS) {
        round(work, "ergon", "memory", None);
    }
}

#[test]
fn on_sqlite() {
    for work in LIMITED.iter().chain(&OTHERS) {
        round(work, "ergon", "sqlite", None);
    }
    for work in LIMITED.iter().chain(&["raw"]) {
        round(work, "raw", "sqlite", None);
    }
}

#[test]
fn on_redis() {
    let redis = Redis::start(Persistence::None);
    for work in LIMITED {
        round(work, "ergon", "redis", Some(&redis.url()));
    }
    for work in LIMITED.iter().chain(&["raw"]) {
        round(work, "raw", "redis", Some(&redis.url()));
    }
}

#[test]
fn on_postgres() {
    let postgres = Postgres::start();
    for work in LIMITED {
        round(work, "ergon", "postgres", Some(&postgres.fresh_database()));
    }
    for work in LIMITED.iter().chain(&["raw"]) {
        round(work, "raw", "postgres", Some(&postgres.fresh_database()));
    }
}
