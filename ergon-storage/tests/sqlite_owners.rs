//! What becomes of the flows of SQLite logs that are gone: killed with their process, stopped, closed.
#![cfg(feature = "sqlite")]
// "SQLite" is a name, not code.
#![allow(clippy::doc_markdown)]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use ergon_storage::{
    ClaimRequest, ClaimTarget, ClaimedFlow, Clock, Commit, Committed, ErrorKind, ExecutionLog, FlowId, Lease,
    ManualClock, NewFlow, Next, SqliteExecutionLog, SqliteOptions, SystemClock, Topic,
};
use futures::future::join_all;
use tempfile::TempDir;

const LEASE: Duration = Duration::from_secs(3_600);
/// Tells the test program to be the process that is killed, and on which file.
const VICTIM: &str = "ERGON_TEST_VICTIM";

fn request() -> ClaimRequest {
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let mut request = ClaimRequest::new("worker", target);
    request.limit = 100;
    request.lease = LEASE;
    request
}

async fn open(path: &Path) -> SqliteExecutionLog {
    SqliteExecutionLog::open(path).await.unwrap()
}

async fn enqueue(log: &SqliteExecutionLog, flows: usize) {
    let flow = |n| NewFlow::new(FlowId::new(format!("flow-{n}")).unwrap(), "Order", 1, &b"{}"[..]);
    log.enqueue((0..flows).map(flow).collect()).await.unwrap();
}

async fn claim(log: &SqliteExecutionLog) -> Vec<ClaimedFlow> {
    log.claim(request()).await.unwrap().flows
}

/// A log in a directory of its own, and flows that it runs.
async fn running(flows: usize) -> (TempDir, PathBuf, SqliteExecutionLog, Vec<ClaimedFlow>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.db");
    let log = open(&path).await;
    enqueue(&log, flows).await;
    let claimed = claim(&log).await;
    assert_eq!(claimed.len(), flows);
    (directory, path, log, claimed)
}

fn complete(lease: &Lease) -> Commit {
    let mut commit = Commit::new(lease.clone(), 1);
    commit.next = Next::Complete { result: "7".into() };
    commit
}

fn owner_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.file_name().unwrap().to_str().unwrap().contains("-owner-")).collect();
    files.sort();
    files
}

/// Makes the only open log look dead, while it is not: the file is one that nobody holds.
fn seem_dead(directory: &Path) {
    let files = owner_files(directory);
    let [file] = &files[..] else { panic!("one log is open: {files:?}") };
    fs::remove_file(file).unwrap();
    fs::write(file, "").unwrap();
}

// ---- processes ---------------------------------------------------------------------------------------------

/// A process that runs flows; killed when it is dropped.
struct Victim(Child);

impl Victim {
    /// Starts it, and waits until it has claimed what is there.
    fn start(path: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_life_of_a_victim", "--nocapture"])
            .env(VICTIM, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut victim = Self(child.unwrap());
        let mut lines = BufReader::new(victim.0.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("the victim has claimed")), "it has died too early");
        victim
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.0.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// SIGKILL: no destructor runs.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_life_of_a_victim() {
    let Some(path) = std::env::var_os(VICTIM) else { return };
    let log = open(Path::new(&path)).await;
    assert!(!claim(&log).await.is_empty());
    // Its own children do not keep it alive, once they run another program.
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"?").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    println!("the victim has claimed");
    std::io::stdin().lines().for_each(drop);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn a_restart_after_a_kill_goes_on_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.db");
    let log = open(&path).await;
    enqueue(&log, 20).await;
    drop(log);
    let mut victim = Victim::start(&path);
    assert_eq!(owner_files(directory.path()).len(), 1);
    victim.kill();
    assert_eq!(owner_files(directory.path()).len(), 1, "nobody has removed it");

    let log = open(&path).await;
    assert_eq!(owner_files(directory.path()).len(), 1, "the dead log's file is removed, this log's is made");
    let claimed = claim(&log).await;
    assert_eq!(claimed.len(), 20);
    for claimed in &claimed {
        assert_eq!((claimed.info.deliveries, claimed.lease.epoch), (2, 2), "as after the end of a lease");
        let old = Lease { epoch: 1, ..claimed.lease.clone() };
        assert_eq!(log.commit(complete(&old)).await.unwrap_err().kind(), ErrorKind::LeaseLost);
        assert_eq!(log.commit(complete(&claimed.lease)).await.unwrap(), Committed::Applied);
    }
    drop(log);
    assert_eq!(owner_files(directory.path()), [] as [PathBuf; 0]);
}

