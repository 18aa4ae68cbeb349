//! What the kernel is asked for about chains.

use super::mirror::ChainKey;
use netlink_bindings::nftables::{Nfgenmsg, OpGetruleDump, Request};

/// The head of a request about a family.
pub(super) fn header(family: u8) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family;
    header
}

/// The rules of a chain.
pub(super) fn rules_of(key: &ChainKey) -> OpGetruleDump<'static> {
    let mut request = Request::new().op_getrule_dump(&header(key.family()));
    request
        .encode()
        .push_table_bytes(key.kernel_table().as_bytes())
        .push_chain_bytes(key.kernel_chain().as_bytes());
    request
}
