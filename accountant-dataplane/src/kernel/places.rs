//! Where the programs find things in this kernel, and the numbers that they and their loader need.

use crate::in_place::CannotHere;
use crate::in_place::btf::{Btf, Kind};
use crate::in_place::cast::Cast;
use crate::in_place::fields::{Lookup, with_types};
use accountant_abi::verdict::Places;

/// What is looked up once, when the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) places: Places,
    /// The number of the tracepoint `kfree_skb`'s type.
    pub(super) dropped: u32,
    /// How the programs read memory.
    pub(super) cast: Cast,
}

impl Kernel {
    /// Looks it up in the kernel's description of its types.
    pub(super) fn look() -> Result<Self, CannotHere> {
        with_types("nf_tables", find)
    }
}

fn find(types: &Btf<'_>) -> Result<Kernel, CannotHere> {
    let look = Lookup { types };
    let number = |kind, name: &str| types.number(kind, name).ok_or_else(|| CannotHere::NoField(name.into()));
    let cast = Cast::look(types).ok_or_else(|| CannotHere::NoField("bpf_rdonly_cast".into()))?;
    let reason = types.value("skb_drop_reason", "SKB_DROP_REASON_NETFILTER_DROP");
    let places = Places {
        state_hook: look.byte("nf_hook_state", "hook")?,
        state_family: look.byte("nf_hook_state", "pf")?,
        state_in: look.byte("nf_hook_state", "in")?,
        state_out: look.byte("nf_hook_state", "out")?,
        device_index: look.byte("net_device", "ifindex")?,
        skb_conntrack: look.byte("sk_buff", "_nfct")?,
        skb_length: look.byte("sk_buff", "len")?,
        skb_head: look.byte("sk_buff", "head")?,
        skb_network_header: look.byte("sk_buff", "network_header")?,
        array_pptrs: look.byte("bpf_array", "pptrs")?,
        two_words: cast.two_words,
        netfilter_drop: reason
            .ok_or_else(|| CannotHere::NoField("drop reason of the packet filter".into()))?,
        ..Places::default()
    };
    Ok(Kernel { places, dropped: number(Kind::Typedef, "btf_trace_kfree_skb")?, cast })
}
