//! Where fields are in the running kernel's structures, from its own description of its types (BTF).
//!
//! Source: `include/uapi/linux/btf.h` (Linux 6.18), native byte order. Of vmlinux' description and those of modules, which
//! continue its numbering of types and strings. aya-obj has a parser, which keeps members to itself and makes a value of each
//! of vmlinux' 150 000 types; here nothing is kept but where each type begins.
//!
//! Invariant: total. Any bytes give places or a typed error; nothing is read beyond them.

use crate::bytes::u32_at;
use thiserror::Error;

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
/// Typedef, volatile, const, restrict and type tags: names for another type.
const ALIASES: [u32; 5] = [8, 9, 10, 11, 18];
/// No chain of aliases is that long.
const MAX_ALIASES: u32 = 32;
/// How many members are looked at for one field; structures that contain themselves many times are endless.
const MAX_STEPS: u32 = 1 << 18;
/// No structure is nested that deep.
const MAX_DEPTH: u32 = 16;

/// A description that is not one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// It does not begin like one of this machine's byte order.
    #[error("it does not begin like BTF of this machine")]
    Header,
    /// A type does not fit, or is of a kind that is not known.
    #[error("type {0} is cut short or of an unknown kind")]
    Type(u32),
}

/// Kinds of types that are asked for by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A structure.
    Struct = 4,
    /// Another name for a type; tracepoints are known by one.
    Typedef = 8,
    /// A function.
    Function = 12,
}

/// Where a field is in its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// In bits from the structure's beginning.
    pub bit: u32,
    /// Number of bits of a bit field, zero of any other.
    pub bits: u32,
}

/// Types of one file, and of the file that it continues.
#[derive(Debug)]
pub struct Btf<'a> {
    base: Option<&'a Btf<'a>>,
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; the first has the number `first`.
    begins: Vec<u32>,
    first: u32,
    first_string: u32,
}

