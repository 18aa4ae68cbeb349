//! IP sets of the iptables backends: made before the rules that name them, changed member by member, gone after.

use crate::error::Result;
use crate::felix::text::ipset_create;
use crate::felix::{Ruleset, SetContent};
use crate::netns::Namespace;
use std::fmt::Write;

/// Makes new sets, those that another backend left behind among them, and brings the members of all sets up to date.
pub(super) fn create(node: &Namespace, before: Option<&Ruleset>, next: &Ruleset) -> Result<()> {
    let mut text = String::new();
    for (name, set) in &next.sets {
        let was = before.and_then(|ruleset| ruleset.sets.get(name));
        if was.is_none() {
            text.push_str(&ipset_create(name, set, next.version));
        }
        for (verb, member) in difference(was, set) {
            let _ = writeln!(text, "{verb} {name} {member}");
        }
    }
    if text.is_empty() { Ok(()) } else { node.feed("ipset", &["restore", "-exist"], &text).map(drop) }
}

/// Removes the sets that no rule names any more.
pub(super) fn destroy(node: &Namespace, before: Option<&Ruleset>, next: &Ruleset) -> Result<()> {
    let Some(before) = before else { return Ok(()) };
    for name in before.sets.keys().filter(|name| !next.sets.contains_key(*name)) {
        node.run("ipset", &["destroy", name])?;
    }
    Ok(())
}

/// Which members to add and which to delete.
pub(super) fn difference<'a>(
    was: Option<&'a SetContent>,
    set: &'a SetContent,
) -> impl Iterator<Item = (&'static str, &'a str)> {
    let added =
        set.members.iter().filter(move |member| !was.is_some_and(|was| was.members.contains(*member)));
    let gone = was.into_iter().flat_map(|was| &was.members).filter(|member| !set.members.contains(*member));
    added.map(|member| ("add", member.as_str())).chain(gone.map(|member| ("del", member.as_str())))
}
