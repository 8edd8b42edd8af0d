//! Attributes and the items that they stand on, broken at random: whatever the tokens are, an expansion ends, does not
//! panic, and gives items of which the compiler can tell its user something.

use std::str::FromStr;

use proc_macro2::{Group, Literal, TokenStream, TokenTree};
use syn::LitStr;

use crate::{duration, macros};

/// How many inputs are broken.
const INPUTS: u64 = 20_000;

const ARGUMENTS: [&str; 8] = [
    "",
    r#"retry(max_attempts = 5, backoff = "1s..30s", multiplier = 2.0, jitter = 0.1), timeout = "10s""#,
    r#"name = "charge", retry = none"#,
    r#"blocking, timeout = "1h 30m""#,
    "transaction",
    r#"at_most_once, heartbeat_timeout = "5s""#,
    r#"name = "Order", version = 3"#,
    "allow(nondeterminism)",
];

const ITEMS: [&str; 6] = [
    "struct Order { id: String, cents: u64 }",
    "#[derive(Clone)] #[serde(rename_all = \"camelCase\")] enum Kind<'a, T> { A(T), B { text: &'a str } }",
    r#"impl Order {
        const LIMIT: u64 = 1;
        #[flow(timeout = "1h")]
        async fn run(&self) -> Result<Receipt, OrderError> {
            let (a, b) = tokio::try_join!(self.charge(1), self.label("x"))?;
            tokio::select! { _ = sleep(SECOND) => {}, x = signal::<u8>("go") => { x?; } }
            Ok(Receipt { a, b })
        }
        #[step(retry(max_attempts = 3))]
        async fn charge(&self, cents: u64) -> Result<u64, OrderError> { Ok(cents) }
        #[step(blocking)]
        fn label(&self, text: &str) -> Result<String, OrderError> { Ok(text.to_owned()) }
        fn other(&self) {}
    }"#,
    "async fn fetch(url: String, (a, b): (u8, u8)) -> ergon::Result<Vec<u8>> { Ok(vec![a, b]) }",
    "pub(crate) async fn nightly(day: Date, #[serde(default)] again: bool) -> Result<(), String> { Ok(()) }",
    "fn pay(tx: &Transaction<'_>, cents: i64) -> ergon::Result<()> { Ok(()) }",
];

/// What may come in the place of a token, or before it.
const TOKENS: [&str; 24] = [
    "async",
    "fn",
    "&",
    "self",
    "mut",
    "->",
    "=",
    ",",
    "::",
    "<",
    ">",
    "'a",
    "impl",
    "dyn",
    "'static",
    "!",
    "#[step]",
    "#[flow]",
    "..",
    "-1",
    "99999999999999999999999",
    "\"\"",
    "\"1s..\"",
    "\"18446744073709551615y\"",
];

/// `SplitMix64`: a test needs no better luck, and no dependency for it.
struct Luck(u64);

impl Luck {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((word ^ (word >> 31)) % u64::try_from(limit.max(1)).expect("small")).expect("below the limit")
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

/// The tokens with some of them gone, doubled, moved, or others in their places, at any depth.
fn broken(tokens: TokenStream, luck: &mut Luck) -> TokenStream {
    let mut trees: Vec<TokenTree> = tokens.into_iter().collect();
    for _ in 0..=luck.below(2) {
        let at = luck.below(trees.len() + 1);
        match luck.below(8) {
            0 if at < trees.len() => {
                trees.remove(at);
            }
            1 if at < trees.len() => {
                let tree = trees[at].clone();
                trees.insert(at, tree);
            }
            2 if !trees.is_empty() => {
                let tree = trees.remove(luck.below(trees.len()));
                trees.insert(luck.below(trees.len() + 1), tree);
            }
            3 | 4 => {
                let new = TokenStream::from_str(luck.one(&TOKENS)).expect("tokens");
                let end = (at + luck.below(2)).min(trees.len());
                trees.splice(at..end, new);
            }
            5 if at < trees.len() => {
                let text: String = (0..luck.below(12))
                    .map(|_| luck.one(&["1", "s", ".", "..", "=", " ", "m", "9", "y", "ß", "-"]))
                    .collect();
                trees[at] = Literal::string(&text).into();
            }
            _ => {
                if let Some(TokenTree::Group(group)) = trees.get(at) {
                    let inner = broken(group.stream(), luck);
                    trees[at] = Group::new(group.delimiter(), inner).into();
                }
            }
        }
    }
    trees.into_iter().collect()
}

#[test]
fn whatever_the_tokens_are_an_expansion_is_made_of_items() {
    let tokens = |text: &str| TokenStream::from_str(text).expect("tokens");
    for seed in 0..INPUTS {
        let luck = &mut Luck(seed);
        let (mut arguments, mut item) = (tokens(luck.one(&ARGUMENTS)), tokens(luck.one(&ITEMS)));
        for _ in 0..luck.below(3) {
            arguments = broken(arguments, luck);
        }
        for _ in 0..luck.below(4) {
            item = broken(item, luck);
        }
        let was_item = syn::parse2::<syn::Item>(item.clone()).is_ok();
        for (name, expand) in [
            ("flow_type", macros::flow_type as fn(TokenStream, TokenStream) -> TokenStream),
            ("flow", macros::flow),
            ("step", macros::step),
        ] {
            let expanded = expand(arguments.clone(), item.clone());
            // What cannot be parsed is handed back as it is, so that the compiler says why.
            assert!(
                !was_item || syn::parse2::<syn::File>(expanded.clone()).is_ok(),
                "seed {seed}: #[{name}({arguments})] {item} becomes {expanded}"
            );
        }
    }
}

#[test]
fn whatever_a_duration_says_it_is_one_within_bounds_or_refused() {
    let parts = [
        "1",
        "9",
        "0",
        "18446744073709551615",
        "999999999999999999999",
        ".",
        "..",
        "..=",
        "=",
        "-",
        " ",
        "s",
        "ms",
        "us",
        "ns",
        "m",
        "min",
        "h",
        "d",
        "w",
        "M",
        "y",
        "years",
        "e",
        "ß",
        "\u{0}",
        "\u{a0}",
        "1s",
        "30s",
        "10 years",
        "3650d",
    ];
    for seed in 0..20 * INPUTS {
        let luck = &mut Luck(seed);
        let text: String = (0..luck.below(7)).map(|_| luck.one(&parts)).collect();
        let literal = LitStr::new(&text, proc_macro2::Span::call_site());
        if let Ok(duration) = duration::parse(&literal) {
            assert!(!duration.is_zero() && duration <= duration::DURATION_MAX, "{text:?} is {duration:?}");
        }
        if let Ok((first, last)) = duration::parse_range(&literal) {
            assert!(last.is_none_or(|last| first <= last), "{text:?} is {first:?} to {last:?}");
        }
    }
}
