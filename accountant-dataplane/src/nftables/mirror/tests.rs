//! Streams of notifications, and what the mirror makes of them.

use super::*;
use crate::nftables::wire;
use accountant_core::rule::{Action, Matches};

/// What the kernel told while chains of these corpora were made, changed and deleted.
const IPTABLES_NFT: &[u8] = include_bytes!("../../../../fuzz/corpus/netlink_news/nft");
const NATIVE: &[u8] = include_bytes!("../../../../fuzz/corpus/netlink_news/native");

/// A rule with a counter, which says what its number does.
pub(in crate::nftables) fn rule(content: u64) -> Rule {
    Rule {
        hash: None,
        comments: vec![],
        matches: Matches::default(),
        action: Action::None,
        content,
        counted: true,
    }
}

/// The versions of the only chain in a stream of notifications, and whose last counters came with each.
fn versions(stream: &[u8]) -> Vec<(Vec<String>, Vec<usize>)> {
    let mut mirror = Mirror::default();
    let mut versions = Vec::new();
    for message in wire::messages(stream) {
        let message = message.unwrap();
        mirror.hear(&message);
        if message.kind == NEWGEN {
            let went = mirror.take_went();
            let finals = went.iter().flat_map(|w| w.retired.finals.iter().map(|(index, _)| *index)).collect();
            let actions =
                |c: &MirrorChain| c.chain.rules().iter().map(|r| format!("{:?}", r.action)).collect();
            versions
                .push((mirror.chains().map(|(_, chain)| actions(chain)).next().unwrap_or_default(), finals));
        }
    }
    assert!(!mirror.is_stale());
    versions
}

#[test]
fn a_chain_that_is_flushed_and_filled_again() {
    let told = |actions: &[&str], finals: &[usize]| {
        (actions.iter().map(ToString::to_string).collect::<Vec<_>>(), finals.to_vec())
    };
    let wanted = [told(&["Accept", "Drop"], &[]), told(&["Drop"], &[0, 1]), told(&[], &[0])];
    assert_eq!(versions(IPTABLES_NFT), wanted);
}

#[test]
fn rules_that_are_replaced_and_inserted() {
    let told = |actions: &[&str], finals: &[usize]| {
        (actions.iter().map(ToString::to_string).collect::<Vec<_>>(), finals.to_vec())
    };
    let wanted =
        [told(&["Accept", "Drop"], &[]), told(&["Accept", "Return", "Drop"], &[0]), told(&[], &[0, 1, 2])];
    assert_eq!(versions(NATIVE), wanted);
}

#[test]
fn rules_that_went_unheard_are_told_by_their_handles() {
    let key = ChainKey::new(FAMILY_IPV4, "filter", "cali-tw-cali1").unwrap();
    let chain = |handles: [u64; 2], says: [u64; 2]| {
        let rules = handles.into_iter().zip(says.map(rule)).collect();
        BTreeMap::from([(key.clone(), MirrorChain::new(&key.chain, rules))])
    };
    let mut mirror = Mirror::default();
    mirror.reset(1, chain([4, 5], [1, 2]));
    assert!(mirror.take_went().is_empty());
    let lost = |mirror: &mut Mirror| -> Vec<_> {
        mirror.take_went().into_iter().map(|went| (went.generation, went.retired.lost)).collect()
    };
    mirror.reset(7, chain([4, 9], [1, 2]));
    assert_eq!(lost(&mut mirror), [(7, vec![1])]);
    // One that replaces another takes its handle.
    mirror.reset(8, chain([4, 9], [3, 2]));
    assert_eq!(lost(&mut mirror), [(8, vec![0])]);
}

#[test]
fn what_was_read_already_is_not_heard_again() {
    let mut mirror = Mirror::default();
    let generation = u32::MAX;
    mirror.reset(generation, BTreeMap::new());
    assert!(is_after(2, generation) && !is_after(generation, 2));
    for message in wire::messages(NATIVE).map_while(Result::ok) {
        mirror.hear(&message);
    }
    assert_ne!(mirror.generation(), generation, "numbers wrap around");
    mirror.reset(u32::MAX / 2, BTreeMap::new());
    for message in wire::messages(NATIVE).map_while(Result::ok) {
        mirror.hear(&message);
    }
    assert_eq!(mirror.generation(), u32::MAX / 2);
}
