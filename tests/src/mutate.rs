//! Valid input, broken at random.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// What programs that read are known to stumble over.
const WORDS: [&str; 20] = [
    "",
    "-1",
    "0",
    "1",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551616",
    "1e400",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\\u0000",
    "\u{0}",
    "\u{feff}",
    "ß",
    "..",
];

/// Breaks what is valid; the same seed does the same.
#[derive(Debug)]
pub struct Mutator {
    luck: StdRng,
    valid: Vec<Vec<u8>>,
}

impl Mutator {
    /// For inputs like these.
    ///
    /// # Panics
    ///
    /// When there are none.
    pub fn new<T: AsRef<[u8]>>(seed: u64, valid: impl IntoIterator<Item = T>) -> Self {
        let valid: Vec<_> = valid.into_iter().map(|input| input.as_ref().to_vec()).collect();
        assert!(!valid.is_empty(), "nothing to break");
        Self { luck: StdRng::seed_from_u64(seed), valid }
    }

    /// One of the inputs with one to eight changes.
    pub fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = self.one().to_vec();
        for _ in 0..self.luck.random_range(1..=8) {
            self.change(&mut bytes);
        }
        bytes
    }

    /// The same as text: what is none is made some.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn one(&mut self) -> &[u8] {
        self.valid.choose(&mut self.luck).expect("looked at when it was made")
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.luck.random_range(0..=bytes.len());
        let end = (at + self.luck.random_range(0..=16)).min(bytes.len());
        match self.luck.random_range(0..9) {
            0 => {
                bytes.truncate(at);
            }
            1 => {
                bytes.drain(at..end);
            }
            2 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            3 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << self.luck.random_range(0..8);
                }
            }
            4 => {
                bytes.insert(at, self.luck.random());
            }
            5 => {
                let other = self.one().to_vec();
                let from = self.luck.random_range(0..=other.len());
                bytes.splice(at..end, other[from..].iter().copied());
            }
            6 => {
                if let Some(digit) = bytes[at..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                    *digit = self.luck.random_range(b'0'..=b'9');
                }
            }
            // Where a number stands, another one: its syntax is right, and what it says is not.
            7 => {
                if let Some(first) = bytes[at..].iter().position(u8::is_ascii_digit).map(|place| at + place) {
                    let last = bytes[first..].iter().position(|byte| !byte.is_ascii_digit());
                    let last = last.map_or(bytes.len(), |length| first + length);
                    let word = WORDS.choose(&mut self.luck).expect("there are words");
                    bytes.splice(first..last, word.bytes());
                }
            }
            _ => {
                let word = WORDS.choose(&mut self.luck).expect("there are words");
                bytes.splice(at..end, word.bytes());
            }
        }
    }
}

/// How many inputs a test breaks: `ERGON_MUTATIONS`, or so many.
///
/// # Panics
///
/// When that is no number.
pub fn mutations(usual: u64) -> u64 {
    std::env::var("ERGON_MUTATIONS").map_or(usual, |text| text.parse().expect("ERGON_MUTATIONS is a number"))
}
