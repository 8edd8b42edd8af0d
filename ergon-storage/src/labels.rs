//! What people call a flow by, beside its id.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{Affinity, Error, ErrorKind, Result};

/// A flow's labels: a small map of names to values, by which flows are listed and counted.
///
/// Labels are for people and their tools: a customer, a region, a stage. The log looks into none but the two of
/// [`Affinity`]. They are few and short, see [`check`](Self::check), and belong to no secret: every listing shows them.
///
/// # Examples
///
/// ```
/// use ergon_storage::Labels;
///
/// let mut labels = Labels::from([("customer", "7"), ("region", "eu")]);
/// labels.set("stage", "paid");
/// assert_eq!(labels.get("stage"), Some("paid"));
/// assert_eq!(labels.to_string(), "customer=7, region=eu, stage=paid");
/// assert!(labels.check().is_ok());
/// // A name is plain.
/// assert!(Labels::from([("the customer", "7")]).check().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels(BTreeMap<Arc<str>, Arc<str>>);

impl Labels {
    /// How many labels a flow can have.
    pub const COUNT_MAX: usize = 16;
    /// The longest name, in bytes.
    pub const NAME_BYTES_MAX: usize = 64;
    /// The longest value, in bytes.
    pub const VALUE_BYTES_MAX: usize = 255;

    /// No labels.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Gives a label this value, instead of the one that it has.
    pub fn set(&mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) {
        self.0.insert(name.into(), value.into());
    }

    /// Takes a label away; false when there was none of this name.
    pub fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// The value of a label.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| &**value)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names and their values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Checks the labels against their bounds: at most [`COUNT_MAX`](Self::COUNT_MAX) of them; a name has 1 to
    /// [`NAME_BYTES_MAX`](Self::NAME_BYTES_MAX) ASCII letters, digits, dots, dashes, underscores and slashes; a value
    /// has at most [`VALUE_BYTES_MAX`](Self::VALUE_BYTES_MAX) bytes and no control characters; those of [`Affinity`] say
    /// what it can be.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`].
    pub fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        if self.len() > Self::COUNT_MAX {
            return invalid(format!("a flow has at most {} labels, these are {}", Self::COUNT_MAX, self.len()));
        }
        for (name, value) in self.iter() {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
            if name.is_empty() || name.len() > Self::NAME_BYTES_MAX || !name.bytes().all(is_plain) {
                let max = Self::NAME_BYTES_MAX;
                return invalid(format!(
                    "a label's name has 1 to {max} letters, digits, dots, dashes, underscores and slashes; {name:?} is \
                     none"
                ));
            }
            if value.len() > Self::VALUE_BYTES_MAX || value.chars().any(char::is_control) {
                let max = Self::VALUE_BYTES_MAX;
                return invalid(format!(
                    "a label's value has at most {max} bytes and no control characters, that of {name:?} is another"
                ));
            }
        }
        Affinity::check(self)
    }

    /// Labels that keep their bounds as one text, a line each. Empty when there are none.
    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "redis"))]
    pub(crate) fn to_lines(&self) -> String {
        let lines: Vec<String> = self.iter().map(|(name, value)| format!("{name}={value}")).collect();
        lines.join("\n")
    }

    /// The labels of [`to_lines`](Self::to_lines).
    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "redis"))]
    pub(crate) fn from_lines(lines: &str) -> Self {
        lines.split('\n').filter_map(|line| line.split_once('=')).collect()
    }
}

impl<N: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(N, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Self {
        Self(labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl<N: Into<Arc<str>>, V: Into<Arc<str>>, const COUNT: usize> From<[(N, V); COUNT]> for Labels {
    fn from(labels: [(N, V); COUNT]) -> Self {
        labels.into_iter().collect()
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (name, value)) in self.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{name}={value}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl serde::Serialize for Labels {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> serde::Deserialize<'de> for Labels {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::<String, String>::deserialize(deserializer).map(Self::from_iter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_bounds() {
        let long = |length| "x".repeat(length);
        for good in [
            Labels::new(),
            Labels::from([("a", "")]),
            Labels::from([(long(64), long(255))]),
            Labels::from([("a.b/c-d_E9", "ü = \"x\", y")]),
            (0..16).map(|number| (format!("n{number}"), "v")).collect(),
        ] {
            good.check().unwrap();
        }
        for bad in [
            Labels::from([("", "v")]),
            Labels::from([("a=b", "v")]),
            Labels::from([("ü", "v")]),
            Labels::from([(long(65), "v".to_owned())]),
            Labels::from([("a", long(256))]),
            Labels::from([("a", "two\nlines")]),
            Labels::from([("a", "\0")]),
            (0..17).map(|number| (format!("n{number}"), "v")).collect(),
        ] {
            assert_eq!(bad.check().unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }

    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "redis"))]
    #[test]
    fn lines_come_back_as_labels() {
        for labels in [Labels::new(), Labels::from([("a", ""), ("b", "=x="), ("c", "ü ")])] {
            assert_eq!(Labels::from_lines(&labels.to_lines()), labels);
        }
    }
}
