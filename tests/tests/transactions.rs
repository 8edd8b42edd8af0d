//! Steps that are transactions of the log's own database: the user's SQL and the outcome happen together, once.

use std::{sync::Arc, time::Duration};

use ergon::{
    Admin, FlowError, PostgresExecutionLog, PostgresOptions, StartError,
    admin::Cut,
    postgres,
    prelude::*,
    sqlite::{self, rusqlite},
    storage::{Clock, ErrorKind, ExecutionLog},
};
use ergon_test_servers::{Postgres, fresh_name};
use ergon_tests::{Fault, FaultyLog, TestClock, soon};
use postgres::tokio_postgres::{self, NoTls};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::runtime::Builder;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS ledger (what TEXT NOT NULL)";
const ENTER: &str = "INSERT INTO ledger VALUES (?1)";
const READ: &str = "SELECT what FROM ledger ORDER BY what";
const LEASE: Duration = Duration::from_secs(60);

/// Enters things into a ledger in the file of the log, in every way there is, and returns what it holds at last.
#[flow_type]
#[derive(Clone)]
struct Clerk {
    table: String,
}

#[flow_type]
impl Clerk {
    #[flow]
    async fn run(&self) -> ergon::Result<Vec<String>> {
        self.enter("first".into()).await?;
        let (a, b) = tokio::join!(self.enter("joined".into()), self.enter("joined".into()));
        assert_eq!((a?, b?), (6, 6));
        assert_eq!(self.refused().await, Err(Refused { tries: 1 }));
        assert_eq!(self.flaky().await?, 3);
        let answers = self.waits().await?;
        assert_eq!(answers, ["one", "two"]);
        count("free".into()).await?;
        self.read().await
    }

    #[step(transaction)]
    fn enter(&self, tx: &sqlite::Transaction<'_>, what: String) -> ergon::Result<usize> {
        tx.execute_batch(&self.table)?;
        tx.execute(ENTER, [&what])?;
        Ok(what.len())
    }

    /// Has an error type that knows nothing of ergon's.
    #[step(transaction, retry = none)]
    fn refused(&self, tx: &sqlite::Transaction<'_>) -> Result<(), Refused> {
        tx.execute(ENTER, ["refused"]).unwrap();
        Err(Refused { tries: ergon::attempt() })
    }

    #[step(transaction, retry(max_attempts = 5, backoff = "1ms"))]
    fn flaky(&self, tx: &sqlite::Transaction<'_>) -> ergon::Result<u32> {
        tx.execute(ENTER, ["flaky"])?;
        match ergon::attempt() {
            1 => Err(ergon::Error::new("not yet")),
            2 => panic!("not yet, either"),
            attempt => Ok(attempt),
        }
    }

    /// Two transactions in one body, with a durable wait between them: the body begins anew.
    #[step]
    async fn waits(&self) -> ergon::Result<Vec<String>> {
        let one = enter_by_call("one").await?;
        sleep(Duration::from_secs(60)).await;
        Ok(vec![one, enter_by_call("two").await?])
    }

    #[step(transaction)]
    fn read(&self, tx: &sqlite::Transaction<'_>) -> ergon::Result<Vec<String>> {
        Ok(tx.prepare(READ)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
    }
}

/// What a ledger holds after one [`Clerk`].
const ENTERED: [&str; 7] = ["first", "flaky", "free", "joined", "joined", "one", "two"];

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Refused {
    tries: u32,
}

async fn enter_by_call(what: &'static str) -> ergon::Result<String> {
    sqlite::transact(move |tx| {
        tx.execute(ENTER, [what])?;
        Ok(what.to_owned())
    })
    .await
}

#[step(transaction)]
fn count(tx: &sqlite::Transaction<'_>, what: String) -> ergon::Result<i64> {
    tx.execute(ENTER, [&what])?;
    Ok(tx.query_row("SELECT count(*) FROM ledger", [], |row| row.get(0))?)
}

fn clerk() -> Clerk {
    Clerk { table: TABLE.into() }
}

/// One life of a process; `None` when it has died.
fn life(log: &FaultyLog, clock: &TestClock, later: Duration) -> Option<Vec<String>> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let stopped_at = clock.now();
    let result = runtime.block_on(async {
        clock.enter(stopped_at, later);
        let flow = Scheduler::new(log.another()).schedule(clerk()).id("clerk").await.unwrap();
        let worker = Worker::new(log.clone()).register::<Clerk>().lease(LEASE).start().await.unwrap();
        let result = soon("the end of the flow", async {
            tokio::select! {
                biased;
                result = flow.result() => Some(result.unwrap()),
                () = log.crashed() => None,
            }
        });
        let result = result.await;
        clock.enter(clock.now(), Duration::ZERO);
        drop(worker);
        result
    });
    drop(runtime);
    result
}

