//! PostgreSQL servers.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use nix::sys::signal::Signal;

use crate::{
    fresh_name,
    port::Port,
    postgres_client::{Client, Failure},
    server::{Folder, Program, Server, find, run},
};

/// A private PostgreSQL server, whose superuser `postgres` needs no password. Members of the role `with_password`
/// need theirs.
#[derive(Debug)]
pub struct Postgres {
    server: Server<PostgresServer>,
}

#[derive(Debug)]
struct PostgresServer {
    binaries: PathBuf,
    settings: Vec<String>,
}

/// Small and quick to start. `fsync` is about power cuts: what a server has written survives its own death without,
/// and it would spend seconds to sync a thousand files each time it starts again. A commit is still answered only
/// when it is written.
const SETTINGS: [&str; 9] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "shared_buffers=16MB",
    "fsync=off",
    "synchronous_commit=on",
    "max_wal_size=256MB",
    "log_statement=none",
    "lc_messages=C",
];

/// Members of a role give a password, all others need none.
const AUTHENTICATION: &str = "\
host all +with_password 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
";

impl Postgres {
    /// Starts a server.
    ///
    /// # Panics
    ///
    /// When there is none to start, or when it does not start; so do all of these functions.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more settings, each a name and a value: `[("synchronous_commit", "off")]`. The tests'
    /// own are small, with `fsync` off: a killed process loses nothing that it has written, only a power cut would.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let program = PostgresServer { binaries: binaries(), settings };
        let folder = Folder::for_another_user_than_root(&["postgres", "nobody"]);
        let data = folder.path().join("data");
        program.init(&folder, &data).unwrap_or_else(|error| panic!("no database can be made: {error}"));
        // Before the server's first start: the server only reads it.
        fs::write(data.join("pg_hba.conf"), AUTHENTICATION).unwrap_or_else(|error| panic!("pg_hba.conf: {error}"));
        let postgres = Self { server: Server::start(program, folder) };
        postgres.execute("postgres", "CREATE ROLE with_password");
        postgres
    }

    /// The server of this test process, for tests that share one: keep apart by
    /// [`fresh_database`](Self::fresh_database) or by schemas with a [`fresh_name`].
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::start_with(&[("full_page_writes", "off")]))
    }

    /// Makes an empty database and returns its URL.
    ///
    /// # Panics
    ///
    /// When the server is down.
    #[must_use]
    pub fn fresh_database(&self) -> String {
        let name = fresh_name();
        self.execute("postgres", &format!("CREATE DATABASE {name}"));
        self.url_of(&name)
    }

    /// Where it is: `postgres://postgres@127.0.0.1:PORT/postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Where a database is.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.address())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The address in words for whoever builds a URL of their own.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Runs statements in a database, as superuser, and returns the first column of all rows, where NULL is empty.
    ///
    /// # Panics
    ///
    /// When one fails, or when the server is down.
    pub fn execute(&self, database: &str, statements: &str) -> Vec<String> {
        let answer = Client::connect(self.address(), database).and_then(|mut client| client.query(statements));
        answer.unwrap_or_else(|failure| panic!("postgres does not do {statements:?}: {failure}"))
    }

    /// What it has written to its log since it was last started.
    ///
    /// # Panics
    ///
    /// When that cannot be read.
    #[must_use]
    pub fn output(&self) -> String {
        self.server.output()
    }

    /// Ends it at once with all its processes, by SIGKILL.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Ends it in good order; connections are closed.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub fn stop(&mut self) {
        self.server.stop(Signal::SIGINT);
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

    /// Makes a read-only replica of it, which waits for a primary that never comes. It stays one.
    ///
    /// # Panics
    ///
    /// When it does not start again.
    pub fn become_replica(&mut self) {
        self.stop();
        let signal = self.server.folder().join("data/standby.signal");
        fs::write(&signal, "").unwrap_or_else(|error| panic!("{}: {error}", signal.display()));
        self.restart();
    }

    /// Stops it and all its processes by SIGSTOP: connections stay open, and nothing is answered.
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
}

