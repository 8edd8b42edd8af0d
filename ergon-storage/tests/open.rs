//! Logs are opened by their URLs.

use ergon_storage::{Enqueued, Error, ErrorKind, ExecutionLog, FlowId, NewFlow, open};

async fn refused(url: &str) -> Error {
    open(url).await.err().unwrap_or_else(|| panic!("{url} is refused"))
}

async fn enqueue(log: &dyn ExecutionLog) -> Enqueued {
    let flow = NewFlow::new(FlowId::new("order-7").unwrap(), "Order", 1, &b"{}"[..]);
    log.enqueue(vec![flow]).await.unwrap()[0]
}

#[tokio::test]
async fn each_log_in_memory_is_a_new_one() {
    for url in ["memory:", "memory://", "Memory:"] {
        for _ in 0..2 {
            assert_eq!(enqueue(&*open(url).await.unwrap()).await, Enqueued::Created, "{url}");
        }
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_file_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders one.db");
    let first = open(&format!("sqlite:{}", path.display())).await.unwrap();
    assert_eq!(enqueue(&*first).await, Enqueued::Created);
    let second = open(&format!("sqlite://{}", path.display())).await.unwrap();
    assert_eq!(enqueue(&*second).await, Enqueued::Existing { same: true });
    for _ in 0..2 {
        assert_eq!(enqueue(&*open("sqlite::memory:").await.unwrap()).await, Enqueued::Created);
    }
    let nowhere = format!("sqlite:{}/missing/orders.db", directory.path().display());
    assert_eq!(refused(&nowhere).await.kind(), ErrorKind::Invalid);
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_server_is_connected_to() {
    let redis = ergon_test_servers::Redis::start(ergon_test_servers::Persistence::None);
    for enqueued in [Enqueued::Created, Enqueued::Existing { same: true }] {
        assert_eq!(enqueue(&*open(&redis.url()).await.unwrap()).await, enqueued);
    }
    assert_eq!(refused("redis://:secret@").await.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn other_urls_are_refused() {
    for (url, hint) in [
        ("orders.db", "write sqlite:FILE"),
        ("", "write sqlite:FILE"),
        ("mysql://root:secret@localhost", "no log has URLs that begin with mysql:"),
        ("memory:orders", "nothing follows memory:"),
    ] {
        let error = refused(url).await;
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(hint), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    #[cfg(feature = "postgres")]
    for url in ["postgres:", "postgres://", "postgresql://ada:secret@localhost:port"] {
        let error = refused(url).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{url}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
    #[cfg(feature = "sqlite")]
    for url in ["sqlite:", "sqlite://", "sqlite:orders.db?mode=rwc"] {
        assert_eq!(refused(url).await.kind(), ErrorKind::Invalid, "{url}");
    }
}

#[tokio::test]
async fn a_log_that_is_not_built_in_names_its_feature() {
    let missing: &[(&str, &str)] = &[
        #[cfg(not(feature = "sqlite"))]
        ("sqlite:orders.db", "`sqlite`"),
        #[cfg(not(feature = "redis"))]
        ("redis://localhost", "`redis`"),
        #[cfg(not(feature = "redis"))]
        ("rediss://:secret@localhost", "`redis`"),
        #[cfg(not(feature = "postgres"))]
        ("postgres://localhost", "`postgres`"),
        #[cfg(not(feature = "postgres"))]
        ("postgresql://ada:secret@localhost", "`postgres`"),
    ];
    for (url, feature) in missing {
        let error = refused(url).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(feature), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
