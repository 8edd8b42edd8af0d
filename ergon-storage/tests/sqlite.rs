//! What only the SQLite log promises: its files, its processes and its groups of commits.
#![cfg(feature = "sqlite")]
// "SQLite" is a name, not code.
#![allow(clippy::doc_markdown)]

use std::{path::Path, sync::Arc, time::Duration};

use ergon_storage::{
    CallKind, CallPath, Channel, ClaimRequest, ClaimTarget, Clock, Commit, Committed, Enqueued, ErrorKind,
    ExecutionLog, Filter, FlowId, FlowState, Lease, LeaseState, ManualClock, NewFlow, NewMessage, Next, Phase, Record,
    SqliteExecutionLog, SqliteOptions, Start, Timestamp, Topic, Wake,
};
use rusqlite::Connection;
use tempfile::TempDir;

fn id(name: &str) -> FlowId {
    FlowId::new(name).unwrap()
}

fn flow(name: &str) -> NewFlow {
    NewFlow::new(id(name), "Order", 1, &b"{}"[..])
}

fn request(limit: usize) -> ClaimRequest {
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let mut request = ClaimRequest::new("worker", target);
    request.limit = limit;
    request
}

fn record(seq: u32) -> Record {
    Record {
        seq,
        at: Timestamp::from_micros(1),
        path: CallPath::top(seq),
        kind: CallKind::Step,
        phase: Phase::Completed,
        name: "charge".into(),
        args_hash: u64::MAX,
        attempt: 1,
        started_at: Timestamp::from_micros(1),
        due_at: None,
        reference: None,
        payload: vec![0, 255].into(),
    }
}

fn commit(lease: &Lease, number: u32) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.records.push(record(number));
    commit
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

async fn open_error(path: impl AsRef<Path>) -> (ErrorKind, String) {
    let error = SqliteExecutionLog::open(path.as_ref()).await.unwrap_err();
    (error.kind(), format!("{error:?}"))
}

// ---- files -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_path_that_cannot_be_a_log_is_refused_by_name() {
    let directory = directory();
    let path = directory.path();
    let (kind, text) = open_error(path.join("missing/log.db")).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(text.contains("missing of the execution log") && text.contains("does not exist"), "{text}");
    let (kind, text) = open_error(path).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(text.contains("is a directory"), "{text}");
    assert_eq!(open_error("").await.0, ErrorKind::Invalid);

    let absent = SqliteOptions::new(path.join("absent.db")).create(false).open().await.unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::Invalid);
    assert!(absent.to_string().contains("absent.db does not exist"), "{absent}");
    assert!(!path.join("absent.db").exists());

    let locked = path.join("read-only.db");
    drop(SqliteExecutionLog::open(&locked).await.unwrap());
    let mut permissions = locked.metadata().unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&locked, permissions).unwrap();
    let (kind, text) = open_error(&locked).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(text.contains("read-only.db may only be read"), "{text}");
}

#[tokio::test]
async fn a_file_of_someone_else_is_refused_and_left_alone() {
    let directory = directory();
    let text = directory.path().join("notes.txt");
    let content = "not a database, but long enough to be taken for one: ".repeat(100);
    std::fs::write(&text, &content).unwrap();
    let (kind, message) = open_error(&text).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("notes.txt is not an SQLite database"), "{message}");
    assert_eq!(std::fs::read_to_string(&text).unwrap(), content);

    let foreign = directory.path().join("cookies.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE cookies (name TEXT)").unwrap();
    let before = std::fs::read(&foreign).unwrap();
    let (kind, message) = open_error(&foreign).await;
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(message.contains("cookies.db is the SQLite database of another program"), "{message}");
    assert_eq!(std::fs::read(&foreign).unwrap(), before);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let directory = directory();
    let path = directory.path().join("log.db");
    drop(SqliteExecutionLog::open(&path).await.unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let (kind, text) = open_error(&path).await;
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("schema version 99") && text.contains("use a newer build"), "{text}");
}

