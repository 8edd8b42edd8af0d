//! Hashing any serializable value, without writing it down first.
//!
//! The hash is part of the history, so it must be the same over processes, platforms and versions: it is XXH3
//! over a canonical form that tags every value with its shape. It tells apart what JSON does not (`Some(None)`
//! from `None`, `NaN` from null), and the order of a map's entries does not matter.

use std::fmt;

use serde::ser::{self, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Whether the order of a sequence's elements counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sequences {
    Ordered,
    /// For comparing a value with its copy, where a hash set may come back in another order.
    Unordered,
}

/// The hash of a value; `Err` when its `Serialize` fails.
pub(crate) fn fingerprint<T: Serialize + ?Sized>(value: &T, sequences: Sequences) -> Result<u64, Failed> {
    let mut hasher = Hasher::new(sequences);
    value.serialize(&mut hasher)?;
    Ok(hasher.digest())
}

/// How much is gathered and hashed at once, which gives the same hash as piece by piece and costs far less.
const SMALL: usize = 128;
/// A tag and a length.
const HEAD: usize = 9;

struct Hasher {
    /// What was put in, while it is little.
    small: [u8; SMALL],
    len: usize,
    /// What has taken in everything, once it was more.
    large: Option<Box<Xxh3>>,
    sequences: Sequences,
}

impl Hasher {
    fn new(sequences: Sequences) -> Self {
        Self { small: [0; SMALL], len: 0, large: None, sequences }
    }

    fn put(&mut self, tag: u8, bytes: &[u8]) {
        let mut head = [0; HEAD];
        head[0] = tag;
        head[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        let end = self.len + HEAD + bytes.len();
        if self.large.is_none() && end <= SMALL {
            let (at, rest) = self.small[self.len..end].split_at_mut(HEAD);
            at.copy_from_slice(&head);
            rest.copy_from_slice(bytes);
            self.len = end;
            return;
        }
        let large = self.large.get_or_insert_with(|| {
            let mut large = Box::new(Xxh3::new());
            large.update(&self.small[..self.len]);
            large
        });
        large.update(&head);
        large.update(bytes);
    }

    fn digest(&self) -> u64 {
        match &self.large {
            Some(large) => large.digest(),
            None => xxh3_64(&self.small[..self.len]),
        }
    }
}

/// The hash of a tuple whose elements come one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Tuple(Sum);

impl Tuple {
    /// One that has no elements yet.
    pub(crate) const EMPTY: Self = Self(Sum { ordered: true, total: 0, count: 0 });

    pub(crate) fn add<T: Serialize + ?Sized>(&mut self, element: &T) -> Result<(), Failed> {
        self.0.add(fingerprint(element, Sequences::Ordered)?);
        Ok(())
    }

    /// What [`fingerprint`] says of the tuple.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = Hasher::new(Sequences::Ordered);
        match self.0.count {
            0 => hasher.put(b'u', &[]),
            _ => hasher.put(b'(', &self.0.bytes()),
        }
        hasher.digest()
    }
}

/// The hashes of elements, put together.
#[derive(Debug, Clone)]
struct Sum {
    ordered: bool,
    total: u64,
    count: u64,
}

impl Sum {
    fn add(&mut self, hash: u64) {
        self.count += 1;
        // Adding is blind to the order; mixing the count in is not.
        let hash = if self.ordered { hash ^ self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { hash };
        self.total = self.total.wrapping_add(xxh3_64(&hash.to_le_bytes()));
    }

    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..].copy_from_slice(&self.total.to_le_bytes());
        bytes
    }
}

/// The elements of a sequence or map, each hashed by itself.
struct Elements<'a> {
    parent: &'a mut Hasher,
    tag: u8,
    sum: Sum,
    key: u64,
}

impl<'a> Elements<'a> {
    fn new(parent: &'a mut Hasher, tag: u8, ordered: bool) -> Self {
        Self { parent, tag, sum: Sum { ordered, total: 0, count: 0 }, key: 0 }
    }

    fn hash<T: Serialize + ?Sized>(&self, value: &T) -> Result<u64, Failed> {
        fingerprint(value, self.parent.sequences)
    }

    fn add(&mut self, hash: u64) {
        self.sum.add(hash);
    }

    fn finish(self) {
        self.parent.put(self.tag, &self.sum.bytes());
    }
}

macro_rules! numbers {
    ($($method:ident $type:ty),*) => {
        $(fn $method(self, value: $type) -> Result<(), Failed> {
            // All integers of one value are one number, whatever their width.
            self.put(b'i', &i128::from(value).to_le_bytes());
            Ok(())
        })*
    };
}

impl<'a> ser::Serializer for &'a mut Hasher {
    type Ok = ();
    type Error = Failed;
    type SerializeSeq = Elements<'a>;
    type SerializeTuple = Elements<'a>;
    type SerializeTupleStruct = Elements<'a>;
    type SerializeTupleVariant = Elements<'a>;
    type SerializeMap = Elements<'a>;
    type SerializeStruct = Elements<'a>;
    type SerializeStructVariant = Elements<'a>;

    numbers!(serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64, serialize_i128 i128,
             serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64);

    fn serialize_u128(self, value: u128) -> Result<(), Failed> {
        match i128::try_from(value) {
            Ok(value) => self.put(b'i', &value.to_le_bytes()),
            Err(_) => self.put(b'I', &value.to_le_bytes()),
        }
        Ok(())
    }