#[cfg(unix)]
#[tokio::test]
async fn a_stopped_process_is_alive_until_its_leases_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.db");
    let log = open(&path).await;
    enqueue(&log, 3).await;
    let mut victim = Victim::start(&path);
    victim.signal("STOP");
    assert_eq!(claim(&log).await.len(), 0);
    assert_eq!(claim(&open(&path).await).await.len(), 0);
    victim.kill();
    assert_eq!(claim(&open(&path).await).await.len(), 3);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_hear_of_a_kill_without_asking() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.db");
    let log = open(&path).await;
    let mut waits = Vec::new();
    for round in 1..=5 {
        enqueue(&log, round).await;
        let mut victim = Victim::start(&path);
        assert_eq!(claim(&log).await.len(), 0);
        let mut queue = log.watch(Topic::Queue);
        while tokio::time::timeout(Duration::from_millis(20), queue.changed()).await.is_ok() {}
        let start = std::time::Instant::now();
        victim.kill();
        let claimed = loop {
            tokio::time::timeout(Duration::from_secs(5), queue.changed()).await.expect("the log hears of it");
            let claimed = claim(&log).await;
            if !claimed.is_empty() {
                break claimed;
            }
        };
        waits.push(start.elapsed());
        assert_eq!(claimed.len(), 1);
        assert_eq!(log.commit(complete(&claimed[0].lease)).await.unwrap(), Committed::Applied);
    }
    waits.sort_unstable();
    println!("the flows of a killed process were claimed after {:?} (median), {:?} at most", waits[2], waits[4]);
}

// ---- within one process ------------------------------------------------------------------------------------

#[tokio::test]
async fn a_log_in_the_same_process_counts_as_alive() {
    let (_directory, path, log, claimed) = running(3).await;
    let other = open(&path).await;
    assert_eq!(claim(&other).await.len(), 0);
    assert_eq!(claim(&log).await.len(), 0);
    drop(other);
    assert_eq!(claim(&open(&path).await).await.len(), 0, "also after one of them was closed");
    for claimed in claimed {
        assert_eq!(log.commit(complete(&claimed.lease)).await.unwrap(), Committed::Applied);
    }
}

