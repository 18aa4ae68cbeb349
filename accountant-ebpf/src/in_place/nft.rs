//! Walks the lists of nf_tables: from a base chain's hook to its table, along its chains to those that are wanted, along
//! their rules to each rule's counter.
//!
//! The lists may change under the walk, which then ends early or goes round: every loop is bounded, and the agent believes
//! a walk only if the generation stood still meanwhile and the rules are those that it knows.

use crate::{NAME, STAMP, WALKED, WANTED};
use accountant_abi::in_place::{CHAIN_NAME, ChainKeyName, MAX_RULES, Outcome, WalkedRule};
use accountant_ebpf::field;
use accountant_ebpf::memory::{net_of_current, read};
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel_str};
use aya_ebpf::programs::RawTracePointContext;

/// `NFPROTO_IPV6`
const IPV6: u64 = 10;
/// Hooks of IP packets, `NF_INET_NUMHOOKS` less the one of devices.
const HOOKS: u32 = 5;
/// More functions than are called from one hook.
const ENTRIES: u32 = 64;
/// More chains than a table has, rules than a chain, expressions than a rule.
const CHAINS: u32 = 1 << 17;
pub(crate) const RULES: u32 = 1 << 16;
pub(crate) const EXPRESSIONS: u32 = 128;
/// What a counter's type is called.
const COUNTER: u64 = u64::from_le_bytes(*b"counter\0");

pub(crate) struct Walk {
    head: u64,
    next: u64,
    pub(crate) chain: u32,
    rule_head: u64,
    rule_next: u64,
    pub(crate) count: u32,
    pub(crate) outcome: u32,
    /// The bit of rules that are not there in this generation.
    inactive: u64,
    /// Operations of counters, once they are known.
    counter_ops: u64,
    pub(crate) expression: u64,
    pub(crate) end: u64,
    pub(crate) counter: u64,
    /// Where the pointer to it stands.
    pub(crate) counter_at: u64,
    /// Whether rules are looked at as packets see them; if so, where their chain points to them, where that is, and whether
    /// the generation is an odd one.
    packed: bool,
    pub(crate) odd: bool,
    pub(crate) chain_at: u64,
    pub(crate) blob: u64,
}

program!(
    /// Walks the table of `args 0..2` (family, name): rules of wanted chains go to `WALKED`, their number to the stamp.
    /// `arg 2` are the operations of counters, if they are known; what they are goes to the stamp.
    walk_nft,
    walk
);

program!(
    /// The same of the rules as packets see them, which go to `PACKED`. The first word of the stamp is the address of the
    /// generation's bit.
    walk_packed,
    walk_packed_outcome
);

#[inline(always)]
fn walk_packed_outcome(ctx: &RawTracePointContext) -> Outcome {
    walk_as(ctx, true)
}

#[inline(always)]
fn walk(ctx: &RawTracePointContext) -> Outcome {
    walk_as(ctx, false)
}

#[inline(always)]
fn walk_as(ctx: &RawTracePointContext, packed: bool) -> Outcome {
    let (family, name) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1));
    let Some(net) = net_of_current() else { return Outcome::Unreadable };
    let Some(table) = find_table(net, family, name) else { return Outcome::NoTable };
    let Some(cursor) = read::<u8>(net + field!(net_gencursor)) else { return Outcome::Unreadable };
    let head = table + field!(nft_chains);
    let Some(next) = read::<u64>(head) else { return Outcome::Unreadable };
    let mut walk = Walk {
        head,
        next,
        chain: 0,
        rule_head: 0,
        rule_next: 0,
        count: 0,
        outcome: Outcome::Changed as u32,
        inactive: 1 << (cursor & 1),
        counter_ops: ctx.arg(2),
        expression: 0,
        end: 0,
        counter: 0,
        counter_at: 0,
        packed,
        odd: cursor & 1 != 0,
        chain_at: 0,
        blob: 0,
    };
    // SAFETY: the callback has the type that the kernel calls, and the state outlives the loop.
    unsafe { bpf_loop(CHAINS, step_chain as *mut _, (&raw mut walk).cast(), 0) };
    if let Some(stamp) = STAMP.get_ptr_mut(0) {
        // SAFETY: a value of the map, which only the caller of this program looks at.
        unsafe {
            (*stamp).net = net + field!(net_gencursor);
            (*stamp).private = walk.counter_ops;
            (*stamp).number = walk.count;
        }
    }
    Outcome::of(walk.outcome)
}

struct Search {
    hooks: u64,
    family: u64,
    name: u64,
    table: u64,
}

#[inline(always)]
fn find_table(net: u64, family: u64, name: u64) -> Option<u64> {
    let hooks = if family == IPV6 { field!(net_hooks_ipv6) } else { field!(net_hooks_ipv4) };
    let mut search = Search { hooks: net + hooks, family, name, table: 0 };
    // SAFETY: as above.
    unsafe { bpf_loop(HOOKS * ENTRIES, step_entry as *mut _, (&raw mut search).cast(), 0) };
    if search.table == 0 { None } else { Some(search.table) }
}

unsafe extern "C" fn step_entry(index: u32, search: *mut Search) -> i64 {
    // SAFETY: the state is the caller's.
    let search = unsafe { &mut *search };
    match table_at(index / ENTRIES, index % ENTRIES, search) {
        Some(table) => {
            search.table = table;
            1
        }
        None => 0,
    }
}

