//! The hashes that Felix makes: of rules, of groups, of flow-log prefixes that are too long.
//!
//! Source: `felix/iptables/table.go`, `felix/nftables/table.go`, `felix/rules/endpoints.go`, `felix/rules/nflog.go`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha224, Sha256};
use sha3::Sha3_224;

/// The length of the hash in a rule's comment.
const RULE_LENGTH: usize = 16;
/// The longest prefix that nfnetlink_log carries, with its final zero.
const NFLOG_LIMIT: usize = 64;

/// The hash of every rule of a chain: each covers the chain's name and all rules before it, so that a change at one
/// position changes all that follow.
pub(crate) fn rules<'a>(chain: &str, texts: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut hash = Sha224::digest(chain);
    let mut hashes = Vec::new();
    for text in texts {
        hash = Sha224::new().chain_update(hash).chain_update(text).finalize();
        hashes.push(cut(URL_SAFE_NO_PAD.encode(hash), RULE_LENGTH));
    }
    hashes
}

/// The part of a group chain's name that says what is in it.
pub(crate) fn group(items: &[String]) -> String {
    let mut hash = Sha3_224::new();
    for item in items {
        hash.update(item);
        hash.update("\n");
    }
    cut(URL_SAFE_NO_PAD.encode(hash.finalize()), 20)
}

/// A flow-log prefix that fits: the middle of a long one becomes a hash of the whole.
pub(crate) fn nflog_prefix(prefix: &str) -> String {
    if prefix.len() < NFLOG_LIMIT - 1 {
        return prefix.to_string();
    }
    let hash = cut(URL_SAFE_NO_PAD.encode(Sha256::digest(prefix)), 41);
    let (start, end) = (prefix.get(..10), prefix.get(prefix.len() - 10..));
    format!("{}_{hash}_{}", start.unwrap_or_default(), end.unwrap_or_default())
}

fn cut(mut text: String, length: usize) -> String {
    text.truncate(length);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_hashes_are_those_of_a_real_dump() {
        let forward = rules(
            "cali-FORWARD",
            [
                "-A cali-FORWARD HASH --jump MARK --set-mark 0/0xe0000",
                "-A cali-FORWARD HASH -m mark --mark 0/0x10000 --jump cali-from-hep-forward",
            ],
        );
        assert_eq!(forward, ["vjrMJCRpqwy5oRoX", "A_sPAO0mcxbT9mOV"]);
    }

    #[test]
    fn a_long_flow_log_prefix_keeps_its_ends() {
        let name = "APE0|np/frontend/a-really-long-policy-name-that-will-not-fit-into-a-chain-name";
        assert_eq!(nflog_prefix(name), "APE0|np/fr_un9TQVRx68j8HvJQVsrSJaOfm50Mag8plWgcgA-WX_chain-name");
        assert_eq!(nflog_prefix("DRI"), "DRI");
    }
}
