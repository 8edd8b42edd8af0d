//! The logs that a soak works on, and what is left in them.

use std::path::{Path, PathBuf};

use ergon::sqlite::rusqlite;
use ergon_test_servers::{Persistence, Postgres, Proxy, Redis};

use crate::fleet::sqlite_url;

/// The tables and keys of a log that do not belong to its flows: what it is, its queues, and the workers that it knows.
const NOT_OF_FLOWS: [&str; 5] = ["meta", "versions", "lanes", "places", "asks"];

const TABLES_OF_SQLITE: &str = "SELECT name FROM sqlite_master WHERE type = 'table'";
/// Each table with the number of its rows.
const TABLES_OF_POSTGRES: &str = "SELECT table_name || ' ' || (xpath('/row/n/text()', query_to_xml(format('SELECT \
    count(*) AS n FROM %I.%I', table_schema, table_name), false, true, '')))[1]::text FROM information_schema.tables \
    WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')";

/// Where the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// In a file.
    Sqlite,
    /// On a Redis server.
    Redis,
    /// On a PostgreSQL server.
    Postgres,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sqlite, Self::Redis, Self::Postgres];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }
}

/// A log, and the way to it.
pub(super) enum Server {
    File(PathBuf),
    Redis(Redis, Proxy),
    Postgres(Box<Postgres>, Proxy),
}

impl Server {
    pub(super) fn start(backend: Backend, folder: &Path) -> Self {
        match backend {
            Backend::Sqlite => Self::File(folder.join("log.db")),
            Backend::Redis => {
                let server = Redis::start(Persistence::Always);
                let proxy = Proxy::to(server.address());
                Self::Redis(server, proxy)
            }
            Backend::Postgres => {
                let server = Postgres::start();
                let proxy = Proxy::to(server.address());
                Self::Postgres(Box::new(server), proxy)
            }
        }
    }

    /// The way that processes take.
    pub(super) fn url(&self) -> String {
        match self {
            Self::File(path) => sqlite_url(path),
            Self::Redis(server, proxy) => proxy.url(&server.url()),
            Self::Postgres(server, proxy) => proxy.url(&server.url()),
        }
    }

    pub(super) fn proxy(&self) -> Option<&Proxy> {
        match self {
            Self::File(_) => None,
            Self::Redis(_, proxy) | Self::Postgres(_, proxy) => Some(proxy),
        }
    }

    pub(super) fn kill_and_restart(&mut self) {
        match self {
            Self::File(_) => {}
            Self::Redis(server, _) => {
                server.kill();
                server.restart();
            }
            Self::Postgres(server, _) => {
                server.kill();
                server.restart();
            }
        }
    }

    /// What is left in a log that has forgotten all flows: tables with their rows, or keys.
    pub(super) fn left_behind(&self) -> Vec<String> {
        match self {
            Self::File(path) => left_in_file(path).unwrap_or_else(|error| vec![format!("the file: {error}")]),
            Self::Redis(server, _) => {
                let keys = server.command(&["KEYS", "*"]);
                // Among the keys are lengths, in the protocol's way.
                let of_flow =
                    |line: &&str| line.split_once("}:").is_some_and(|(_, name)| !NOT_OF_FLOWS.contains(&name));
                keys.lines().filter(of_flow).map(str::to_owned).collect()
            }
            Self::Postgres(server, _) => {
                let of_flow = |line: &String| {
                    line.split_once(' ').is_none_or(|(table, rows)| rows != "0" && !NOT_OF_FLOWS.contains(&table))
                };
                server.execute("postgres", TABLES_OF_POSTGRES).into_iter().filter(of_flow).collect()
            }
        }
    }
}

fn left_in_file(path: &Path) -> rusqlite::Result<Vec<String>> {
    let file = rusqlite::Connection::open(path)?;
    let mut tables = file.prepare(TABLES_OF_SQLITE)?;
    let tables: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut left = Vec::new();
    for table in tables.iter().filter(|table| !NOT_OF_FLOWS.contains(&table.as_str())) {
        let rows: u32 = file.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
        left.extend((rows > 0).then(|| format!("{table} {rows}")));
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use ergon::Scheduler;
    use tempfile::TempDir;

    use super::*;
    use crate::{job, soak::errand::Errand};

    #[tokio::test]
    async fn a_flow_that_is_left_is_seen_on_each_backend() {
        for backend in Backend::ALL {
            let folder = TempDir::new().unwrap();
            let server = Server::start(backend, folder.path());
            let log = job::open(&server.url()).await.unwrap();
            assert_eq!(server.left_behind(), Vec::<String>::new(), "{backend:?}");
            Scheduler::new(log).schedule(Errand::new(0)).await.unwrap();
            assert_ne!(server.left_behind(), Vec::<String>::new(), "{backend:?}");
        }
    }
}
