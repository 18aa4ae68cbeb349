//! What the names of interfaces begin with, as FelixConfigurations say it for this node.
//!
//! That of this node (`node.NAME`) counts before the oldest whose `spec.nodeSelector` selects the node's labels (Calico 3.32
//! and later), and that before `default`. Pure: the labels are told by whoever can ask for them.

use crate::convert::field::Field;
use crate::convert::{ConvertError, Resource};
use accountant_core::calico::selector::Selector;
use std::collections::BTreeMap;

/// Labels of a node.
pub(super) type Labels = BTreeMap<String, String>;

/// What the configurations say.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    default: Option<Box<str>>,
    node: Option<Box<str>>,
    scoped: BTreeMap<Box<str>, Scoped>,
    labels: Option<Labels>,
}

/// A configuration for some nodes.
#[derive(Debug)]
struct Scoped {
    selector: Selector,
    /// When it was made, as RFC 3339 has it: in the order of time.
    created: Box<str>,
    prefix: Option<Box<str>>,
}

impl Prefixes {
    /// A configuration as it is now; nothing when it is gone. One that cannot be used is as one that is gone.
    pub(super) fn take(
        &mut self,
        node: &str,
        name: &str,
        configuration: Option<&Resource>,
    ) -> Result<(), ConvertError> {
        let own = name.strip_prefix("node.") == Some(node);
        if name == "default" || own {
            let place = if own { &mut self.node } else { &mut self.default };
            *place = None;
            *place = configuration.map(prefix).transpose()?.flatten();
        } else if !name.starts_with("node.") {
            self.scoped.remove(name);
            let scoped = configuration.map(scoped).transpose()?.flatten();
            self.scoped.extend(scoped.map(|scoped| (name.into(), scoped)));
        }
        Ok(())
    }

    /// The node has these labels.
    pub(super) fn labelled(&mut self, labels: Labels) {
        self.labels = Some(labels);
    }

    /// Whether it matters which labels the node has.
    pub(super) fn want_labels(&self) -> bool {
        !self.scoped.is_empty()
    }

    /// Whether labels matter that were never told.
    pub(super) fn miss_labels(&self) -> bool {
        self.want_labels() && self.labels.is_none()
    }

    /// The prefix; empty if no configuration says one.
    pub(super) fn prefix(&self) -> &str {
        let scoped = self.selected().and_then(|scoped| scoped.prefix.as_deref());
        self.node.as_deref().or(scoped).or(self.default.as_deref()).unwrap_or("")
    }

    fn selected(&self) -> Option<&Scoped> {
        let labels = self.labels.as_ref()?;
        let selects = |scoped: &&Scoped| scoped.selector.selects(|name| labels.get(name).map(String::as_str));
        self.scoped.values().filter(selects).min_by_key(|scoped| &scoped.created)
    }
}

fn prefix(configuration: &Resource) -> Result<Option<Box<str>>, ConvertError> {
    let prefix = configuration.spec()?.interface_prefix.text("spec.interfacePrefix")?.trim();
    Ok((!prefix.is_empty()).then(|| prefix.into()))
}

/// Nothing if it selects no nodes: Calico then leaves it out.
fn scoped(configuration: &Resource) -> Result<Option<Scoped>, ConvertError> {
    let field = "spec.nodeSelector";
    let text = configuration.spec()?.node_selector.text(field)?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let selector = Selector::parse(text).map_err(|source| ConvertError::Selector { field, source })?;
    let created = match &configuration.metadata()?.creation_timestamp {
        Field::Is(time) => time.clone(),
        Field::Absent | Field::Wrong(_) => "".into(),
    };
    Ok(Some(Scoped { selector, created, prefix: prefix(configuration)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(prefix: &str, selector: &str, day: u8) -> Resource {
        let json = format!(
            r#"{{"metadata": {{"creationTimestamp": "2026-08-0{day}T09:00:00Z"}},
                 "spec": {{"interfacePrefix": "{prefix}", "nodeSelector": "{selector}"}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn the_nodes_own_counts_before_the_oldest_that_selects_it_and_that_before_the_default() {
        let mut prefixes = Prefixes::default();
        let take = |prefixes: &mut Prefixes, name: &str, now: Option<&Resource>| {
            prefixes.take("w", name, now).unwrap();
            prefixes.prefix().to_string()
        };
        let linux = configuration("one", "os == 'linux'", 2);
        assert_eq!(take(&mut prefixes, "default", Some(&configuration("cali", "", 1))), "cali");
        assert_eq!(take(&mut prefixes, "b", Some(&linux)), "cali");
        assert!(prefixes.miss_labels());
        prefixes.labelled([("os".into(), "linux".into())].into());
        assert_eq!(prefixes.prefix(), "one");
        assert_eq!(take(&mut prefixes, "a", Some(&configuration("two", "has(os)", 3))), "one");
        assert_eq!(take(&mut prefixes, "c", Some(&configuration("old", "!has(os)", 1))), "one");
        assert_eq!(take(&mut prefixes, "node.w", Some(&configuration("own", "", 4))), "own");
        assert_eq!(take(&mut prefixes, "node.v", Some(&configuration("other", "all()", 1))), "own");
        take(&mut prefixes, "node.w", None);
        assert_eq!(take(&mut prefixes, "b", None), "two");
        // The oldest that selects the node counts, even if it says nothing of the prefix.
        assert_eq!(take(&mut prefixes, "z", Some(&configuration("", "all()", 1))), "cali");
        prefixes.labelled(Labels::new());
        assert_eq!(take(&mut prefixes, "z", None), "old");
    }

    #[test]
    fn what_does_not_parse_is_told_and_selects_nothing() {
        let mut prefixes = Prefixes::default();
        prefixes.labelled(Labels::new());
        prefixes.take("w", "a", Some(&configuration("one", "all()", 1))).unwrap();
        let error = prefixes.take("w", "a", Some(&configuration("one", "a ==", 1))).unwrap_err();
        let text = crate::explain(&error, error.advice());
        assert!(text.contains("spec.nodeSelector") && text.contains("byte 4"), "{text}");
        assert_eq!(prefixes.prefix(), "");
        let wrong: Resource = serde_json::from_str(r#"{"spec": {"interfacePrefix": 7}}"#).unwrap();
        for name in ["default", "node.w"] {
            prefixes.take("w", name, Some(&configuration("one", "", 1))).unwrap();
            assert!(prefixes.take("w", name, Some(&wrong)).is_err());
            assert_eq!(prefixes.prefix(), "", "{name}");
        }
    }
}