fn open(clock: &TestClock) -> FaultyLog {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = ergon::SqliteOptions::in_memory();
        FaultyLog::new(options.clock(Arc::new(clock.clone())).open().await.unwrap())
    })
}

#[test]
fn a_crash_at_any_write_enters_nothing_twice() {
    let clock = TestClock::new(10_000);
    let log = open(&clock);
    assert_eq!(life(&log, &clock, Duration::ZERO).unwrap(), ENTERED);
    let writes = log.writes();
    assert!(writes > 20, "transactions are writes too: {writes}");
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseAnswer, Fault::Refuse] {
        for write in 1..=writes {
            let clock = TestClock::new(10_000);
            let log = open(&clock);
            log.order(write, fault);
            let result = life(&log, &clock, Duration::ZERO).or_else(|| life(&log.another(), &clock, 2 * LEASE));
            assert_eq!(result.unwrap(), ENTERED, "{fault:?} at write {write}");
        }
    }
}

/// Does with its transaction what is not allowed.
#[flow_type]
#[derive(Clone)]
struct Vandal {
    sql: String,
}

#[flow_type]
impl Vandal {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        self.act().await
    }

    #[step(transaction, retry = none)]
    fn act(&self, tx: &sqlite::Transaction<'_>) -> ergon::Result<()> {
        tx.execute_batch(&self.sql)?;
        Ok(())
    }
}

#[tokio::test]
async fn the_log_is_out_of_reach_of_the_work() {
    let folder = TempDir::new().unwrap();
    let log = SqliteExecutionLog::open(folder.path().join("log.db")).await.unwrap();
    log.transaction(|tx| tx.execute_batch(TABLE)).await.unwrap().unwrap();
    let worker = Worker::new(log.clone()).register::<Vandal>().register::<Clerk>().start().await.unwrap();
    let scheduler = Scheduler::new(log.clone());
    for sql in [
        "INSERT INTO ledger VALUES ('x'); COMMIT",
        "INSERT INTO ledger VALUES ('x'); ROLLBACK",
        "INSERT INTO ledger VALUES ('x'); RELEASE lent",
        "BEGIN",
        "SAVEPOINT mine",
        "PRAGMA synchronous = OFF",
        "ATTACH ':memory:' AS other",
        "INSERT INTO ledger VALUES ('x'); DELETE FROM flows",
        "UPDATE Records SET payload = x''",
        "INSERT INTO effects VALUES (1, 'x', x'')",
        "CREATE TRIGGER t AFTER INSERT ON messages BEGIN SELECT 1; END",
        "DROP TABLE meta",
        "DELETE FROM flow_labels",
        "CREATE TEMP TABLE records (k, at_us)",
        "CREATE TEMP VIEW flows AS SELECT 1",
        "CREATE TEMP TRIGGER t AFTER INSERT ON flows BEGIN SELECT 1; END",
    ] {
        let flow = scheduler.schedule(Vandal { sql: sql.into() }).await.unwrap();
        let error = soon("the end", flow.result()).await.unwrap_err();
        assert!(
            error.to_string().contains("not authorized") || error.to_string().contains("prohibited"),
            "{sql}: {error}"
        );
    }
    // What may be done still may, and nothing of what was refused has stayed.
    let reads = Vandal { sql: "SELECT id FROM flows; CREATE TABLE mine (a); CREATE INDEX mine_a ON mine (a)".into() };
    soon("the end", scheduler.schedule(reads).await.unwrap().result()).await.unwrap();
    let entries = log.transaction(|tx| tx.query_row("SELECT count(*) FROM ledger", [], |row| row.get::<_, i64>(0)));
    assert_eq!(entries.await.unwrap().unwrap(), 0);
    worker.shutdown().await;
}

