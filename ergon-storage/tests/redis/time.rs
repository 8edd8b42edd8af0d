//! The clock of the server.

use std::time::Duration;

use ergon_storage::ExecutionLog;
use ergon_test_servers::Redis;

use super::{connect, flow};

#[tokio::test]
async fn the_clock_follows_the_server_and_is_never_ahead() {
    let redis = Redis::shared();
    let log = connect(redis).await;
    let server = || {
        let answer = redis.command(&["TIME"]);
        let numbers: Vec<i64> = answer.lines().filter_map(|line| line.parse().ok()).collect();
        numbers[0] * 1_000_000 + numbers[1]
    };
    for _ in 0..20 {
        let before = server();
        log.enqueue(vec![flow("a")]).await.unwrap();
        let now = log.clock().now().as_micros();
        let after = server();
        assert!(now <= after, "{now} is ahead of {after}");
        assert!(now >= before - 1_000_000, "{now} is far behind {before}");
    }
    let due = log.clock().now().saturating_add(Duration::from_millis(5));
    log.clock().sleep_until(due).await;
    assert!(server() >= due.as_micros());
}
