//! Connections to the server, made again when they break.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, RedisError, RedisResult, Value,
    aio::MultiplexedConnection,
};
use tokio::{
    sync::watch,
    time::{sleep_until, timeout},
};

use super::{
    args::Args,
    error::{Trouble, trouble},
    library::{Entry, Library},
};

/// The first and the longest pause between two attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How often one call is sent again because it was not applied: moved, or its function was missing.
const REPEATS_MAX: u32 = 4;

/// Host and port of a node other than the one that the URL names.
type Node = Option<(String, u16)>;

/// Where the server is and how it is spoken to.
#[derive(Debug)]
pub(super) struct Server {
    info: ConnectionInfo,
    /// The node of a cluster that has the namespace, when it is not the one that the URL names.
    moved_to: watch::Sender<Node>,
    pub(super) connect_limit: Duration,
    pub(super) answer_limit: Duration,
    library: Library,
    /// The hashes of the scripts, by entry, once the server was found not to let functions be loaded.
    scripts: Mutex<Option<[String; 3]>>,
    pub(super) prefix: String,
}

impl Server {
    pub(super) fn new(info: ConnectionInfo, connect_limit: Duration, answer_limit: Duration, prefix: String) -> Self {
        Self {
            info,
            moved_to: watch::Sender::default(),
            connect_limit,
            answer_limit,
            library: Library::new(),
            scripts: Mutex::default(),
            prefix,
        }
    }

    /// A client for the node that has the namespace.
    pub(super) fn client(&self) -> RedisResult<Client> {
        let moved_to = self.moved_to.borrow().clone();
        let mut info = self.info.clone();
        if let Some((host, port)) = moved_to {
            let addr = match info.addr().clone() {
                ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                    ConnectionAddr::TcpTls { host, port, insecure, tls_params }
                }
                _ => ConnectionAddr::Tcp(host, port),
            };
            info = info.set_addr(addr);
        }
        Client::open(info)
    }

    /// Remembers where a cluster says that the namespace is.
    fn follow(&self, error: &RedisError) {
        let node = error.redirect_node().and_then(|(node, _)| node.rsplit_once(':'));
        let Some((host, Ok(port))) = node.map(|(host, port)| (host, port.parse::<u16>())) else { return };
        // Without a host it is the one that was asked.
        let host = match (host, self.info.addr()) {
            ("", ConnectionAddr::Tcp(asked, _) | ConnectionAddr::TcpTls { host: asked, .. }) => asked.clone(),
            _ => host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        };
        self.move_to(Some((host, port)));
    }

    fn move_to(&self, node: Node) {
        self.moved_to.send_if_modified(|now| {
            let is_other = *now != node;
            *now = node;
            is_other
        });
    }

    /// Tells when the namespace is found on another node.
    pub(super) fn moves(&self) -> watch::Receiver<Node> {
        self.moved_to.subscribe()
    }

    /// Where the server is, as far as it may be shown.
    pub(super) fn address(&self) -> String {
        let moved_to = self.moved_to.borrow().clone();
        match (moved_to, self.info.addr()) {
            (Some((host, port)), _) => format!("{host}:{port}"),
            (None, address) => address.to_string(),
        }
    }

    /// Goes back to where the URL says.
    fn forget_move(&self) {
        self.move_to(None);
    }

    fn command(&self, entry: Entry, args: impl Iterator<Item = impl AsRef<Args>> + Clone) -> Cmd {
        let scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = match &*scripts {
            None => {
                let size = args
                    .clone()
                    .fold((0, 0), |(count, bytes), args| (count + args.as_ref().len(), bytes + args.as_ref().bytes()));
                self.library.function_call(entry, &self.prefix, size)
            }
            Some(scripts) => self.library.script_call(entry, &self.prefix, &scripts[entry as usize]),
        };
        drop(scripts);
        for args in args {
            args.as_ref().add_to(&mut command);
        }
        command
    }

    /// Loads what the calls call.
    async fn load(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let is_script = self.scripts.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if !is_script {
            match self.library.load_functions(connection).await {
                Err(error) if has_no_functions(&error) => {
                    tracing::info!(%error, "the Redis server lets no functions be loaded; ergon uses scripts");
                }
                outcome => return outcome,
            }
        }
        let scripts = [
            self.library.load_script(connection, Entry::Write).await?,
            self.library.load_script(connection, Entry::Trim).await?,
            self.library.load_script(connection, Entry::Read).await?,
        ];
        *self.scripts.lock().unwrap_or_else(PoisonError::into_inner) = Some(scripts);
        Ok(())
    }
}

