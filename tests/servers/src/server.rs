//! A server process, the shell that watches over it, its folder and its port.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::Signal,
    unistd::{User, geteuid},
};
use tempfile::TempDir;

use crate::{port::Port, processes};

/// How long a server may take to start, to recover or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often one that finds its port taken is started on another one.
const PORTS_MAX: usize = 5;

const WATCHDOG: &str = include_str!("watchdog.sh");

/// What makes a server of a program.
pub(crate) trait Program {
    /// Its name, for people.
    const NAME: &'static str;

    /// The command line on a port and in a folder that has been prepared.
    fn command(&self, port: &Port, folder: &Path) -> Vec<String>;

    /// True when the server at the address is ready for clients.
    fn is_ready(&self, address: SocketAddr) -> bool;

    /// True when the server's output says that it could not have the port.
    fn port_is_taken(output: &str) -> bool;

    /// True when the server's output says that the kernel has yet to take back what a killed one held.
    fn is_still_held(output: &str) -> bool {
        let _ = output;
        false
    }
}

/// A server that was started, and perhaps killed since.
#[derive(Debug)]
pub(crate) struct Server<P: Program> {
    pub(crate) program: P,
    port: Port,
    folder: Folder,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    watchdog: Child,
    server: i32,
}

impl<P: Program> Server<P> {
    pub(crate) fn start(program: P, folder: Folder) -> Self {
        let mut server = Self { program, port: Port::claim(), folder, running: None };
        for _ in 1..PORTS_MAX {
            match server.run() {
                Ok(()) => return server,
                Err(output) if P::port_is_taken(&output) => server.port = Port::claim(),
                Err(output) => panic!("{} does not start:\n{output}", P::NAME),
            }
        }
        panic!("{} finds {PORTS_MAX} ports taken, one after the other", P::NAME);
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has written since it was last started.
    pub(crate) fn output(&self) -> String {
        let file = self.output_file();
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    fn output_file(&self) -> PathBuf {
        self.folder.path().join("output.log")
    }

    /// Starts it again, on the same port and folder.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let begun = Instant::now();
        while let Err(output) = self.run() {
            // Its processes are gone, and what they shared may take the kernel a moment.
            let is_held = P::is_still_held(&output) && begun.elapsed() < PATIENCE;
            assert!(is_held, "{} does not start again:\n{output}", P::NAME);
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn kill(&mut self) {
        self.end(processes::kill_all);
    }

    /// Ends it by a signal upon which it finishes in good order.
    pub(crate) fn stop(&mut self, signal: Signal) {
        self.end(|server| {
            processes::resume(server);
            processes::signal(server, signal);
            let begun = Instant::now();
            while processes::is_alive(server) {
                assert!(begun.elapsed() < PATIENCE, "{} does not end upon {signal}", P::NAME);
                thread::sleep(Duration::from_millis(2));
            }
        });
    }

    pub(crate) fn pause(&self) {
        processes::pause(self.server());
    }

    pub(crate) fn resume(&self) {
        processes::resume(self.server());
    }

    fn server(&self) -> i32 {
        self.running.as_ref().unwrap_or_else(|| panic!("{} is down", P::NAME)).server
    }

    fn end(&mut self, end: impl FnOnce(i32)) {
        let Some(mut running) = self.running.take() else { return };
        end(running.server);
        if let Some(mut pipe) = running.watchdog.stdin.take() {
            let _ = writeln!(pipe, "ended");
        }
        let _ = running.watchdog.wait();
    }

    /// Runs the server until it is ready; the error is what it has written.
    fn run(&mut self) -> Result<(), String> {
        let output = self.output_file();
        let _ = fs::remove_file(&output);
        let mut shell = self.folder.command("sh");
        shell.args(["-c", WATCHDOG, "watchdog"]).arg(self.folder.path()).arg(&output);
        shell.args(self.program.command(&self.port, self.folder.path())).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut watchdog = shell.spawn().unwrap_or_else(|error| panic!("there is no shell `sh`: {error}"));
        let mut line = String::new();
        let said = watchdog.stdout.take().map(|pipe| BufReader::new(pipe).read_line(&mut line));
        let server = line.trim().parse().unwrap_or_else(|_| panic!("the watchdog says {line:?}: {said:?}"));
        self.running = Some(Running { watchdog, server });
        let begun = Instant::now();
        loop {
            let is_ready = self.program.is_ready(self.port.address());
            // Another server on the port would answer as well.
            if !processes::is_alive(server) || begun.elapsed() > PATIENCE {
                self.kill();
                return Err(fs::read_to_string(&output).unwrap_or_default());
            }
            if is_ready {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl<P: Program> Drop for Server<P> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A server's folder, which belongs to the user that the server runs as.
#[derive(Debug)]
pub(crate) struct Folder {
    directory: TempDir,
    user: Option<(u32, u32)>,
}

impl Folder {
    /// A folder of ours.
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ergon-test-").tempdir();
        let directory = directory.unwrap_or_else(|error| panic!("no folder for a server can be made: {error}"));
        Self { directory, user: None }
    }

    /// A folder for a server that refuses to run as root: when we are root it belongs to one of these users.
    pub(crate) fn for_another_user_than_root(users: &[&str]) -> Self {
        let mut folder = Self::new();
        if geteuid().is_root() {
            let user = users.iter().find_map(|user| User::from_name(user).ok()?);
            let user = user.unwrap_or_else(|| panic!("none of the users {users:?} exists"));
            let ids = (user.uid.as_raw(), user.gid.as_raw());
            chown(folder.path(), Some(ids.0), Some(ids.1))
                .unwrap_or_else(|error| panic!("a folder cannot be given to {}: {error}", user.name));
            folder.user = Some(ids);
        }
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A command that runs as the owner of the folder, in it.
    pub(crate) fn command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new(program.into());
        command.current_dir(self.path());
        // Not to be ended by a Ctrl-C that is for the tests: the watchdog must outlive them.
        command.process_group(0);
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group).env("HOME", self.path());
        }
        command
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error: io::Error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    Err(format!("{command:?}: {}\n{}", output.status, texts.concat()))
}

/// The first of these folders (and then those of `PATH`) with the program.
pub(crate) fn find(program: &str, folders: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = folders.into_iter().chain(std::env::split_paths(&path));
    all.find_map(|folder| Some(folder.join(program)).filter(|file| file.is_file()))
}
