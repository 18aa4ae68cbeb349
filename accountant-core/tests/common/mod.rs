//! Reads `iptables-save -c` text into snapshots, for tests without a kernel.

use accountant_core::rule::{Action, Chain, CtStates, MarkMatch, Matches, Rule};
use accountant_core::snapshot::{Reading, Snapshot};
use accountant_core::{Counter, Table};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The Calico chains of one table of a dump.
pub(crate) fn read_dump(dump: &str, table: Table) -> Snapshot {
    let mut chains: BTreeMap<String, (Vec<Rule>, Vec<Counter>)> = BTreeMap::new();
    let mut here = false;
    for line in dump.lines() {
        if let Some(name) = line.strip_prefix('*') {
            here = name == table.as_str();
        } else if let (true, Some(name)) = (here, line.strip_prefix(':')) {
            chains.entry(name.split(' ').next().unwrap().to_string()).or_default();
        } else if here && line.starts_with('[') {
            let (chain, rule, counter) = read_rule(line);
            let entry = chains.entry(chain).or_default();
            entry.0.push(rule);
            entry.1.push(counter);
        }
    }
    let chains = chains.into_iter().filter(|(name, _)| name.starts_with("cali-"));
    let chains = chains.map(|(name, (rules, counters))| Reading {
        chain: Arc::new(Chain::new(name.as_str().into(), rules)),
        counters,
    });
    Snapshot { chains: chains.collect(), ..Snapshot::default() }
}

fn read_rule(line: &str) -> (String, Rule, Counter) {
    let words = words(line);
    let (packets, bytes) = words[0].trim_matches(['[', ']']).split_once(':').unwrap();
    let counter = Counter::new(packets.parse().unwrap(), bytes.parse().unwrap());
    let chain = words[2].clone();
    let mut options: HashMap<String, Vec<String>> = HashMap::new();
    let mut comments = Vec::new();
    let mut matches = Matches::default();
    let mut i = 3;
    let mut target = String::new();
    let mut invert = false;
    while i < words.len() {
        let word = words[i].as_str();
        let value = words.get(i + 1).cloned().unwrap_or_default();
        match word {
            "!" => {}
            "-m" => i += 1,
            "--comment" => {
                comments.push(value);
                i += 1;
            }
            "--mark" if target.is_empty() => {
                let (value, mask) = masked(&value);
                matches.mark = Some(MarkMatch { value, mask, invert });
                i += 1;
            }
            "--ctstate" => {
                let mut states = CtStates::default();
                for state in value.split(',') {
                    match state {
                        "INVALID" => states.invalid = true,
                        "ESTABLISHED" => states.established = true,
                        "RELATED" => states.related = true,
                        _ => states.other = true,
                    }
                }
                if invert {
                    matches.others = true
                } else {
                    matches.ct = Some(states)
                }
                i += 1;
            }
            "-j" | "-g" => {
                target = format!("{word} {value}");
                i += 1;
            }
            _ => {
                matches.others |= target.is_empty();
                while let Some(value) = words.get(i + 1).filter(|word| !word.starts_with('-') && *word != "!")
                {
                    options.entry(word.to_string()).or_default().push(value.clone());
                    i += 1;
                }
            }
        }
        invert = word == "!";
        i += 1;
    }
    let option = |name: &str| options.get(name).map(|v| v[0].clone()).unwrap_or_default();
    let action = match target.as_str() {
        "" => Action::None,
        "-j ACCEPT" => Action::Accept,
        "-j DROP" => Action::Drop,
        "-j REJECT" => Action::Reject,
        "-j RETURN" => Action::Return,
        "-j MARK" => {
            let (value, mask) = masked(&option("--set-xmark"));
            Action::SetMark { value, mask }
        }
        "-j NOTRACK" | "-j CT" => Action::NoTrack,
        "-j NFLOG" => Action::NfLog(option("--nflog-prefix").into()),
        "-j LOG" => Action::Log,
        other if other.starts_with("-g ") => Action::Goto(other[3..].into()),
        other if other.starts_with("-j cali-") => Action::Jump(other[3..].into()),
        _ => Action::Other,
    };
    let (hash, comments) = Rule::split_comments(comments.iter().map(String::as_str));
    (chain, Rule { hash, comments, matches, action, content: 0, counted: true }, counter)
}

fn masked(text: &str) -> (u32, u32) {
    let number = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    (number(value), number(mask))
}

fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' => words.last_mut().unwrap().extend(chars.next()),
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}