/// A type's head: name, kind and number of members, whether members have bit sizes, and size or the type it stands for.
#[derive(Clone, Copy)]
struct Head<'a> {
    name: u32,
    kind: u32,
    members: u32,
    with_bits: bool,
    other: u32,
    rest: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Takes a file's bytes apart.
    pub fn parse(bytes: &'a [u8], base: Option<&'a Self>) -> Result<Self, BtfError> {
        let (types, strings) = sections(bytes).ok_or(BtfError::Header)?;
        let first = base.map_or(1, |base| base.first + base.begins.len() as u32);
        let first_string = base.map_or(0, |base| base.first_string + base.strings.len() as u32);
        let mut begins = Vec::new();
        let mut at = 0;
        while at < types.len() {
            let number = first + begins.len() as u32;
            let head = head(types, at).ok_or(BtfError::Type(number))?;
            begins.push(at as u32);
            at += 12 + payload(head.kind, head.members).ok_or(BtfError::Type(number))?;
        }
        if at > types.len() {
            return Err(BtfError::Type(first + begins.len() as u32 - 1));
        }
        Ok(Self { base, types, strings, begins, first, first_string })
    }

    /// Where a field is, by the name of its structure and a path like `nf.hooks_ipv4`.
    pub fn place(&self, structure: &str, path: &str) -> Option<Place> {
        let mut steps = MAX_STEPS;
        self.structures(structure).find_map(|head| self.along(head, path, MAX_DEPTH, &mut steps))
    }

    /// The number of a type of the kernel itself, by its name.
    pub fn number(&self, kind: Kind, name: &str) -> Option<u32> {
        let own = self.begins.iter().zip(self.first..).find_map(|(&at, number)| {
            let head = head(self.types, at as usize)?;
            (head.kind == kind as u32 && self.is_named(head.name, name)).then_some(number)
        });
        self.base.map_or(own, |base| base.number(kind, name))
    }

    /// The value that has this name in an enumeration.
    pub fn value(&self, enumeration: &str, name: &str) -> Option<u32> {
        let heads = self.begins.iter().filter_map(|&at| head(self.types, at as usize));
        let mut heads = heads.filter(|head| head.kind == ENUM && self.is_named(head.name, enumeration));
        let own = heads.find_map(|head| {
            (0..head.members as usize).find_map(|member| {
                let is_it = self.is_named(u32_at(head.rest, 8 * member)?, name);
                u32_at(head.rest, 8 * member + 4).filter(|_| is_it)
            })
        });
        own.or_else(|| self.base?.value(enumeration, name))
    }

    /// The size of a structure.
    pub fn size(&self, structure: &str) -> Option<u32> {
        self.structures(structure).next().map(|head| head.other)
    }

    fn structures<'b>(&'b self, name: &'b str) -> Box<dyn Iterator<Item = Head<'a>> + 'b> {
        let own = self.begins.iter().filter_map(|&at| head(self.types, at as usize));
        let own = own.filter(move |head| head.kind == STRUCT && self.is_named(head.name, name));
        match self.base {
            Some(base) => Box::new(own.chain(base.structures(name))),
            None => Box::new(own),
        }
    }

    fn along(&self, head: Head<'a>, path: &str, depth: u32, steps: &mut u32) -> Option<Place> {
        let depth = depth.checked_sub(1)?;
        let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        for number in 0..head.members as usize {
            *steps = steps.checked_sub(1)?;
            let member = head.rest.get(number * 12..number * 12 + 12)?;
            let offset = u32_at(member, 8)?;
            let (bit, bits) = if head.with_bits { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            let inner = || self.structure(u32_at(member, 4)?);
            let found = match u32_at(member, 0)? {
                // Members of what has no name count as the structure's own.
                0 => inner().and_then(|inner| self.along(inner, path, depth, steps)),
                this if self.is_named(this, name) => match rest {
                    None => return Some(Place { bit, bits }),
                    Some(rest) => inner().and_then(|inner| self.along(inner, rest, depth, steps)),
                },
                _ => None,
            };
            if let Some(place) = found {
                return Some(Place { bit: bit.checked_add(place.bit)?, ..place });
            }
        }
        None
    }

    /// The structure or union that a type number stands for.
    fn structure(&self, mut number: u32) -> Option<Head<'a>> {
        for _ in 0..MAX_ALIASES {
            let head = self.by_number(number)?;
            match head.kind {
                STRUCT | UNION => return Some(head),
                kind if ALIASES.contains(&kind) => number = head.other,
                _ => return None,
            }
        }
        None
    }

    fn by_number(&self, number: u32) -> Option<Head<'a>> {
        match number.checked_sub(self.first) {
            Some(index) => head(self.types, *self.begins.get(index as usize)? as usize),
            None => self.base?.by_number(number),
        }
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        match offset.checked_sub(self.first_string) {
            Some(at) => {
                let text = self.strings.get(at as usize..).unwrap_or_default();
                text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
            }
            None => self.base.is_some_and(|base| base.is_named(offset, name)),
        }
    }
}

fn sections(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let header = u32_at(bytes, 4)? as usize;
    if magic != MAGIC || header < HEADER {
        return None;
    }
    let body = bytes.get(header..)?;
    let part = |offset, length| {
        let (offset, length) = (u32_at(bytes, offset)? as usize, u32_at(bytes, length)? as usize);
        body.get(offset..offset.checked_add(length)?)
    };
    Some((part(8, 12)?, part(16, 20)?))
}

fn head(types: &[u8], at: usize) -> Option<Head<'_>> {
    let bytes = types.get(at..)?;
    let info = u32_at(bytes, 4)?;
    Some(Head {
        name: u32_at(bytes, 0)?,
        kind: info >> 24 & 0x1f,
        members: info & 0xffff,
        with_bits: info >> 31 == 1,
        other: u32_at(bytes, 8)?,
        rest: bytes.get(12..)?,
    })
}

