//! Logs on real servers, which are killed, paused, cut off and slow, and the workers with them.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ergon::{
    FlowId, Scheduler, Timestamp, Worker,
    storage::{
        CallKind, Channel, ClaimRequest, ClaimTarget, Commit, Committed, Enqueued, ErrorKind, ExecutionLog, Lease,
        LeaseState, NewFlow, NewMessage, Next, Parent, Phase, PostgresOptions, PrunePolicy, Record, Result,
    },
};
use ergon_test_servers::{Persistence, Postgres, Proxy, Redis};
use ergon_tests::{
    FaultyLog,
    fleet::{self, FLEET_PATIENCE, Fleet},
    job::{self, Diary, Job},
    looks, soon, until, within,
};
use rand::Rng;

const WORKER: &str = env!("CARGO_BIN_EXE_job-worker");

/// How far apart two processes may think the server's clock is.
const SLACK: Duration = Duration::from_millis(100);

/// A server that keeps what it has acknowledged when it is killed.
trait Server {
    fn start() -> Self;
    fn url(&self) -> String;
    fn address(&self) -> SocketAddr;
    fn kill(&mut self);
    fn restart(&mut self);
    fn pause(&self);
    fn resume(&self);
    /// How many commands it was given so far.
    fn commands(&self) -> u64;
}

impl Server for Redis {
    fn start() -> Self {
        Self::start(Persistence::Always)
    }

    fn url(&self) -> String {
        self.url()
    }

    fn address(&self) -> SocketAddr {
        self.address()
    }

    fn kill(&mut self) {
        self.kill();
    }

    fn restart(&mut self) {
        self.restart();
    }

    fn pause(&self) {
        self.pause();
    }

    fn resume(&self) {
        self.resume();
    }

    fn commands(&self) -> u64 {
        let stats = self.command(&["INFO", "commandstats"]);
        // What clients ask with; what a script asks for itself is counted apart.
        let asked = ["fcall", "fcall_ro", "eval", "evalsha", "ping", "multi", "publish"];
        let calls = |line: &str| {
            let (command, numbers) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            asked.contains(&command).then(|| numbers.split(',').next()?.parse::<u64>().ok())?
        };
        stats.lines().filter_map(calls).sum()
    }
}

impl Server for Postgres {
    fn start() -> Self {
        // Writes down each statement, so that they can be counted.
        Self::start_with(&[("log_min_duration_statement", "0")])
    }

    fn url(&self) -> String {
        self.url()
    }

    fn address(&self) -> SocketAddr {
        self.address()
    }

    fn kill(&mut self) {
        self.kill();
    }

    fn restart(&mut self) {
        self.restart();
    }

    fn pause(&self) {
        self.pause();
    }

    fn resume(&self) {
        self.resume();
    }

    fn commands(&self) -> u64 {
        let executed = |line: &&str| line.contains(" execute ") || line.contains(" statement: ");
        self.output().lines().filter(executed).count() as u64
    }
}

async fn fleet_on(server: &impl Server, lease: Duration) -> Fleet {
    Fleet::new(WORKER, &server.url(), lease).await.slack(SLACK)
}

/// The server is killed ten times in the middle of 500 flows.
async fn a_server_that_is_killed_loses_nothing<S: Server>() {
    const FLOWS: u32 = 500;
    const KILLS: u64 = 10;
    let mut server = S::start();
    let fleet = fleet_on(&server, Duration::from_secs(1)).await;
    let workers = fleet.workers(3).await;
    let flows = fleet.schedule(0..FLOWS).await;
    for kill in 1..=KILLS {
        fleet.down_to(u64::from(FLOWS) * (KILLS + 1 - kill) / (KILLS + 1)).await;
        server.kill();
        server.restart();
    }
    fleet.down_to(0).await;
    for worker in workers {
        worker.stop();
    }
    fleet.check(&flows, None).await;
}

/// The server stops answering for longer than leases last, and goes on.
async fn a_server_that_hangs_loses_nothing<S: Server>() {
    const FLOWS: u32 = 300;
    const HANGS: u64 = 2;
    let lease = Duration::from_millis(500);
    let server = S::start();
    let fleet = fleet_on(&server, lease).await;
    let workers = fleet.workers(3).await;
    let flows = fleet.schedule(0..FLOWS).await;
    for hang in 1..=HANGS {
        fleet.down_to(u64::from(FLOWS) * (HANGS + 1 - hang) / (HANGS + 1)).await;
        server.pause();
        // The workers are other processes, and their leases end by the server's clock.
        tokio::time::sleep(2 * lease).await;
        server.resume();
    }
    fleet.down_to(0).await;
    for worker in workers {
        worker.stop();
    }
    fleet.check(&flows, None).await;
}

