//! Maps by numbers that the engine or the log has given out itself.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// A map by numbers. Nobody outside can choose them, so that they need no guard against collisions made on purpose.
pub(crate) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// Spreads a number over all bits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NumberHasher(u64);

impl NumberHasher {
    /// 2⁶⁴ divided by the golden ratio, odd.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
}

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(Self::SPREAD);
    }

    fn finish(&self) -> u64 {
        // The map goes by the lowest and the highest bits; a product has its best in the upper half.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::BuildHasher};

    use super::*;

    #[test]
    fn numbers_in_a_row_are_spread_over_both_ends() {
        let spread = BuildHasherDefault::<NumberHasher>::default();
        for stride in [1_u64, 16, 1 << 24, 1 << 32] {
            let hashes: Vec<u64> = (0..256).map(|number| spread.hash_one(number * stride)).collect();
            let distinct =
                |part: &dyn Fn(u64) -> u64| hashes.iter().map(|hash| part(*hash)).collect::<HashSet<_>>().len();
            // By chance there would be some 162 of 256, and 111 of 128.
            assert!(distinct(&|hash| hash & 0xff) >= 128, "lowest bits, stride {stride}");
            assert!(distinct(&|hash| hash >> 57) >= 64, "highest bits, stride {stride}");
        }
    }
}
