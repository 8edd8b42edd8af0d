//! The servers that rounds are measured on: private ones, on this machine, with their files beside the others'.

use std::{collections::HashMap, panic::catch_unwind};

use ergon_bench_round::{Backend, Durability};
use ergon_test_servers::{Persistence, Postgres, Redis};

/// The settings that the tests' servers differ from a real one in, and somewhat more memory than the default.
const POSTGRES: [(&str, &str); 3] = [("fsync", "on"), ("shared_buffers", "256MB"), ("max_wal_size", "4GB")];

/// The servers that stay up from round to round; a Redis server starts anew for each.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    postgres: HashMap<Durability, Option<Postgres>>,
}

/// An empty database, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Database {
    url: String,
    /// Ends when it is dropped.
    _redis: Option<Redis>,
}

impl Database {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Servers {
    /// An empty database of this kind, where the backend is a server.
    ///
    /// # Errors
    ///
    /// When there is no such server on this machine; what to do about it was printed.
    pub(crate) fn database(
        &mut self,
        backend: Backend,
        durability: Durability,
    ) -> Result<Option<Database>, &'static str> {
        match backend {
            Backend::Memory | Backend::Sqlite => Ok(None),
            Backend::Redis => {
                let persistence = match durability {
                    Durability::Full => Persistence::Always,
                    Durability::Normal => Persistence::EverySecond,
                    Durability::None => Persistence::None,
                };
                let redis = catch_unwind(|| Redis::start(persistence)).map_err(|_| "there is no Redis server")?;
                Ok(Some(Database { url: redis.url(), _redis: Some(redis) }))
            }
            Backend::Postgres => {
                let server = self.postgres.entry(durability).or_insert_with(|| catch_unwind(|| start(durability)).ok());
                let postgres = server.as_ref().ok_or("there is no PostgreSQL server")?;
                // What the round before has left is written now, not in this one.
                let drop_all = "SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database \
                    WHERE datname LIKE 'test\\_%'";
                for statement in postgres.execute("postgres", drop_all) {
                    postgres.execute("postgres", &statement);
                }
                postgres.execute("postgres", "CHECKPOINT");
                Ok(Some(Database { url: postgres.fresh_database(), _redis: None }))
            }
        }
    }
}

fn start(durability: Durability) -> Postgres {
    let commit = if durability == Durability::Full { "on" } else { "off" };
    let settings: Vec<_> = POSTGRES.into_iter().chain([("synchronous_commit", commit)]).collect();
    Postgres::start_with(&settings)
}