#[tokio::test]
async fn a_schema_that_becomes_newer_stops_writes() {
    let directory = directory();
    let path = directory.path().join("log.db");
    let log = SqliteExecutionLog::open(&path).await.unwrap();
    log.enqueue(vec![flow("before")]).await.unwrap();
    let other = Connection::open(&path).unwrap();
    let version: i32 = other.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    other.pragma_update(None, "user_version", 99).unwrap();
    for _ in 0..2 {
        let error = log.enqueue(vec![flow("after")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    other.pragma_update(None, "user_version", version).unwrap();
    assert_eq!(log.enqueue(vec![flow("after")]).await.unwrap(), [Enqueued::Created]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_file_may_be_opened_by_several_at_once() {
    for _ in 0..10 {
        let directory = directory();
        let path = directory.path().join("log.db");
        let opening: Vec<_> = (0..6)
            .map(|n| {
                let path = path.clone();
                tokio::spawn(async move {
                    let log = SqliteExecutionLog::open(path).await.unwrap();
                    log.enqueue(vec![flow(&format!("flow-{n}"))]).await.unwrap();
                })
            })
            .collect();
        for opening in opening {
            opening.await.unwrap();
        }
        let log = SqliteExecutionLog::open(&path).await.unwrap();
        assert_eq!(log.list(&Filter::all(), None, 10).await.unwrap().flows.len(), 6);
    }
}

#[tokio::test]
async fn dropping_the_last_handle_writes_what_was_asked_and_closes_the_file() {
    let directory = directory();
    let path = directory.path().join("log.db");
    let log = SqliteExecutionLog::open(&path).await.unwrap();
    for n in 0..100 {
        // Asked but not awaited: polled once, so that the job is in the inbox.
        let asked = log.enqueue(vec![flow(&format!("flow-{n}"))]);
        let mut asked = std::pin::pin!(asked);
        let _ = futures::poll!(&mut asked);
    }
    drop(log);
    assert!(!directory.path().join("log.db-wal").exists(), "the write-ahead log was copied and removed");
    let log = SqliteExecutionLog::open(&path).await.unwrap();
    assert_eq!(log.list(&Filter::all(), None, 1000).await.unwrap().flows.len(), 100);
}

#[tokio::test]
async fn a_flow_is_the_same_after_reopening() {
    let directory = directory();
    let path = directory.path().join("log.db");
    let log = SqliteExecutionLog::open(&path).await.unwrap();
    log.enqueue(vec![flow("a").with_priority(-3).with_queue("ü").with_timeout(Some(Duration::from_secs(60)))])
        .await
        .unwrap();
    let claimed = log.claim(ClaimRequest::new("w", ClaimTarget::Flow(id("a")))).await.unwrap().flows.pop().unwrap();
    let wake = Wake { at: None, channels: vec![Channel::signal("a\nb"), Channel::children()] };
    let mut suspend = commit(&claimed.lease, 1);
    suspend.next = Next::suspend(wake.clone());
    assert_eq!(log.commit(suspend.clone()).await.unwrap(), Committed::Suspended);
    let before = (log.flow(&id("a")).await.unwrap(), log.history(&id("a"), 0, 10).await.unwrap());
    drop(log);

    let log = SqliteExecutionLog::open(&path).await.unwrap();
    let after = (log.flow(&id("a")).await.unwrap(), log.history(&id("a"), 0, 10).await.unwrap());
    assert_eq!(after, before);
    assert_eq!(after.0.unwrap().info.wake, wake);
    assert_eq!(after.1, [record(1)]);
    assert_eq!(log.commit(suspend).await.unwrap(), Committed::Suspended, "a repeat is recognised");
}

#[tokio::test]
async fn keys_are_not_used_again() {
    let directory = directory();
    let path = directory.path().join("log.db");
    let log = SqliteExecutionLog::open(&path).await.unwrap();
    log.enqueue(vec![flow("a")]).await.unwrap();
    let old = log.claim(request(1)).await.unwrap().flows.pop().unwrap().lease;
    log.cancel(&id("a"), "enough").await.unwrap();
    assert!(log.delete(&id("a")).await.unwrap());
    drop(log);

    let log = SqliteExecutionLog::open(&path).await.unwrap();
    log.enqueue(vec![flow("a")]).await.unwrap();
    let new = log.claim(request(1)).await.unwrap().flows.pop().unwrap().lease;
    assert_eq!((new.epoch, new.key > old.key), (old.epoch, true));
    assert_eq!(log.commit(commit(&old, 1)).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    assert_eq!(log.heartbeat(&[old, new], Duration::from_secs(9)).await.unwrap(), [LeaseState::Lost, LeaseState::Held]);
}

// ---- rows that cannot be read ------------------------------------------------------------------------------

#[tokio::test]
async fn an_unreadable_row_hides_no_other() {
    let directory = directory();
    let path = directory.path().join("log.db");
    let log = SqliteExecutionLog::open(&path).await.unwrap();
    log.enqueue(["kind", "path", "state", "input", "good"].map(flow).into()).await.unwrap();
    for claimed in log.claim(request(10)).await.unwrap().flows {
        log.commit(commit(&claimed.lease, 1)).await.unwrap();
        log.release(&claimed.lease).await.unwrap();
    }
    let breaker = Connection::open(&path).unwrap();
    let key = |name: &str| format!("(SELECT key FROM flows WHERE id = '{name}')");
    for sql in [
        format!("UPDATE records SET kind = 77 WHERE k = {} << 24 | 1", key("kind")),
        format!("UPDATE records SET path = 'x' WHERE k = {} << 24 | 1", key("path")),
        "UPDATE flows SET parent_id = CAST(x'ff' AS TEXT), parent_path = '1' WHERE id = 'state'".into(),
        format!("DELETE FROM records WHERE k = {} << 24", key("input")),
    ] {
        assert_eq!(breaker.execute(&sql, []).unwrap(), 1, "{sql}");
    }
    let claimed = log.claim(request(10)).await.unwrap();
    let ids: Vec<_> = claimed.flows.iter().map(|flow| flow.lease.flow.as_str()).collect();
    assert_eq!(ids, ["good"]);
    assert_eq!(log.list(&Filter::all(), None, 10).await.unwrap().flows.len(), 4);
    let info = log.flow(&id("kind")).await.unwrap().unwrap().info;
    assert_eq!(info.state, FlowState::Stalled);
    assert!(info.reason.as_deref().unwrap().contains("call kind 77"), "{:?}", info.reason);
    assert_eq!(log.history(&id("kind"), 0, 9).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

// ---- groups of commits -------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_jobs_do_not_harm_the_others_of_their_group() {
    for (_directory, log) in logs().await {
        log.enqueue((0..300).map(|n| flow(&format!("flow-{n}"))).collect()).await.unwrap();
        let claimed = log.claim(request(300)).await.unwrap().flows;
        let jobs: Vec<_> = claimed
            .iter()
            .enumerate()
            .map(|(n, claimed)| {
                let (log, mut job) = (log.clone(), commit(&claimed.lease, 1));
                match n % 3 {
                    0 => {}
                    1 => job.records[0].seq = 7,
                    _ => job.lease.epoch += 1,
                }
                tokio::spawn(async move { log.commit(job).await.map_err(|error| error.kind()) })
            })
            .collect();
        for (n, job) in jobs.into_iter().enumerate() {
            let expected = [Ok(Committed::Applied), Err(ErrorKind::Invalid), Err(ErrorKind::LeaseLost)][n % 3];
            assert_eq!(job.await.unwrap(), expected);
            let records = log.history(&claimed[n].lease.flow, 0, 9).await.unwrap().len();
            assert_eq!(records, usize::from(n % 3 == 0));
        }
    }
}

#[derive(Debug, Clone)]
struct PanickingClock(ManualClock, Arc<std::sync::atomic::AtomicBool>);

impl Clock for PanickingClock {
    fn now(&self) -> Timestamp {
        assert!(!self.1.load(std::sync::atomic::Ordering::SeqCst), "the clock has stopped");
        self.0.now()
    }

    fn sleep_until(&self, at: Timestamp) -> futures::future::BoxFuture<'static, ()> {
        self.0.sleep_until(at)
    }
}

#[tokio::test]
async fn a_panic_fails_its_job_and_no_other() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clock = Arc::new(PanickingClock(ManualClock::new(), Arc::clone(&broken)));
    let log = SqliteOptions::in_memory().clock(clock).open().await.unwrap();
    broken.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = log.enqueue(vec![flow("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("the clock has stopped"), "{error}");
    broken.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(log.enqueue(vec![flow("a")]).await.unwrap(), [Enqueued::Created]);
}

#[tokio::test]
async fn a_job_that_breaks_half_way_leaves_no_trace() {
    let directory = directory();
    let path = directory.path().join("log.db");
    let log = SqliteExecutionLog::open(&path).await.unwrap();
    log.enqueue(["a", "b"].map(flow).into()).await.unwrap();
    let claimed = log.claim(request(2)).await.unwrap().flows;
    // A record that should not be there: the insert fails after the flow was updated.
    let breaker = Connection::open(&path).unwrap();
    breaker
        .execute("INSERT INTO records (k, payload) VALUES (?1 << 24 | 2, x'')", [claimed[0].lease.key.cast_signed()])
        .unwrap();
    let both = |lease: &Lease| {
        let mut both = commit(lease, 1);
        both.records.push(record(2));
        both
    };
    let (a, b) = futures::join!(log.commit(both(&claimed[0].lease)), log.commit(both(&claimed[1].lease)));
    assert_eq!(a.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(b.unwrap(), Committed::Applied);
    let info = log.flow(&id("a")).await.unwrap().unwrap().info;
    assert_eq!((info.records, info.deliveries), (0, 1));
}

#[tokio::test]
async fn a_locked_file_is_unavailable_and_later_available() {
    let directory = directory();
    let path = directory.path().join("log.db");
    let log = SqliteOptions::new(&path).busy_timeout(Duration::from_millis(20)).open().await.unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (a, b) = futures::join!(log.enqueue(vec![flow("a")]), log.enqueue(vec![flow("b")]));
    assert_eq!([a.unwrap_err().kind(), b.unwrap_err().kind()], [ErrorKind::Unavailable; 2]);
    assert!(log.flow(&id("a")).await.unwrap().is_none(), "readers do not wait");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(log.enqueue(vec![flow("a")]).await.unwrap(), [Enqueued::Created]);
}

// ---- several on one file -----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_logs_on_one_file_share_flows_and_wake_each_other() {
    let directory = directory();
    let path = directory.path().join("log.db");
    let (one, two) = (SqliteExecutionLog::open(&path).await.unwrap(), SqliteExecutionLog::open(&path).await.unwrap());
    let mut waits = Vec::new();
    for round in 0..20 {
        let name = format!("flow-{round}");
        let mut queue = two.watch(Topic::Queue);
        // Hints that are still on their way from the round before.
        while tokio::time::timeout(Duration::from_millis(20), queue.changed()).await.is_ok() {}
        one.enqueue(vec![flow(&name).with_queue("shared")]).await.unwrap();
        let start = std::time::Instant::now();
        tokio::time::timeout(Duration::from_secs(5), queue.changed()).await.expect("the other log is woken");
        waits.push(start.elapsed());

        let target = ClaimTarget::Queues { queues: ["shared".into()].into(), types: [("Order".into(), 1)].into() };
        let claimed = two.claim(ClaimRequest::new("two", target)).await.unwrap().flows.pop().unwrap();
        assert_eq!(claimed.lease.flow.as_str(), name);
        let mut watch = one.watch(Topic::Flow(id(&name)));
        let mut end = commit(&claimed.lease, 1);
        end.next = Next::Complete { result: "7".into() };
        two.commit(end).await.unwrap();
        while one.flow(&id(&name)).await.unwrap().unwrap().info.state != FlowState::Completed {
            tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.expect("the end is heard of");
        }
    }
    waits.sort_unstable();
    println!("the other log was woken after {:?} (median), {:?} at most", waits[10], waits[19]);
}

#[tokio::test]
async fn own_commits_are_not_taken_for_those_of_others() {
    let directory = directory();
    let log = SqliteExecutionLog::open(directory.path().join("log.db")).await.unwrap();
    let mut queue = log.watch(Topic::Queue);
    // Hints that are still on their way from the opening.
    while tokio::time::timeout(Duration::from_millis(20), queue.changed()).await.is_ok() {}
    log.enqueue(vec![flow("a").with_start(Start::After(Duration::from_secs(60)))]).await.unwrap();
    queue.changed().await;
    // A message changes no queue; what would come is a hint from the watch of the file, some real time later.
    log.send(NewMessage::new(id("a"), Channel::signal("x"), &b"1"[..])).await.unwrap();
    let hint = tokio::time::timeout(Duration::from_millis(200), queue.changed()).await;
    assert!(hint.is_err(), "an own commit gave a hint about the queue");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_over_two_logs_are_exclusive() {
    let directory = directory();
    let path = directory.path().join("log.db");
    let one = SqliteExecutionLog::open(&path).await.unwrap();
    one.enqueue((0..500).map(|n| flow(&format!("flow-{n}"))).collect()).await.unwrap();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move {
                let log = SqliteExecutionLog::open(path).await.unwrap();
                let mut mine = Vec::new();
                loop {
                    let claimed = log.claim(request(7)).await.unwrap().flows;
                    if claimed.is_empty() {
                        return mine;
                    }
                    mine.extend(claimed.into_iter().map(|flow| flow.lease.flow));
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.unwrap());
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 500);
}

#[cfg(unix)]
#[tokio::test]
async fn a_log_behind_a_link_is_watched_too() {
    let (directory, links) = (directory(), directory());
    let (path, link) = (directory.path().join("log.db"), links.path().join("link.db"));
    let one = SqliteExecutionLog::open(&path).await.unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let two = SqliteExecutionLog::open(&link).await.unwrap();
    let mut queue = two.watch(Topic::Queue);
    while tokio::time::timeout(Duration::from_millis(20), queue.changed()).await.is_ok() {}
    one.enqueue(vec![flow("a")]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), queue.changed()).await.expect("the other log is woken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_log_leaves_room_for_another() {
    let directory = directory();
    let path = directory.path().join("log.db");
    let (busy, other) =
        (SqliteExecutionLog::open(&path).await.unwrap(), SqliteExecutionLog::open(&path).await.unwrap());
    let load: Vec<_> = (0..64)
        .map(|task| {
            let busy = busy.clone();
            tokio::spawn(async move {
                for n in 0.. {
                    busy.enqueue(vec![flow(&format!("load-{task}-{n}"))]).await.unwrap();
                }
            })
        })
        .collect();
    let mut waits = Vec::new();
    for n in 0..300 {
        let start = std::time::Instant::now();
        other.enqueue(vec![flow(&format!("flow-{n}"))]).await.unwrap();
        waits.push(start.elapsed());
    }
    load.iter().for_each(tokio::task::JoinHandle::abort);
    waits.sort_unstable();
    println!("a write beside a busy log takes {:?} (median), {:?} at most", waits[150], waits[299]);
    assert!(waits[150] < Duration::from_secs(1));
}

/// A log in a file, with its directory, and one in memory.
async fn logs() -> [(Option<TempDir>, SqliteExecutionLog); 2] {
    let directory = directory();
    let file = SqliteExecutionLog::open(directory.path().join("log.db")).await.unwrap();
    [(Some(directory), file), (None, SqliteExecutionLog::open_in_memory().await.unwrap())]
}