/// How long what follows a type's head is.
fn payload(kind: u32, members: u32) -> Option<usize> {
    let each = match kind {
        // Structures, unions, data sections and 64-bit enumerations.
        4 | 5 | 15 | 19 => 12,
        // Enumerations and function prototypes.
        6 | 13 => 8,
        1 | 14 | 17 => return Some(4),
        3 => return Some(12),
        2 | 7..=12 | 16 | 18 => return Some(0),
        _ => return None,
    };
    Some(members as usize * each)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of these types, each words of its own, and these strings.
    fn file(types: &[&[u32]], strings: &str) -> Vec<u8> {
        let types: Vec<u8> = types.concat().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings.as_bytes());
        bytes
    }

    const fn info(kind: u32, members: u32) -> u32 {
        kind << 24 | members
    }

    /// `struct a { int x; union { int y; struct b z; }; }`, `struct b { int h:42; int g:2; }`, `typedef struct a t`.
    fn base() -> Vec<u8> {
        file(
            &[
                &[0, info(1, 0), 4, 32],
                &[1, info(4, 2), 16, 5, 1, 0, 0, 3, 64],
                &[0, info(5, 2), 8, 7, 1, 0, 9, 4, 0],
                &[3, info(4, 2) | 1 << 31, 8, 11, 1, 42 << 24, 13, 1, 2 << 24 | 42],
                &[15, info(8, 0), 2],
            ],
            "\0a\0b\0x\0y\0z\0h\0g\0t\0",
        )
    }

    #[test]
    fn fields_in_nameless_members_bit_fields_and_along_a_path() {
        let bytes = base();
        let btf = Btf::parse(&bytes, None).unwrap();
        let place = |structure, path| btf.place(structure, path);
        assert_eq!(place("a", "x"), Some(Place { bit: 0, bits: 0 }));
        assert_eq!(place("a", "y"), Some(Place { bit: 64, bits: 0 }));
        assert_eq!(place("a", "z.g"), Some(Place { bit: 64 + 42, bits: 2 }));
        assert_eq!(place("b", "h"), Some(Place { bit: 0, bits: 42 }));
        assert_eq!((btf.size("a"), btf.size("nothing")), (Some(16), None));
        assert_eq!((place("a", "z.nothing"), place("a", "x.y"), place("nothing", "x")), (None, None, None));
    }

    #[test]
    fn a_module_continues_the_numbers_of_the_kernel() {
        let (kernel, strings) = (base(), "\0a\0b\0x\0y\0z\0h\0g\0t\0".len() as u32);
        let kernel = Btf::parse(&kernel, None).unwrap();
        // struct m { struct t (of the kernel) x (a string of the kernel) }
        let module = file(&[&[strings + 1, info(4, 1), 8, 5, 5, 32]], "\0m\0");
        let module = Btf::parse(&module, Some(&kernel)).unwrap();
        assert_eq!(module.place("m", "x.z.h"), Some(Place { bit: 32 + 64, bits: 42 }));
        assert_eq!(module.place("b", "g"), Some(Place { bit: 42, bits: 2 }));
    }

    #[test]
    fn any_piece_of_a_file_is_refused_or_read() {
        let bytes = base();
        for length in 0..bytes.len() {
            if let Ok(btf) = Btf::parse(&bytes[..length], None) {
                btf.place("a", "z.g");
            }
        }
        assert_eq!(Btf::parse(&[], None).unwrap_err(), BtfError::Header);
        let unknown = file(&[&[0, info(31, 0), 0]], "\0");
        assert_eq!(Btf::parse(&unknown, None).unwrap_err(), BtfError::Type(1));
        // A structure that contains itself.
        let endless = file(&[&[1, info(4, 1), 8, 0, 1, 0]], "\0a\0");
        assert_eq!(Btf::parse(&endless, None).unwrap().place("a", "x"), None);
        // Offsets whose sum is too large.
        let far = file(&[&[1, info(4, 1), 8, 0, 2, u32::MAX], &[0, info(4, 1), 8, 3, 0, 1]], "\0a\0x\0");
        assert_eq!(Btf::parse(&far, None).unwrap().place("a", "x"), None);
    }
}
