//! What only a log on a server can suffer: the server, the way to it, and its settings.
#![cfg(feature = "redis")]

mod connecting;
mod damage;
mod hints;
mod kept;
mod permissions;
mod size;
mod time;
mod trouble;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use ergon_storage::{
    CallKind, CallPath, ClaimRequest, ClaimTarget, Commit, Error, ExecutionLog, FlowId, Lease, NewFlow, Phase, Record,
    RedisExecutionLog, RedisOptions,
};
use ergon_test_servers::Redis;

/// How long something may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);

fn id(name: &str) -> FlowId {
    FlowId::new(name).unwrap()
}

fn flow(name: &str) -> NewFlow {
    NewFlow::new(id(name), "Order", 1, &b"{}"[..])
}

fn one(name: &str) -> ClaimRequest {
    ClaimRequest::new("worker", ClaimTarget::Flow(id(name)))
}

fn step(seq: u32) -> Record {
    let at = ergon_storage::Timestamp::from_micros(1_735_689_600_000_000);
    Record {
        seq,
        at,
        path: CallPath::top(seq),
        kind: CallKind::Step,
        phase: Phase::Completed,
        name: "charge".into(),
        args_hash: u64::MAX,
        attempt: 1,
        started_at: at,
        due_at: None,
        reference: None,
        payload: "{}".into(),
    }
}

async fn refused(options: RedisOptions) -> Error {
    options.connect().await.expect_err("it is refused")
}

async fn connect(redis: &Redis) -> RedisExecutionLog {
    let options = RedisOptions::new(redis.url()).namespace(redis.fresh_prefix());
    options.connect().await.unwrap()
}

/// Does it again as long as the server cannot be reached.
async fn until_it_works<T>(call: impl AsyncFn() -> Result<T, Error>) -> T {
    let trying = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trying).await.expect("it works in the end")
}

fn queue(limit: usize) -> ClaimRequest {
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let mut request = ClaimRequest::new("worker", target);
    request.limit = limit;
    request
}

/// A log on one connection, and leases of its flows `a`, `b`, …
async fn leased(redis: &Redis, flows: usize) -> (RedisExecutionLog, Vec<Lease>) {
    let log = RedisOptions::new(redis.url()).connections(1).connect().await.unwrap();
    let names = ('a'..='z').take(flows).map(|name| flow(&name.to_string()));
    log.enqueue(names.collect()).await.unwrap();
    let leases = log.claim(queue(flows)).await.unwrap().flows.into_iter().map(|flow| flow.lease).collect();
    (log, leases)
}

fn commit(lease: &Lease, number: u32) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.records.push(step(number));
    commit
}

/// The names of all keys.
fn keys(redis: &Redis) -> Vec<String> {
    let answer = redis.command(&["KEYS", "*"]);
    let mut keys: Vec<_> = answer.lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect();
    keys.sort();
    keys
}

/// A server that answers each command as it is told, by a part of its text.
fn fake(answers: Vec<(&'static str, String)>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut connection, answers) = (connection.unwrap(), answers.clone());
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(bytes @ 1..) = connection.read(&mut buffer) {
                    // Each command is an array.
                    let text = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
                    for command in text.split('*').skip(1) {
                        let answer = answers.iter().find(|(part, _)| command.contains(part));
                        let answer = answer.map_or("+OK\r\n", |(_, answer)| answer);
                        if connection.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

fn version(version: &str) -> String {
    let text = format!("# Server\r\nredis_version:{version}\r\n");
    format!("${}\r\n{text}\r\n", text.len())
}
