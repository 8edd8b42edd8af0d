//! The PostgreSQL log keeps the laws of every log.
#![cfg(all(feature = "postgres", feature = "conformance"))]

use std::{sync::Arc, time::Duration};

use ergon_storage::{
    ManualClock, PostgresExecutionLog, PostgresOptions, SynchronousCommit,
    conformance::{Harness, Lifetime},
};
use ergon_test_servers::{Postgres, fresh_name};

/// Logs in schemas of one server.
struct SchemaHarness {
    url: String,
}

impl SchemaHarness {
    fn new() -> Self {
        Self { url: Postgres::shared().url() }
    }
}

struct SchemaStore {
    schema: String,
    clock: ManualClock,
}

impl Harness for SchemaHarness {
    type Log = PostgresExecutionLog;
    type Store = SchemaStore;
    const LIFETIME: Lifetime = Lifetime::Store;

    async fn create(&self) -> SchemaStore {
        SchemaStore { schema: fresh_name(), clock: ManualClock::new() }
    }

    async fn open(&self, store: &SchemaStore) -> Arc<PostgresExecutionLog> {
        let options = PostgresOptions::new(&self.url).schema(&store.schema);
        // The death of the server is not what the laws are about.
        let options = options.synchronous_commit(SynchronousCommit::Off);
        Arc::new(options.clock(Arc::new(store.clock.clone())).connect().await.unwrap())
    }

    async fn close(&self, _: &SchemaStore, log: Arc<PostgresExecutionLog>) {
        drop(Arc::into_inner(log).expect("the only handle"));
    }

    async fn advance(&self, store: &SchemaStore, by: Duration) {
        store.clock.advance(by);
    }
}

ergon_storage::conformance_tests!(SchemaHarness::new());

/// What a pooler in session mode could break: connections that keep what they know, transactions, races.
mod behind_a_pooler {
    use ergon_storage::conformance::{block_on, claim, durability, lease, queue, races};
    use ergon_test_servers::{PgBouncer, PoolMode, Postgres};

    use super::SchemaHarness;

    #[test]
    fn the_laws_hold() {
        let pooler = PgBouncer::start(PoolMode::Session, Postgres::shared());
        let harness = SchemaHarness { url: pooler.url_of("postgres") };
        block_on(async {
            queue::enqueue_keeps_every_field(&harness).await;
            claim::claim_answers_with_the_running_flow(&harness).await;
            lease::heartbeat_renews_many(&harness).await;
            races::claims_are_exclusive(&harness).await;
            races::commits_with_one_number_apply_once(&harness).await;
            races::a_message_to_a_flow_that_consumes_and_suspends_is_not_lost(&harness).await;
            races::a_child_of_a_flow_that_suspends_is_heard(&harness).await;
            durability::a_store_that_is_opened_again_goes_on(&harness).await;
        });
    }
}
