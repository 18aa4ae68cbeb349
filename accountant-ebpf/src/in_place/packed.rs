//! Walks the rules of a chain of nf_tables as packets see them: packed into one piece of memory for each generation that
//! changed the chain.
//!
//! Source: `struct nft_rule_blob`, `struct nft_rule_dp` (`include/net/netfilter/nf_tables.h`, Linux 5.17 and later): rules
//! one behind the other, each with eight bytes in front of its expressions; the last one has none and says so.

use crate::nft::{EXPRESSIONS, RULES, Walk, part, step_expression, unreadable};
use accountant_abi::in_place::{MAX_RULES, Outcome, PackedRule};
use accountant_ebpf::field;
use accountant_ebpf::memory::read;
use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;

/// Out of a walk: the rules of the wanted chains. The agent makes it as big as it needs it.
#[map]
static PACKED: Array<PackedRule> = Array::with_max_entries(1, 1 << 10);
/// What is in front of a rule's expressions.
const HEAD: u64 = 8;

#[inline(always)]
pub(crate) fn walk_rules(walk: &mut Walk, chain: u64) -> i64 {
    walk.chain_at = chain + field!(chain_blob);
    let at = if walk.odd { walk.chain_at + 8 } else { walk.chain_at };
    let Some(blob) = read::<u64>(at) else { return unreadable(walk) };
    walk.blob = blob;
    // The next rule's place, from here on.
    walk.end = blob + field!(blob_data);
    walk.outcome = Outcome::Changed as u32;
    // SAFETY: the callback has the type that the kernel calls, and the state outlives the loop.
    unsafe { bpf_loop(RULES, step_packed as *mut _, (walk as *mut Walk).cast(), 0) };
    i64::from(walk.outcome != Outcome::Done as u32)
}

unsafe extern "C" fn step_packed(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the state is the caller's.
    let walk = unsafe { &mut *walk };
    let head_at = walk.end;
    let Some(head) = read::<u64>(head_at) else { return unreadable(walk) };
    if part(head, field!(packed_last_shift), 1) == 1 {
        walk.outcome = Outcome::Done as u32;
        return 1;
    }
    walk.expression = head_at + HEAD;
    walk.end = walk.expression + part(head, field!(packed_dlen_shift), field!(packed_dlen_bits));
    (walk.counter, walk.counter_at) = (0, 0);
    // SAFETY: as above.
    unsafe { bpf_loop(EXPRESSIONS, step_expression as *mut _, (walk as *mut Walk).cast(), 0) };
    let Some(packed) = PACKED.get_ptr_mut(walk.count) else {
        walk.outcome = Outcome::Full as u32;
        return 1;
    };
    // SAFETY: a value of the map, which only the caller of this program looks at.
    unsafe {
        *packed = PackedRule {
            head_at,
            head,
            counter_at: walk.counter_at,
            counter: walk.counter,
            chain_at: walk.chain_at,
            blob: walk.blob,
            chain: walk.chain,
            padding: 0,
        };
    }
    walk.count += 1;
    i64::from(walk.count > MAX_RULES)
}
