//! Database servers for tests, each a private one with its own port and folder, and a [`Proxy`] that breaks the
//! connections to them.
//!
//! ```no_run
//! use ergon_test_servers::{Persistence, Postgres, Proxy, Redis};
//!
//! let mut redis = Redis::start(Persistence::Always);
//! let proxy = Proxy::to(redis.address());
//! // … connect to `proxy.url(&redis.url())` …
//! proxy.cut();
//! redis.kill();
//! redis.restart();
//!
//! let database = Postgres::shared().fresh_database();
//! ```
//!
//! A server is stopped and its folder removed when it is dropped, and also when the test process ends in whatever
//! way, SIGKILL included: it runs under a shell that waits for the end of a pipe from the test process. What goes
//! wrong panics, with what to do about it.
//!
//! Everything blocks, for milliseconds, or for a second where a server starts: tests of asynchronous code may call
//! it all the same.

mod pgbouncer;
mod port;
mod postgres;
mod postgres_client;
mod processes;
mod proxy;
mod redis;
mod server;

use std::sync::atomic::{AtomicU64, Ordering};

pub use pgbouncer::{PgBouncer, PoolMode};
pub use postgres::Postgres;
pub use proxy::Proxy;
pub use redis::{Persistence, Redis};

/// A name that is given once in this process: `test_1`, `test_2`, …
#[must_use]
pub fn fresh_name() -> String {
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    format!("test_{}", GIVEN.fetch_add(1, Ordering::Relaxed) + 1)
}
