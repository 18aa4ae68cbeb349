//! Reading the verdict of the packet in the slot, and counting it.

use crate::maps::{HOOKS, PATHS, VERDICTS, at, counters, layout, note, state};
use accountant_abi::Traffic;
use accountant_abi::calico::{
    ALLOWED, ALLOWED_THEN_DROPPED, DENIED, DROPPED_WITHOUT_POLICY, Hook, HookKey, Last, MAX_HITS,
    POLICY_FAILED, PathKey, SETTLED, Slot, VerdictKey, notes,
};

/// Where the verdict is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Right behind Calico's program.
    Behind,
    /// Where the packet is dropped.
    Dropped,
    /// At any later moment.
    Later,
}

/// `flags` and `pol_rc` of the state.
const SKIP_POLICY: u64 = 0x20;
const ALLOW: i32 = 1;
const DENY: i32 = 2;
const FAILED: i32 = 10;

/// Reads and counts the verdict of the packet in the slot. Says whether there was one.
#[inline(always)]
pub fn settle(slot: &mut Slot, place: Place) -> bool {
    slot.pending = SETTLED;
    let Some(state) = state(0) else { return false };
    // SAFETY: a state of Calico's.
    let (said, flags): (i32, u64) = unsafe { (at(state, layout!(verdict)), at(state, layout!(flags))) };
    let asked = flags & SKIP_POLICY == 0 && (said == ALLOW || said == DENY);
    if !asked && place != Place::Dropped {
        return false;
    }
    let key = HookKey { interface: slot.interface, hook: slot.hook as u32 };
    // SAFETY: this CPU's value of the map, which no other of our programs looks at meanwhile.
    let mut hook = HOOKS.get_ptr_mut(&key).map(|hook| unsafe { &mut *hook });
    if !moved(&key, hook.as_deref_mut().map(|hook| &mut hook.last), asked) {
        note(match place {
            Place::Behind => notes::MISPLACED,
            Place::Dropped => notes::FOREIGN,
            Place::Later => notes::STALE,
        });
        return false;
    }
    if is_of(hook.as_deref()) {
        count(slot, state, asked, outcome(said, asked, place));
    } else {
        note(notes::OVERWRITTEN);
    }
    true
}

#[inline(always)]
fn outcome(said: i32, asked: bool, place: Place) -> u8 {
    match (asked, said) {
        (true, DENY) => DENIED,
        (true, _) if place == Place::Dropped => ALLOWED_THEN_DROPPED,
        (true, _) => ALLOWED,
        (false, FAILED) => POLICY_FAILED,
        (false, _) => DROPPED_WITHOUT_POLICY,
    }
}

/// Whether Calico's counters say that it decided on, or dropped, a packet of this interface and hook on this CPU since the
/// last verdict that was read. Where there are no such counters the state has to be believed.
#[inline(always)]
fn moved(key: &HookKey, last: Option<&mut Last>, asked: bool) -> bool {
    if layout!(counters) == 0 {
        return asked;
    }
    let Some(counters) = counters(key) else { return false };
    // One that the agent has forgotten is of an interface that is gone.
    let Some(last) = last else { return true };
    // SAFETY: all layouts have these, which the verifier checks.
    let at = |reason: u32| unsafe { at::<u64>(counters, 8 * reason) };
    let now = if asked {
        at(2).wrapping_add(at(4))
    } else {
        // What is dropped for reasons of the packet's own, those that all layouts have and those of later ones.
        let mut sum = at(5) + at(6) + at(7) + at(8) + at(9) + at(10) + at(11) + at(12) + at(13);
        if layout!(counters) >= 136 {
            sum += at(14) + at(15) + at(16);
        }
        if layout!(counters) >= 200 {
            sum += at(22) + at(23);
        }
        if layout!(counters) >= 208 {
            sum += at(25);
        }
        sum
    };
    core::mem::replace(if asked { &mut last.decided } else { &mut last.dropped }, now) != now
}

/// Whether Calico's programs last worked for this interface: they write its name for each packet.
#[inline(always)]
fn is_of(hook: Option<&Hook>) -> bool {
    if layout!(name) == 0 {
        return true;
    }
    let Some(globals) = state(1) else { return false };
    let Some(hook) = hook else { return false };
    let mut word = 0;
    while word < 4 {
        // SAFETY: an entry of Calico's.
        if unsafe { at::<u32>(globals, layout!(name) + 4 * word) } != hook.name[word as usize] {
            return false;
        }
        word += 1;
    }
    true
}

#[inline(always)]
fn count(slot: &Slot, state: *const u8, asked: bool, outcome: u8) {
    let path = if asked { path(state) } else { PathKey::default() };
    let Slot { interface, hook, ip_version, .. } = *slot;
    let key = VerdictKey { path, interface, hook, ip_version, outcome, padding: 0 };
    if let Some(traffic) = VERDICTS.get_ptr_mut(&key) {
        // SAFETY: this CPU's value of the map.
        unsafe {
            (*traffic).packets += 1;
            (*traffic).bytes += u64::from(slot.length);
        }
        return;
    }
    if path.hits() > 0 {
        let rules = layout!(rules) as usize;
        // SAFETY: the rules are within the state, which the verifier checks, and aligned as the kernel's values are.
        let rules = unsafe { &*state.add(rules).cast::<[u64; MAX_HITS]>() };
        // Rules that find no room leave the path known by its last one.
        let _ = PATHS.insert(&path, rules, 0);
    }
    let traffic = Traffic { packets: 1, bytes: u64::from(slot.length) };
    if VERDICTS.insert(&key, &traffic, 0).is_err() {
        note(notes::FULL);
    }
}

/// The path of a state.
#[inline(always)]
fn path(state: *const u8) -> PathKey {
    // SAFETY: a state of Calico's.
    let hits = unsafe { at::<u8>(state, layout!(hits)) };
    let mut key = PathKey { hash: 0xcbf2_9ce4_8422_2325, last: 0 };
    let mut hit = 0;
    while hit < MAX_HITS as u32 {
        if hit >= u32::from(hits) {
            break;
        }
        // SAFETY: as above; there is room for so many.
        key.last = unsafe { at(state, layout!(rules) + 8 * hit) };
        key.hash = (key.hash.rotate_left(5) ^ key.last).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hit += 1;
    }
    key.of_length(hits)
}