#[tokio::test]
async fn a_failed_constraint_at_the_end_harms_nobody_else() {
    let log = SqliteExecutionLog::open_in_memory().await.unwrap();
    let tables = "CREATE TABLE a (id INTEGER PRIMARY KEY);
        CREATE TABLE b (a REFERENCES a DEFERRABLE INITIALLY DEFERRED); PRAGMA foreign_keys";
    log.transaction(move |tx| tx.execute_batch(tables)).await.unwrap().unwrap();
    let all = (0..20).map(|number| {
        let log = log.clone();
        async move { log.transaction(move |tx| tx.execute("INSERT INTO a VALUES (?1)", [number % 10])).await.unwrap() }
    });
    let applied = futures::future::join_all(all).await;
    assert_eq!(applied.iter().filter(|applied| applied.is_ok()).count(), 10, "{applied:?}");
}

/// SQLite then rolls back everything, what others have done in the same transaction too.
#[tokio::test]
async fn work_that_rolls_everything_back_harms_nobody_else() {
    let log = SqliteExecutionLog::open_in_memory().await.unwrap();
    let tables = "CREATE TABLE a (id INTEGER PRIMARY KEY); INSERT INTO a VALUES (0);
        CREATE TRIGGER never BEFORE INSERT ON a WHEN NEW.id < 0 BEGIN SELECT RAISE(ROLLBACK, 'negative'); END";
    log.transaction(move |tx| tx.execute_batch(tables)).await.unwrap().unwrap();
    let all = (0..30).map(|number| {
        let log = log.clone();
        let sql = match number % 3 {
            0 => "INSERT OR ROLLBACK INTO a VALUES (0)".to_owned(),
            1 => "INSERT INTO a VALUES (-1)".to_owned(),
            _ => format!("INSERT INTO a VALUES ({number})"),
        };
        async move { (number, log.transaction(move |tx| tx.execute(&sql, [])).await.unwrap()) }
    });
    for (number, done) in futures::future::join_all(all).await {
        assert_eq!(done.is_ok(), number % 3 == 2, "{number}: {done:?}");
    }
    let ignored = log.transaction(|tx| {
        let _ = tx.execute("INSERT INTO a VALUES (-1)", []);
        Ok::<_, ()>(())
    });
    let error = ignored.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("return its error"), "{error}");
    let count = log.transaction(|tx| tx.query_row("SELECT count(*) FROM a", [], |row| row.get::<_, i64>(0)));
    assert_eq!(count.await.unwrap().unwrap(), 11);
}

