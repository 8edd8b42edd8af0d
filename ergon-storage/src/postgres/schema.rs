//! The schema: whose it is, which version it has, and the way to the present one.

use std::sync::Arc;

use tokio_postgres::{SimpleQueryRow, error::SqlState};

use super::{
    pool::{Connector, Session},
    row::unreadable,
};
use crate::{Error, ErrorKind, Result};

/// One entry per version of the schema: what leads to it from the one before. Never change one that was released.
const MIGRATIONS: &[&[&str]] = &[&[include_str!("schema.sql"), include_str!("functions.sql")]];

/// What marks a schema as ours, in the comment on its table of versions.
const MARK: &str = "the execution log of ergon";
/// The oldest server that has all that the statements use.
const SERVER_VERSION_MIN: u32 = 140_000;
/// The lock under which a schema is changed, beside a number for its name: "Ergn".
const LOCK: i32 = 0x4572_676e;

/// The version that this program reads and writes.
fn version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Whose a schema is.
enum Owner {
    Nobody,
    Ours(i64),
    Foreign,
}

/// Brings the schema to the present version, or refuses the server for what it is.
pub(super) async fn migrate(connector: &Arc<Connector>) -> Result<()> {
    connector.once(async |session| Migration { connector, session: &session }.run().await).await
}

/// Refuses a connection that came back to something else: a standby, another database, a newer schema.
pub(super) async fn check_again(session: &Session) -> Result<()> {
    let connector = session.connector();
    let migration = Migration { connector, session };
    let gone = || {
        let message = format!("the schema {:?} of {} is gone", connector.options.schema, connector.target);
        Error::new(ErrorKind::Corrupt, message)
    };
    // At one go: a connection that was lost is waited for.
    let rows = session.begin(&format!("{}; {}", migration.look_statements(), migration.version_statement())).await;
    let rows = rows.map_err(|error| {
        let is_gone = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME].contains(&state_of(&error));
        if is_gone { gone().with_source(error) } else { error }
    })?;
    let [server, objects, found] = &rows[..] else { return Err(unreadable("the server does not say what it is")) };
    migration.check_server(server)?;
    match read_version(found)? {
        _ if objects.get(1) != Some(MARK) => Err(gone()),
        found if found == version() => Ok(()),
        found => Err(other_version(connector, found)),
    }
}

fn other_version(connector: &Connector, found: i64) -> Error {
    let Connector { target, options, .. } = connector;
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "the execution log in schema {:?} of {target} has version {found}, this program knows versions 1 to {}; \
             use a newer build of this program, or another schema",
            options.schema,
            version()
        ),
    )
}

struct Migration<'m> {
    connector: &'m Connector,
    session: &'m Session,
}