/// What lies between workers and their server cuts, refuses, delays and stalls connections and loses answers.
async fn broken_connections_lose_nothing<S: Server>() {
    let mut rng = fleet::random();
    let server = S::start();
    let proxy = Proxy::to(server.address());
    let fleet = fleet_on(&server, Duration::from_secs(1)).await;
    let workers = [(); 3].map(|()| fleet.worker_at(&proxy.url(&server.url()), &[]));
    fleet.ready(&workers).await;
    proxy.lose_answers();
    let flows = fleet.schedule(0..400).await;
    until("the first answers to be lost", || async { proxy.lost() > 0 }).await;
    let mut troubles = 0;
    let all_done = async {
        while fleet.unfinished().await > 0 {
            // First without a rest, then with time for what is left, on a machine however busy.
            let most = if troubles < 100 { 30 } else { 3_000 + 100 * (troubles - 100) };
            let moment = Duration::from_millis(rng.random_range(1..30));
            match rng.random_range(0..5) {
                0 => proxy.cut(),
                1 => proxy.delay(moment / 3),
                2 => {
                    proxy.refuse(true);
                    proxy.cut();
                    tokio::time::sleep(moment).await;
                    proxy.refuse(false);
                }
                3 => {
                    proxy.stall(true);
                    tokio::time::sleep(moment).await;
                    proxy.stall(false);
                }
                _ => proxy.lose_answers(),
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(1..most))).await;
            proxy.delay(Duration::ZERO);
            troubles += 1;
        }
    };
    within(FLEET_PATIENCE, "the flows behind a broken proxy", all_done).await;
    println!("{troubles} troubles, answers lost on {} connections", proxy.lost());
    for worker in workers {
        worker.stop();
    }
    fleet.check(&flows, None).await;
}

async fn workers_that_are_killed_lose_nothing<S: Server>() {
    let server = S::start();
    fleet::killed_at_random(&fleet_on(&server, Duration::from_millis(500)).await, 3).await;
}

async fn processes_share_a_queue_and_run_each_step_once<S: Server>() {
    let server = S::start();
    fleet::share_a_queue(&fleet_on(&server, Duration::from_secs(30)).await).await;
}

async fn a_zombie_changes_nothing<S: Server>() {
    let server = S::start();
    fleet::a_zombie_changes_nothing(&fleet_on(&server, Duration::from_millis(500)).await).await;
}

#[cfg(target_os = "linux")]
async fn clocks_that_differ_change_nothing<S: Server>() {
    let server = S::start();
    fleet::clocks_differ(&fleet_on(&server, Duration::from_secs(2)).await).await;
}

/// Repeats a call until it is answered.
async fn repeat<T>(mut call: impl AsyncFnMut() -> Result<T>) -> T {
    let mut answer = call().await;
    while answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable) {
        // As an engine does, too.
        tokio::time::sleep(Duration::from_millis(5)).await;
        answer = call().await;
    }
    answer.unwrap_or_else(|error| panic!("{error:?}"))
}

fn flow(id: &str) -> NewFlow {
    NewFlow::new(FlowId::new(id).expect("an id"), "Order", 1, &b"{}"[..])
}

async fn claim(log: &dyn ExecutionLog, id: &str) -> Lease {
    let target = ClaimTarget::Flow(FlowId::new(id).expect("an id"));
    let mut claimed = log.claim(ClaimRequest::new("worker", target)).await.expect("a claim");
    claimed.flows.remove(0).lease
}

fn record(seq: u32) -> Record {
    let at = Timestamp::from_micros(0);
    Record {
        seq,
        at,
        path: seq.to_string().parse().expect("a path"),
        kind: CallKind::Step,
        phase: Phase::Completed,
        name: "step".into(),
        args_hash: 0,
        attempt: 1,
        started_at: at,
        due_at: None,
        reference: None,
        payload: seq.to_string().into_bytes().into(),
    }
}

