//! Logs by their URLs.

use std::sync::Arc;

use crate::{Error, ErrorKind, ExecutionLog, Result};

/// Opens the log that a URL names, so that a setting can decide where flows are kept:
///
/// | URL | log | feature |
/// |---|---|---|
/// | `memory:` | a new one in this process: [`InMemoryExecutionLog`](crate::InMemoryExecutionLog) | `memory` |
/// | `sqlite:orders.db`, `sqlite:///var/lib/orders.db` | in that file, which is made when it is missing | `sqlite` |
/// | `sqlite::memory:` | a new SQLite one in this process | `sqlite` |
/// | `postgres://user:password@host/database` | on that server: [`PostgresExecutionLog`](crate::PostgresExecutionLog) | `postgres` |
/// | `redis://localhost`, `redis://ada:secret@db.example.com:6379/0` | on that server: `RedisExecutionLog` | `redis` |
///
/// It is opened with the default options; the options of each log, such as `SqliteOptions`, offer more.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] for what is no such URL, [`ErrorKind::Unsupported`] for a log that this program was built
/// without, and whatever opening the log may fail with. No message repeats the URL, which may hold a password.
///
/// # Examples
///
/// ```
/// use ergon_storage::{Enqueued, ErrorKind, ExecutionLog, FlowId, NewFlow, open};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let log = open("memory:").await?;
/// let order = NewFlow::new(FlowId::new("order-7")?, "Order", 1, &b"{}"[..]);
/// assert_eq!(log.enqueue(vec![order]).await?, [Enqueued::Created]);
///
/// let error = open("orders.db").await.err().expect("a file name alone is no URL");
/// assert_eq!(error.kind(), ErrorKind::Invalid);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[allow(clippy::unused_async)] // where no log is built in that takes time
pub async fn open(url: &str) -> Result<Arc<dyn ExecutionLog>> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(invalid(format!("the URL of a log begins with {SCHEMES}; for a file write sqlite:FILE")));
    };
    let scheme = scheme.to_ascii_lowercase();
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    match scheme.as_str() {
        "memory" if !rest.is_empty() => Err(invalid("nothing follows memory: in the URL of a log")),
        #[cfg(feature = "memory")]
        "memory" => Ok(Arc::new(crate::InMemoryExecutionLog::new())),
        #[cfg(feature = "sqlite")]
        "sqlite" => Ok(Arc::new(sqlite(rest)?.open().await?)),
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => Ok(Arc::new(crate::PostgresExecutionLog::connect(url).await?)),
        #[cfg(feature = "redis")]
        "redis" | "rediss" => Ok(Arc::new(crate::RedisExecutionLog::connect(url).await?)),
        _ => match FEATURES.iter().find(|(schemes, ..)| schemes.contains(&scheme.as_str())) {
            Some((_, name, feature)) => {
                let message = format!("this program was built without {name}: enable feature `{feature}` of ergon");
                Err(Error::new(ErrorKind::Unsupported, message))
            }
            None => Err(invalid(format!("no log has URLs that begin with {scheme}: but with {SCHEMES}"))),
        },
    }
}

const SCHEMES: &str = "memory:, sqlite:, redis://, rediss://, postgres:// or postgresql://";

/// The logs, and the features that they are part of.
const FEATURES: [(&[&str], &str, &str); 4] = [
    (&["memory"], "the log in memory", "memory"),
    (&["sqlite"], "the log on SQLite", "sqlite"),
    (&["redis", "rediss"], "the log on Redis", "redis"),
    (&["postgres", "postgresql"], "the log on PostgreSQL", "postgres"),
];

#[cfg(feature = "sqlite")]
fn sqlite(path: &str) -> Result<crate::SqliteOptions> {
    match path {
        ":memory:" => Ok(crate::SqliteOptions::in_memory()),
        "" => Err(invalid("sqlite: is followed by the file of the log, or by :memory:")),
        // Other programs' URLs may look like this, and a file of that name is not what was meant.
        path if path.contains('?') => {
            Err(invalid("the URL of an SQLite log takes no parameters; SqliteOptions offers what can be chosen"))
        }
        path => Ok(crate::SqliteOptions::new(path)),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, message)
}
