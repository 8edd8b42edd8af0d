//! The connections of a log, which come back by themselves when they are lost.
//!
//! Each call is one statement, and so one transaction: many callers share a connection, and what they ask is sent
//! without waiting for the answers to what was asked before. Only a commit lane sends several statements as one
//! transaction, on a connection of its own.

use std::{
    collections::hash_map::RandomState,
    future::poll_fn,
    hash::BuildHasher,
    ops::Deref,
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OnceCell, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::{AsyncMessage, Client, Row, SimpleQueryMessage, SimpleQueryRow, types::ToSql};

use super::{
    error::{self, Remedy, remedy},
    options::PostgresOptions,
    schema,
    statements::Statement,
    target::Target,
    text::identifier,
};
use crate::{Error, ErrorKind, Result};

/// The pauses between attempts to connect, which grow. Where calls wait for less, so do these.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The longest one after a connection that could be made.
const PAUSE_OPEN_MAX: Duration = Duration::from_millis(160);
/// How often a transaction that the server has undone in favour of another one is begun anew.
const REPEATS_MAX: u32 = 20;

/// The place of the connection that is shared by what is neither a commit nor a claim; those beyond it are for
/// questions.
const SHARED: usize = 3;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Commits: the lane of this number.
    Commits(usize),
    /// Claims, heartbeats and releases, which must not wait for long.
    Queue,
    /// Everything else that must not wait for a slow question.
    Others,
    /// Questions and upkeep, which may take long.
    Reads,
    /// Hints for other processes: the connection that listens, whose transactions do not wait for the disk.
    Hints,
}

/// Whether a call may be made again when it is not known whether the first one was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It gives the same answer.
    Safe,
    /// It may not, which the caller has to know.
    Unsafe,
}

/// How connections are made.
pub(super) struct Connector {
    pub(super) target: Target,
    pub(super) options: PostgresOptions,
    texts: Vec<String>,
}

/// An open connection with its prepared statements.
pub(super) struct Session {
    pub(super) client: Client,
    connector: Arc<Connector>,
    prepared: Vec<OnceCell<tokio_postgres::Statement>>,
    useless: Notify,
    /// What the server calls this connection, for as long as it is one.
    name: String,
    /// When the latest answer came.
    answered: Mutex<Instant>,
}

impl Connector {
    pub(super) fn new(options: PostgresOptions) -> Result<Self> {
        options.check_schema()?;
        let target = Target::parse(&options.url)?;
        let texts = Statement::texts(&identifier(&options.schema));
        Ok(Self { target, options, texts })
    }

    /// A statement with the schema's name in it.
    pub(super) fn localize(&self, template: &str) -> String {
        template.replace("{s}", &identifier(&self.options.schema))
    }

    /// Opens a connection, and gives it to `ready` while it is kept going, until either ends.
    async fn open<T>(
        self: &Arc<Self>,
        heard: impl Fn(&str),
        ready: impl AsyncFnOnce(Arc<Session>) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + self.options.connect_timeout;
        let (client, mut connection) = self.target.connect(deadline).await?;
        let prepared = (0..Statement::COUNT).map(|_| OnceCell::new()).collect();
        let (useless, answered) = (Notify::new(), Mutex::new(Instant::now()));
        let name = format!("{:016x}", RandomState::new().hash_one(0));
        let session = Arc::new(Session { client, connector: Arc::clone(self), prepared, useless, name, answered });
        let lost = async {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(notification))) => heard(notification.payload()),
                    Some(Ok(AsyncMessage::Notice(notice))) => tracing::debug!(%notice, "the server remarks"),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error::no_connection(&self.target, error),
                    None => {
                        break Error::new(ErrorKind::Unavailable, format!("{} has closed the connection", self.target));
                    }
                }
            }
        };
        tokio::select! {
            // What the server has said before it closed is heard first.
            biased;
            outcome = ready(Arc::clone(&session)) => outcome,
            error = lost => Err(error),
            () = session.useless.notified() => {
                Err(Error::new(ErrorKind::Unavailable, format!("{} is connected to anew", self.target)))
            }
        }
    }

    /// Opens a connection for one thing.
    pub(super) async fn once<T>(self: &Arc<Self>, use_it: impl AsyncFnOnce(Arc<Session>) -> Result<T>) -> Result<T> {
        self.open(|_| {}, use_it).await
    }
}