/// Each kind of write, its answer lost, and then repeated by whoever asked.
async fn a_lost_answer_is_no_second_effect<S: Server>() {
    let server = S::start();
    let proxy = Proxy::to(server.address());
    let log = ergon::open(&proxy.url(&server.url())).await.expect("the log opens");
    let direct = ergon::open(&server.url()).await.expect("the log opens");
    // Enough that every connection to the server has had its turn.
    for round in 0..6 {
        let id = format!("order-{round}");
        let lose = || proxy.lose_answers();

        lose();
        let enqueued = repeat(async || log.enqueue(vec![flow(&id)]).await).await;
        assert!(matches!(enqueued[..], [Enqueued::Created | Enqueued::Existing { same: true }]), "{enqueued:?}");
        let lease = claim(&*direct, &id).await;
        for number in 1..=4 {
            lose();
            let mut commit = Commit::new(lease.clone(), number);
            commit.records.push(record(number));
            assert_eq!(repeat(async || log.commit(commit.clone()).await).await, Committed::Applied);
            let history = direct.history(&lease.flow, 0, 100).await.expect("a history");
            assert_eq!(history.len(), number as usize, "{history:#?}");
        }
        lose();
        let states = repeat(async || log.heartbeat(std::slice::from_ref(&lease), Duration::from_secs(60)).await).await;
        assert_eq!(states, [LeaseState::Held]);

        // Only the sender knows whether two messages without a key are one; a log that does not know must not guess.
        let message = NewMessage::new(lease.flow.clone(), Channel::signal("go"), &b"1"[..]);
        lose();
        let sent = log.send(message.clone()).await;
        let arrived = direct.messages(&lease.flow, &[], 0, 100).await.expect("a mailbox").len();
        match sent {
            Ok(_) => assert_eq!(arrived, 1, "the message arrives once"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                assert!(arrived <= 1, "the message arrives at most once");
            }
        }
        lose();
        let keyed = message.with_key("key");
        repeat(async || log.send(keyed.clone()).await).await;
        assert_eq!(direct.messages(&lease.flow, &[], 0, 100).await.expect("a mailbox").len(), arrived + 1);

        lose();
        let mut commit = Commit::new(lease.clone(), 5);
        commit.next = Next::Complete { result: "1".into() };
        assert_eq!(repeat(async || log.commit(commit.clone()).await).await, Committed::Applied);
        lose();
        let deleted = log.delete(&lease.flow).await;
        assert!(deleted.is_ok() || deleted.is_err_and(|error| error.is_retryable()));
        repeat(async || log.delete(&lease.flow).await).await;
        assert_eq!(direct.flow(&lease.flow).await.expect("an answer"), None);
    }
    println!("answers were lost on {} connections", proxy.lost());
    assert!(proxy.lost() >= 20);
}

/// Workers reach Redis over TLS if they trust its certificate, and only then.
#[tokio::test]
async fn redis_over_tls() {
    let redis = Redis::start_tls();
    let fleet = fleet_on(&redis, Duration::from_secs(10)).await;
    let trust = [("SSL_CERT_FILE", redis.certificate().display().to_string())];
    let worker = fleet.worker_at(&redis.tls_url(), &trust);
    let flows = fleet.schedule(0..20).await;
    fleet.down_to(0).await;
    worker.stop();
    fleet.check(&flows, None).await;
    let error = ergon::open(&redis.tls_url()).await.err().expect("nobody knows the certificate");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

/// A worker's machine vanishes in the middle of a transaction: what it has locked is free again soon after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_transaction_holds_nothing_for_long() {
    const FLOWS: usize = 8;
    const BYTES: usize = 200_000;
    let server = Postgres::start();
    let proxy = Proxy::to(server.address());
    let direct = ergon::open(&server.url()).await.expect("the log opens");
    let options = PostgresOptions::new(proxy.url(&server.url())).answer_timeout(Duration::from_secs(1));
    let log = Arc::new(options.connect().await.expect("the log opens"));
    let mut commits = Vec::new();
    for number in 0..FLOWS {
        let id = format!("order-{number}");
        direct.enqueue(vec![flow(&id)]).await.expect("it is accepted");
        let lease = claim(&*direct, &id).await;
        let mut commit = Commit::new(lease.clone(), 1);
        let mut child = flow(&format!("{id}/1"));
        child.parent = Some(Parent { id: lease.flow, path: "1".parse().expect("a path"), detached: true });
        child.input = vec![b'x'; BYTES].into();
        commit.children.push(child);
        commit.next = Next::Complete { result: "1".into() };
        commits.push(commit);
    }
    // So slow that the commits behind the first ones, one on each lane, are put into one transaction, which stops in
    // its middle.
    proxy.delay(Duration::from_millis(20));
    proxy.stall_after(2 * BYTES + BYTES);
    let tasks: Vec<_> = commits
        .into_iter()
        .map(|commit| {
            let log = Arc::clone(&log);
            tokio::spawn(async move { log.commit(commit).await })
        })
        .collect();
    until("the proxy to stop everything", || async { proxy.is_stalled() }).await;
    // The server waits for the rest of it.
    let begun = "SELECT FROM pg_stat_activity WHERE xact_start IS NOT NULL AND wait_event = 'ClientRead'";
    until("half a transaction", || async { !server.execute("postgres", begun).is_empty() }).await;
    // Everything that is not done can be claimed again.
    let cancel_all = async {
        for number in 0..FLOWS {
            let id = FlowId::new(format!("order-{number}")).expect("an id");
            direct.cancel(&id, "for the test").await.expect("it is cancelled, or has ended");
        }
    };
    soon("what half a transaction has locked", cancel_all).await;
    for task in tasks {
        task.abort();
    }
}

