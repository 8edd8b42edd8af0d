//! Workers in processes of their own on one file, which are killed, paused and continued.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use ergon::{
    Entry, FlowHandle, FlowId, Scheduler, SqliteExecutionLog,
    storage::{ExecutionLog, FlowState, Phase, SqliteOptions},
};
use ergon_tests::{
    job::{self, Job},
    soon, until, within,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

type Handle = FlowHandle<u32, ergon::Error>;

/// A worker process, killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(directory: &Path, lease: Duration) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_job-worker"))
            .arg(directory.join("log.db"))
            .arg(directory.join("diary"))
            .arg(lease.as_millis().to_string())
            .stdin(Stdio::piped())
            .spawn();
        Self(child.expect("the helper process starts"))
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.0.id().to_string()).status();
        assert!(status.expect("kill runs").success(), "kill -{signal}");
    }

    /// SIGKILL: no destructor runs, nothing is flushed.
    fn kill(&mut self) {
        self.0.kill().expect("the process is ours");
        self.0.wait().expect("the process is ours");
    }

    /// Lets it shut down.
    fn stop(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("the process is ours").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn schedule(log: &SqliteExecutionLog, count: u32) -> Vec<Handle> {
    let jobs = (0..count).map(|number| Entry::new(Job { number }).id(format!("job-{number}")));
    Scheduler::new(log.clone()).schedule_all::<Job, _>(jobs).await.expect("jobs are scheduled")
}

async fn unfinished(log: &SqliteExecutionLog) -> u64 {
    let counts = log.counts().await.expect("the log answers");
    counts.iter().filter(|count| count.state != FlowState::Completed).map(|count| count.flows).sum()
}

/// Each flow has its result, each call one outcome, and no body began after the outcome of its step. Returns the
/// bodies that did, if they are those of a process that was paused while it was about to begin them.
async fn check(log: &SqliteExecutionLog, directory: &Path, flows: &[Handle], paused: Option<u32>) -> Vec<String> {
    let mut too_late = Vec::new();
    let mut begun: HashMap<(String, String), Vec<(i64, u32)>> = HashMap::new();
    for line in fs::read_to_string(directory.join("diary")).expect("there is a diary").lines() {
        let [flow, event, name, process, at] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        if event == "begin" {
            begun
                .entry((flow.into(), name.into()))
                .or_default()
                .push((at.parse().expect("a time"), process.parse().expect("an id")));
        }
    }
    for flow in flows {
        let result = soon("a result", flow.result()).await;
        assert_eq!(result.unwrap_or_else(|error| panic!("{}: {error:?}", flow.id())), job::RESULT);
        let history = log.history(flow.id(), 0, 1_000).await.expect("a history");
        let mut outcomes: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for record in history.iter().filter(|record| record.phase.is_outcome()) {
            outcomes.entry(record.path.clone()).or_default().push(record);
        }
        // Six steps and a timer; the timer that lost has no outcome.
        assert_eq!(outcomes.len(), 7, "{}: {history:#?}", flow.id());
        for (path, outcomes) in outcomes {
            assert_eq!(outcomes.len(), 1, "{} has several outcomes at {path}: {outcomes:#?}", flow.id());
            let outcome = outcomes[0];
            assert_eq!(outcome.phase, Phase::Completed);
            let name = match String::from_utf8_lossy(&outcome.payload).as_ref() {
                _ if outcome.kind != ergon::storage::CallKind::Step => continue,
                "1" => "first",
                "2" => "left",
                "3" => "right",
                "4" => "quick",
                "5" => "flaky",
                _ => "last",
            };
            let begun = &begun[&(flow.id().to_string(), name.to_owned())];
            let late = begun.iter().filter(|(at, _)| *at > outcome.at.as_micros());
            for (at, process) in late {
                let what = format!("{} {name}: a body began at {at}, after {outcome:?}", flow.id());
                assert_eq!(Some(*process), paused, "{what}");
                too_late.push(what);
            }
        }
    }
    too_late
}

fn seed() -> u64 {
    let seed = std::env::var("ERGON_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("seed: ERGON_SEED={seed}");
    seed
}

async fn killed_at_random(processes: usize, seed: u64) {
    const FLOWS: u32 = 200;
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = TempDir::new().expect("a directory");
    let log = SqliteExecutionLog::open(directory.path().join("log.db")).await.expect("the log opens");
    let flows = schedule(&log, FLOWS).await;
    let lease = Duration::from_millis(300);
    let mut workers: Vec<_> = (0..processes).map(|_| Process::start(directory.path(), lease)).collect();
    let mut kills = 0;
    let all_done = async {
        while unfinished(&log).await > 0 {
            // First at random, then long enough for the rest.
            let most = if kills < 40 { 50 } else { 2_000 };
            tokio::time::sleep(Duration::from_millis(rng.random_range(5..most))).await;
            let victim = rng.random_range(0..processes);
            workers[victim].kill();
            workers[victim] = Process::start(directory.path(), lease);
            kills += 1;
        }
    };
    within(Duration::from_secs(120), "the flows of killed workers", all_done).await;
    println!("{kills} kills");
    for worker in workers {
        worker.stop();
    }
    check(&log, directory.path(), &flows, None).await;
}

#[tokio::test]
async fn a_worker_that_is_killed_again_and_again_finishes_every_flow() {
    killed_at_random(1, seed()).await;
}

#[tokio::test]
async fn two_workers_that_are_killed_in_turn_finish_every_flow() {
    killed_at_random(2, seed()).await;
}

#[tokio::test]
async fn two_processes_share_a_queue_and_run_each_step_once() {
    let directory = TempDir::new().expect("a directory");
    let log = SqliteExecutionLog::open(directory.path().join("log.db")).await.expect("the log opens");
    let workers = [(); 2].map(|()| Process::start(directory.path(), Duration::from_secs(30)));
    let flows = schedule(&log, 200).await;
    for flow in &flows {
        soon("a result", flow.result()).await.expect("it completes");
    }
    for worker in workers {
        worker.stop();
    }
    check(&log, directory.path(), &flows, None).await;
    let diary = fs::read_to_string(directory.path().join("diary")).expect("there is a diary");
    let mut begun: HashMap<_, u32> = HashMap::new();
    let mut by_process: HashMap<_, u32> = HashMap::new();
    for line in diary.lines().filter(|line| line.contains(" begin ")) {
        let [flow, _, name, process, _] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        *begun.entry((flow, name)).or_default() += 1;
        *by_process.entry(process).or_default() += 1;
    }
    for ((flow, name), times) in begun {
        assert_eq!(times, if name == "flaky" { 2 } else { 1 }, "{flow} {name}");
    }
    assert_eq!(by_process.len(), 2, "both worked: {by_process:?}");
}

#[tokio::test]
async fn a_zombie_changes_nothing() {
    let directory = TempDir::new().expect("a directory");
    let options = SqliteOptions::new(directory.path().join("log.db")).busy_timeout(Duration::from_millis(300));
    let log = options.open().await.expect("the log opens");
    let flows = schedule(&log, 200).await;
    let nobody = FlowId::new("nobody").unwrap();
    let lease = Duration::from_millis(200);
    let zombie = Process::start(directory.path(), lease);
    let id = zombie.0.id();
    // It is in the middle of things …
    until("the first worker to finish some flows", || async {
        let left = unfinished(&log).await;
        (1..190).contains(&left)
    })
    .await;
    loop {
        zombie.signal("STOP");
        // Stopped while it writes, it would hold the lock of the file, and nobody could write.
        if log.delete(&nobody).await.is_ok() {
            break;
        }
        zombie.signal("CONT");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    // … and another one finishes all, what the first one holds included.
    let other = Process::start(directory.path(), lease);
    until("the other worker to finish all flows", || async { unfinished(&log).await == 0 }).await;
    let mut before = Vec::new();
    for flow in &flows {
        before.push((log.flow(flow.id()).await.unwrap(), log.history(flow.id(), 0, 1_000).await.unwrap()));
    }
    zombie.signal("CONT");
    // It finds its leases gone, and goes on with what is new.
    drop(other);
    let next = Scheduler::new(log.clone()).schedule(Job { number: 1_000 }).id("job-1000").await.unwrap();
    assert_eq!(soon("the zombie's next flow", next.result()).await.expect("it completes"), job::RESULT);
    zombie.stop();
    for (flow, (info, history)) in flows.iter().zip(before) {
        assert_eq!(log.flow(flow.id()).await.unwrap(), info);
        assert_eq!(log.history(flow.id(), 0, 1_000).await.unwrap(), history);
    }
    // No check can help a thread that is paused between the check and the body: it begins what it was about to
    // begin, at most the two bodies of a join on each of its two threads, and nothing more.
    let too_late = check(&log, directory.path(), &flows, Some(id)).await;
    assert!(too_late.len() <= 4, "{too_late:#?}");
}
