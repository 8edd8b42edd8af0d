//! What a user may not do, and what a server refuses.

use ergon_storage::{Commit, Enqueued, ErrorKind, ExecutionLog, FlowState, Next, RedisExecutionLog, RedisOptions};
use ergon_test_servers::{Persistence, Redis};

use super::{fake, flow, id, keys, one, refused};

#[tokio::test]
async fn a_user_who_may_not_load_functions_uses_scripts() {
    let redis = Redis::start(Persistence::None);
    let user = ["ACL", "SETUSER", "ada", "on", ">secret", "~{ergon}:*", "&{ergon}:*"];
    let rules = ["+@all", "-@admin", "-function", "-fcall", "-fcall_ro", "-config"];
    assert_eq!(redis.command(&[&user[..], &rules[..]].concat()), "+OK\r\n");
    let url = format!("redis://ada:secret@{}", redis.address());
    let log = RedisExecutionLog::connect(&url).await.unwrap();
    assert!(log.warnings()[0].contains("CONFIG is not allowed"), "{:?}", log.warnings());
    for round in 0..2 {
        let name = format!("flow-{round}");
        log.enqueue(vec![flow(&name)]).await.unwrap();
        let lease = log.claim(one(&name)).await.unwrap().flows.remove(0).lease;
        let mut commit = Commit::new(lease, 1);
        commit.next = Next::Complete { result: "1".into() };
        log.commit(commit).await.unwrap();
        assert_eq!(log.flow(&id(&name)).await.unwrap().unwrap().info.state, FlowState::Completed);
        assert!(log.delete(&id(&name)).await.unwrap());
        assert_eq!(redis.command(&["SCRIPT", "FLUSH"]), "+OK\r\n");
    }
    // Not even that.
    assert_eq!(redis.command(&["ACL", "SETUSER", "ada", "-eval", "-evalsha", "-script"]), "+OK\r\n");
    let error = refused(RedisOptions::new(&url)).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("permission"), "{error}");
}

/// A user may not tell others of changes, or not hear of them.
#[tokio::test]
async fn a_missing_permission_is_found_before_anything_is_written() {
    let redis = Redis::start(Persistence::None);
    let user = ["ACL", "SETUSER", "ada", "reset", "on", ">secret", "~{ergon}:*"];
    let url = format!("redis://ada:secret@{}", redis.address());
    for (rules, command) in [
        (&["&{ergon}:*", "+@all", "-publish"][..], "PUBLISH"),
        (&["&{ergon}:*", "+@all", "-pubsub"], "PUBSUB"),
        (&["&{ergon}:*", "+@all", "-subscribe"], "SUBSCRIBE"),
        (&["&other:*", "+@all"], "PUBLISH"),
        (&["&{ergon}:*", "+@all", "-unlink"], "UNLINK"),
    ] {
        assert_eq!(redis.command(&[&user[..], rules].concat()), "+OK\r\n");
        let error = refused(RedisOptions::new(&url)).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.to_string().contains(command), "{error}");
        assert!(keys(&redis).is_empty());
    }
    // What is taken away later does not take a write back, nor is it taken for damage.
    assert_eq!(redis.command(&[&user[..], &["&{ergon}:*", "+@all"]].concat()), "+OK\r\n");
    let log = RedisExecutionLog::connect(&url).await.unwrap();
    assert_eq!(redis.command(&["ACL", "SETUSER", "ada", "-publish", "-pubsub"]), "+OK\r\n");
    assert_eq!(log.enqueue(vec![flow("a")]).await.unwrap(), [Enqueued::Created]);
    assert_eq!(redis.command(&["ACL", "SETUSER", "ada", "-zmscore"]), "+OK\r\n");
    let error = log.enqueue(vec![flow("b")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("permission"), "{error}");
}

/// What a server says that has no code of its own.
#[tokio::test]
async fn refusals_of_the_server_are_told_apart() {
    for (text, kind, hint) in [
        ("-ERR max number of clients reached\r\n", ErrorKind::Unavailable, "maxclients"),
        ("-DENIED Redis is running in protected mode because\r\n", ErrorKind::Unsupported, "protected mode"),
        ("-ERR Error running script: Script killed by user with FUNCTION KILL.\r\n", ErrorKind::Unavailable, "KILL"),
        ("-NOPERM The user executing the script can't run this command\r\n", ErrorKind::Unsupported, "permission"),
    ] {
        let server = fake(vec![("", text.to_owned())]);
        let error = refused(RedisOptions::new(format!("redis://{server}"))).await;
        assert_eq!(error.kind(), kind, "{text}: {error:?}");
        assert!(error.to_string().contains(hint), "{error:?}");
    }
    let redis = Redis::shared();
    let error = refused(RedisOptions::new(format!("{}/99", redis.url()))).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(error.to_string().contains("database"), "{error:?}");
    // Nobody listens there: it is named, and why, once.
    let error = refused(RedisOptions::new("redis://ada:secret@127.0.0.1:1")).await;
    let text = format!("{error:?}");
    assert_eq!(text.matches("127.0.0.1:1").count(), 1, "{text}");
    assert_eq!(text.to_lowercase().matches("refused").count(), 1, "{text}");
}