/// The table of the base chain that is called there, if it is the one that is looked for.
#[inline(always)]
fn table_at(hook: u32, index: u32, search: &Search) -> Option<u64> {
    let entries: u64 = read(search.hooks + 8 * u64::from(hook))?;
    let count: u16 = read(entries + field!(entries_count))?;
    if index >= u32::from(count) {
        return None;
    }
    let entry = entries + field!(entries_hooks) + u64::from(index) * field!(entry_size);
    let chain: u64 = read(entry + field!(entry_priv))?;
    let table: u64 = read(chain + field!(chain_table))?;
    let name: u64 = read(table + field!(nft_name))?;
    let word: u64 = read(table + field!(nft_family))?;
    let family = part(word, field!(nft_family_shift), field!(nft_family_bits));
    (short_text(name) == search.name && family == search.family).then_some(table)
}

unsafe extern "C" fn step_chain(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the state is the caller's.
    let walk = unsafe { &mut *walk };
    if walk.next == walk.head {
        walk.outcome = Outcome::Done as u32;
        return 1;
    }
    let chain = walk.next - field!(chain_list);
    let Some(next) = read::<u64>(walk.next) else { return unreadable(walk) };
    let Some(name) = read::<u64>(chain + field!(chain_name)) else { return unreadable(walk) };
    walk.next = next;
    let Some(key) = NAME.get_ptr_mut(0) else { return unreadable(walk) };
    // SAFETY: a value of the map, which only the caller of this program looks at; the helper writes no more than there is
    // room for. The agent changes the other map only while no walk is under way.
    let wanted = unsafe {
        *key = ChainKeyName { bytes: [0; CHAIN_NAME] };
        bpf_probe_read_kernel_str((&raw mut (*key).bytes).cast(), CHAIN_NAME as u32, name as *const _);
        WANTED.get(&*key)
    };
    let Some(&wanted) = wanted else { return 0 };
    walk.chain = wanted;
    if walk.packed {
        return crate::packed::walk_rules(walk, chain);
    }
    walk.rule_head = chain + field!(chain_rules);
    let Some(first) = read::<u64>(walk.rule_head) else { return unreadable(walk) };
    walk.rule_next = first;
    // Rules that do not end are those of a list that changed.
    walk.outcome = Outcome::Changed as u32;
    // SAFETY: as above.
    unsafe { bpf_loop(RULES, step_rule as *mut _, (walk as *mut Walk).cast(), 0) };
    i64::from(walk.outcome != Outcome::Done as u32)
}

unsafe extern "C" fn step_rule(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the state is the caller's.
    let walk = unsafe { &mut *walk };
    if walk.rule_next == walk.rule_head {
        walk.outcome = Outcome::Done as u32;
        return 1;
    }
    let rule = walk.rule_next - field!(rule_list);
    let Some(next) = read::<u64>(walk.rule_next) else { return unreadable(walk) };
    let Some(word) = read::<u64>(rule + field!(rule_word)) else { return unreadable(walk) };
    walk.rule_next = next;
    let genmask = part(word, field!(rule_genmask_shift), field!(rule_genmask_bits));
    if genmask & walk.inactive != 0 {
        return 0;
    }
    walk.expression = rule + field!(rule_data);
    walk.end = walk.expression + part(word, field!(rule_dlen_shift), field!(rule_dlen_bits));
    walk.counter = 0;
    // SAFETY: as above.
    unsafe { bpf_loop(EXPRESSIONS, step_expression as *mut _, (walk as *mut Walk).cast(), 0) };
    let Some(walked) = WALKED.get_ptr_mut(walk.count) else {
        walk.outcome = Outcome::Full as u32;
        return 1;
    };
    let handle = part(word, field!(rule_handle_shift), field!(rule_handle_bits));
    // SAFETY: a value of the map, which only the caller of this program looks at.
    unsafe { *walked = WalkedRule { handle, counter: walk.counter, chain: walk.chain, padding: 0 } };
    walk.count += 1;
    i64::from(walk.count > MAX_RULES)
}

/// The first counter of a rule is the one that counts.
pub(crate) unsafe extern "C" fn step_expression(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the state is the caller's.
    let walk = unsafe { &mut *walk };
    if walk.expression >= walk.end {
        return 1;
    }
    let Some(ops) = read::<u64>(walk.expression) else { return 1 };
    if walk.counter_ops == 0 && is_counter(ops) {
        walk.counter_ops = ops;
    }
    if ops == walk.counter_ops {
        walk.counter_at = walk.expression + field!(expr_data);
        walk.counter = read(walk.counter_at).unwrap_or(0);
        return 1;
    }
    let Some(size) = read::<u32>(ops + field!(ops_size)) else { return 1 };
    walk.expression += u64::from(size);
    i64::from(size == 0)
}

#[inline(always)]
fn is_counter(ops: u64) -> bool {
    let kind = read::<u64>(ops + field!(ops_type));
    let name = kind.and_then(|kind| read::<u64>(kind + field!(type_name)));
    name.is_some_and(|name| short_text(name) == COUNTER)
}

#[inline(always)]
pub(crate) fn unreadable(walk: &mut Walk) -> i64 {
    walk.outcome = Outcome::Unreadable as u32;
    1
}

/// A bit field in a word.
#[inline(always)]
pub(crate) fn part(word: u64, shift: u64, bits: u64) -> u64 {
    (word >> (shift & 63)) & ((1 << (bits & 63)) - 1)
}

/// The first eight characters of a text, zeros behind it.
#[inline(always)]
fn short_text(address: u64) -> u64 {
    let mut text = 0u64;
    // SAFETY: the helper writes no more than eight bytes.
    unsafe { bpf_probe_read_kernel_str((&raw mut text).cast(), 8, address as *const _) };
    text
}
