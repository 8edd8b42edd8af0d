//! A bank: transfers whose SQL and whose record in the log are one transaction, while worker processes are killed
//! (SIGKILL) at random instants. No cent is lost or made, and no transfer is booked twice.
//!
//! ```text
//! cargo run --example bank
//! cargo run --example bank -- postgres://USER:PASSWORD@HOST/DATABASE
//! ```
//!
//! The accounts and the ledger lie in the same database as the log: by default an SQLite file that is thrown away. One
//! sees each kill with how far the transfers were, then the proof. The exit code is 1 when something does not add up.

use std::{
    io,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::Instant,
};

use ergon::{
    FlowError, FlowHandle, FlowState, postgres,
    prelude::*,
    sqlite::{self, rusqlite},
    storage::Filter,
};
use postgres::tokio_postgres::{self, NoTls};
use serde::{Deserialize, Serialize};

const ACCOUNTS: i64 = 10;
const CENTS_EACH: i64 = 1_000;
const TRANSFERS: i64 = 300;
const KILLS: usize = 15;

/// The accounts, and one row for each transfer that was booked, and one for each letter. Nothing here keeps a transfer from
/// being booked twice.
const TABLES: &str = "CREATE TABLE accounts (account BIGINT PRIMARY KEY, cents BIGINT NOT NULL);
    CREATE TABLE ledger (number BIGINT NOT NULL, debtor BIGINT NOT NULL, creditor BIGINT NOT NULL, cents BIGINT NOT NULL);
    CREATE TABLE letters (number BIGINT NOT NULL)";

/// From one account to another.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Transfer {
    number: i64,
    debtor: i64,
    creditor: i64,
    cents: i64,
}

/// What there is to say against it.
#[derive(Debug, Serialize, Deserialize)]
enum Refusal {
    /// The debtor has too little.
    Broke { account: i64 },
    /// Something that may go better the next time, such as a deadlock.
    Trouble(ergon::Error),
}

impl ergon::Retryable for Refusal {
    fn is_retryable(&self) -> bool {
        matches!(self, Self::Trouble(error) if error.is_retryable())
    }
}

impl From<ergon::Error> for Refusal {
    fn from(error: ergon::Error) -> Self {
        Self::Trouble(error)
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Trouble(error.into())
    }
}

impl From<tokio_postgres::Error> for Refusal {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Trouble(error.into())
    }
}

/// A transfer in an SQLite file.
#[flow_type]
#[derive(Clone)]
struct InSqlite(Transfer);

#[flow_type]
impl InSqlite {
    #[flow]
    async fn run(&self) -> Result<i64, Refusal> {
        let left = self.book().await?;
        self.tell(left).await?;
        Ok(left)
    }

    #[step(transaction)]
    fn book(&self, tx: &sqlite::Transaction<'_>) -> Result<i64, Refusal> {
        let Transfer { number, debtor, creditor, cents } = self.0;
        let add = "UPDATE accounts SET cents = cents + ?2 WHERE account = ?1 RETURNING cents";
        let left: i64 = tx.query_row(add, (debtor, -cents), |row| row.get(0))?;
        tx.query_row(add, (creditor, cents), |_| Ok(()))?;
        tx.execute("INSERT INTO ledger VALUES (?1, ?2, ?3, ?4)", (number, debtor, creditor, cents))?;
        // Too late? No: what an error returns from has not happened.
        if left < 0 { Err(Refusal::Broke { account: debtor }) } else { Ok(left) }
    }

    /// Does more than its transaction, which is therefore a call.
    #[step]
    async fn tell(&self, left: i64) -> Result<(), Refusal> {
        tell(left).await;
        let number = self.0.number;
        let note = sqlite::transact(move |tx| {
            tx.execute("INSERT INTO letters VALUES (?1)", [number])?;
            Ok(())
        });
        note.await
    }
}

/// A transfer in a PostgreSQL database.
#[flow_type]
struct InPostgres(Transfer);

