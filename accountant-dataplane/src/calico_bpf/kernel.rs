//! Where our programs find things: in Calico's maps by their layouts, in the kernel by its own description of its types.

use crate::in_place::CannotHere;
use crate::in_place::btf::Btf;
use accountant_abi::calico::Layout;
use accountant_core::calico::bpf::{CounterLayout, StateLayout};

const TYPES: &str = "/sys/kernel/btf/vmlinux";
const REASONS: &str = "skb_drop_reason";

/// All that the programs have to be told.
pub(super) fn layout(state: StateLayout, counters: Option<CounterLayout>) -> Result<Layout, CannotHere> {
    let bytes = std::fs::read(TYPES).map_err(|error| CannotHere::types(TYPES, error))?;
    let types = Btf::parse(&bytes, None).map_err(|error| CannotHere::types(TYPES, error))?;
    let byte = |structure: &str, field: &str| {
        let place = types.place(structure, field).filter(|place| place.bit % 8 == 0 && place.bits == 0);
        place.map(|place| place.bit / 8).ok_or_else(|| CannotHere::NoField(format!("{structure}.{field}")))
    };
    let reason = |name: &str| {
        types.value(REASONS, name).ok_or_else(|| CannotHere::NoField(format!("{name} of {REASONS}")))
    };
    let beside = known(state, counters);
    Ok(Layout {
        reason_ingress: reason("SKB_DROP_REASON_TC_INGRESS")?,
        reason_egress: reason("SKB_DROP_REASON_TC_EGRESS")?,
        skb_dev: byte("sk_buff", "dev")?,
        skb_mark: byte("sk_buff", "mark")?,
        dev_ifindex: byte("net_device", "ifindex")?,
        ..beside
    })
}

/// What Calico's layouts say.
pub fn known(state: StateLayout, counters: Option<CounterLayout>) -> Layout {
    let number = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
    // Where the name is depends on Calico's version, which the counters tell better than the state.
    let name = counters.filter(|_| state.globals).map_or(0, |counters| counters.name);
    Layout {
        state: number(state.size),
        verdict: number(state.verdict),
        hits: number(state.hits),
        rules: number(state.rules),
        flags: number(state.flags),
        name: number(name),
        counters: counters.map_or(0, |counters| number(counters.size)),
        ..Layout::default()
    }
}
