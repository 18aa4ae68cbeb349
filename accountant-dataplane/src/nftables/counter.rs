//! Handle and counter of a rule, and nothing else: all that a poll needs of a rule that did not change.
//!
//! A poll looks at every rule of every endpoint, so this walks over the attributes without decoding what it passes;
//! [`super::rule`] reads the same and more, and the two agree.
//!
//! Source: `enum nft_rule_attributes`, `nft_list_attributes`, `nft_expr_attributes`, `nft_counter_attributes`
//! (`include/uapi/linux/netfilter/nf_tables.h`); `struct nlattr` in host byte order, numbers in big endian.
//!
//! Invariant: total. What is cut short gives no counter.

use accountant_core::Counter;

/// `NFTA_RULE_HANDLE`, `NFTA_RULE_EXPRESSIONS`
const HANDLE: u16 = 3;
const EXPRESSIONS: u16 = 4;
/// `NFTA_LIST_ELEM`
const ELEMENT: u16 = 1;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`
const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFTA_COUNTER_BYTES`, `NFTA_COUNTER_PACKETS`
const BYTES: u16 = 1;
const PACKETS: u16 = 2;

/// `NLA_TYPE_MASK`: what is left of a type without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// Handle and counter in the payload of a rule message, behind the `nfgenmsg`. A rule without a counter has zero.
pub fn handle_and_counter(payload: &[u8]) -> Option<(u64, Counter)> {
    let mut handle = None;
    let mut counter = None;
    for (kind, data) in attributes(payload) {
        match kind {
            // As the whole decoder has it: of two the last, though the kernel sends one.
            HANDLE => handle = Some(big_endian(data)?),
            EXPRESSIONS => counter = counter.or_else(|| first_counter(data)),
            _ => {}
        }
    }
    Some((handle?, counter.unwrap_or_default()))
}

fn first_counter(expressions: &[u8]) -> Option<Counter> {
    attributes(expressions).filter(|(kind, _)| *kind == ELEMENT).find_map(|(_, expression)| {
        let named = attributes(expression).any(|(kind, data)| kind == NAME && data == b"counter\0");
        if named { read(find(expression, DATA)?) } else { None }
    })
}

fn read(counter: &[u8]) -> Option<Counter> {
    Some(Counter::new(big_endian(find(counter, PACKETS)?)?, big_endian(find(counter, BYTES)?)?))
}

fn find(attributes_: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(attributes_).find_map(|(kind, data)| (kind == wanted).then_some(data))
}

fn big_endian(data: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(data.try_into().ok()?))
}

/// Types and contents of attributes that stand one behind the other; ends where one is cut short.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = rest else { return None };
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let data = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([*c, *d]) & TYPE_MASK, data))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nftables::rule;

    /// Rules as a kernel dumped them, which are the fuzzer's seeds too.
    #[test]
    fn it_reads_what_the_whole_decoder_reads() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/netlink_rule");
        let mut counted = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let payload = std::fs::read(entry.unwrap().path()).unwrap();
            let Some(whole) = rule::decode(&payload, false) else { continue };
            assert_eq!(handle_and_counter(&payload), Some((whole.handle, whole.counter)));
            counted += usize::from(whole.counter != Counter::ZERO);
        }
        assert!(counted > 0, "no counter was seen");
    }

    #[test]
    fn of_two_handles_the_last_is_meant_by_both_decoders() {
        let twice = [12, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 7, 12, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 8];
        assert_eq!(handle_and_counter(&twice), Some((8, Counter::ZERO)));
        assert_eq!(rule::decode(&twice, false).map(|rule| rule.handle), Some(8));
    }

    #[test]
    fn what_is_cut_short_has_no_counter() {
        let handle = [12, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        assert_eq!(handle_and_counter(&handle), Some((7, Counter::ZERO)));
        assert_eq!(handle_and_counter(&handle[..11]), None);
        assert_eq!(handle_and_counter(&[0; 8]), None, "a length of zero ends, it does not loop");
    }
}
