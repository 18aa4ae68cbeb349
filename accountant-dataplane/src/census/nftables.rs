//! Tables of nf_tables that iptables-nft or Calico writes. Others' own tables are of no concern to Calico.

use super::{CALICO, Table, TableName};
use crate::SourceError;
use crate::nftables::rule;
use crate::nftables::socket::{Dump, Query};
use accountant_core::IpVersion;
use accountant_core::snapshot::Source;
use netlink_bindings::nftables::{ChainAttrs, Nfgenmsg, Request, RuleAttrs};
use std::collections::BTreeMap;

/// The tables that are looked at: iptables', and Calico's own.
const TABLES: [&str; 6] = ["filter", "nat", "mangle", "raw", "security", NATIVE];
const NATIVE: &str = "calico";
/// How often it is tried while rules change.
const TRIES: u32 = 3;
/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const FAMILIES: [(IpVersion, u8); 2] = [(IpVersion::V4, 2), (IpVersion::V6, 10)];

pub(super) fn count() -> Result<BTreeMap<TableName, Table>, SourceError> {
    let mut query = Query::open()?;
    for _ in 0..TRIES {
        let mut tables = BTreeMap::new();
        let mut whole = true;
        for family in FAMILIES {
            whole &= count_family(&mut query, family, &mut tables)?;
        }
        if whole {
            return Ok(tables);
        }
    }
    Err(SourceError::Unstable { object: "nf_tables".into(), tries: TRIES })
}

/// False if rules changed meanwhile.
fn count_family(
    query: &mut Query,
    (ip_version, family): (IpVersion, u8),
    tables: &mut BTreeMap<TableName, Table>,
) -> Result<bool, SourceError> {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family;
    let name = |table: &str| (Source::Nftables, ip_version, table.to_string());
    let chains = query.ask(&Request::new().op_getchain_dump(&header), |_, payload| {
        let attributes = ChainAttrs::new(payload.get(4..).unwrap_or_default());
        let text = |value: Result<&std::ffi::CStr, _>| value.ok()?.to_str().ok().map(str::to_string);
        if let (Some(table), Some(chain)) = (text(attributes.get_table()), text(attributes.get_name()))
            && TABLES.contains(&table.as_str())
        {
            tables.entry(name(&table)).or_default().of(is_calico(&table, &chain)).chains += 1;
        }
        Ok(())
    })?;
    let rules = query.ask(&Request::new().op_getrule_dump(&header), |_, payload| {
        let attributes = RuleAttrs::new(payload.get(4..).unwrap_or_default());
        if let Some((table, chain)) = rule::place(&attributes)
            && let Some(known) = tables.get_mut(&name(table))
        {
            known.of(is_calico(table, chain)).rules += 1;
        }
        Ok(())
    })?;
    Ok(chains != Dump::Interrupted && rules != Dump::Interrupted)
}

fn is_calico(table: &str, chain: &str) -> bool {
    table == NATIVE || chain.starts_with(CALICO)
}
