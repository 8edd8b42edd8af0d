//! What the servers promise.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use ergon_test_servers::{Persistence, Postgres, Redis};

fn is_up(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

fn rows(postgres: &Postgres) -> Vec<String> {
    postgres.execute("postgres", "SELECT number FROM kept ORDER BY number")
}

#[test]
fn a_killed_postgres_keeps_what_it_has_acknowledged() {
    let mut postgres = Postgres::start();
    let address = postgres.address();
    postgres.execute("postgres", "CREATE TABLE kept (number int)");
    for number in 1..=3 {
        postgres.execute("postgres", &format!("INSERT INTO kept VALUES ({number})"));
        postgres.kill();
        assert!(!is_up(address), "it is down");
        postgres.restart();
        assert_eq!(postgres.address(), address, "the address stays");
    }
    assert_eq!(rows(&postgres), ["1", "2", "3"]);
    postgres.stop();
    assert!(!is_up(address));
    postgres.restart();
    assert_eq!(rows(&postgres), ["1", "2", "3"]);
    drop(postgres);
    assert!(!is_up(address));
}

#[test]
fn a_replica_is_read_only() {
    let mut postgres = Postgres::start();
    postgres.become_replica();
    assert_eq!(postgres.execute("postgres", "SELECT pg_is_in_recovery()"), ["t"]);
}

#[test]
fn shared_databases_are_apart() {
    let postgres = Postgres::shared();
    let databases = [(); 2].map(|()| postgres.fresh_database());
    assert_ne!(databases[0], databases[1]);
    assert!(databases[0].starts_with(&format!("postgres://postgres@127.0.0.1:{}/", postgres.port())));
    for url in &databases {
        let name = url.rsplit('/').next().unwrap();
        postgres.execute(name, "CREATE TABLE mine (number int)");
    }
}

#[test]
fn a_role_can_be_asked_for_its_password() {
    let postgres = Postgres::shared();
    postgres.execute("postgres", "CREATE ROLE careful LOGIN PASSWORD 'secret' IN ROLE with_password");
    let mut connection = TcpStream::connect(postgres.address()).unwrap();
    let words = b"\x00\x03\x00\x00user\0careful\0database\0postgres\0\0";
    connection.write_all(&u32::try_from(words.len() + 4).unwrap().to_be_bytes()).unwrap();
    connection.write_all(words).unwrap();
    let mut answer = [0; 9];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], answer[8]), (b'R', 10), "it asks for SASL authentication");
}

#[test]
fn a_killed_redis_keeps_what_it_was_told_to() {
    for (persistence, kept) in [(Persistence::None, "$-1\r\n"), (Persistence::Always, "$1\r\n1\r\n")] {
        let mut redis = Redis::start(persistence);
        assert_eq!(redis.command(&["SET", "key", "1"]), "+OK\r\n");
        redis.kill();
        assert!(!is_up(redis.address()));
        redis.restart();
        assert_eq!(redis.command(&["GET", "key"]), kept, "{persistence:?}");
    }
    let redis = Redis::start_with(Persistence::EverySecond, &[("maxmemory-policy", "allkeys-lru")]);
    assert!(redis.command(&["CONFIG", "GET", "maxmemory-policy"]).contains("allkeys-lru"));
    assert!(redis.command(&["CONFIG", "GET", "appendfsync"]).contains("everysec"));
}

#[test]
fn a_cluster_refuses_what_touches_two_slots() {
    let redis = Redis::shared_cluster();
    assert_eq!(redis.command(&["MSET", "{a}1", "1", "{a}2", "2"]), "+OK\r\n");
    assert!(redis.command(&["MSET", "{a}1", "1", "{b}2", "2"]).starts_with("-CROSSSLOT"));
    assert_ne!(redis.fresh_prefix(), redis.fresh_prefix());
}

#[test]
fn a_paused_server_answers_later() {
    let redis = Redis::start(Persistence::None);
    let postgres = Postgres::start();
    redis.pause();
    postgres.pause();
    let mut connection = TcpStream::connect(redis.address()).expect("the system accepts for it");
    connection.write_all(b"PING\r\n").unwrap();
    connection.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut answer = [0; 7];
    assert!(connection.read(&mut answer).is_err(), "it is silent");
    redis.resume();
    connection.set_read_timeout(None).unwrap();
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
    postgres.resume();
    assert_eq!(postgres.execute("postgres", "SELECT 1"), ["1"]);
    // One that is paused can be killed and stopped too.
    redis.pause();
    postgres.pause();
}

/// This is also the process that is killed: it starts servers, tells where they are, and waits.
#[test]
fn servers_end_with_the_test_process() {
    const ROLE: &str = "ERGON_TEST_SERVERS_VICTIM";
    if std::env::var_os(ROLE).is_some() {
        let (redis, postgres) = (Redis::start(Persistence::None), Postgres::start());
        postgres.pause();
        println!("servers: {} {} {}", redis.address(), postgres.address(), std::env::temp_dir().display());
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The server's own user has to get through.
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["servers_end_with_the_test_process", "--exact", "--nocapture"])
        .env(ROLE, "")
        .env("TMPDIR", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = std::io::BufRead::lines(std::io::BufReader::new(process.stdout.take().unwrap()))
        .map(Result::unwrap)
        .find_map(|line| Some(line.split_once("servers: ")?.1.to_owned()))
        .expect("it tells where the servers are");
    let addresses: Vec<SocketAddr> = line.split(' ').take(2).map(|word| word.parse().unwrap()).collect();
    assert!(is_up(addresses[0]));
    process.kill().unwrap();
    process.wait().unwrap();
    let begun = Instant::now();
    while addresses.iter().any(|address| is_up(*address)) || fs::read_dir(folder.path()).unwrap().count() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "they are there still: {addresses:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(processes_in(folder.path()), Vec::<String>::new());
}

/// The command lines of all processes that name a folder.
fn processes_in(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let lines = entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(&folder)).collect()
}