impl Migration<'_> {
    async fn run(&self) -> Result<()> {
        let look = self.look_statements();
        // Most of the time there is nothing to do, and no lock to wait for.
        match self.owner(&self.session.begin(&look).await?).await? {
            Owner::Ours(found) if found == version() => return Ok(()),
            Owner::Ours(found) if found > version() => return Err(other_version(self.connector, found)),
            Owner::Foreign => return Err(self.foreign()),
            _ => {}
        }
        self.execute("BEGIN").await?;
        self.lock().await?;
        // Looked at again under the lock: another process may have been here meanwhile.
        let found = match self.owner(&self.session.rows(&look).await?).await? {
            Owner::Nobody => 0,
            Owner::Ours(found) if found <= version() => found,
            Owner::Ours(found) => return Err(other_version(self.connector, found)),
            Owner::Foreign => return Err(self.foreign()),
        };
        if found == 0 {
            self.begin().await?;
        }
        let from = usize::try_from(found).unwrap_or(0);
        for scripts in &MIGRATIONS[from..] {
            self.execute(&scripts.concat()).await?;
        }
        self.execute(&format!("UPDATE {{s}}.versions SET version = {}", version())).await?;
        self.execute("COMMIT").await
    }

    /// Waits for other processes that change the schema.
    async fn lock(&self) -> Result<()> {
        let Connector { target, options, .. } = self.connector;
        self.execute(&lock_statement(&options.schema)).await.map_err(|error| {
            if state_of(&error) == SqlState::QUERY_CANCELED {
                let (schema, within) = (&options.schema, options.answer_timeout);
                let message = format!(
                    "another process has been changing the schema {schema:?} of {target} for {within:?} and has not \
                     ended yet; try again"
                );
                Error::new(ErrorKind::Unavailable, message).with_source(error)
            } else {
                error
            }
        })
    }

    /// Makes the schema, if its owner has not done so for us, and marks it.
    async fn begin(&self) -> Result<()> {
        let exists = format!("SELECT FROM pg_namespace WHERE nspname = {}", self.schema_text());
        if self.session.rows(&exists).await?.is_empty() {
            self.execute("CREATE SCHEMA {s}").await?;
        }
        self.execute("CREATE TABLE {s}.versions (version bigint NOT NULL)").await?;
        self.execute(&format!("COMMENT ON TABLE {{s}}.versions IS '{MARK}'")).await?;
        self.execute("INSERT INTO {s}.versions VALUES (0)").await
    }

    /// Looks at what the server is, and whose the schema is.
    fn look_statements(&self) -> String {
        format!(
            "SELECT current_setting('server_version_num'), current_setting('server_version'), \
                current_setting('server_encoding'), \
                pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean; \
             SELECT count(*), max(obj_description(c.oid, 'pg_class')) FILTER (WHERE c.relname = 'versions') \
                FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {}",
            self.schema_text()
        )
    }

    /// Refuses a server that cannot hold a log, and says whose the schema is, by what was looked at.
    async fn owner(&self, rows: &[SimpleQueryRow]) -> Result<Owner> {
        let [server, objects] = rows else { return Err(unreadable("the server does not say what it is")) };
        self.check_server(server)?;
        if text(objects, 0) == "0" {
            return Ok(Owner::Nobody);
        }
        if objects.get(1) != Some(MARK) {
            return Ok(Owner::Foreign);
        }
        let rows = self.session.rows(&self.version_statement()).await?;
        let found = rows.first().ok_or_else(|| unreadable("the schema has no version"))?;
        read_version(found).map(Owner::Ours)
    }

    fn version_statement(&self) -> String {
        self.connector.localize("SELECT version FROM {s}.versions")
    }

    fn check_server(&self, server: &SimpleQueryRow) -> Result<()> {
        let Connector { target, .. } = self.connector;
        let [number, name, encoding, read_only] = [0, 1, 2, 3].map(|column| text(server, column));
        if number.parse().unwrap_or(0) < SERVER_VERSION_MIN {
            let message = format!("{target} is PostgreSQL {name}, an execution log needs version 14 or later");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if encoding != "UTF8" {
            let message = format!("{target} keeps its text as {encoding}, an execution log needs UTF8");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if read_only != "f" {
            let message = format!("{target} may only be read, as a standby may, and an execution log must be written");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(())
    }

    /// The schema's name as a value: no name has a quote.
    fn schema_text(&self) -> String {
        format!("'{}'", self.connector.options.schema)
    }

    fn foreign(&self) -> Error {
        let Connector { target, options, .. } = self.connector;
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "the schema {:?} of {target} holds something else; give the execution log one of its own",
                options.schema
            ),
        )
    }

    async fn execute(&self, template: &str) -> Result<()> {
        self.session.execute(&self.connector.localize(template)).await
    }
}

fn read_version(row: &SimpleQueryRow) -> Result<i64> {
    text(row, 0).parse().map_err(|_| unreadable("the version of the schema is no number"))
}

/// What takes the lock of a schema until the transaction ends.
fn lock_statement(schema: &str) -> String {
    let lock = super::text::hash(schema).to_le_bytes();
    let lock = i32::from_le_bytes([lock[0], lock[1], lock[2], lock[3]]);
    format!("SELECT pg_advisory_xact_lock({LOCK}, {lock})")
}

/// What the server says about an error that it is the cause of.
fn state_of(error: &Error) -> SqlState {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    cause.and_then(tokio_postgres::Error::code).cloned().unwrap_or(SqlState::SUCCESSFUL_COMPLETION)
}

/// A column that is never null.
fn text(row: &SimpleQueryRow, column: usize) -> &str {
    row.try_get(column).ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ergon_test_servers::{Postgres, fresh_name};

    use super::*;
    use crate::PostgresOptions;

    #[tokio::test]
    async fn a_migration_that_does_not_end_is_not_waited_for_for_ever() {
        let schema = fresh_name();
        let options = PostgresOptions::new(Postgres::shared().url()).schema(&schema);
        let holder = Arc::new(Connector::new(options.clone()).unwrap());
        let error = holder.once(async |session| {
            session.execute(&format!("BEGIN; {}", lock_statement(&schema))).await?;
            Ok(options.clone().answer_timeout(Duration::from_millis(200)).connect().await.unwrap_err())
        });
        let error = error.await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.to_string().contains("another process has been changing the schema"), "{error}");
        assert!(options.connect().await.is_ok(), "the lock ends with its holder");
    }
}
