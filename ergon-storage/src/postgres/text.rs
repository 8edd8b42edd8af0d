//! Text as a PostgreSQL server takes it.
//!
//! The server's text has no NUL, which ids and names may hold. It is written as U+0001 and a `0`, and U+0001 itself
//! as U+0001 and a `1`; all other text, which is nearly all text, is stored as it is. Different texts stay different.

use std::borrow::Cow;

const MARK: char = '\u{1}';

/// Text for a column.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| byte <= 1) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace(MARK, "\u{1}1").replace('\0', "\u{1}0"))
}

/// Text for a column, without a line break, so that several can be joined by one.
pub(super) fn escape_line(text: &str) -> Cow<'_, str> {
    let escaped = escape(text);
    if !escaped.contains('\n') {
        return escaped;
    }
    Cow::Owned(escaped.replace('\n', "\u{1}n"))
}

/// The text that was escaped.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains(MARK) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        plain.push(match c {
            MARK => match rest.next() {
                Some('0') => '\0',
                Some('n') => '\n',
                _ => MARK,
            },
            other => other,
        });
    }
    Cow::Owned(plain)
}

/// An identifier for use within a statement.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A number for a text, equal over processes and builds: FNV-1a.
pub(super) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_as_it_was() {
        for text in ["", "order-7", "a\0b", "\0", "\u{1}", "\u{1}0", "\u{1}1", "\u{1}\0n\n", "line\nbreak", "🦀\u{1}n"]
        {
            for escaped in [escape(text), escape_line(text)] {
                assert!(!escaped.contains('\0'));
                assert_eq!(unescape(&escaped), text);
            }
            assert!(!escape_line(text).contains('\n'));
        }
        assert_eq!(escape("plain\ntext"), "plain\ntext");
    }

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(identifier("ergon"), "\"ergon\"");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
