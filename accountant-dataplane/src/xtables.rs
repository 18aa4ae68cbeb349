//! Matches and targets of x_tables, as far as Calico's dialects need them. Used for the blobs of iptables-legacy and for
//! the `match` and `target` expressions with which iptables-nft wraps the same structures.
//!
//! Sources, all host byte order: `struct xt_entry_match` (x_tables.h), `xt_mark_mtinfo1` and `xt_mark_tginfo2`
//! (xt_mark.h), `xt_conntrack_mtinfo{1,2,3}` (xt_conntrack.h), `xt_state_info` (xt_state.h), `xt_nflog_info`
//! (xt_NFLOG.h), `xt_ct_target_info` (xt_CT.h), `xt_comment_info` (xt_comment.h), Linux 6.18.
//!
//! Invariant: total. What is too short or unknown counts as "has other matches" or "does something else".

use crate::bytes::{u16_at, u32_at};
use accountant_core::rule::{Action, CtStates, MarkMatch, Matches};

/// Size of `struct xt_entry_match` and `struct xt_entry_target`: u16 size, name of 29 bytes, u8 revision.
pub(crate) const SIZE: usize = 32;
const NAME: std::ops::Range<usize> = 2..31;
const REVISION: usize = 31;

/// Splits the match or target at `offset` into name, revision and data.
pub(crate) fn split(entry: &[u8], offset: usize) -> Option<(&str, u8, &[u8])> {
    let bytes = entry.get(offset..)?;
    let size = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let bytes = bytes.get(..size).filter(|_| size >= SIZE)?;
    Some((text(&bytes[NAME])?, bytes[REVISION], &bytes[SIZE..]))
}

/// Text up to the first zero byte.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|&byte| byte == 0).next()?).ok()
}

/// The verdict of a standard target.
pub(crate) fn verdict(data: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(data.get(..4)?.try_into().ok()?))
}

/// Adds a match to what a rule tests.
pub(crate) fn read_match(name: &str, revision: u8, data: &[u8], matches: &mut Matches) {
    let known = match name {
        "mark" => mark(revision, data).map(|mark| matches.mark = Some(mark)),
        "conntrack" => conntrack(revision, data).map(|states| matches.ct = Some(states)),
        "state" => u32_at(data, 0).map(|mask| matches.ct = Some(states(mask))),
        _ => None,
    };
    matches.others |= known.is_none();
}

/// What a target other than the standard one does.
pub(crate) fn read_target(name: &str, revision: u8, data: &[u8]) -> Action {
    let known = match (name, revision) {
        ("MARK", 2) => set_mark(data),
        ("REJECT", _) => Some(Action::Reject),
        ("NOTRACK", _) => Some(Action::NoTrack),
        // XT_CT_NOTRACK is bit 0 of the flags.
        ("CT", _) => data.first().filter(|flags| **flags & 1 != 0).map(|_| Action::NoTrack),
        ("NFLOG", _) => data.get(12..).and_then(text).map(|prefix| Action::NfLog(prefix.into())),
        ("LOG", _) => Some(Action::Log),
        _ => None,
    };
    known.unwrap_or(Action::Other)
}

fn mark(revision: u8, data: &[u8]) -> Option<MarkMatch> {
    // Revision 0 has unsigned longs; no kernel since 2.6.25 needs it.
    let invert = data.get(8).filter(|_| revision == 1)?;
    Some(MarkMatch { value: u32_at(data, 0)?, mask: u32_at(data, 4)?, invert: *invert != 0 })
}

fn set_mark(data: &[u8]) -> Option<Action> {
    Some(Action::SetMark { value: u32_at(data, 0)?, mask: u32_at(data, 4)? })
}

/// `match_flags` and `invert_flags` follow eight addresses, two expiry times and five ports and protocols.
const MATCH_FLAGS: usize = 146;
/// `XT_CONNTRACK_STATE`
const TESTS_STATE: u16 = 1;

/// A test of the state alone, not inverted.
fn conntrack(revision: u8, data: &[u8]) -> Option<CtStates> {
    let flags = u16_at(data, MATCH_FLAGS)?;
    let inverted = u16_at(data, MATCH_FLAGS + 2)?;
    let mask = match revision {
        1 => u16::from(*data.get(MATCH_FLAGS + 4)?),
        _ => u16_at(data, MATCH_FLAGS + 4)?,
    };
    (flags == TESTS_STATE && inverted == 0).then(|| states(mask.into()))
}

/// Bits of `XT_CONNTRACK_STATE_BIT`, also those of `xt_state`, and of nftables' `ct state`.
pub(crate) fn states(mask: u32) -> CtStates {
    CtStates {
        invalid: mask & 1 != 0,
        established: mask & 2 != 0,
        related: mask & 4 != 0,
        other: mask & !7 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_is_unknown() {
        let mut matches = Matches::default();
        read_match("mark", 1, &[0; 8], &mut matches);
        assert_eq!(matches, Matches { others: true, ..Matches::default() });
        assert_eq!(read_target("MARK", 2, &[0; 7]), Action::Other);
        assert_eq!(split(&[0; 31], 0), None);
        assert_eq!(split(&[31, 0, 0, 0], 0), None);
    }

    #[test]
    fn marks_and_states() {
        let mut data = 0x10000u32.to_ne_bytes().to_vec();
        data.extend(0x30000u32.to_ne_bytes());
        data.extend([1, 0, 0, 0]);
        let mut matches = Matches::default();
        read_match("mark", 1, &data, &mut matches);
        assert_eq!(matches.only_mark(), Some(MarkMatch { value: 0x10000, mask: 0x30000, invert: true }));
        assert_eq!(read_target("MARK", 2, &data), Action::SetMark { value: 0x10000, mask: 0x30000 });

        let mut data = vec![0; 160];
        data[MATCH_FLAGS] = 1;
        data[MATCH_FLAGS + 4] = 6;
        let mut matches = Matches::default();
        read_match("conntrack", 3, &data, &mut matches);
        let wanted = CtStates { established: true, related: true, ..CtStates::default() };
        assert_eq!(matches.only_ct(), Some(wanted));
        data[MATCH_FLAGS + 2] = 1;
        let mut matches = Matches::default();
        read_match("conntrack", 3, &data, &mut matches);
        assert!(matches.others, "an inverted test is another test");
    }
}