#[flow_type]
impl InPostgres {
    #[flow]
    async fn run(&self) -> Result<i64, Refusal> {
        let left = self.book().await?;
        self.tell(left).await?;
        Ok(left)
    }

    #[step(transaction, retry(max_attempts = 100, backoff = "1ms..50ms"))]
    async fn book(&self, tx: &postgres::Transaction<'_>) -> Result<i64, Refusal> {
        let Transfer { number, debtor, creditor, cents } = self.0;
        let add = "UPDATE accounts SET cents = cents + $2 WHERE account = $1 RETURNING cents";
        let left: i64 = tx.query_one(add, &[&debtor, &-cents]).await?.get(0);
        tx.query_one(add, &[&creditor, &cents]).await?;
        let book = "INSERT INTO ledger VALUES ($1, $2, $3, $4)";
        tx.execute(book, &[&number, &debtor, &creditor, &cents]).await?;
        if left < 0 { Err(Refusal::Broke { account: debtor }) } else { Ok(left) }
    }

    #[step]
    async fn tell(&self, left: i64) -> Result<(), Refusal> {
        tell(left).await;
        let number = self.0.number;
        let note = postgres::transact(move |tx| {
            Box::pin(async move {
                tx.execute("INSERT INTO letters VALUES ($1)", &[&number]).await?;
                Ok(())
            })
        });
        note.await
    }
}

/// Takes a moment, as letters do.
async fn tell(_left: i64) {
    tokio::time::sleep(Duration::from_millis(rand::random_range(1..20))).await;
}

#[tokio::main]
async fn main() -> ergon::Result<ExitCode> {
    let mut args = std::env::args().skip(1);
    match (args.next(), args.next()) {
        (Some(word), Some(url)) if word == "worker" => work(&url).await,
        (Some(url), None) => supervise(&url).await,
        (None, _) => {
            let folder = tempfile::tempdir()?;
            supervise(&format!("sqlite:{}", folder.path().join("bank.db").display())).await
        }
        _ => Err(ergon::Error::new("this example takes no more than a URL: sqlite:FILE or postgres://…")),
    }
}

/// The worker process: works until it is killed, or until the process that started it is gone.
async fn work(url: &str) -> ergon::Result<ExitCode> {
    let worker = Worker::new(ergon::open(url).await?).slots(8).lease(Duration::from_millis(500));
    let _worker = match file_of(url) {
        Some(_) => worker.register::<InSqlite>().start().await?,
        None => worker.register::<InPostgres>().start().await?,
    };
    tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink())).await??;
    Ok(ExitCode::SUCCESS)
}

fn start_worker(url: &str) -> io::Result<Child> {
    Command::new(std::env::current_exe()?).args(["worker", url]).stdin(Stdio::piped()).spawn()
}

/// The file of an SQLite log.
fn file_of(url: &str) -> Option<PathBuf> {
    url.strip_prefix("sqlite:").map(PathBuf::from)
}

