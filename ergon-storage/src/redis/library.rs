//! The server-side functions: every transition of the log is one of them.

use redis::{Cmd, RedisError, RedisResult, Value, aio::MultiplexedConnection};

/// The Lua sources, in the order in which they build on each other.
const SOURCES: [&str; 8] = [
    include_str!("lua/state.lua"),
    include_str!("lua/mailbox.lua"),
    include_str!("lua/queue.lua"),
    include_str!("lua/run.lua"),
    include_str!("lua/outside.lua"),
    include_str!("lua/upkeep.lua"),
    include_str!("lua/read.lua"),
    include_str!("lua/main.lua"),
];

/// Which function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Changes something.
    Write,
    /// Changes something, also when the server's memory is used up: to make room.
    Trim,
    /// Only looks.
    Read,
}

impl Entry {
    const ALL: [Self; 3] = [Self::Write, Self::Trim, Self::Read];

    const fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Trim => "trim",
            Self::Read => "read",
        }
    }

    const fn flags(self) -> &'static str {
        match self {
            Self::Write => "",
            Self::Trim => "allow-oom",
            Self::Read => "no-writes",
        }
    }

    const fn callback(self) -> &'static str {
        match self {
            Self::Write | Self::Trim => "write",
            Self::Read => "read",
        }
    }
}

/// The functions under a name that changes with their text, so that programs of different versions can use one
/// server at the same time.
#[derive(Debug)]
pub(super) struct Library {
    name: String,
}

impl Library {
    pub(super) fn new() -> Self {
        Self { name: format!("ergon_{:016x}", fingerprint()) }
    }

    /// A call of a function; the arguments follow.
    pub(super) fn function_call(&self, entry: Entry, prefix: &str, capacity: (usize, usize)) -> Cmd {
        let mut call = Cmd::with_capacity(capacity.0 + 4, capacity.1 + prefix.len() + 64);
        call.arg("FCALL").arg(format!("{}_{}", self.name, entry.name())).arg(1).arg(prefix);
        call
    }

    /// A call of the same as a script, for servers that do not let one load functions.
    pub(super) fn script_call(&self, entry: Entry, prefix: &str, sha: &str) -> Cmd {
        let mut call = Cmd::new();
        call.arg("EVALSHA").arg(sha).arg(1).arg(prefix);
        debug_assert!(self.name.starts_with("ergon_") && Entry::ALL.contains(&entry));
        call
    }

    /// Loads the functions.
    pub(super) async fn load_functions(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let registrations = Entry::ALL.map(|entry| {
            let flags = if entry.flags().is_empty() { String::new() } else { format!("'{}'", entry.flags()) };
            format!(
                "redis.register_function{{ function_name = '{}_{}', callback = {}, flags = {{ {flags} }} }}\n",
                self.name,
                entry.name(),
                entry.callback()
            )
        });
        let code = format!("#!lua name={}\n{}{}", self.name, SOURCES.concat(), registrations.concat());
        let mut load = Cmd::new();
        load.arg("FUNCTION").arg("LOAD").arg("REPLACE").arg(code);
        connection.send_packed_command(&load).await?.extract_error().map(drop)
    }

    /// Loads the script of an entry, and answers with the hash that calls it.
    pub(super) async fn load_script(
        &self,
        connection: &mut MultiplexedConnection,
        entry: Entry,
    ) -> RedisResult<String> {
        let flags = if entry.flags().is_empty() { String::new() } else { format!(" flags={}", entry.flags()) };
        let code = format!("#!lua{flags}\n{}return {}(KEYS, ARGV)\n", SOURCES.concat(), entry.callback());
        let mut load = Cmd::new();
        load.arg("SCRIPT").arg("LOAD").arg(code);
        match connection.send_packed_command(&load).await?.extract_error()? {
            Value::BulkString(sha) => Ok(String::from_utf8_lossy(&sha).into_owned()),
            Value::SimpleString(sha) => Ok(sha),
            _ => Err(RedisError::from((redis::ErrorKind::UnexpectedReturnType, "SCRIPT LOAD answers with a hash"))),
        }
    }
}

/// FNV-1a, which gives the same everywhere and for ever.
fn fingerprint() -> u64 {
    let bytes = SOURCES.iter().flat_map(|source| source.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
