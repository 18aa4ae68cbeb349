//! Reading kernel memory that is nobody's typed pointer: it can be gone at any moment, and then the read fails instead of
//! faulting. [`read`] says so, at the cost of a call; [`load`] and [`load_two`] give zeros.

use accountant_abi::CAST;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel};

/// Reads a value at an address; none if there is nothing.
#[inline(always)]
pub fn read<T: Copy>(address: u64) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes the whole value, zeros if the address cannot be read; T is plain data.
    unsafe {
        let size = core::mem::size_of::<T>() as u32;
        if bpf_probe_read_kernel(value.as_mut_ptr().cast(), size, address as *const _) == 0 {
            Some(value.assume_init())
        } else {
            None
        }
    }
}

/// Reads eight bytes at an address; zero if there is nothing. `two_words` is the number of a type of two words.
#[inline(always)]
pub fn load(address: u64, two_words: u64) -> u64 {
    // SAFETY: the pointer faults nowhere. Volatile, because the memory is not the program's.
    unsafe { core::ptr::read_volatile(cast(address, two_words)) }
}

/// Reads two words at an address; zeros if there is nothing.
#[inline(always)]
pub fn load_two(address: u64, two_words: u64) -> [u64; 2] {
    let words = cast(address, two_words);
    // SAFETY: as above, and the type has two words.
    unsafe { [core::ptr::read_volatile(words), core::ptr::read_volatile(words.add(1))] }
}

/// A pointer that the verifier lets be read: it makes no call of this, and of a read a load whose fault the kernel answers
/// with zero.
#[inline(always)]
fn cast(address: u64, two_words: u64) -> *const u64 {
    // SAFETY: the kernel's function `bpf_rdonly_cast` takes any number and the number of a type. The agent puts its own
    // number where this one stands.
    unsafe {
        let cast: unsafe extern "C" fn(u64, u64) -> *const u64 = core::mem::transmute(CAST as usize);
        cast(address, two_words)
    }
}

/// Offsets in the kernel's structures, set by the agent before the programs are loaded.
#[unsafe(no_mangle)]
static FIELDS: accountant_abi::in_place::Fields = {
    // SAFETY: offsets are integers.
    unsafe { core::mem::zeroed() }
};

/// An offset in a structure of the running kernel.
#[macro_export]
macro_rules! field {
    ($name:ident) => {
        // SAFETY: a read of read-only data. Volatile, because the compiler must not take the zeros for the values.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::memory::fields()).$name) as u64 }
    };
}

/// The offsets.
#[inline(always)]
pub const fn fields() -> &'static accountant_abi::in_place::Fields {
    &FIELDS
}

/// The network namespace of the task that runs the program: for a program that is run by a system call, its caller's.
#[inline(always)]
pub fn net_of_current() -> Option<u64> {
    // SAFETY: the helper takes nothing and returns a number.
    let task = unsafe { bpf_get_current_task() };
    let nsproxy: u64 = read(task + field!(task_nsproxy))?;
    read(nsproxy + field!(nsproxy_net))
}
