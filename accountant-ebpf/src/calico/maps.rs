//! The maps: ours, and doors to Calico's.
//!
//! A door is an array of one map, into which the agent puts Calico's: it can be another one without our programs being loaded
//! again, and our programs do not count as users of Calico's maps. The kernel wants to know the size of the values
//! beforehand, so there is a door for each size; the agent opens one, and the verifier sees from [`LAYOUT`] which.

use accountant_abi::Traffic;
use accountant_abi::calico::{Hook, HookKey, Layout, MAX_HITS, PathKey, Slot, VerdictKey, notes};
use aya_ebpf::btf_maps::{ArrayOfMaps, HashMap, PerCpuArray, PerCpuHashMap};
use aya_ebpf::macros::btf_map;

/// What may be decided on right now, or was last.
#[btf_map]
static SLOT: PerCpuArray<Slot, 1> = PerCpuArray::new();
/// How many packets had which verdict.
#[btf_map]
pub static VERDICTS: PerCpuHashMap<VerdictKey, Traffic, 16384> = PerCpuHashMap::new();
/// The rules of each path.
#[btf_map]
pub static PATHS: HashMap<PathKey, [u64; MAX_HITS], 4096> = HashMap::new();
/// The interfaces and hooks that the agent has told, before it attaches a program there.
#[btf_map]
pub static HOOKS: PerCpuHashMap<HookKey, Hook, 4096> = PerCpuHashMap::new();
/// Our own counters.
#[btf_map]
static NOTES: PerCpuArray<u64, { notes::COUNT as usize }> = PerCpuArray::new();

/// Where things are; set by the agent.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = {
    // SAFETY: integers.
    unsafe { core::mem::zeroed() }
};

/// A field of the layout.
macro_rules! layout {
    ($name:ident) => {
        $crate::maps::field(&$crate::maps::LAYOUT.$name)
    };
}
pub(crate) use layout;

/// What the agent has set.
#[inline(always)]
pub fn field(field: &u32) -> u32 {
    // SAFETY: a reference. Volatile, because the compiler must not take the zeros for the values.
    unsafe { core::ptr::read_volatile(field) }
}

/// A value in an entry of Calico's.
///
/// # Safety
///
/// The entry is one of Calico's values and not ended; the verifier checks that the value is within it.
#[inline(always)]
pub unsafe fn at<T: Copy>(entry: *const u8, offset: u32) -> T {
    // SAFETY: as above; Calico writes only from the same CPU, when we do not run.
    unsafe { core::ptr::read_volatile(entry.add(offset as usize).cast()) }
}

/// A door for each size, and which value of an entry is behind the one that is open.
macro_rules! states {
    ($($name:ident $size:literal)*) => {
        $(#[btf_map]
        static $name: ArrayOfMaps<PerCpuArray<[u8; $size], 2>, 1> = ArrayOfMaps::new();)*

        /// This CPU's entry of Calico's state.
        #[inline(always)]
        pub fn state(entry: u32) -> Option<*const u8> {
            match layout!(state) {
                $($size => Some($name.get_value_ptr_mut(0, &entry)?.cast_const().cast()),)*
                _ => None,
            }
        }
    };
}
states! { STATE_416 416 STATE_464 464 STATE_480 480 STATE_488 488 STATE_512 512 }

macro_rules! counters {
    ($($name:ident $size:literal)*) => {
        $(#[btf_map]
        static $name: ArrayOfMaps<PerCpuHashMap<HookKey, [u64; $size / 8], 1>, 1> = ArrayOfMaps::new();)*

        /// This CPU's counters of an interface and hook, and how many there are.
        #[inline(always)]
        pub fn counters(key: &HookKey) -> Option<*const u8> {
            match layout!(counters) {
                $($size => Some($name.get_value_ptr_mut(0, key)?.cast_const().cast()),)*
                _ => None,
            }
        }
    };
}
counters! { COUNTERS_112 112 COUNTERS_136 136 COUNTERS_200 200 COUNTERS_208 208 COUNTERS_216 216 }

/// This CPU's slot.
#[inline(always)]
pub fn slot() -> Option<&'static mut Slot> {
    // SAFETY: this CPU's value of the map, which is a Slot and is not moved; our programs do not interrupt each other on a
    // CPU, and none holds it longer than it runs.
    SLOT.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
}

/// Counts one of `notes`.
#[inline(always)]
pub fn note(index: u32) {
    if let Some(count) = NOTES.get_ptr_mut(index) {
        // SAFETY: this CPU's value of the map.
        unsafe { *count += 1 };
    }
}