async fn supervise(url: &str) -> ergon::Result<ExitCode> {
    let bank = Bank::open(url).await?;
    let scheduler = Scheduler::new(ergon::open(url).await?);
    let transfers = (0..TRANSFERS).map(|number| {
        let debtor = rand::random_range(0..ACCOUNTS);
        let creditor = (debtor + rand::random_range(1..ACCOUNTS)) % ACCOUNTS;
        Transfer { number, debtor, creditor, cents: rand::random_range(1..=CENTS_EACH / 3) }
    });
    let flows: Vec<FlowHandle<i64, Refusal>> = match &bank {
        Bank::Sqlite(_) => scheduler.schedule_all(transfers.map(InSqlite)).await?,
        Bank::Postgres(_) => scheduler.schedule_all(transfers.map(InPostgres)).await?,
    };

    let begun = Instant::now();
    let mut workers = [start_worker(url)?, start_worker(url)?];
    for kill in 1..=KILLS {
        // Evenly over the work, whatever the machine.
        while ended(&scheduler).await? * (KILLS + 1) < flows.len() * kill {
            tokio::time::sleep(Duration::from_millis(rand::random_range(1..10))).await;
        }
        let victim = &mut workers[kill % 2];
        victim.kill()?; // SIGKILL: the process gets no chance to do anything
        victim.wait()?;
        *victim = start_worker(url)?;
        println!("kill {kill:>2}: {:>3} of {TRANSFERS} transfers have ended", ended(&scheduler).await?);
    }
    let (mut booked, mut refused) = (Vec::new(), 0);
    for (number, flow) in (0..).zip(&flows) {
        match flow.result().await {
            Ok(_) => booked.push(number),
            Err(FlowError::Failed(Refusal::Broke { .. })) => refused += 1,
            Err(error) => return Err(error.into()),
        }
    }
    for worker in &mut workers {
        worker.kill()?;
        worker.wait()?;
    }

    let Books { cents, mut ledger, mut letters } = bank.books().await?;
    ledger.sort_unstable();
    letters.sort_unstable();
    let expected = ACCOUNTS * CENTS_EACH;
    println!();
    println!("processes killed     {KILLS:>6}   within {:.1} s", begun.elapsed().as_secs_f64());
    println!("transfers completed  {:>6}", booked.len());
    println!("transfers refused    {refused:>6}   (for lack of money, after their SQL had run)");
    println!("rows in the ledger   {:>6}", ledger.len());
    println!("letters noted        {:>6}", letters.len());
    println!("cents in all         {cents:>6}   of {expected}");
    let is_right = cents == expected && ledger == booked && letters == booked;
    println!("{}", if is_right { "every transfer was booked once, and noted once" } else { "THE BOOKS ARE WRONG" });
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ended(scheduler: &Scheduler) -> ergon::Result<usize> {
    let flows = scheduler.log().list(&Filter::all(), None, 10_000).await?.flows;
    Ok(flows.iter().filter(|flow| matches!(flow.state, FlowState::Completed | FlowState::Failed)).count())
}

/// The database with the accounts, seen from outside.
enum Bank {
    Sqlite(SqliteExecutionLog),
    Postgres(tokio_postgres::Client),
}

/// What they hold.
struct Books {
    cents: i64,
    /// The numbers of the transfers in the ledger.
    ledger: Vec<i64>,
    /// Those of the transfers that somebody was told of.
    letters: Vec<i64>,
}

impl Bank {
    async fn open(url: &str) -> ergon::Result<Self> {
        let accounts = (0..ACCOUNTS).map(|account| format!("({account}, {CENTS_EACH})"));
        let accounts = accounts.collect::<Vec<_>>().join(", ");
        let make = format!("{TABLES}; INSERT INTO accounts (account, cents) VALUES {accounts}");
        if let Some(file) = file_of(url) {
            let log = SqliteExecutionLog::open(file).await?;
            log.transaction(move |tx| tx.execute_batch(&make)).await??;
            return Ok(Self::Sqlite(log));
        }
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(&make).await?;
        Ok(Self::Postgres(client))
    }

    async fn books(&self) -> ergon::Result<Books> {
        let sum = "SELECT CAST(sum(cents) AS BIGINT) FROM accounts";
        let (booked, told) = ("SELECT number FROM ledger", "SELECT number FROM letters");
        match self {
            Self::Sqlite(log) => {
                let read = move |tx: &sqlite::Transaction<'_>| -> rusqlite::Result<_> {
                    let cents = tx.query_row(sum, [], |row| row.get(0))?;
                    let numbers = |sql| -> rusqlite::Result<Vec<i64>> {
                        tx.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
                    };
                    Ok(Books { cents, ledger: numbers(booked)?, letters: numbers(told)? })
                };
                Ok(log.transaction(read).await??)
            }
            Self::Postgres(client) => {
                let cents = client.query_one(sum, &[]).await?.get(0);
                let numbers = async |sql| -> ergon::Result<Vec<i64>> {
                    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
                };
                Ok(Books { cents, ledger: numbers(booked).await?, letters: numbers(told).await? })
            }
        }
    }
}