impl Session {
    /// Sets up what the statements count on, and in the same breath runs the first of them, which give rows as text.
    pub(super) async fn begin(&self, statements: &str) -> Result<Vec<SimpleQueryRow>> {
        let Connector { target, options, .. } = &*self.connector;
        // Each statement goes by keys and indexes, whatever the tables hold: its plan is made once, and never from the
        // statistics of a table that was empty a moment ago.
        let text = format!(
            "{}; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off; \
             SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; {statements}",
            self.settings(),
        );
        let within = options.connect_timeout;
        timeout(within, self.rows(&text)).await.map_err(|_| target.silent(within))?
    }

    /// What holds for every connection, whoever uses it.
    pub(super) fn settings(&self) -> String {
        let options = &self.connector.options;
        let answer_ms = options.answer_timeout.as_millis().clamp(1, 1 << 30);
        // A process that hangs, or whose machine vanishes, in the middle of a transaction would keep its rows locked,
        // and the flows from everybody, until the server happens to notice.
        let vanished = format!(
            "SET idle_in_transaction_session_timeout = {answer_ms}; SET tcp_keepalives_idle = 30; \
             SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
        );
        format!(
            "SET ergon.connection = '{}'; SET synchronous_commit = {}; SET statement_timeout = {answer_ms}; {vanished}; \
             SET client_min_messages = warning; SET default_transaction_isolation = 'read committed'",
            self.name,
            options.synchronous_commit.as_str(),
        )
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Runs statements that give no rows.
    pub(super) async fn execute(&self, statements: &str) -> Result<()> {
        self.rows(statements).await.map(drop)
    }

    /// Runs statements, all sent at once, and returns the rows of all of them, as text.
    pub(super) async fn rows(&self, statements: &str) -> Result<Vec<SimpleQueryRow>> {
        let Connector { target, options, .. } = &*self.connector;
        let answer = self.in_time(self.client.simple_query(statements)).await;
        let answer = answer.ok_or_else(|| target.silent(options.answer_timeout))?;
        let messages = answer.map_err(|error| error::no_connection(target, error))?;
        let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    /// A statement, prepared.
    pub(super) async fn prepare(
        &self,
        statement: Statement,
    ) -> Result<&tokio_postgres::Statement, tokio_postgres::Error> {
        let text = &self.connector.texts[statement as usize];
        self.prepared[statement as usize].get_or_try_init(|| self.client.prepare(text)).await
    }

    pub(super) async fn query(
        &self,
        statement: Statement,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let prepared = self.prepare(statement).await?;
        let answer = self.client.query(prepared, values).await;
        self.has_answered();
        answer
    }

    /// Waits for an answer as long as the log waits for one; `None` when there is none. The server does what it is
    /// asked in turn, so the time counts from the answer before: to wait behind others is no outage.
    pub(super) async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let within = self.connector.options.answer_timeout;
        // The server itself gives up a little earlier, where it can.
        let within = within + within / 8;
        let mut begun = Instant::now();
        let mut answer = pin!(answer);
        loop {
            if let Ok(answer) = timeout_at(begun + within, &mut answer).await {
                self.has_answered();
                return Some(answer);
            }
            let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
            if answered <= begun {
                return None;
            }
            begun = answered;
        }
    }

    fn has_answered(&self) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Gives the connection up; another one is made in its place.
    pub(super) fn give_up(&self) {
        self.useless.notify_one();
    }
}

/// One connection after the other in the same place.
struct Link {
    current: watch::Receiver<Current>,
    keeper: JoinHandle<()>,
}

#[derive(Clone)]
enum Current {
    Open(Arc<Session>),
    /// None, and the reason if one is known.
    Lost(Option<Arc<Error>>),
}

impl Link {
    fn keep(connector: Arc<Connector>, heard: impl Fn(&str) + Send + Sync + 'static, greet: impl AsyncGreet) -> Self {
        let (current, receiver) = watch::channel(Current::Lost(None));
        let keeper = tokio::spawn(async move {
            let pause_max = (connector.options.connect_timeout / 4).clamp(PAUSE_MIN, PAUSE_MAX);
            let mut pause = PAUSE_MIN;
            loop {
                let opened = OnceLock::new();
                let ready = async |session: Arc<Session>| -> Result<()> {
                    schema::check_again(&session).await?;
                    greet.greet(&session).await?;
                    _ = opened.set(Instant::now());
                    current.send_replace(Current::Open(session));
                    // Until the connection ends.
                    std::future::pending().await
                };
                let Err(error) = connector.open(&heard, ready).await else { continue };
                if let Some(opened) = opened.get() {
                    // One that is closed as soon as it is open is not made ever so often.
                    pause = if opened.elapsed() > PAUSE_MIN { PAUSE_MIN } else { pause.min(PAUSE_OPEN_MAX) };
                    tracing::warn!(%error, "a connection of the execution log was lost");
                } else {
                    tracing::debug!(error = ?error, "a connection of the execution log cannot be made");
                }
                current.send_replace(Current::Lost(Some(Arc::new(error))));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(pause_max);
            }
        });
        Self { current: receiver, keeper }
    }

