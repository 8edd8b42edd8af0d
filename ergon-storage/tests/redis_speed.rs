//! How fast the Redis log is. Not run by itself: `cargo test --release -p ergon-storage --features redis --test
//! redis_speed -- --ignored --nocapture --test-threads 1`.
#![cfg(feature = "redis")]

mod speed;

use std::time::{Duration, Instant};

use ergon_storage::{Channel, Commit, ExecutionLog, FlowId, NewMessage, Next, RedisExecutionLog, Start, Topic, Wake};
use ergon_test_servers::{Persistence, Redis};
use speed::{drain, flow, request, run};

const FLOWS: usize = 30_000;
const ALL: [Persistence; 3] = [Persistence::None, Persistence::EverySecond, Persistence::Always];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn flows_per_second() {
    for persistence in ALL {
        let redis = Redis::start(persistence);
        let log = RedisExecutionLog::connect(redis.url()).await.unwrap();
        for round in 0..3 {
            let before = processor_time(&redis);
            let rate = drain(&log, FLOWS, 256).await;
            let after = processor_time(&redis);
            let [server, client] =
                [0, 1].map(|part| after[part].saturating_sub(before[part]) / u32::try_from(FLOWS).unwrap());
            println!(
                "{persistence:?} round {round}: {rate:.0} flows/s with 256 slots, processor time of a flow {server:?} on \
                 the server, {client:?} here"
            );
            while log.prune(&ergon_storage::PrunePolicy::older_than(Duration::ZERO)).await.unwrap() > 0 {}
        }
    }
}

/// The processor time that the server and this process have spent so far.
fn processor_time(redis: &Redis) -> [Duration; 2] {
    let info = redis.command(&["INFO", "cpu"]);
    let spent = info.lines().filter_map(|line| {
        let (name, seconds) = line.split_once(':')?;
        ["used_cpu_sys", "used_cpu_user"].contains(&name).then(|| seconds.trim().parse::<f64>().ok())?
    });
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.split(' ').skip(13).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
    [Duration::from_secs_f64(spent.sum()), Duration::from_millis(10 * ticks.sum::<u64>())]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn one_flow_alone() {
    for persistence in ALL {
        let redis = Redis::start(persistence);
        let log = RedisExecutionLog::connect(redis.url()).await.unwrap();
        let mut times = Vec::new();
        for number in 0..1_000 {
            let start = Instant::now();
            log.enqueue(vec![flow("alone", number)]).await.unwrap();
            let claimed = log.claim(request(1)).await.unwrap().flows.pop().unwrap();
            run(&log, claimed).await;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        println!("{persistence:?}: one flow alone takes {:?} (median), {:?} (p99)", times[500], times[990]);
        let mut reads = Vec::new();
        for _ in 0..1_000 {
            let start = Instant::now();
            log.flow(&FlowId::new("unknown").unwrap()).await.unwrap();
            reads.push(start.elapsed());
        }
        reads.sort_unstable();
        println!("{persistence:?}: one small read takes {:?} (median), {:?} (p99)", reads[500], reads[990]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn a_claim_is_as_fast_with_a_million_waiting_flows() {
    let redis = Redis::start(Persistence::None);
    let log = RedisExecutionLog::connect(redis.url()).await.unwrap();
    let mut waiting = 0;
    for target in [1_000, 1_000_000] {
        let start = Instant::now();
        while waiting < target {
            let batch = waiting..target.min(waiting + 5_000);
            waiting = batch.end;
            let flows = batch.map(|n| {
                // Some are due long after, some now, all behind the flow that is claimed.
                let start = if n % 2 == 0 { Start::After(Duration::from_secs(86_400)) } else { Start::Now };
                flow("waiting", n).with_start(start).with_queue(if n % 2 == 0 { "default" } else { "other" })
            });
            log.enqueue(flows.collect()).await.unwrap();
        }
        println!("{target} flows wait, made in {:?}", start.elapsed());
        let memory = redis.command(&["INFO", "memory"]);
        println!("{:?}", memory.lines().find(|line| line.starts_with("used_memory:")));
        let mut times = Vec::new();
        for number in 0..300 {
            log.enqueue(vec![flow(&format!("now{target}"), number)]).await.unwrap();
            let start = Instant::now();
            assert_eq!(log.claim(request(1)).await.unwrap().flows.len(), 1);
            times.push(start.elapsed());
        }
        times.sort_unstable();
        println!("{target} flows wait: a claim takes {:?} (median)", times[150]);
    }
}

/// From a message to the hint that its flow can be claimed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn a_signal_is_pushed() {
    let redis = Redis::start(Persistence::None);
    let log = RedisExecutionLog::connect(redis.url()).await.unwrap();
    let other = RedisExecutionLog::connect(redis.url()).await.unwrap();
    let channel = Channel::signal("go");
    let mut queue = log.watch(Topic::Queue);
    let mut times = Vec::new();
    for number in 0..500 {
        let flow = flow("waiting", number);
        let id = flow.id.clone();
        log.enqueue(vec![flow]).await.unwrap();
        let claimed = log.claim(request(1)).await.unwrap().flows.pop().unwrap();
        let mut commit = Commit::new(claimed.lease, 1);
        commit.next = Next::suspend(Wake { at: None, channels: vec![channel.clone()] });
        log.commit(commit).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        while tokio::time::timeout(Duration::from_millis(1), queue.changed()).await.is_ok() {}
        let start = Instant::now();
        other.send(NewMessage::new(id, channel.clone(), "")).await.unwrap();
        queue.changed().await;
        assert_eq!(log.claim(request(1)).await.unwrap().flows.len(), 1);
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!("from a message to the claim of its flow: {:?} (median), {:?} (p99)", times[250], times[495]);
}
