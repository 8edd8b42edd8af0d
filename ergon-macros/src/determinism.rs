//! Keeps a `#[flow]` body deterministic: refuses what a replay would see differently, and makes
//! every `select!` poll its branches in their order.
//!
//! Both work on tokens rather than on a syntax tree. Half of an async body stands inside macros
//! (`join!`, `select!`, `format!`), which a tree shows as tokens anyway, and tokens know no syntax
//! that is too new. Names are not resolved, so this finds what is usual, not everything.

use proc_macro2::{Group, Ident, Spacing, TokenStream, TokenTree};
use quote::quote;
use syn::Error;

use crate::errors::Errors;

/// Why a call is refused, and what to write in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Clock,
    Random,
    Id,
    Sleep,
    Timeout,
    Spawn,
    Outside,
}

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Self::Clock => "reads another time on each replay: use `ergon::now()`",
            Self::Random => "gives another value on each replay: use `ergon::random()`",
            Self::Id => "gives another id on each replay: use `ergon::uuid()`",
            Self::Sleep => "is lost when the process ends: use `ergon::sleep`",
            Self::Timeout => {
                "is lost when the process ends: use `ergon::timeout`, or `#[step(timeout = \"…\")]` for a \
                 step's body"
            }
            Self::Spawn => {
                "runs outside the flow, where nothing is recorded: start a child flow or join \
                 steps instead of spawning"
            }
            Self::Outside => "reaches outside the flow on each replay: move it into a `#[step]`",
        }
    }
}

/// The ends of the refused paths. A `*` at the end stands for any function of that module.
const REFUSED: &[(&str, Reason)] = &[
    // std, chrono, time, jiff
    ("SystemTime::now", Reason::Clock),
    ("Instant::now", Reason::Clock),
    ("Utc::now", Reason::Clock),
    ("Local::now", Reason::Clock),
    ("OffsetDateTime::now_utc", Reason::Clock),
    ("OffsetDateTime::now_local", Reason::Clock),
    ("UtcDateTime::now", Reason::Clock),
    ("Timestamp::now", Reason::Clock),
    ("Zoned::now", Reason::Clock),
    // uuid, ulid
    ("Uuid::new_v4", Reason::Id),
    ("Uuid::new_v7", Reason::Id),
    ("Uuid::now_v1", Reason::Id),
    ("Uuid::now_v6", Reason::Id),
    ("Uuid::now_v7", Reason::Id),
    ("Ulid::new", Reason::Id),
    ("Ulid::generate", Reason::Id),
    // rand, fastrand, getrandom
    ("rand::*", Reason::Random),
    ("thread_rng", Reason::Random),
    ("from_entropy", Reason::Random),
    ("from_os_rng", Reason::Random),
    ("ThreadRng::default", Reason::Random),
    ("fastrand::*", Reason::Random),
    ("getrandom::*", Reason::Random),
    // Tasks and threads.
    ("tokio::spawn", Reason::Spawn),
    ("task::spawn", Reason::Spawn),
    ("task::spawn_local", Reason::Spawn),
    ("task::block_in_place", Reason::Outside),
    ("spawn_blocking", Reason::Outside),
    ("JoinSet::new", Reason::Spawn),
    ("JoinSet::default", Reason::Spawn),
    ("Handle::current", Reason::Spawn),
    ("Handle::try_current", Reason::Spawn),
    ("thread::spawn", Reason::Spawn),
    ("thread::scope", Reason::Spawn),
    ("thread::Builder::new", Reason::Spawn),
    ("rayon::spawn", Reason::Spawn),
    // Timers that die with the process.
    ("thread::sleep", Reason::Sleep),
    ("time::sleep", Reason::Sleep),
    ("time::sleep_until", Reason::Sleep),
    ("task::sleep", Reason::Sleep),
    ("time::interval", Reason::Sleep),
    ("time::interval_at", Reason::Sleep),
    ("time::timeout", Reason::Timeout),
    ("time::timeout_at", Reason::Timeout),
    // Files, the environment, other processes, the network.
    ("fs::*", Reason::Outside),
    ("File::open", Reason::Outside),
    ("File::create", Reason::Outside),
    ("File::create_new", Reason::Outside),
    ("File::options", Reason::Outside),
    ("OpenOptions::new", Reason::Outside),
    ("io::stdin", Reason::Outside),
    ("env::*", Reason::Outside),
    ("Command::new", Reason::Outside),
    ("process::*", Reason::Outside),
    ("net::*", Reason::Outside),
    ("TcpStream::connect", Reason::Outside),
    ("TcpListener::bind", Reason::Outside),
    ("UdpSocket::bind", Reason::Outside),
    ("UnixStream::connect", Reason::Outside),
    ("reqwest::*", Reason::Outside),
    ("reqwest::Client::new", Reason::Outside),
    ("reqwest::Client::builder", Reason::Outside),
    ("blocking::Client::new", Reason::Outside),
    ("ureq::*", Reason::Outside),
];

