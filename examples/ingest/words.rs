//! What a word is.

use std::collections::BTreeMap;

/// How often each word occurs, in an order that is the same each time.
pub(crate) type Words = BTreeMap<String, u32>;

const CHARS_MAX: usize = 40;

/// The words of a text in lower case: runs of two or more letters and digits.
pub(crate) fn terms(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| (2..=CHARS_MAX).contains(&word.chars().take(CHARS_MAX + 1).count()))
        .map(str::to_lowercase)
}

/// Counts the words of a text.
pub(crate) fn count(text: &str) -> Words {
    let mut words = Words::new();
    for term in terms(text) {
        let count = words.entry(term).or_default();
        *count = count.saturating_add(1);
    }
    words
}