/// What a user may do that docs/production.md names is enough for everything that a flow needs.
async fn few_rights_suffice(url: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let log = ergon::open(url).await.expect("the log opens");
    let diary = Arc::new(Diary::open(&folder.path().join("diary")));
    let worker = Worker::new(log.clone()).register::<Job>().with_state(diary).start().await.expect("it starts");
    let flow = Scheduler::new(log.clone()).schedule(Job { number: 1 }).await.expect("it is scheduled");
    assert_eq!(soon("a result", flow.result()).await.expect("it completes"), job::RESULT);
    assert_eq!(log.prune(&PrunePolicy::older_than(Duration::ZERO)).await.expect("it is forgotten"), 1);
    worker.shutdown().await;
}

#[tokio::test]
async fn few_rights_suffice_on_redis() {
    let redis = Redis::start(Persistence::None);
    let rights = "~{ergon}:* &{ergon}:* +@read +@write +@pubsub +@scripting +@connection +time +info +config|get";
    let words: Vec<&str> = ["ACL", "SETUSER", "worker", "on", ">secret"].into_iter().chain(rights.split(' ')).collect();
    assert_eq!(redis.command(&words), "+OK\r\n");
    few_rights_suffice(&redis.url().replace("redis://", "redis://worker:secret@")).await;
    // Neither is needed; the log only warns then.
    assert_eq!(redis.command(&["ACL", "SETUSER", "worker", "-info", "-config|get"]), "+OK\r\n");
    few_rights_suffice(&redis.url().replace("redis://", "redis://worker:secret@")).await;
}

#[tokio::test]
async fn few_rights_suffice_on_postgres() {
    let postgres = Postgres::start();
    postgres.execute("postgres", "CREATE ROLE worker LOGIN PASSWORD 'secret' IN ROLE with_password");
    postgres.execute("postgres", "CREATE SCHEMA ergon AUTHORIZATION worker");
    few_rights_suffice(&postgres.url().replace("postgres@", "worker:secret@")).await;
}

/// Workers with nothing to do ask next to nothing.
async fn an_idle_fleet_is_quiet<S: Server>() {
    const WORKERS: u32 = 10;
    let fallback = Duration::from_millis(500);
    let server = S::start();
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        // Each with connections of its own, as in a process of its own.
        let log = FaultyLog::new(ergon::open(&server.url()).await.expect("the log opens"));
        let worker = Worker::new(log.clone()).register::<Job>().fallback(fallback).start().await.expect("it starts");
        workers.push((log, worker));
    }
    for (log, _) in &workers {
        looks(log, 1).await;
        log.at_rest().await;
    }
    let (before, begun) = (server.commands(), Instant::now());
    // In real time: what a log asks by itself, to keep its connections, must not be asked often either.
    tokio::time::sleep(fallback * 4).await;
    let commands = server.commands() - before;
    let intervals = begun.elapsed().as_millis() / fallback.as_millis() + 1;
    println!("{commands} commands of {WORKERS} workers in {intervals} intervals");
    // Each worker's looks may fall on both ends, and the test has asked something too.
    let most = u128::from(WORKERS) * (intervals + 1) + 2;
    assert!((1..=most).contains(&u128::from(commands)), "{commands} commands");
    for (_, worker) in workers {
        worker.shutdown().await;
    }
}

macro_rules! on {
    ($module:ident, $server:ty: $($(#[$attribute:meta])* $test:ident),* $(,)?) => {
        mod $module {
            $($(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test::<$server>().await;
            })*
        }
    };
}

macro_rules! on_all {
    ($($tests:tt)*) => {
        on!(redis, ergon_test_servers::Redis: $($tests)*);
        on!(postgres, ergon_test_servers::Postgres: $($tests)*);
    };
}

on_all! {
    a_server_that_is_killed_loses_nothing,
    a_server_that_hangs_loses_nothing,
    broken_connections_lose_nothing,
    workers_that_are_killed_lose_nothing,
    processes_share_a_queue_and_run_each_step_once,
    a_zombie_changes_nothing,
    #[cfg(target_os = "linux")]
    clocks_that_differ_change_nothing,
    a_lost_answer_is_no_second_effect,
    an_idle_fleet_is_quiet,
}