/// Where the author's own items live; nothing is known about those. And `ergon` is durable.
const OWN_ROOTS: [&str; 5] = ["crate", "self", "super", "Self", "ergon"];

/// Refuses the calls in a flow's body that a replay would not repeat.
pub(crate) fn check(body: &TokenStream, errors: &mut Errors) {
    let trees: Vec<TokenTree> = body.clone().into_iter().collect();
    let mut at = 0;
    while at < trees.len() {
        match &trees[at] {
            TokenTree::Group(group) => check(&group.stream(), errors),
            TokenTree::Ident(_) => {
                let path = path_at(&trees, at);
                let end = at + 3 * (path.len() - 1);
                if let Some(reason) = refused(&path, &trees, at, end) {
                    let tokens: TokenStream = trees[at..=end].iter().cloned().collect();
                    errors.push(Error::new_spanned(tokens, message(&path, reason)));
                }
                at = end;
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
        at += 1;
    }
}

fn message(path: &[&Ident], reason: Reason) -> String {
    let path: Vec<String> = path.iter().map(ToString::to_string).collect();
    format!("`{}` in a flow {}, or allow it with `#[flow(allow(nondeterminism))]`", path.join("::"), reason.text())
}

fn refused(path: &[&Ident], trees: &[TokenTree], start: usize, end: usize) -> Option<Reason> {
    if is_member(trees, start) || is_punct(trees.get(end + 1), '!') {
        return None; // `.thread_rng()` belongs to a value, and macros are known by other names.
    }
    if path.len() > 1 && OWN_ROOTS.iter().any(|root| path[0] == root) {
        return None;
    }
    let called = matches!(trees.get(end + 1), Some(TokenTree::Group(_)));
    let defined = start > 0 && matches!(&trees[start - 1], TokenTree::Ident(word) if word == "fn");
    REFUSED
        .iter()
        .find(|(pattern, _)| {
            // A lone word says little: it must at least be called.
            let lone = !pattern.contains("::");
            ends_with(path, pattern) && (!lone || (called && !defined))
        })
        .map(|(_, reason)| *reason)
}

fn ends_with(path: &[&Ident], pattern: &str) -> bool {
    let pattern: Vec<&str> = pattern.split("::").collect();
    let Some(skipped) = path.len().checked_sub(pattern.len()) else {
        return false;
    };
    path[skipped..].iter().zip(pattern).all(|(segment, expected)| match expected {
        "*" => segment.to_string().starts_with(char::is_lowercase),
        expected => *segment == expected,
    })
}

/// Makes every `select!` in a flow's body biased.
///
/// An unbiased `select!` polls its branches in random order, so a replay could make the calls of
/// its branches in another order than the first run did.
pub(crate) fn bias_selects(body: &Group) -> Group {
    let mut trees: Vec<TokenTree> = body.stream().into_iter().collect();
    if !mentions_select(&trees) {
        return body.clone(); // A group made anew loses the places of its two delimiters.
    }
    let mut at = 0;
    while at < trees.len() {
        if let TokenTree::Group(group) = &trees[at] {
            trees[at] = bias_selects(group).into();
        } else if matches!(trees[at], TokenTree::Ident(_)) {
            let path: Vec<String> = path_at(&trees, at).iter().map(ToString::to_string).collect();
            let end = at + 3 * (path.len() - 1);
            if let (true, Some(TokenTree::Group(arms))) = (is_punct(trees.get(end + 1), '!'), trees.get(end + 2)) {
                match select(&path) {
                    Some(Select::Tokio) => trees[end + 2] = biased(arms).into(),
                    Some(Select::Futures) => trees[end] = Ident::new("select_biased", trees[end].span()).into(),
                    None => {}
                }
            }
            at = end;
        }
        at += 1;
    }
    with_stream(body, trees.into_iter().collect())
}

fn mentions_select(trees: &[TokenTree]) -> bool {
    trees.iter().any(|tree| match tree {
        TokenTree::Ident(word) => word == "select",
        TokenTree::Group(group) => mentions_select(&group.stream().into_iter().collect::<Vec<_>>()),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

enum Select {
    Tokio,
    Futures,
}

/// Which `select!` a path names. A bare one is taken for tokio's, which `ergon` hands on.
fn select(path: &[String]) -> Option<Select> {
    let (last, first) = path.split_last()?;
    if last != "select" {
        return None;
    }
    match first.first().map(String::as_str) {
        None | Some("tokio" | "ergon") => Some(Select::Tokio),
        Some("futures" | "futures_util") => Some(Select::Futures),
        Some(_) => None,
    }
}

fn biased(arms: &Group) -> Group {
    let stream = arms.stream();
    let mut start = stream.clone().into_iter();
    let already = matches!(start.next(), Some(TokenTree::Ident(word)) if word == "biased")
        && is_punct(start.next().as_ref(), ';');
    if already { arms.clone() } else { with_stream(arms, quote!(biased; #stream)) }
}

/// `group` with other tokens between the same delimiters.
fn with_stream(group: &Group, stream: TokenStream) -> Group {
    let mut changed = Group::new(group.delimiter(), stream);
    changed.set_span(group.span());
    changed
}

/// The segments of the path that starts at `start`, which is a word.
fn path_at(trees: &[TokenTree], start: usize) -> Vec<&Ident> {
    let mut path = Vec::new();
    let mut at = start;
    while let Some(TokenTree::Ident(segment)) = trees.get(at) {
        path.push(segment);
        if !is_path_separator(trees, at + 1) {
            break;
        }
        at += 3;
    }
    path
}

fn is_path_separator(trees: &[TokenTree], at: usize) -> bool {
    let joint = matches!(trees.get(at), Some(TokenTree::Punct(punct)) if punct.spacing() == Spacing::Joint);
    joint && is_punct(trees.get(at), ':') && is_punct(trees.get(at + 1), ':')
}

/// True after a `.` that is not the end of a `..`.
fn is_member(trees: &[TokenTree], at: usize) -> bool {
    let before = |distance: usize| at.checked_sub(distance).and_then(|at| trees.get(at));
    is_punct(before(1), '.') && !is_punct(before(2), '.')
}

fn is_punct(tree: Option<&TokenTree>, expected: char) -> bool {
    matches!(tree, Some(TokenTree::Punct(punct)) if punct.as_char() == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(body: &str) -> Vec<String> {
        let mut errors = Errors::default();
        check(&body.parse().unwrap(), &mut errors);
        errors.messages()
    }

    #[test]
    fn the_usual_calls_are_refused() {
        let check = |body: &str, durable: &str| {
            let messages = refusals(body);
            assert_eq!(messages.len(), 1, "{body}: {messages:?}");
            assert!(messages[0].contains(durable), "{body}: {messages:?}");
            assert!(messages[0].ends_with("`#[flow(allow(nondeterminism))]`"));
        };
        check("std::time::SystemTime::now()", "`ergon::now()`");
        check("let at = Instant::now();", "`ergon::now()`");
        check("chrono::Utc::now().timestamp()", "`ergon::now()`");
        check("OffsetDateTime::now_utc()", "`ergon::now()`");
        check("jiff::Timestamp::now()", "`ergon::now()`");
        check("Uuid::new_v4()", "`ergon::uuid()`");
        check("id.unwrap_or_else(Uuid::now_v7)", "`ergon::uuid()`");
        check("rand::random::<u64>()", "`ergon::random()`");
        check("let mut rng = thread_rng();", "`ergon::random()`");
        check("rand::thread_rng()", "`ergon::random()`");
        check("for i in 0..fastrand::u8(..) {}", "`ergon::random()`");
        check("SmallRng::from_entropy()", "`ergon::random()`");
        check("tokio::spawn(async {});", "child flow");
        check("tokio::task::spawn(async {});", "child flow");
        check("task::spawn_blocking(|| 1);", "`#[step]`");
        check("spawn_blocking(|| 1);", "`#[step]`");
        check("std::thread::spawn(|| 1);", "child flow");
        check("std::thread::Builder::new().spawn(|| 1);", "child flow");
        check("let tasks = JoinSet::default();", "child flow");
        check("tokio::runtime::Handle::current().spawn(async {});", "child flow");
        check("thread::sleep(second)", "`ergon::sleep`");
        check("tokio::time::sleep(second).await", "`ergon::sleep`");
        check("::tokio::time::timeout(second, step).await", "`ergon::timeout`");
        check("std::fs::read_to_string(path)", "`#[step]`");
        check("tokio::fs::read(path).await", "`#[step]`");
        check("fs::write(path, text)", "`#[step]`");
        check("File::open(path)?", "`#[step]`");
        check("env::var(\"HOME\")", "`#[step]`");
        check("std::env::args().next()", "`#[step]`");
        check("tokio::net::TcpStream::connect(at).await", "`#[step]`");
        check("reqwest::get(url).await", "`#[step]`");
        check("std::process::Command::new(\"ls\")", "`#[step]`");
        check("std::process::exit(1)", "`#[step]`");
    }

    #[test]
    fn macros_closures_and_blocks_are_looked_into() {
        let check = |body: &str| assert_eq!(refusals(body).len(), 1, "{body}");
        check("format!(\"{:?}\", SystemTime::now())");
        check("tokio::select! { _ = tokio::time::sleep(second) => {} }");
        check("let read = || std::fs::read(path);");
        check("tokio::join!(async { env::var(\"A\") }, self.step())");
        assert_eq!(refusals("(Instant::now(), [Uuid::new_v4()])").len(), 2);
    }

    #[test]
    fn durable_and_harmless_calls_pass() {
        let check = |body: &str| assert_eq!(refusals(body), Vec::<String>::new(), "{body}");
        check("ergon::now(); ergon::random(); ergon::uuid(); ::ergon::sleep(second).await");
        check("now(); random(); uuid(); sleep(second).await; timeout(second)");
        check("env!(\"HOME\"); option_env!(\"HOME\")");
        check("self.fs.read(); value.thread_rng(); self.spawn_blocking(1)");
        check("crate::fs::read(); self::time::sleep(1); super::rand::next(); Self::now()");
        check("let at: SystemTime = SystemTime::UNIX_EPOCH;");
        check("let ip: std::net::IpAddr = std::net::IpAddr::V4(Ipv4Addr::new(1, 2, 3, 4));");
        check("Uuid::new_v5(&space, name); Uuid::nil(); Uuid::parse_str(text)");
        check("rand::rngs::StdRng::seed_from_u64(7)");
        check("use std::time::{Duration, Instant}; std::env::consts::OS");
        check("\"SystemTime::now()\"");
        check("fn thread_rng() {}");
    }

    #[test]
    fn a_message_names_the_path_as_written() {
        assert_eq!(
            refusals("std::time::SystemTime::now()"),
            ["`std::time::SystemTime::now` in a flow reads another time on each replay: use \
                 `ergon::now()`, or allow it with `#[flow(allow(nondeterminism))]`"]
        );
    }

    #[test]
    fn selects_become_biased() {
        let check = |body: &str, expect: &str| {
            let expect: TokenStream = expect.parse().unwrap();
            let body = Group::new(proc_macro2::Delimiter::Brace, body.parse().unwrap());
            assert_eq!(bias_selects(&body).stream().to_string(), expect.to_string());
        };
        check("select! { a => 1 }", "select! { biased; a => 1 }");
        check("tokio::select! { a => 1 }", "tokio::select! { biased; a => 1 }");
        check("::tokio::select!(a => 1)", "::tokio::select!(biased; a => 1)");
        check("ergon::select! { a => 1 }", "ergon::select! { biased; a => 1 }");
        check("tokio::select! { biased; a => 1 }", "tokio::select! { biased; a => 1 }");
        check("futures::select! { a => 1 }", "futures::select_biased! { a => 1 }");
        check("mine::select! { a => 1 }", "mine::select! { a => 1 }");
        check("a.select(b) != select", "a.select(b) != select");
        check(
            "join!(async { select! { a = select! { b => 1 } => 2 } })",
            "join!(async { select! { biased; a = select! { biased; b => 1 } => 2 } })",
        );
    }
}
