//! How Felix makes chain names and interface names.
//!
//! Source: `felix/hashutils/id.go` (3.0 to 3.31), `libcalico-go/lib/hash/unique_id.go` (3.32 and later),
//! `felix/rules/policy.go`, `libcalico-go/lib/backend/k8s/conversion/workload_endpoint_default.go`.

use crate::{ChainName, Direction, Interface};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Longest chain name in iptables, both backends, and of policy chains in native nftables of 3.29.
pub const MAX_IPTABLES: usize = 28;
/// Longest chain name in native nftables: endpoint chains from 3.29 on, policy chains from 3.30 on.
pub const MAX_NFTABLES: usize = 256;

/// `prefix + id`, or `prefix + _ + HASH` of exactly `max` bytes when that is too long.
///
/// An `id` that itself begins with `_` is hashed as soon as the name is full, so that a plain name is never mistaken
/// for a hashed one.
pub fn limited(prefix: &str, id: &str, max: usize) -> String {
    let id = if id.is_empty() { "_" } else { id };
    let length = prefix.len() + id.len();
    if length < max || (length == max && !id.starts_with('_')) {
        return format!("{prefix}{id}");
    }
    let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(id));
    let room = max.saturating_sub(prefix.len() + 1).min(hash.len());
    format!("{prefix}_{}", &hash[..room])
}

/// The prefix of policy chains in this direction.
pub fn policy_prefix(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "cali-pi-",
        Direction::Egress => "cali-po-",
    }
}

/// The prefix of profile chains in this direction.
pub fn profile_prefix(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "cali-pri-",
        Direction::Egress => "cali-pro-",
    }
}

/// The chain of a profile.
pub fn profile_chain(profile: &str, direction: Direction, max: usize) -> ChainName {
    limited(profile_prefix(direction), profile, max).into()
}

/// The name of a Kubernetes pod's interface on the host: `prefix` and the first 11 hexadecimal digits of SHA-1 over
/// `NAMESPACE.POD`. Computed, never observed: other CNIs that Calico polices must make the same names.
pub fn pod_interface(prefix: &str, namespace: &str, pod: &str) -> Interface {
    let digest = Sha1::digest(format!("{namespace}.{pod}"));
    let hex: String =
        digest.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).take(11).map(hex_digit).collect();
    format!("{prefix}{hex}").into()
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_as_felix_cuts_them() {
        for (prefix, id, max, name) in [
            ("felix", "1234", 10, "felix1234"),
            ("felix", "123456", 11, "felix123456"),
            ("felix", "_2345", 10, "felix_kMQI"),
            ("felix", "12345678910", 13, "felix_Y2QCZIS"),
            ("cali-pi-", "long-policy-name-that-gets-hashed", 28, "cali-pi-_ffOMcf6pikpiZ6hgKcW"),
            ("cali-pi-", "gnp/long-policy-name-that-gets-hashed", 28, "cali-pi-_PymyFHQQg3808jiz1OJ"),
            ("cali-pi-", "gnp/policy-1", 28, "cali-pi-gnp/policy-1"),
            ("cali-pri-", "kns.some-quite-long-namespace", 28, "cali-pri-_EUzKdsS2-S4LHP8kNz"),
            ("cali-thfw-", "any-interface-at-all", 28, "cali-thfw-_Nqh4HyA73udmyanQI"),
            ("cali-th-", "any-interface-at-all", 28, "cali-th-any-interface-at-all"),
        ] {
            assert_eq!(limited(prefix, id, max), name, "{prefix} {id} {max}");
        }
    }

    #[test]
    fn interfaces_are_named_after_namespace_and_pod() {
        assert_eq!(pod_interface("cali", "default", "podA").as_str(), "cali7f94ce7c295");
        assert_eq!(pod_interface("eni", "namespace", "podname").as_str(), "eni82111e10a96");
    }
}
