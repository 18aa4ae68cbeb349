//! What must hold between what was charged and what happened.

use crate::structure::Structure;
use crate::truth::{Book, Truth, text};
use accountant_core::Counter;
use accountant_core::calico::shared::PolicyAction;
use accountant_core::ledger::{AccountKey, Cause, Key, PolicyRef, What};
use std::collections::BTreeMap;

/// What is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Law {
    /// Where nothing is denied or passed, nobody denies or passes.
    NoDenies,
    /// No account is charged with more than happened.
    Accounts,
    /// Nothing is charged twice, be it to nobody.
    Sums,
    /// Where no counter was lost everything is charged, and what structure determines is charged to its account.
    Complete,
    /// At rest everything settles, and then nothing is posted.
    Rest,
    /// What is gone is forgotten.
    Bounded,
}

impl Law {
    pub(crate) const ALL: [Self; 6] =
        [Self::NoDenies, Self::Accounts, Self::Sums, Self::Complete, Self::Rest, Self::Bounded];
}

/// A law that was broken, in words.
pub(crate) type Verdict = Result<(), String>;

fn within(charged: Counter, truth: Counter) -> bool {
    charged.packets <= truth.packets && charged.bytes <= truth.bytes
}

fn get(book: &Book, key: &Key) -> Counter {
    book.get(key).copied().unwrap_or_default()
}

fn sum(book: &Book) -> Counter {
    book.values().copied().sum()
}

/// The policies (or the one policy) that a policy or group account names, as keys of their own accounts.
fn members(key: &AccountKey) -> Option<Vec<Key>> {
    let own = |tier: &_, policy: &_, action: &PolicyAction| {
        let what = What::Policy { tier: Clone::clone(tier), policy: Clone::clone(policy), action: *action };
        Key::from(AccountKey { what, ..key.clone() })
    };
    match &key.what {
        What::Policy { tier, policy, action } => Some(vec![own(tier, policy, action)]),
        What::Group { tier, members, action } => {
            Some(members.iter().map(|policy| own(tier, policy, action)).collect())
        }
        _ => None,
    }
}

fn policies(key: &AccountKey) -> &[PolicyRef] {
    match &key.what {
        What::Policy { policy, .. } => std::slice::from_ref(policy),
        What::Group { members, .. } => members,
        _ => &[],
    }
}

/// No account is charged with more than happened, and policies are charged by their names.
pub(crate) fn no_account_exceeds(charged: &Book, truth: &Book) -> Verdict {
    for (key, &balance) in charged {
        let Key::Account(account) = key else { continue };
        if policies(account).iter().any(|policy| matches!(policy, PolicyRef::Chain(_))) {
            return Err(format!("{} has no name", text(key)));
        }
        // A group account stands for any of its members: with what is charged to each of them alone it must fit.
        let members = members(account).unwrap_or_else(|| vec![key.clone()]);
        let alone: Counter = members.iter().filter(|&m| m != key).map(|m| get(charged, m)).sum();
        let happened = members.iter().map(|m| get(truth, m)).sum();
        if !within(balance + alone, happened) {
            return Err(format!("{} is charged {balance:?} (+ {alone:?}) of {happened:?}", text(key)));
        }
    }
    let truth = by_tier(truth);
    for (tier, charged) in by_tier(charged) {
        let happened = truth.get(&tier).copied().unwrap_or_default();
        if !within(charged, happened) {
            return Err(format!("{tier:?}: charged {charged:?} of {happened:?}"));
        }
    }
    Ok(())
}

/// All that is charged, to nobody too, is not more than happened: nothing is charged twice.
pub(crate) fn no_sum_exceeds(charged: &Book, truth: &Book, decisions: Counter) -> Verdict {
    let all = sum(charged);
    if within(all, decisions) {
        return Ok(());
    }
    Err(format!("{all:?} charged in all, but only {decisions:?} happened{}", dump(charged, truth)))
}

/// Nothing was denied or passed by anybody.
pub(crate) fn no_denies(charged: &Book) -> Verdict {
    match charged.iter().find(|(key, balance)| is_against(key) && !balance.is_zero()) {
        Some((key, balance)) => Err(format!("{} never was: {balance:?}", text(key))),
        None => Ok(()),
    }
}