#[tokio::test]
async fn a_log_without_such_transactions_refuses_at_the_start() {
    let error = Worker::new(InMemoryExecutionLog::new()).register::<Clerk>().start().await.unwrap_err();
    let StartError::Log(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    for part in ["\"enter\"", "\"Clerk\"", "SQLite", "lends none"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = Executor::new(InMemoryExecutionLog::new()).run(clerk()).await.unwrap_err();
    assert!(matches!(&error, FlowError::Log(error) if error.kind() == ErrorKind::Unsupported), "{error:?}");
    let sqlite = SqliteExecutionLog::open_in_memory().await.unwrap();
    let error = Worker::new(sqlite).register::<OnServer>().start().await.unwrap_err();
    assert!(format!("{error:?}").contains("PostgreSQL"), "{error:?}");
}

/// Calls for a transaction by itself.
#[flow_type]
struct Calls {}

#[flow_type]
impl Calls {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        self.enter().await
    }

    #[step]
    async fn enter(&self) -> ergon::Result<String> {
        enter_by_call("x").await
    }
}

#[tokio::test]
async fn a_call_on_another_log_is_an_error_that_says_so() {
    let error = Executor::new(InMemoryExecutionLog::new()).run(Calls {}).await.unwrap_err();
    for part in ["step \"enter\"", "SQLite"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
#[should_panic(expected = "call it in a step")]
async fn a_transaction_in_a_flows_own_code_is_refused() {
    #[flow_type]
    struct Wrong {}

    #[flow_type]
    impl Wrong {
        #[flow]
        async fn run(&self) -> ergon::Result<String> {
            enter_by_call("x").await
        }
    }

    let log = SqliteExecutionLog::open_in_memory().await.unwrap();
    let error = Executor::new(log).run(Wrong {}).await.unwrap_err();
    panic!("{error}");
}

/// Makes the same entry in run after run, and returns how many there are in the end.
#[flow_type]
struct Rounds {
    left: u32,
}

#[flow_type]
impl Rounds {
    #[flow]
    async fn run(&self) -> ergon::Result<i64> {
        let entries = count("round".into()).await?;
        if self.left == 0 {
            return Ok(entries);
        }
        ergon::continue_as_new(Self { left: self.left - 1 }).await
    }
}

/// Each run and each fork makes a transaction of its own; a flow that is taken back is answered with what its own came to.
#[tokio::test]
async fn runs_and_forks_enter_anew_and_a_reset_does_not() {
    let log = SqliteExecutionLog::open_in_memory().await.unwrap();
    log.transaction(|tx| tx.execute_batch(TABLE)).await.unwrap().unwrap();
    let worker = Worker::new(log.clone()).register::<Rounds>().start().await.unwrap();
    let (scheduler, admin) = (Scheduler::new(log.clone()), Admin::new(log.clone()));
    let flow = scheduler.schedule(Rounds { left: 2 }).await.unwrap();
    assert_eq!(soon("the last run", flow.result()).await.unwrap(), 3);
    for _ in 0..2 {
        admin.reset(flow.id(), Cut::first("count")).await.unwrap();
        assert_eq!(soon("the end after the reset", flow.result()).await.unwrap(), 3, "no entry was made");
    }
    let fork = admin.fork(flow.id()).at(Cut::first("count")).await.unwrap();
    let fork = scheduler.handle::<Rounds>(fork);
    assert_eq!(soon("the end of the fork", fork.result()).await.unwrap(), 4, "an entry of its own");
    let whole = scheduler.handle::<Rounds>(admin.fork(fork.id()).await.unwrap());
    assert_eq!(soon("the end of the fork's fork", whole.result()).await.unwrap(), 4, "it has the outcome already");
    let entries = log.transaction(|tx| tx.query_row("SELECT count(*) FROM ledger", [], |row| row.get::<_, i64>(0)));
    assert_eq!(entries.await.unwrap().unwrap(), 4);
    worker.shutdown().await;
}

#[tokio::test]
async fn a_lease_that_is_lost_changes_nothing() {
    let log = SqliteExecutionLog::open_in_memory().await.unwrap();
    log.transaction(|tx| tx.execute_batch(TABLE)).await.unwrap().unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Calls {}).id("calls").await.unwrap();
    let request = ergon::storage::ClaimRequest::new("stale", ergon::storage::ClaimTarget::Flow(flow.id().clone()));
    let lease = log.claim(request).await.unwrap().flows.remove(0).lease;
    flow.cancel("enough").await.unwrap();
    let work = || {
        ergon::storage::Work::Sqlite(Box::new(|tx| {
            tx.execute(ENTER, ["stale"]).unwrap();
            Ok("{}".into())
        }))
    };
    let error = log.transact(&lease, "1", work()).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    let entries = log.transaction(|tx| tx.query_row("SELECT count(*) FROM ledger", [], |row| row.get::<_, i64>(0)));
    assert_eq!(entries.await.unwrap().unwrap(), 0);
}

// ---- PostgreSQL ---------------------------------------------------------------------------------------------------

/// As [`Clerk`], on a server.
#[flow_type]
struct OnServer {}

#[flow_type]
impl OnServer {
    #[flow]
    async fn run(&self) -> ergon::Result<Vec<String>> {
        self.enter("first").await?;
        let (a, b) = tokio::join!(self.enter("joined"), self.enter("joined"));
        assert_eq!((a?, b?), (6, 6));
        assert_eq!(self.refused().await, Err(Refused { tries: 1 }));
        assert_eq!(self.flaky().await?, 3);
        assert_eq!(self.twice().await?, ["one", "two"]);
        self.read().await
    }

    #[step(transaction)]
    async fn enter(&self, tx: &postgres::Transaction<'_>, what: &str) -> ergon::Result<usize> {
        tx.execute("INSERT INTO ledger VALUES ($1)", &[&what]).await?;
        Ok(what.len())
    }

    #[step(transaction, retry = none)]
    async fn refused(&self, tx: &postgres::Transaction<'_>) -> Result<(), Refused> {
        tx.execute("INSERT INTO ledger VALUES ('refused')", &[]).await.unwrap();
        Err(Refused { tries: ergon::attempt() })
    }

    #[step(transaction, retry(max_attempts = 5, backoff = "1ms"))]
    async fn flaky(&self, tx: &postgres::Transaction<'_>) -> ergon::Result<u32> {
        tx.execute("INSERT INTO ledger VALUES ('flaky')", &[]).await?;
        match ergon::attempt() {
            1 => Err(ergon::Error::new("not yet")),
            2 => panic!("not yet, either"),
            attempt => Ok(attempt),
        }
    }

    #[step]
    async fn twice(&self) -> ergon::Result<Vec<String>> {
        let mut all = Vec::new();
        for what in ["one", "two"] {
            let entered = postgres::transact(move |tx| {
                Box::pin(async move {
                    tx.execute("INSERT INTO ledger VALUES ($1)", &[&what]).await?;
                    Ok::<_, ergon::Error>(what.to_owned())
                })
            });
            all.push(entered.await?);
        }
        Ok(all)
    }

    #[step(transaction)]
    async fn read(&self, tx: &postgres::Transaction<'_>) -> ergon::Result<Vec<String>> {
        let rows = tx.query("SELECT what FROM ledger ORDER BY what COLLATE \"C\"", &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

struct Server {
    /// Its URL.
    database: String,
    client: tokio_postgres::Client,
}

impl Server {
    async fn start() -> Self {
        let server = Postgres::shared();
        let database = server.fresh_database();
        let (client, connection) = tokio_postgres::connect(&database, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("CREATE TABLE ledger (what TEXT NOT NULL)").await.unwrap();
        Self { database, client }
    }

    async fn open(&self) -> FaultyLog {
        let log = PostgresExecutionLog::connect(&*self.database).await.unwrap();
        FaultyLog::new(log)
    }

    async fn life(&self, log: &FaultyLog) -> Option<Vec<String>> {
        let flow = Scheduler::new(log.another()).schedule(OnServer {}).id("clerk").await.unwrap();
        let worker = Worker::new(log.clone()).register::<OnServer>().lease(Worker::LEASE_MIN).start().await.unwrap();
        let result = soon("the end of the flow", async {
            tokio::select! {
                biased;
                result = flow.result() => Some(result.unwrap()),
                () = log.crashed() => None,
            }
        });
        let result = result.await;
        drop(worker);
        result
    }
}

/// The deadlocks that joined inserts cannot have are those of the bank in the examples.
#[tokio::test]
async fn a_crash_at_any_write_enters_nothing_twice_on_a_server() {
    const ENTERED: [&str; 6] = ["first", "flaky", "joined", "joined", "one", "two"];
    let server = Server::start().await;
    let log = server.open().await;
    assert_eq!(server.life(&log).await.unwrap(), ENTERED);
    let writes = log.writes();
    assert!(writes > 12, "transactions are writes too: {writes}");
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseAnswer] {
        for write in 1..=writes {
            server.client.batch_execute("DELETE FROM ledger").await.unwrap();
            let log = server.open().await;
            let again = log.another();
            assert!(again.delete(&ergon::FlowId::new("clerk").unwrap()).await.unwrap());
            log.order(write, fault);
            let result = match server.life(&log).await {
                Some(result) => result,
                None => server.life(&again).await.unwrap(),
            };
            assert_eq!(result, ENTERED, "{fault:?} at write {write}");
        }
    }
}

/// Breaks the rules on a server.
#[flow_type]
struct Rogue {
    statements: Vec<String>,
}

#[flow_type]
impl Rogue {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        self.act().await
    }

    #[step(transaction, retry = none)]
    async fn act(&self, tx: &postgres::Transaction<'_>) -> ergon::Result<()> {
        for statement in &self.statements {
            // Goes on whatever happens.
            let _ = tx.batch_execute(statement).await;
        }
        Ok(())
    }
}

#[tokio::test]
async fn work_that_breaks_the_rules_is_told_so_on_a_server() {
    let server = Server::start().await;
    let log = server.open().await;
    let worker = Worker::new(log.clone()).register::<Rogue>().start().await.unwrap();
    let scheduler = Scheduler::new(log);
    for (statements, told) in [
        (["INSERT INTO ledger VALUES ('x')", "COMMIT"], "must not send COMMIT or ROLLBACK"),
        (["INSERT INTO ledger VALUES ('y')", "ROLLBACK"], "must not send COMMIT or ROLLBACK"),
        (["INSERT INTO ledger VALUES ('z')", "SELECT 1/0"], "return its error"),
    ] {
        let rogue = Rogue { statements: statements.map(str::to_owned).to_vec() };
        let flow = scheduler.schedule(rogue).id(fresh_name()).await.unwrap();
        let error = soon("the end", flow.result()).await.unwrap_err();
        assert!(error.to_string().contains(told), "{statements:?}: {error}");
    }
    let honest = Rogue { statements: vec!["SAVEPOINT a; INSERT INTO ledger VALUES ('w'); RELEASE a".into()] };
    soon("the end", scheduler.schedule(honest).await.unwrap().result()).await.unwrap();
    let rows = server.client.query("SELECT what FROM ledger ORDER BY what", &[]).await.unwrap();
    // What was committed against the rules is there; that is what the error says.
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>(), ["w", "x"]);
    worker.shutdown().await;
}

/// What one leaves behind, the next must not find.
#[flow_type]
struct Guest {
    leaves: Vec<String>,
    asks: String,
}

#[flow_type]
impl Guest {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        self.stay().await
    }

    #[step(transaction, retry = none)]
    async fn stay(&self, tx: &postgres::Transaction<'_>) -> ergon::Result<String> {
        for statement in &self.leaves {
            tx.batch_execute(statement).await?;
        }
        let row = tx.query_one(&self.asks, &[]).await?;
        Ok(row.get(0))
    }
}

#[tokio::test]
async fn work_finds_a_new_session_each_time_on_a_server() {
    let server = Server::start().await;
    let options = PostgresOptions::new(&*server.database).connections(1).answer_timeout(Duration::from_secs(7));
    let log = options.connect().await.unwrap();
    let worker = Worker::new(log.clone()).register::<Guest>().start().await.unwrap();
    let scheduler = Scheduler::new(log);
    let ask = async |leaves: &[&str], asks: &str| {
        let leaves = leaves.iter().map(|statement| (*statement).to_owned()).collect();
        let flow = scheduler.schedule(Guest { leaves, asks: asks.into() }).id(fresh_name()).await.unwrap();
        soon("the answer", flow.result()).await
    };
    let session = "SELECT format('%s %s %s %s %s %s', current_setting('statement_timeout'), \
        current_setting('idle_in_transaction_session_timeout'), current_setting('transaction_isolation'), \
        current_setting('enable_seqscan'), current_setting('search_path'), pg_backend_pid())";
    let before = ask(&[], session).await.unwrap();
    assert!(before.starts_with("7s 7s read committed on \"$user\", public "), "{before}");
    let leaves = [
        "SET search_path = pg_catalog",
        "SET statement_timeout = 0",
        "SET default_transaction_isolation = 'serializable'",
        "CREATE TEMP TABLE ledger (other INTEGER)",
        "SELECT pg_advisory_lock(42)",
        "LISTEN news",
    ];
    ask(&leaves, session).await.unwrap();
    assert_eq!(ask(&[], session).await.unwrap(), before, "the same connection, as if it were new");
    let left = "SELECT format('%s %s %s', to_regclass('pg_temp.ledger'), \
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42), \
        (SELECT count(*) FROM pg_listening_channels()))";
    assert_eq!(ask(&[], left).await.unwrap(), " 0 0");
    worker.shutdown().await;
}

#[tokio::test]
async fn work_that_idles_for_too_long_is_cut_off_on_a_server() {
    #[flow_type]
    struct Idler {}

    #[flow_type]
    impl Idler {
        #[flow]
        async fn run(&self) -> ergon::Result<()> {
            self.idle().await
        }

        #[step(transaction, retry = none)]
        async fn idle(&self, tx: &postgres::Transaction<'_>) -> ergon::Result<()> {
            tx.batch_execute("INSERT INTO ledger VALUES ('never')").await?;
            // The server ends it before.
            while !tx.is_closed() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        }
    }

    let server = Server::start().await;
    let options = PostgresOptions::new(&*server.database).answer_timeout(Duration::from_millis(300));
    let log = options.connect().await.unwrap();
    let worker = Worker::new(log.clone()).register::<Idler>().start().await.unwrap();
    let flow = Scheduler::new(log).schedule(Idler {}).await.unwrap();
    let error = soon("the end", flow.result()).await.unwrap_err();
    assert!(error.to_string().contains("left its transaction idle"), "{error}");
    let rows = server.client.query("SELECT what FROM ledger", &[]).await.unwrap();
    assert!(rows.is_empty());
    worker.shutdown().await;
}