impl PostgresServer {
    /// Makes the folder of a database: a copy of one that was made before, which takes a tenth of the time.
    fn init(&self, folder: &Folder, data: &Path) -> Result<(), String> {
        let template = self.template();
        if let Some(template) = template.as_deref().filter(|template| template.is_dir()) {
            return copy(template, data);
        }
        let mut initdb = folder.command(self.binaries.join("initdb"));
        initdb.args(["--no-sync", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--pgdata"]);
        run(initdb.arg(data))?;
        if let Some(template) = template {
            let unfinished = template.with_extension(format!("{}-{}", std::process::id(), fresh_name()));
            copy(data, &unfinished)?;
            // Another process may have been quicker.
            if fs::rename(&unfinished, &template).is_err() {
                let _ = fs::remove_dir_all(&unfinished);
            }
        }
        Ok(())
    }

    /// Where the folder to copy is, or will be: in cargo's folder, one for each version and user.
    fn template(&self) -> Option<PathBuf> {
        let program = std::env::current_exe().ok()?;
        let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file())?;
        let version = Command::new(self.binaries.join("postgres")).arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&version.stdout).split_whitespace().nth(2)?.replace('.', "-");
        let templates = target.join("test-servers");
        fs::create_dir_all(&templates).ok()?;
        Some(templates.join(format!("postgres-{version}-of-{}", nix::unistd::geteuid())))
    }
}

/// Copies a folder with its owner and its permissions.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    run(Command::new("cp").args(["-Rp"]).arg(from).arg(to))
}

impl Program for PostgresServer {
    const NAME: &'static str = "postgres";

    fn command(&self, port: &Port, folder: &Path) -> Vec<String> {
        let mut command = vec![self.binaries.join("postgres").display().to_string()];
        command.extend(["-D".into(), folder.join("data").display().to_string()]);
        command.extend(["-p".into(), port.number().to_string()]);
        let settings = SETTINGS.iter().map(|setting| (*setting).to_owned()).chain(self.settings.iter().cloned());
        command.extend(settings.flat_map(|setting| ["-c".into(), setting]));
        command
    }

    fn is_ready(&self, address: SocketAddr) -> bool {
        match Client::connect(address, "postgres") {
            Ok(_) => true,
            // It is starting up, or nobody is there.
            Err(Failure::Refused { code, .. }) if code == "57P03" => false,
            Err(Failure::Refused { message, .. }) => panic!("postgres does not let us in: {message}"),
            Err(Failure::Connection(_)) => false,
        }
    }

    fn port_is_taken(output: &str) -> bool {
        output.contains("Address already in use")
    }

    fn is_still_held(output: &str) -> bool {
        output.contains("shared memory block") && output.contains("is still in use")
    }
}

/// The folder of the programs: what `pg_config` says, else the newest under `/usr/lib/postgresql`, else in `PATH`.
fn binaries() -> PathBuf {
    let said = Command::new("pg_config").arg("--bindir").output().ok();
    let said = said.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let known = ["/usr/lib/postgresql", "/opt/homebrew/opt"].map(Path::new);
    let mut versions: Vec<_> = known.into_iter().flat_map(subfolders).map(|folder| folder.join("bin")).collect();
    versions.sort_by_key(|folder| std::cmp::Reverse(version(folder)));
    let binary = find("initdb", said.into_iter().chain(versions)).and_then(|file| fs::canonicalize(file).ok());
    let folder = binary.as_deref().and_then(Path::parent).filter(|folder| folder.join("postgres").is_file());
    let Some(folder) = folder else {
        panic!(
            "there is no PostgreSQL server (14 or later), which this test needs: `cargo xtask test` installs it on \
             Debian as root; otherwise `sudo apt-get install postgresql`, `sudo dnf install postgresql-server`, \
             `brew install postgresql@17`"
        )
    };
    folder.to_owned()
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry: io::Result<_>| Some(entry.ok()?.path())).collect()
}

/// The number in `…/15/bin` or `…/postgresql@15/bin`.
fn version(binaries: &Path) -> Option<u32> {
    let name = binaries.parent()?.file_name()?.to_str()?;
    name.trim_start_matches("postgresql@").parse().ok()
}
