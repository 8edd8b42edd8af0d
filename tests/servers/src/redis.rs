//! Redis servers.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    fresh_name,
    port::Port,
    server::{Folder, Program, Server, find, run},
};

const CERTIFICATE: &str = "certificate.pem";

/// When a Redis server writes its data down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Never: what it knew is gone when it ends.
    None,
    /// It appends each write to a file, and syncs the file each second.
    EverySecond,
    /// It appends and syncs before it answers.
    Always,
}

/// A private Redis server.
#[derive(Debug)]
pub struct Redis {
    server: Server<RedisServer>,
}

#[derive(Debug)]
struct RedisServer {
    binary: PathBuf,
    persistence: Persistence,
    /// The port on which the nodes of a cluster talk, or the one for TLS.
    second: Option<Port>,
    /// Whether it is one of a cluster.
    is_node: bool,
    settings: Vec<String>,
}

impl Redis {
    /// Starts a server.
    ///
    /// # Panics
    ///
    /// When there is none to start, or when it does not start; so do all of these functions.
    #[must_use]
    pub fn start(persistence: Persistence) -> Self {
        Self::start_with(persistence, &[])
    }

    /// Starts a server with more settings, each a name and a value: `[("maxmemory-policy", "allkeys-lru")]`.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(persistence: Persistence, settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]).collect();
        let program = RedisServer { binary: binary(), persistence, second: None, is_node: false, settings };
        Self { server: Server::start(program, Folder::new()) }
    }

    /// Starts a server that also takes TLS, at [`tls_url`](Self::tls_url). Its certificate, which nobody trusts who is
    /// not told to, is at [`certificate`](Self::certificate).
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start), and when there is no `openssl` to make a certificate.
    #[must_use]
    pub fn start_tls() -> Self {
        let (folder, port) = (Folder::new(), Port::claim());
        let (certificate, key) = (folder.path().join(CERTIFICATE), folder.path().join("key.pem"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        run(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate))
            .unwrap_or_else(|error| panic!("no certificate can be made: {error}"));
        let number = port.number().to_string();
        let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
        let settings = [
            ("tls-port", number.as_str()),
            ("tls-cert-file", certificate.as_str()),
            ("tls-key-file", key.as_str()),
            ("tls-auth-clients", "no"),
        ];
        let settings = settings.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]).collect();
        let program = RedisServer {
            binary: binary(),
            persistence: Persistence::None,
            second: Some(port),
            is_node: false,
            settings,
        };
        Self { server: Server::start(program, folder) }
    }

    /// Where a server takes TLS: `rediss://127.0.0.1:PORT`.
    ///
    /// # Panics
    ///
    /// When it takes none.
    #[must_use]
    pub fn tls_url(&self) -> String {
        let port = self.server.program.second.as_ref().unwrap_or_else(|| panic!("this server takes no TLS"));
        format!("rediss://{}", port.address())
    }

    /// The file of the certificate of a server that takes TLS.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.server.folder().join(CERTIFICATE)
    }

    /// Starts a cluster of one node, which has all slots and refuses what touches two of them.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_cluster() -> Self {
        let second = Some(Port::claim());
        let program = RedisServer {
            binary: binary(),
            persistence: Persistence::None,
            second,
            is_node: true,
            settings: Vec::new(),
        };
        let redis = Self { server: Server::start(program, Folder::new()) };
        assert_eq!(redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "+OK\r\n");
        while !redis.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
            std::thread::sleep(Duration::from_millis(2));
        }
        redis
    }

    /// The server of this test process, without persistence, for tests that share one: keep apart by
    /// [`fresh_prefix`](Self::fresh_prefix).
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Redis> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Persistence::None))
    }

    /// As [`shared`](Self::shared), of [`start_cluster`](Self::start_cluster).
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[must_use]
    pub fn shared_cluster() -> &'static Self {
        static SHARED: OnceLock<Redis> = OnceLock::new();
        SHARED.get_or_init(Self::start_cluster)
    }

    /// A prefix of keys that is given once in this process.
    #[must_use]
    pub fn fresh_prefix(&self) -> String {
        fresh_name()
    }

    /// Where it is: `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Ends it at once, by SIGKILL.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Ends it in good order.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub fn stop(&mut self) {
        self.server.stop(Signal::SIGTERM);
    }

    /// Starts it again, with the same port and folder, and returns when it is ready; a server that is up is killed
    /// first.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn restart(&mut self) {
        self.server.restart();
    }

    /// Stops it by SIGSTOP: connections stay open, and nothing is answered.
    ///
    /// # Panics
    ///
    /// When it is down.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// Lets it go on after [`pause`](Self::pause).
    ///
    /// # Panics
    ///
    /// When it is down.
    pub fn resume(&self) {
        self.server.resume();
    }

    /// Sends one command and returns the beginning of the answer as it comes over the wire, 64 KiB at most: for
    /// settings and short answers.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> String {
        ask(self.address(), words).unwrap_or_else(|error| panic!("redis does not answer {words:?}: {error}"))
    }
}

impl Program for RedisServer {
    const NAME: &'static str = "redis-server";

    fn command(&self, port: &Port, folder: &Path) -> Vec<String> {
        let (append, sync) = match self.persistence {
            Persistence::None => ("no", "no"),
            Persistence::EverySecond => ("yes", "everysec"),
            Persistence::Always => ("yes", "always"),
        };
        let port = port.number().to_string();
        let mut settings = vec!["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", append];
        settings.extend(["--appendfsync", sync, "--maxmemory-policy", "noeviction", "--daemonize", "no"]);
        let mut command = vec![self.binary.display().to_string()];
        command.extend(settings.into_iter().map(str::to_owned));
        command.extend(["--dir".into(), folder.display().to_string()]);
        if let Some(bus) = self.second.as_ref().filter(|_| self.is_node) {
            command.extend(["--cluster-enabled".into(), "yes".into()]);
            command.extend(["--cluster-port".into(), bus.number().to_string()]);
        }
        command.extend(self.settings.iter().cloned());
        command
    }

    fn is_ready(&self, address: SocketAddr) -> bool {
        // With a password it says so, and while it reads its files that it is loading.
        ask(address, &["PING"]).is_ok_and(|answer| answer == "+PONG\r\n" || answer.starts_with("-NOAUTH"))
    }

    fn port_is_taken(output: &str) -> bool {
        output.contains("Address already in use")
    }
}

fn binary() -> PathBuf {
    ["redis-server", "valkey-server"].iter().find_map(|name| find(name, [])).unwrap_or_else(|| {
        panic!(
            "there is no redis-server (7 or later), which this test needs: `cargo xtask test` installs it on Debian \
             as root; otherwise `sudo apt-get install redis-server`, `sudo dnf install redis`, `brew install redis`"
        )
    })
}

fn ask(address: SocketAddr, words: &[&str]) -> std::io::Result<String> {
    let patience = Duration::from_secs(5);
    let mut connection = TcpStream::connect_timeout(&address, patience)?;
    connection.set_read_timeout(Some(patience))?;
    let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    let request: String = std::iter::once(format!("*{}\r\n", words.len())).chain(words).collect();
    connection.write_all(request.as_bytes())?;
    let mut answer = vec![0; 1 << 16];
    let bytes = connection.read(&mut answer)?;
    answer.truncate(bytes);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
