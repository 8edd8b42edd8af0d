//! `PgBouncer`, which hands out connections of a PostgreSQL server.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::{
    Postgres,
    port::Port,
    postgres_client::{Client, Failure},
    server::{Folder, Program, Server, find},
};

/// A private `PgBouncer` in front of a [`Postgres`], which must live as long.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server<PgBouncerServer>,
}

/// How long a client has a connection of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// As long as it is connected.
    Session,
    /// For each transaction.
    Transaction,
}

#[derive(Debug)]
struct PgBouncerServer {
    binary: PathBuf,
    target: SocketAddr,
    mode: PoolMode,
}

impl PgBouncer {
    /// Starts one in front of a server.
    ///
    /// # Panics
    ///
    /// When there is none to start, or when it does not start.
    #[must_use]
    pub fn start(mode: PoolMode, postgres: &Postgres) -> Self {
        let program = PgBouncerServer { binary: binary(), target: postgres.address(), mode };
        Self { server: Server::start(program, Folder::for_another_user_than_root(&["postgres", "nobody"])) }
    }

    /// Where a database of the server is by way of it.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.server.address())
    }
}

impl Program for PgBouncerServer {
    const NAME: &'static str = "pgbouncer";

    fn command(&self, port: &Port, folder: &Path) -> Vec<String> {
        let mode = match self.mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        };
        let settings = format!(
            "[databases]\n* = host={} port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = {mode}\nmax_client_conn = 500\n\
             default_pool_size = 100\n",
            self.target.ip(),
            self.target.port(),
            port.number(),
        );
        let file = folder.join("pgbouncer.ini");
        fs::write(&file, settings).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        vec![self.binary.display().to_string(), file.display().to_string()]
    }

    fn is_ready(&self, address: SocketAddr) -> bool {
        match Client::connect(address, "postgres") {
            Ok(_) => true,
            Err(Failure::Refused { message, .. }) => panic!("pgbouncer does not let us in: {message}"),
            Err(Failure::Connection(_)) => false,
        }
    }

    fn port_is_taken(output: &str) -> bool {
        output.contains("Address already in use")
    }
}

/// Debian has it where only root looks.
fn binary() -> PathBuf {
    find("pgbouncer", ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from)).unwrap_or_else(|| {
        panic!(
            "there is no PgBouncer, which this test needs: `cargo xtask test` installs it on Debian as root; otherwise \
             `sudo apt-get install pgbouncer`, `sudo dnf install pgbouncer`, `brew install pgbouncer`"
        )
    })
}