/// Sums of policies and groups by interface, direction, tier and action.
fn by_tier(book: &Book) -> BTreeMap<(String, String, String, &'static str), Counter> {
    let mut sums = BTreeMap::new();
    for (key, &amount) in book {
        let Key::Account(key) = key else { continue };
        let (What::Policy { tier, action, .. } | What::Group { tier, action, .. }) = &key.what else {
            continue;
        };
        let place = (
            key.endpoint.interface.to_string(),
            key.direction.to_string(),
            tier.to_string(),
            action.as_str(),
        );
        *sums.entry(place).or_insert(Counter::ZERO) += amount;
    }
    sums
}

/// How much can be expected of the numbers.
pub(crate) struct Expected<'a> {
    pub(crate) structure: &'a Structure,
    /// The core had to settle what still moved, so it may have charged groups where a policy would have come out.
    pub(crate) impatient: bool,
    /// Rules were rewritten.
    pub(crate) rewritten: bool,
    /// The agent came when there was something to see already.
    pub(crate) late: bool,
}

/// When everything was seen, everything is charged, and what structure determines is charged exactly.
pub(crate) fn all_accounted(charged: &Book, truth: &Truth, expected: &Expected<'_>) -> Verdict {
    let Expected { structure, impatient, rewritten, late } = *expected;
    let books = || dump(charged, &truth.accounts);
    for (key, &balance) in charged {
        let Key::Unattributed(_, cause) = key else { continue };
        let open = match cause {
            Cause::Undetermined => structure.mixed || impatient,
            // What was passed before the first sight where no rule shows it.
            Cause::History => structure.silent && late,
            _ => false,
        };
        if !open && !balance.is_zero() {
            return Err(format!("{balance:?} unattributed: {cause:?}{}", books()));
        }
    }
    // Where a tier shows nowhere what no policy decided, rewrites can leave open what was passed.
    let silent = structure.silent && rewritten;
    for (key, &happened) in &truth.accounts {
        let open = structure.is_open(key) || impatient || (silent && is_against(key));
        if get(charged, key) != happened && !open {
            return Err(format!(
                "{} is charged {:?} of {happened:?}{}",
                text(key),
                get(charged, key),
                books()
            ));
        }
    }
    if !structure.mixed && !impatient && !silent && truth.silent.is_zero() {
        let charged_sums = by_tier(charged);
        for (tier, happened) in by_tier(&truth.accounts) {
            let balance = charged_sums.get(&tier).copied().unwrap_or_default();
            if balance != happened {
                return Err(format!("{tier:?}: charged {balance:?} of {happened:?}{}", books()));
            }
        }
    }
    let open = truth.accounts.iter().filter(|(key, _)| silent && is_against(key));
    nothing_lost(charged, truth, open.map(|(_, &amount)| amount).sum())
}

/// Where every packet was told, every packet is charged to who decided.
pub(crate) fn is_exact(charged: &Book, truth: &Book) -> Verdict {
    let keys = charged.keys().chain(truth.keys());
    match keys.into_iter().find(|key| get(charged, key) != get(truth, key)) {
        Some(key) => Err(format!("{} is told, and not so charged{}", text(key), dump(charged, truth))),
        None => Ok(()),
    }
}

/// All but `lost` is charged somewhere. Passes that no counter tells may be or not.
pub(crate) fn nothing_lost(charged: &Book, truth: &Truth, lost: Counter) -> Verdict {
    let all = sum(charged) + lost + truth.silent;
    if within(truth.decisions, all) {
        return Ok(());
    }
    let books = dump(charged, &truth.accounts);
    Err(format!("{:?} happened, {:?} charged, at most {lost:?} lost{books}", truth.decisions, sum(charged)))
}

/// Both books side by side, where they differ.
pub(crate) fn dump(charged: &Book, truth: &Book) -> String {
    let mut lines = String::new();
    let keys: std::collections::BTreeSet<_> = charged.keys().chain(truth.keys()).collect();
    for key in keys {
        let (balance, happened) = (get(charged, key), get(truth, key));
        if balance != happened {
            let (b, h) = (balance, happened);
            let key = text(key);
            lines += &format!("\n  {key}: {}/{} of {}/{}", b.packets, b.bytes, h.packets, h.bytes);
        }
    }
    lines
}

/// Whether it is the account of a deny or of a pass.
pub(crate) fn is_against(key: &Key) -> bool {
    let Key::Account(key) = key else { return false };
    match &key.what {
        What::Policy { action, .. } | What::Group { action, .. } | What::Profile { action, .. } => {
            *action != PolicyAction::Allow
        }
        What::NoPolicy { .. } | What::NoProfile => true,
        What::Verdict(_) | What::Failsafe | What::Seen { .. } | What::AtInterface { .. } => false,
    }
}