#[tokio::test]
async fn closing_a_log_gives_up_what_it_runs() {
    let (directory, path, log, claimed) = running(3).await;
    let other = open(&path).await;
    assert_eq!(owner_files(directory.path()).len(), 2);
    let next_due_at = log.claim(request()).await.unwrap().next_due_at.unwrap();
    assert!(next_due_at > SystemClock.now().saturating_add(LEASE / 2));
    drop(log);
    assert_eq!(owner_files(directory.path()).len(), 1);
    // Nobody else has claimed it, so the lease is still the current one, also for those it was passed on to.
    assert_eq!(other.commit(complete(&claimed[0].lease)).await.unwrap(), Committed::Applied);
    let ids: Vec<_> = claim(&other).await.into_iter().map(|claimed| claimed.lease.flow).collect();
    assert_eq!(ids, claimed[1..].iter().map(|claimed| claimed.lease.flow.clone()).collect::<Vec<_>>());
    assert_eq!(other.commit(complete(&claimed[1].lease)).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    drop(other);
    assert_eq!(owner_files(directory.path()), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn whoever_renews_a_lease_answers_for_it() {
    let (_directory, path, log, claimed) = running(1).await;
    let other = open(&path).await;
    other.heartbeat(&[claimed[0].lease.clone()], LEASE).await.unwrap();
    drop(log);
    assert_eq!(claim(&open(&path).await).await.len(), 0);
    drop(other);
    assert_eq!(claim(&open(&path).await).await.len(), 1);
}

#[tokio::test]
async fn a_log_that_only_seemed_dead_is_fenced_off() {
    let (directory, path, zombie, claimed) = running(2).await;
    seem_dead(directory.path());
    let other = open(&path).await;
    // Nobody else has claimed the first one yet.
    assert_eq!(zombie.commit(complete(&claimed[0].lease)).await.unwrap(), Committed::Applied);
    assert_eq!(claim(&other).await.len(), 1);
    assert_eq!(zombie.commit(complete(&claimed[1].lease)).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    // It goes on, as a log without a file.
    enqueue(&zombie, 3).await;
    assert_eq!(claim(&zombie).await.len(), 1);
    assert_eq!(claim(&other).await.len(), 0);
}

#[tokio::test]
async fn a_claim_finds_the_dead_too() {
    let (directory, path, _zombie, _) = running(2).await;
    let watching = owner_files(directory.path());
    let other = open(&path).await;
    fs::remove_file(&watching[0]).unwrap();
    fs::write(&watching[0], "").unwrap();
    assert_eq!(claim(&other).await.len(), 2);
    assert!(!watching[0].exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_that_find_the_same_dead_log_share_its_flows() {
    for _ in 0..5 {
        let (directory, path, _zombie, claimed) = running(50).await;
        seem_dead(directory.path());
        // One of them has the dead log's lock for a moment, in which the others take it to be alive.
        let logs = join_all((0..6).map(|_| {
            let path = path.clone();
            async move { tokio::spawn(async move { open(&path).await }).await.unwrap() }
        }))
        .await;
        let mut request = request();
        request.limit = 10;
        let claims = logs.iter().map(|log| log.claim(request.clone()));
        let found = join_all(claims).await.into_iter().flat_map(|claimed| claimed.unwrap().flows);
        let mut found: Vec<_> = found.map(|claimed| (claimed.lease.flow, claimed.lease.epoch)).collect();
        assert_eq!(owner_files(directory.path()).len(), logs.len());
        assert_eq!(found.len(), claimed.len());
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), claimed.len());
        assert!(found.iter().all(|(_, epoch)| *epoch == 2));
    }
}

// ---- files -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn files_of_dead_logs_are_removed_and_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.db");
    let left = ["log.db-owner-0123456789abcdef", "log.db-owner-7fffffffffffffff"];
    let kept = [
        "log.db-owner-notes",
        "log.db-owner-0123456789ABCDEF",
        "log.db-owner-+123456789abcdef",
        "log.db-owner-0123456789abcdef0",
        "other.db-owner-0123456789abcdef",
        "log.db-owner-",
    ];
    for name in left.iter().chain(&kept) {
        fs::write(directory.path().join(name), "").unwrap();
    }
    fs::create_dir(directory.path().join("log.db-owner-0000000000000001")).unwrap();
    drop(open(&path).await);
    for name in left {
        assert!(!directory.path().join(name).exists(), "{name}");
    }
    assert_eq!(owner_files(directory.path()).len(), kept.len() + 1);
}

#[tokio::test]
async fn a_file_that_was_removed_by_hand_leaves_the_lease() {
    let (directory, path, log, _) = running(2).await;
    fs::remove_file(&owner_files(directory.path())[0]).unwrap();
    let clock = ManualClock::starting_at(SystemClock.now());
    let other = SqliteOptions::new(&path).clock(Arc::new(clock.clone())).open().await.unwrap();
    assert_eq!(claim(&other).await.len(), 0);
    clock.advance(LEASE);
    assert_eq!(claim(&other).await.len(), 2);
    drop(log);
    assert_eq!(owner_files(directory.path()).len(), 1);
}

#[tokio::test]
async fn where_no_file_can_be_made_leases_decide() {
    let directory = tempfile::tempdir().unwrap();
    // Long enough for SQLite's own files to have names, and for ours not to.
    let path = directory.path().join("l".repeat(240));
    let clock = ManualClock::starting_at(SystemClock.now());
    let options = SqliteOptions::new(&path).clock(Arc::new(clock.clone()));
    let log = options.clone().open().await.unwrap();
    enqueue(&log, 1).await;
    assert_eq!(claim(&log).await.len(), 1);
    drop(log);
    let log = options.open().await.unwrap();
    assert_eq!(claim(&log).await.len(), 0);
    clock.advance(LEASE);
    assert_eq!(claim(&log).await.len(), 1);
    assert_eq!(owner_files(directory.path()), [] as [PathBuf; 0]);
}

#[cfg(unix)]
#[tokio::test]
async fn logs_behind_a_link_know_of_each_other() {
    let (directory, path, log, _) = running(2).await;
    let links = tempfile::tempdir().unwrap();
    let link = links.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let other = open(&link).await;
    assert_eq!(owner_files(directory.path()).len(), 2);
    assert_eq!(owner_files(links.path()).len(), 0);
    assert_eq!(claim(&other).await.len(), 0);
    drop(log);
    assert_eq!(claim(&other).await.len(), 2);
}
