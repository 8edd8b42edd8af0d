//! The Redis log keeps the laws of every log, on a plain server and on a cluster of one node, which refuses whatever
//! touches two slots.
#![cfg(all(feature = "redis", feature = "conformance"))]

use std::{sync::Arc, time::Duration};

use ergon_storage::{
    ManualClock, RedisExecutionLog, RedisOptions,
    conformance::{Harness, Lifetime},
};
use ergon_test_servers::Redis;

/// Logs in namespaces of their own on one server.
struct RedisHarness(&'static Redis);

struct RedisStore {
    namespace: String,
    clock: ManualClock,
}

impl Harness for RedisHarness {
    type Log = RedisExecutionLog;
    type Store = RedisStore;
    const LIFETIME: Lifetime = Lifetime::Store;

    async fn create(&self) -> RedisStore {
        RedisStore { namespace: self.0.fresh_prefix(), clock: ManualClock::new() }
    }

    async fn open(&self, store: &RedisStore) -> Arc<RedisExecutionLog> {
        let options = RedisOptions::new(self.0.url()).namespace(&store.namespace);
        Arc::new(options.clock(Arc::new(store.clock.clone())).connect().await.unwrap())
    }

    async fn close(&self, _: &RedisStore, log: Arc<RedisExecutionLog>) {
        drop(Arc::into_inner(log).expect("the only handle"));
    }

    async fn advance(&self, store: &RedisStore, by: Duration) {
        store.clock.advance(by);
    }
}

mod server {
    use super::{Redis, RedisHarness};

    ergon_storage::conformance_tests!(RedisHarness(Redis::shared()));
}

mod cluster {
    use super::{Redis, RedisHarness};

    ergon_storage::conformance_tests!(RedisHarness(Redis::shared_cluster()));
}
