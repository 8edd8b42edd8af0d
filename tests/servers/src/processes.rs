//! Signals to a server and the processes it has started.

use std::{fs, process::Command, thread, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A line of the system's table of processes.
struct Process {
    id: i32,
    parent: i32,
    /// It has ended, and its parent has not looked yet.
    is_zombie: bool,
}

/// True until the process has ended.
pub(crate) fn is_alive(id: i32) -> bool {
    table().iter().any(|process| process.id == id && !process.is_zombie)
}

/// Sends a signal to one process, if it is still there.
pub(crate) fn signal(id: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(id), signal);
}

/// Stops a server and its children, so that they neither answer nor die.
pub(crate) fn pause(id: i32) {
    // The server first: it starts no more children then.
    signal(id, Signal::SIGSTOP);
    for child in children(id) {
        signal(child, Signal::SIGSTOP);
    }
}

/// Lets a server and its children go on.
pub(crate) fn resume(id: i32) {
    for child in children(id) {
        signal(child, Signal::SIGCONT);
    }
    signal(id, Signal::SIGCONT);
}

/// Kills a server and its children at once, and returns when all have ended.
pub(crate) fn kill_all(id: i32) {
    signal(id, Signal::SIGSTOP);
    let mut all = children(id);
    all.push(id);
    for process in &all {
        signal(*process, Signal::SIGKILL);
    }
    // What is left of them would keep a new server from starting on the same folder.
    while table().iter().any(|process| all.contains(&process.id) && !process.is_zombie) {
        thread::sleep(Duration::from_millis(1));
    }
}

fn children(id: i32) -> Vec<i32> {
    table().into_iter().filter(|process| process.parent == id).map(|process| process.id).collect()
}

fn table() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc/self/..") else { return table_by_ps() };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    ids.filter_map(|id| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name, in parentheses, may contain anything.
        let mut rest = stat[stat.rfind(')')? + 1..].split_whitespace();
        let (state, parent) = (rest.next()?, rest.next()?.parse().ok()?);
        Some(Process { id, parent, is_zombie: matches!(state, "Z" | "X") })
    })
    .collect()
}

/// Where there is no `/proc`.
fn table_by_ps() -> Vec<Process> {
    let output = Command::new("ps").args(["-A", "-o", "pid=,ppid=,state="]).output();
    let output = output.unwrap_or_else(|error| panic!("neither /proc nor `ps` tells the processes: {error}"));
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (id, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Process { id, parent, is_zombie: words.next()?.starts_with('Z') })
    };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(line).collect()
}