/// True when the server, or its rules for this user, do not know or allow the command.
fn has_no_functions(error: &RedisError) -> bool {
    match trouble(error) {
        Trouble::Forbidden(..) => true,
        Trouble::Broken => error.detail().is_some_and(|detail| detail.contains("unknown")),
        _ => false,
    }
}

/// One connection to the server, shared by whoever calls at the same time.
#[derive(Debug)]
pub(super) struct Link {
    server: std::sync::Arc<Server>,
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<MultiplexedConnection>,
    /// Counts the connections, so that only the one that broke is dropped.
    generation: u64,
    /// How many attempts to connect have failed one after the other, and the last of them.
    failures: u32,
    failed: Option<(Instant, RedisError)>,
}

impl Link {
    pub(super) fn new(server: std::sync::Arc<Server>) -> Self {
        Self { server, state: tokio::sync::Mutex::default() }
    }

    pub(super) fn server(&self) -> &std::sync::Arc<Server> {
        &self.server
    }

    /// The open connection, or a new one. Waits at most one pause and one attempt.
    async fn connection(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let asked_at = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(open) = &state.open {
            return Ok((open.clone(), state.generation));
        }
        if let Some((failed_at, error)) = &state.failed {
            if *failed_at > asked_at {
                // Somebody else has tried in the meantime.
                return Err(error.clone());
            }
            let pause = BACKOFF.0.saturating_mul(1 << state.failures.min(10)).min(BACKOFF.1);
            sleep_until((*failed_at + pause).into()).await;
        }
        match self.connect().await {
            Ok(connection) => {
                state.generation += 1;
                state.failures = 0;
                state.failed = None;
                state.open = Some(connection.clone());
                Ok((connection, state.generation))
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                state.failed = Some((Instant::now(), error.clone()));
                self.server.forget_move();
                Err(error)
            }
        }
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.server.connect_limit))
            .set_response_timeout(Some(self.server.answer_limit));
        let client = self.server.client()?;
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        // The crate's own limit does not cover everything it does.
        match timeout(self.server.connect_limit + BACKOFF.1, connecting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }

    async fn close(&self, generation: u64) {
        let mut state = self.state.lock().await;
        if state.generation == generation {
            state.open = None;
        }
    }

    /// Sends a command as it is.
    pub(super) async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        let (mut connection, generation) = self.connection().await?;
        let outcome = connection.send_packed_command(command).await.and_then(Value::extract_error);
        if let Err(error) = &outcome {
            self.after(error, generation).await;
        }
        outcome
    }

    /// Looks which node of a cluster has the namespace; answers whether there is a log in it.
    pub(super) async fn locate(&self) -> RedisResult<bool> {
        let mut exists = Cmd::new();
        exists.arg("EXISTS").arg(format!("{}meta", self.server.prefix));
        let known = match self.send(&exists).await {
            Err(error) if trouble(&error) == Trouble::Moved => self.send(&exists).await,
            answer => answer,
        };
        known.map(|known| known == Value::Int(1))
    }

    /// Calls a function. It is sent again only when it was not applied.
    pub(super) async fn call<A: AsRef<Args>>(
        &self,
        entry: Entry,
        args: impl Iterator<Item = A> + Clone,
    ) -> RedisResult<Value> {
        let mut repeats = 0;
        loop {
            let (mut connection, generation) = self.connection().await?;
            let command = self.server.command(entry, args.clone());
            let outcome = connection.send_packed_command(&command).await.and_then(Value::extract_error);
            let error = match outcome {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            self.after(&error, generation).await;
            repeats += 1;
            if repeats > REPEATS_MAX {
                return Err(error);
            }
            match trouble(&error) {
                Trouble::NoFunction => {
                    if let Err(error) = self.server.load(&mut connection).await {
                        self.after(&error, generation).await;
                        if trouble(&error) != Trouble::Moved {
                            return Err(error);
                        }
                    }
                }
                Trouble::Moved => {}
                Trouble::Forbidden(..) if repeats == 1 && self.falls_back(&error) => {
                    self.server.load(&mut connection).await?;
                }
                _ => return Err(error),
            }
        }
    }

    /// True when functions cannot be called although they may be there.
    fn falls_back(&self, error: &RedisError) -> bool {
        let is_function = self.server.scripts.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        is_function && error.detail().is_some_and(|detail| detail.contains("fcall") || detail.contains("FCALL"))
    }

    /// Draws the consequences for the connection.
    async fn after(&self, error: &RedisError, generation: u64) {
        match trouble(error) {
            Trouble::Connection(_) => self.close(generation).await,
            Trouble::Elsewhere(_) => {
                self.server.forget_move();
                self.close(generation).await;
            }
            Trouble::Moved => {
                self.server.follow(error);
                self.close(generation).await;
            }
            _ => {}
        }
    }
}
