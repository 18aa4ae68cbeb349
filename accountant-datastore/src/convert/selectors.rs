//! The selectors of a policy of Calico's. No name follows from them; but Felix takes a policy with one that does not parse for
//! one that is not there, and who wrote it should hear of it.
//!
//! In go texts while an object is read; what stays is only what is wrong with the first that is none, so a policy with many
//! rules takes no more memory than one without.

use super::ConvertError;
use super::field::{Field, Group, Shape, read_from_maps};
use super::resource::Spec;
use accountant_core::calico::selector::{Selector, SelectorError};
use serde::Deserialize;
use serde::de::SeqAccess;

/// A selector that was parsed: what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked(Option<Box<SelectorError>>);

impl Shape<'_> for Checked {
    fn from_text(text: &str) -> Option<Self> {
        // An empty one selects everything.
        let parsed = if text.trim().is_empty() { Ok(()) } else { Selector::parse(text).map(drop) };
        Some(Self(parsed.err().map(Box::new)))
    }
}

/// Rules that were read: the first selector in them that is none, with its field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CheckedRules(Option<Box<(&'static str, SelectorError)>>);

impl<'de> Shape<'de> for CheckedRules {
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut wrong = None;
        while let Some(rule) = list.next_element::<Group<Rule>>()? {
            if let Group::Is(rule) = rule {
                wrong = wrong.or_else(|| rule.wrong());
            }
        }
        Ok(Some(Self(wrong.map(Box::new))))
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Rule {
    source: Group<Peer>,
    destination: Group<Peer>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Peer {
    selector: Field<Checked>,
    not_selector: Field<Checked>,
    namespace_selector: Field<Checked>,
}

read_from_maps!(Rule, Peer);

impl Rule {
    fn wrong(self) -> Option<(&'static str, SelectorError)> {
        let peers = [self.source, self.destination].into_iter();
        let fields = peers.filter_map(|peer| match peer {
            Group::Is(peer) => Some([
                ("a rule's selector", peer.selector),
                ("a rule's notSelector", peer.not_selector),
                ("a rule's namespaceSelector", peer.namespace_selector),
            ]),
            Group::Wrong(_) => None,
        });
        fields.flatten().find_map(|(name, field)| match field {
            Field::Is(Checked(Some(error))) => Some((name, *error)),
            _ => None,
        })
    }
}

/// What is wrong with a selector of a policy.
pub(super) fn check(spec: &Spec) -> Result<(), ConvertError> {
    for (selector, field) in [
        (&spec.selector, "spec.selector"),
        (&spec.namespace_selector, "spec.namespaceSelector"),
        (&spec.service_account_selector, "spec.serviceAccountSelector"),
    ] {
        if let Some(Checked(Some(source))) = selector.read(field)? {
            return Err(ConvertError::Selector { field, source: (**source).clone() });
        }
    }
    for (rules, field) in [(&spec.ingress, "spec.ingress"), (&spec.egress, "spec.egress")] {
        if let Some(CheckedRules(Some(wrong))) = rules.read(field)? {
            let (field, source) = (**wrong).clone();
            return Err(ConvertError::Selector { field, source });
        }
    }
    Ok(())
}
