//! What is looked at before a server is trusted with a log.

use redis::{Cmd, ErrorKind as Kind, Value};

use super::{
    answer,
    args::Args,
    error::{Trouble, from_function, from_redis, trouble},
    keys::Prefix,
    lanes::head_of,
    library::Entry,
    link::Link,
};
use crate::{Error, ErrorKind, Result};

/// The oldest server: the first with functions.
const MAJOR_MIN: u32 = 7;
/// What `SCAN` looks at in one step, and how many steps are made in search of another program's keys.
const SCAN_KEYS: usize = 1_000;
const SCAN_STEPS_MAX: usize = 1_000;
/// The layout that this program reads and writes; as in state.lua.
const SCHEMA: i64 = 1;

/// Refuses a server that is too old.
pub(super) async fn version(link: &Link, warnings: &mut Vec<String>) -> Result<()> {
    let mut info = Cmd::new();
    info.arg("INFO").arg("server");
    let text = match link.send(&info).await {
        Ok(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
        Ok(Value::SimpleString(text) | Value::VerbatimString { text, .. }) => text,
        Ok(_) => String::new(),
        Err(error) if is_forbidden(&error) => {
            warnings.push("the server's version is not known: INFO is not allowed".into());
            return Ok(());
        }
        Err(error) => return Err(from_redis(error, link.server())),
    };
    let version = text.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default().trim();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major < MAJOR_MIN => {
            let message = format!("the Redis server has version {version}, ergon needs {MAJOR_MIN} or later");
            Err(Error::new(ErrorKind::Unsupported, message))
        }
        Some(_) => Ok(()),
        None => {
            warnings.push("the server does not tell its version".into());
            Ok(())
        }
    }
}

fn is_forbidden(error: &redis::RedisError) -> bool {
    let unknown = || error.kind() == Kind::Server(redis::ServerErrorKind::ResponseError);
    matches!(trouble(error), Trouble::Forbidden(ErrorKind::Unsupported, _)) || unknown()
}

/// Takes the namespace, if nobody has it.
pub(super) async fn namespace(link: &Link, prefix: &Prefix) -> Result<()> {
    // Another process may take it between the two looks: then the key that was found is the log's own.
    if !is_taken(link).await?
        && let Some(key) = foreign_key(link, prefix).await?
        && !is_taken(link).await?
    {
        return Err(foreign(&format!("it has the key {key:?}")));
    }
    let (mut head, args) = (Args::default(), Args::of("i"));
    head_of(&args, head.number(0));
    let schema = match link.call(Entry::Write, [&head, &args].into_iter()).await {
        Ok(value) => match answer::tuple(value)? {
            [_, Value::Int(schema)] => schema,
            [_, answer] => match answer::refusal(&answer) {
                Some(why) if why.starts_with("WRONGTYPE") => return Err(foreign("its keys have other types")),
                Some(why) => return Err(from_function(why)),
                None => {
                    let [_, command] = answer::tuple(answer)?;
                    let message =
                        format!("the Redis user lacks a permission: it may not call {}", answer::text(command)?);
                    return Err(Error::new(ErrorKind::Unsupported, message));
                }
            },
        },
        Err(error) if error.code() == Some("WRONGTYPE") => return Err(foreign("its keys have other types")),
        Err(error) => return Err(from_redis(error, link.server())),
    };
    match schema {
        SCHEMA => Ok(()),
        newer if newer > SCHEMA => {
            let message = format!("the Redis log has schema {newer}, this program knows {SCHEMA}; use a newer one");
            Err(Error::new(ErrorKind::Unsupported, message))
        }
        _ => Err(foreign("its meta key is not one of a log")),
    }
}

/// True when the namespace has a log.
async fn is_taken(link: &Link) -> Result<bool> {
    link.locate().await.map_err(|error| from_redis(error, link.server()))
}

fn foreign(why: &str) -> Error {
    let message = format!("the Redis namespace belongs to another program: {why}; choose another namespace");
    Error::new(ErrorKind::Unsupported, message)
}

/// A key that lies in the namespace of a log that is not there.
async fn foreign_key(link: &Link, prefix: &Prefix) -> Result<Option<String>> {
    let mut cursor = "0".to_owned();
    for _ in 0..SCAN_STEPS_MAX {
        let mut scan = Cmd::new();
        scan.arg("SCAN").arg(&cursor).arg("MATCH").arg(prefix.name("*")).arg("COUNT").arg(SCAN_KEYS);
        let [next, keys] = match link.send(&scan).await {
            Ok(value) => answer::tuple(value)?,
            Err(error) if is_forbidden(&error) => return Ok(None),
            Err(error) => return Err(from_redis(error, link.server())),
        };
        if let Some(key) = answer::all_bytes(keys)?.into_iter().next() {
            return Ok(Some(String::from_utf8_lossy(&key).into_owned()));
        }
        cursor = answer::text(next)?;
        if cursor == "0" {
            break;
        }
    }
    Ok(None)
}

/// What of the server's settings can lose flows.
pub(super) async fn settings(link: &Link, warnings: &mut Vec<String>) -> Result<()> {
    let mut get = Cmd::new();
    get.arg("CONFIG")
        .arg("GET")
        .arg("maxmemory")
        .arg("maxmemory-policy")
        .arg("appendonly")
        .arg("appendfsync")
        .arg("save");
    let values = match link.send(&get).await {
        Ok(Value::Array(values)) => values,
        Ok(Value::Map(pairs)) => pairs.into_iter().flat_map(|(name, value)| [name, value]).collect(),
        Ok(_) => return Ok(()),
        Err(error) if is_forbidden(&error) => {
            warnings.push(
                "the server's settings are not known: CONFIG is not allowed; see to it that maxmemory-policy is \
                 noeviction and that data is persisted"
                    .into(),
            );
            return Ok(());
        }
        Err(error) => return Err(from_redis(error, link.server())),
    };
    let texts = values.into_iter().map(answer::text).collect::<Result<Vec<_>>>()?;
    let setting = |name: &str| {
        let at = texts.iter().step_by(2).position(|text| text == name);
        at.and_then(|at| texts.get(2 * at + 1)).map_or("", String::as_str)
    };
    let (maxmemory, policy) = (setting("maxmemory"), setting("maxmemory-policy"));
    if !matches!(maxmemory, "" | "0") && !matches!(policy, "" | "noeviction") && !policy.starts_with("volatile-") {
        warnings.push(format!(
            "the server evicts keys when its memory is used up (maxmemory-policy {policy}): flows will vanish or break; \
             set it to noeviction"
        ));
    }
    match (setting("appendonly"), setting("appendfsync"), setting("save")) {
        ("yes", "always", _) => {}
        ("yes", "no", _) => warnings.push(
            "the server leaves it to the system when its append-only file reaches the disk (appendfsync no): its \
             crash loses nothing, a crash of the machine up to some 30 seconds of acknowledged writes"
                .into(),
        ),
        ("yes", _, _) => warnings.push(
            "the server syncs its append-only file once a second (appendfsync everysec): its crash loses nothing, a \
             crash of the machine up to 2 seconds of acknowledged writes; set it to always to lose none"
                .into(),
        ),
        ("no", _, "") => warnings.push(
            "the server persists nothing (appendonly no, no save): its restart loses every flow; set appendonly to \
             yes"
            .into(),
        ),
        ("no", _, save) => warnings.push(format!(
            "the server persists only snapshots (appendonly no, save {save:?}): its crash loses everything since the \
             last one; set appendonly to yes"
        )),
        _ => {}
    }
    Ok(())
}