    /// The open connection, or the next one there is until `deadline`.
    async fn session(&self, deadline: Instant) -> Result<Arc<Session>> {
        let mut current = self.current.clone();
        let open = async {
            let found = current.wait_for(|current| match current {
                Current::Open(session) => !session.client.is_closed(),
                Current::Lost(_) => false,
            });
            match found.await.as_deref() {
                Ok(Current::Open(session)) => Ok(Arc::clone(session)),
                _ => Err(error::stopped()),
            }
        };
        match timeout_at(deadline, open).await {
            Ok(session) => session,
            Err(_) => Err(match &*self.current.borrow() {
                Current::Lost(Some(error)) => {
                    // Whatever it is called at the first connection: it worked before, and may again.
                    Error::new(ErrorKind::Unavailable, error.to_string()).with_source(Arc::clone(error))
                }
                _ => Error::new(ErrorKind::Unavailable, "the connection of the execution log is lost"),
            }),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// What is said on each new connection before others use it.
trait AsyncGreet: Send + Sync + 'static {
    fn greet(&self, session: &Session) -> impl Future<Output = Result<()>> + Send;
}

/// Nothing.
struct Silent;

impl AsyncGreet for Silent {
    async fn greet(&self, _: &Session) -> Result<()> {
        Ok(())
    }
}

/// That this connection listens. What it says itself are hints: the server need not bring them to its disk, nor to a
/// standby, before they are answered.
struct Listen {
    channel: String,
    then: Box<dyn Fn() + Send + Sync>,
}

impl AsyncGreet for Listen {
    async fn greet(&self, session: &Session) -> Result<()> {
        let listen = format!("SET synchronous_commit = off; LISTEN {}", identifier(&self.channel));
        session.execute(&listen).await?;
        // What was said meanwhile was not heard.
        (self.then)();
        Ok(())
    }
}

/// All connections of a log.
pub(super) struct Pool {
    connector: Arc<Connector>,
    links: Vec<Link>,
    /// How many questions were asked.
    reads: AtomicUsize,
    listener: Link,
}

impl Pool {
    /// Begins to keep the connections of a place that has been reached before. One listens to the channel, and says
    /// so whenever there may be something that was not heard.
    pub(super) fn keep(
        connector: &Arc<Connector>,
        channel: &str,
        heard: impl Fn(&str) + Send + Sync + 'static,
        deaf: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let count = connector.options.connections;
        let link = |_| Link::keep(Arc::clone(connector), |_: &str| {}, Silent);
        let links = (0..count).map(link).collect();
        let listen = Listen { channel: channel.to_owned(), then: Box::new(deaf) };
        let listener = Link::keep(Arc::clone(connector), heard, listen);
        Self { connector: Arc::clone(connector), links, reads: AtomicUsize::new(0), listener }
    }

    /// Refuses a pooler that gives each transaction another connection of the server. While one of ours has a
    /// transaction open the others are asked for their names, one after the other: such a pooler serves them all by
    /// what it has left, which knows one of the names at best.
    pub(super) async fn check_sessions(&self) -> Result<()> {
        let until = Instant::now() + self.connector.options.connect_timeout;
        let first = self.links[0].session(until).await?;
        let begun = first.execute("BEGIN").await;
        let others = async {
            for link in self.links[1..].iter().chain([&self.listener]) {
                let session = link.session(until).await?;
                // One that is lost meanwhile comes back, and is no sign of a pooler.
                let asked = session.rows("SELECT current_setting('ergon.connection', true)").await;
                let Ok(rows) = asked else { continue };
                if rows.first().and_then(|row| row.get(0)) != Some(&session.name) {
                    let target = &self.connector.target;
                    let message = format!("{target} {}", error::BEHIND_A_POOLER);
                    return Err(Error::new(ErrorKind::Unsupported, message));
                }
            }
            Ok(())
        };
        let checked = others.await;
        if begun.and(first.execute("COMMIT").await).is_err() {
            first.give_up();
        }
        checked
    }

    pub(super) fn options(&self) -> &PostgresOptions {
        &self.connector.options
    }

    fn link(&self, role: Role) -> &Link {
        let count = self.links.len();
        // Nobody shares a connection with a commit lane, and claims have one for themselves where there are enough.
        let place = match role {
            Role::Commits(lane) => lane,
            Role::Queue => 2,
            Role::Others => SHARED.min(count - 1),
            Role::Reads if count > SHARED + 1 => {
                SHARED + 1 + self.reads.fetch_add(1, Ordering::Relaxed) % (count - SHARED - 1)
            }
            Role::Reads => count - 1,
            Role::Hints => return &self.listener,
        };
        &self.links[place % count]
    }

    /// The connection for this, once there is one.
    pub(super) async fn session(&self, role: Role) -> Result<Held<'_>> {
        self.session_until(role, Instant::now() + self.connector.options.connect_timeout).await
    }

    /// The connection for this, or the next one there is until `deadline`.
    pub(super) async fn session_until(&self, role: Role, deadline: Instant) -> Result<Held<'_>> {
        Ok(Held { session: self.link(role).session(deadline).await?, pool: self })
    }

