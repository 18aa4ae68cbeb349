//! Reading the kernel's structures, at places that the agent looked up in its description of types.
//!
//! Fields of the context are read through typed pointers; the verifier knows places as constants, because they are
//! read-only. Any other address is read by [`load`], which cannot fault.

use crate::{POST_ROUTING, Table};
use accountant_abi::verdict::Places;
use accountant_ebpf::memory;

/// Where things are, set by the agent before the programs are loaded.
#[unsafe(no_mangle)]
pub(crate) static PLACES: Places = {
    // SAFETY: offsets are integers.
    unsafe { core::mem::zeroed() }
};

/// A place in the kernel's structures.
macro_rules! place {
    ($name:ident) => {
        $crate::kernel::constant(&$crate::kernel::PLACES.$name)
    };
}
pub(crate) use place;

/// A number that the agent set.
#[inline(always)]
pub(crate) fn constant(number: &'static u32) -> u64 {
    // SAFETY: a read of read-only data. Volatile, because the compiler must not take the zeros for the values.
    u64::from(unsafe { core::ptr::read_volatile(number) })
}

/// Reads eight bytes at an address; zero if there is nothing.
#[inline(always)]
pub(crate) fn load(address: u64) -> u64 {
    memory::load(address, place!(two_words))
}

/// A packet at a hook.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    /// Its address.
    pub(crate) skb: u64,
    pub(crate) table: Table,
    pub(crate) hook: u32,
    /// 0 for IPv4, 1 for IPv6.
    pub(crate) version: u32,
    pub(crate) length: u32,
    /// Pointer to the connection and its state in the lowest three bits.
    conntrack: u64,
    /// Indices of the interfaces; zero for none.
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl Packet {
    /// The packet of a netfilter program: `struct bpf_nf_ctx` is a pointer to the hook's state and one to the packet.
    #[inline(always)]
    pub(crate) fn at_hook(context: *const u64, table: Table) -> Self {
        // SAFETY: both are pointers that the verifier knows, and the fields are where the kernel says.
        unsafe {
            let state = *context.cast::<*const u8>();
            let skb = *context.cast::<*const u8>().add(1);
            let family = field::<u8>(state, place!(state_family));
            let hook = u32::from(field::<u8>(state, place!(state_hook)));
            // What leaves has been through the chains of where it came from.
            let leaves = table == Table::Mangle && hook == POST_ROUTING;
            Self {
                skb: skb as u64,
                table,
                hook,
                version: u32::from(family == IPV6),
                length: field(skb, place!(skb_length)),
                conntrack: field(skb, place!(skb_conntrack)),
                from: if leaves { 0 } else { index(field(state, place!(state_in))) },
                to: index(field(state, place!(state_out))),
            }
        }
    }

    /// Whether it is of a connection that was answered, or related to one: what the first rule of a chain accepts. Chains of
    /// the raw table have no such rule, and packets that loop have the state of their way out.
    #[inline(always)]
    pub(crate) fn is_established(&self) -> bool {
        if self.table == Table::Raw {
            return false;
        }
        // IP_CT_ESTABLISHED, IP_CT_RELATED and both as replies; 2 is new, 7 untracked.
        self.conntrack > 7 && matches!(self.conntrack & 7, 0 | 1 | 3 | 4)
    }
}

/// `NFPROTO_IPV6`
const IPV6: u8 = 10;

/// # Safety
/// The pointer has to be one that the verifier knows, to a structure with such a field there.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy>(structure: *const u8, place: u64) -> T {
    // SAFETY: as the caller says.
    unsafe { core::ptr::read_volatile(structure.add(place as usize).cast()) }
}

#[inline(always)]
fn index(device: *const u8) -> u32 {
    if device.is_null() {
        return 0;
    }
    // SAFETY: a device of the hook's state, which outlives the packet's way through the hook.
    unsafe { field(device, place!(device_index)) }
}
