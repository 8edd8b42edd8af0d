//! Links of our papers into the documentation that docs.rs has of each release.

use std::fs;

use crate::shell::{Error, Result, root, target};

const PAPERS: [&str; 2] = ["README.md", "docs/production.md"];
const LATEST: &str = "https://docs.rs/ergon/latest/";

/// Looks for what each link names in the documentation that was built last.
pub(crate) fn check() -> Result {
    let folder = target().join("doc");
    let page = |path: &str| fs::read_to_string(folder.join(path)).ok();
    let mut wrong = Vec::new();
    for paper in PAPERS {
        let text = fs::read_to_string(root().join(paper))
            .map_err(|error| Error::new(format!("{paper} cannot be read: {error}")))?;
        wrong.extend(broken(&text, page).into_iter().map(|why| format!("{paper}: {why}")));
    }
    if wrong.is_empty() { Ok(()) } else { Err(Error::new(wrong.join("; "))) }
}

/// The links that lead nowhere, each with what is missing.
fn broken(text: &str, page: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let wrong = |link: &str| {
        let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
        let Some(html) = page(path) else { return Some(format!("{LATEST}{link}: there is no page {path}")) };
        let is_there = anchor.is_empty() || html.contains(&format!("id=\"{anchor}\""));
        (!is_there).then(|| format!("{LATEST}{link}: nothing on the page is called {anchor:?}"))
    };
    links(text).filter_map(wrong).collect()
}

/// What comes after the beginning that all of them share.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let ends = |c: char| c.is_whitespace() || matches!(c, ')' | '>' | '"' | '`');
    text.split(LATEST).skip(1).filter_map(move |rest| rest.split(ends).next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_what_is_not_there_is_named() {
        let page =
            |path: &str| (path == "ergon/struct.Worker.html").then(|| "<section id=\"method.start\">".to_owned());
        let text = "[`a`](https://docs.rs/ergon/latest/ergon/struct.Worker.html) and \
            <https://docs.rs/ergon/latest/ergon/struct.Worker.html#method.start>, but \
            [`b`](https://docs.rs/ergon/latest/ergon/struct.Worker.html#method.begin), \
            [`c`](https://docs.rs/ergon/latest/ergon/fn.work.html#examples).";
        let [method, function] = &broken(text, page)[..] else { panic!("{:?}", broken(text, page)) };
        assert!(
            method.ends_with("Worker.html#method.begin: nothing on the page is called \"method.begin\""),
            "{method}"
        );
        assert!(function.ends_with("fn.work.html#examples: there is no page ergon/fn.work.html"), "{function}");
    }

    #[test]
    fn the_papers_have_such_links() {
        for paper in PAPERS {
            let text = fs::read_to_string(root().join(paper)).unwrap();
            let all = text.matches("https://docs.rs/ergon").count();
            assert!(all > 0 && links(&text).count() == all, "{paper}: others are not looked after");
        }
    }
}