    /// Has the server run a statement, again where that is safe.
    pub(super) async fn query(
        &self,
        role: Role,
        statement: Statement,
        values: &[&(dyn ToSql + Sync)],
        repeat: Repeat,
    ) -> Result<Vec<Row>> {
        let mut repeats = 0;
        let mut deadline = None;
        loop {
            let session = self.session(role).await?;
            let (error, begun) = match session.answer(session.prepare(statement)).await {
                Err(error) => (error, false),
                Ok(prepared) => match session.answer(session.client.query(prepared, values)).await {
                    Ok(rows) => return Ok(rows),
                    Err(error) => (error, true),
                },
            };
            repeats += 1;
            let again = match error.remedy {
                Remedy::Repeat => true,
                Remedy::Reconnect => !begun || repeat == Repeat::Safe,
                Remedy::Tell(_) => false,
            };
            // Not from the beginning: it may have waited for others.
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.connector.options.answer_timeout);
            if !again || repeats > REPEATS_MAX || Instant::now() >= deadline {
                return Err(error.error);
            }
            tracing::debug!(error = ?error.error, ?statement, "a statement is repeated");
        }
    }
}

/// A connection in use.
pub(super) struct Held<'p> {
    session: Arc<Session>,
    pool: &'p Pool,
}

impl Deref for Held<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) remedy: Remedy,
    pub(super) error: Error,
}

impl Held<'_> {
    /// Waits for an answer as long as the log waits for one. A connection that does not give it is given up.
    pub(super) async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Failed> {
        match self.session.in_time(answer).await {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => {
                let remedy = remedy(&error);
                if remedy == Remedy::Reconnect {
                    self.session.give_up();
                }
                Err(Failed { remedy, error: error::failed(error) })
            }
            None => {
                self.session.give_up();
                let Connector { target, options, .. } = &*self.pool.connector;
                Err(Failed { remedy: Remedy::Reconnect, error: target.silent(options.answer_timeout) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ergon_test_servers::{Postgres, fresh_name};

    use super::*;

    /// A statement that the server does not understand would only make the log slow, where there is another way.
    #[tokio::test]
    async fn the_server_understands_every_statement() {
        let options = PostgresOptions::new(Postgres::shared().url()).schema(fresh_name());
        let connector = Arc::new(Connector::new(options).unwrap());
        schema::migrate(&connector).await.unwrap();
        let prepared = connector.once(async |session| {
            for statement in Statement::ALL {
                let prepared = session.prepare(*statement).await;
                assert!(prepared.is_ok(), "{statement:?}: {prepared:?}");
            }
            Ok(())
        });
        prepared.await.unwrap();
    }

    /// A hint that is lost costs a moment, so that nothing waits for the disk to have it.
    #[tokio::test]
    async fn hints_alone_do_not_wait_for_the_disk() {
        let options = PostgresOptions::new(Postgres::shared().url()).schema(fresh_name());
        let connector = Arc::new(Connector::new(options).unwrap());
        schema::migrate(&connector).await.unwrap();
        let pool = Pool::keep(&connector, "ergon:test", |_| {}, || {});
        for (role, expected) in
            [(Role::Hints, "off"), (Role::Others, "on"), (Role::Commits(1), "on"), (Role::Queue, "on")]
        {
            let session = pool.session(role).await.unwrap();
            let row = session.client.query_one("SHOW synchronous_commit", &[]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), expected, "{role:?}");
        }
    }
}