    fn serialize_bool(self, value: bool) -> Result<(), Failed> {
        self.put(b'b', &[u8::from(value)]);
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<(), Failed> {
        self.put(b'f', &value.to_bits().to_le_bytes());
        Ok(())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Failed> {
        self.put(b'F', &value.to_bits().to_le_bytes());
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Failed> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), Failed> {
        self.put(b's', value.as_bytes());
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Failed> {
        self.put(b'B', value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Failed> {
        self.put(b'0', &[]);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Failed> {
        self.put(b'1', &[]);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Failed> {
        self.put(b'u', &[]);
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), Failed> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Failed> {
        self.put(b'v', variant.as_bytes());
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Failed> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Failed> {
        self.put(b'v', variant.as_bytes());
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Elements<'a>, Failed> {
        let ordered = self.sequences == Sequences::Ordered;
        Ok(Elements::new(self, b'[', ordered))
    }

    fn serialize_tuple(self, _: usize) -> Result<Elements<'a>, Failed> {
        Ok(Elements::new(self, b'(', true))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Elements<'a>, Failed> {
        Ok(Elements::new(self, b'(', true))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Elements<'a>, Failed> {
        self.put(b'v', variant.as_bytes());
        Ok(Elements::new(self, b'(', true))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Elements<'a>, Failed> {
        Ok(Elements::new(self, b'{', false))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Elements<'a>, Failed> {
        Ok(Elements::new(self, b'{', false))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Elements<'a>, Failed> {
        self.put(b'v', variant.as_bytes());
        Ok(Elements::new(self, b'{', false))
    }
}

macro_rules! elements {
    ($($trait:ident::$method:ident),*) => {
        $(impl ser::$trait for Elements<'_> {
            type Ok = ();
            type Error = Failed;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failed> {
                let hash = self.hash(value)?;
                self.add(hash);
                Ok(())
            }

            fn end(self) -> Result<(), Failed> {
                self.finish();
                Ok(())
            }
        })*
    };
}

elements!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

macro_rules! fields {
    ($($trait:ident),*) => {
        $(impl ser::$trait for Elements<'_> {
            type Ok = ();
            type Error = Failed;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Failed> {
                let entry = [self.hash(key)?, self.hash(value)?];
                self.add(pair(entry));
                Ok(())
            }

            fn end(self) -> Result<(), Failed> {
                self.finish();
                Ok(())
            }
        })*
    };
}

fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Elements<'_> {
    type Ok = ();
    type Error = Failed;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Failed> {
        self.key = self.hash(key)?;
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failed> {
        let entry = [self.key, self.hash(value)?];
        self.add(pair(entry));
        Ok(())
    }

    fn end(self) -> Result<(), Failed> {
        self.finish();
        Ok(())
    }
}

fn pair([key, value]: [u64; 2]) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&key.to_le_bytes());
    bytes[8..].copy_from_slice(&value.to_le_bytes());
    xxh3_64(&bytes)
}

/// What a value's own `Serialize` said when it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

impl ser::Error for Failed {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};

    use super::*;

    fn hash<T: Serialize + ?Sized>(value: &T) -> u64 {
        fingerprint(value, Sequences::Ordered).unwrap()
    }

    #[test]
    fn the_hash_is_part_of_the_history_and_never_changes() {
        assert_eq!(hash(&("order-7", 4200_u64, [1.5_f64])), 4_503_838_805_591_660_561);
        assert_eq!(hash(&()), 11_294_104_448_120_876_240);
    }

    #[test]
    fn a_tuple_hashes_as_its_elements_one_after_the_other() {
        let mut tuple = Tuple::EMPTY;
        assert_eq!(tuple.digest(), hash(&()));
        tuple.add("order-7").unwrap();
        assert_eq!(tuple.digest(), hash(&("order-7",)));
        tuple.add(&4200_u64).unwrap();
        tuple.add(&[1.5_f64]).unwrap();
        assert_eq!(tuple.digest(), hash(&("order-7", 4200_u64, [1.5_f64])));
    }

    #[test]
    fn a_text_hashes_as_xxh3_of_its_canonical_form_whatever_its_length() {
        for len in (0..=300).chain([1_000, 100_000]) {
            let text = "x".repeat(len);
            let mut form = vec![b's'];
            form.extend((len as u64).to_le_bytes());
            form.extend(text.as_bytes());
            assert_eq!(hash(&text), xxh3_64(&form), "{len} bytes");
            // In pieces that add up to more than is gathered.
            form.insert(0, b'1');
            form.splice(1..1, 0_u64.to_le_bytes());
            assert_eq!(hash(&Some(&text)), xxh3_64(&form), "{len} bytes in an option");
        }
    }

    #[test]
    fn what_differs_hashes_differently() {
        assert_ne!(hash(&Some(None::<u8>)), hash(&None::<Option<u8>>));
        assert_ne!(hash(&[1, 2][..]), hash(&[2, 1][..]));
        assert_ne!(hash("ab"), hash(&("a", "b")));
        assert_ne!(hash(&f64::NAN), hash(&None::<f64>));
        assert_ne!(hash(&0.0_f64), hash(&-0.0_f64));
        assert_ne!(hash(&vec![0_u8; 0]), hash(&()));
        assert_ne!(hash(&u128::MAX), hash(&-1_i128));
    }

    #[test]
    fn what_is_equal_hashes_equally() {
        let map: HashMap<u32, &str> = (0..100).map(|n| (n, "x")).collect();
        let sorted: BTreeMap<u32, &str> = map.clone().into_iter().collect();
        assert_eq!(hash(&map), hash(&sorted));
        assert_eq!(hash(&7_u8), hash(&7_i64));
        let set: HashSet<u32> = (0..100).collect();
        let list: Vec<u32> = (0..100).rev().collect();
        let unordered = |value: &dyn Fn() -> Result<u64, Failed>| value().unwrap();
        assert_eq!(
            unordered(&|| fingerprint(&set, Sequences::Unordered)),
            unordered(&|| fingerprint(&list, Sequences::Unordered))
        );
    }
}
