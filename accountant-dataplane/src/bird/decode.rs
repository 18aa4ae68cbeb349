//! Replies of BIRD as values: what `show protocols all` says, in the words of versions 1.6, 2 and 3.
//!
//! A reply is lines: four digits and `-`, or a space where more of the same follows, or four digits and a space in its last line
//! (BIRD's `doc/reply_codes`). Any text gives values or an error. What is not known is passed over: versions add lines.

use thiserror::Error;

/// The table of protocols, and what follows each line of it.
const TABLE: u16 = 2002;
const PROTOCOL: u16 = 1002;
const DETAILS: u16 = 1006;
/// From here on, the code is an error's.
const ERRORS: u16 = 8000;

/// A reply that is none.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Its last line is missing.
    #[error("the reply ends in its middle")]
    CutShort,
    /// BIRD refused.
    #[error("it answers {code} {text:?}")]
    Refused {
        /// BIRD's code.
        code: u16,
        /// BIRD's words.
        text: String,
    },
    /// Another program, or a version that nobody knows.
    #[error("the reply is not one of BIRD 1.6, 2 or 3: {0:?}")]
    NotUnderstood(String),
}

/// A protocol: a BGP session, or one of BIRD's sources and sinks of routes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Protocol {
    /// Its name in BIRD's configuration.
    pub name: String,
    /// `BGP`, `Kernel`, `Static`, …
    pub kind: String,
    /// `up`, `start`, `down`, …
    pub state: String,
    /// Since when it is in this state, as BIRD prints it.
    pub since: String,
    /// Its channels; before BIRD 2 protocols have one without a name.
    pub channels: Vec<Channel>,
    /// The state of a BGP session.
    pub bgp_state: Option<String>,
    /// The hold timer: seconds left and seconds in all.
    pub hold_timer: Option<(f64, f64)>,
    /// The keepalive timer.
    pub keepalive_timer: Option<(f64, f64)>,
}

/// The routes of one address family between a protocol and a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// `ipv4`, `ipv6`, …; empty before BIRD 2.
    pub name: String,
    /// Preference of its routes.
    pub preference: Option<u64>,
    /// Routes by what they are: `imported`, `filtered`, `exported`, `preferred`.
    pub routes: Vec<(&'static str, u64)>,
    /// Changes of routes.
    pub changes: Vec<Change>,
}

/// How many changes of routes of one sort there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// `import` or `export`.
    pub direction: &'static str,
    /// `updates` or `withdraws`.
    pub action: &'static str,
    /// What became of them.
    pub outcome: &'static str,
    /// How many.
    pub count: u64,
}

/// A line of a reply: code and text.
type Line<'a> = (u16, &'a str);

/// The lines of a complete reply.
pub fn lines(reply: &str) -> Result<Vec<Line<'_>>, DecodeError> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    let mut complete = false;
    for line in reply.lines() {
        let (code, rest) = match code(line) {
            Some((code, rest)) => (code, rest),
            // More of the same.
            None => match (line.strip_prefix(' '), lines.last()) {
                (Some(rest), Some((code, _))) => (*code, rest),
                // Messages of the log, which a client can ask for.
                _ if line.starts_with('+') => continue,
                _ if line.is_empty() => continue,
                _ => return Err(DecodeError::NotUnderstood(start(line))),
            },
        };
        if code >= ERRORS {
            return Err(DecodeError::Refused { code, text: start(rest) });
        }
        complete = ends(line);
        lines.push((code, rest));
    }
    if complete { Ok(lines) } else { Err(DecodeError::CutShort) }
}

/// Whether a line is the last of a reply.
pub fn ends(line: &str) -> bool {
    code(line).is_some() && line.as_bytes().get(4) == Some(&b' ')
}

fn code(line: &str) -> Option<(u16, &str)> {
    let (digits, rest) = line.split_at_checked(4)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || !rest.starts_with(['-', ' ']) {
        return None;
    }
    Some((digits.parse().ok()?, &rest[1..]))
}

fn start(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The protocols of a reply to `show protocols all`.
pub fn protocols(reply: &str) -> Result<Vec<Protocol>, DecodeError> {
    let lines = lines(reply)?;
    let mut protocols: Vec<Protocol> = Vec::new();
    let mut is_table = false;
    for (code, text) in &lines {
        match *code {
            TABLE => is_table = true,
            PROTOCOL => protocols.push(protocol(text)?),
            DETAILS => {
                if let Some(protocol) = protocols.last_mut() {
                    detail(protocol, text);
                }
            }
            _ => {}
        }
    }
    // An empty table has its heading, too; before 1.6.4 nothing at all is said of none.
    if !is_table && !protocols.is_empty() {
        return Err(DecodeError::NotUnderstood(start(reply)));
    }
    Ok(protocols)
}

/// `NAME PROTO TABLE STATE SINCE [INFO]`.
fn protocol(text: &str) -> Result<Protocol, DecodeError> {
    let mut words = text.split_whitespace();
    let mut next = || words.next().map(str::to_string);
    let (Some(name), Some(kind), Some(_table), Some(state)) = (next(), next(), next(), next()) else {
        return Err(DecodeError::NotUnderstood(start(text)));
    };
    let mut since = next().unwrap_or_default();
    // `timeformat protocol iso long`: date and time.
    if let Some(time) = next().filter(|word| since.contains('-') && word.contains(':')) {
        since = format!("{since} {time}");
    }
    Ok(Protocol { name, kind, state, since, ..Protocol::default() })
}

fn detail(protocol: &mut Protocol, text: &str) {
    let text = text.trim();
    let Some((key, value)) = text.split_once(':') else {
        if let Some(name) = text.strip_prefix("Channel ") {
            protocol.channels.push(Channel { name: name.trim().into(), ..Channel::default() });
        }
        return;
    };
    let value = value.trim();
    match key {
        "BGP state" => protocol.bgp_state = Some(value.into()),
        "Hold timer" => protocol.hold_timer = timer(value),
        "Keepalive timer" => protocol.keepalive_timer = timer(value),
        "Preference" => channel(protocol).preference = value.parse().ok(),
        "Routes" => channel(protocol).routes = routes(value),
        "Import updates" => changes(channel(protocol), ("import", "updates"), value),
        "Import withdraws" => changes(channel(protocol), ("import", "withdraws"), value),
        "Export updates" => changes(channel(protocol), ("export", "updates"), value),
        "Export withdraws" => changes(channel(protocol), ("export", "withdraws"), value),
        _ => {}
    }
}

/// The channel that lines are about now.
fn channel(protocol: &mut Protocol) -> &mut Channel {
    if protocol.channels.is_empty() {
        protocol.channels.push(Channel::default());
    }
    let last = protocol.channels.len() - 1;
    &mut protocol.channels[last]
}

/// `188/240`: seconds left of seconds in all.
fn timer(text: &str) -> Option<(f64, f64)> {
    let (left, all) = text.split_once('/')?;
    let seconds = |text: &str| text.trim().parse().ok().filter(|seconds: &f64| seconds.is_finite());
    Some((seconds(left)?, seconds(all)?))
}

/// `1 imported, 0 filtered, 3 exported, 1 preferred`.
fn routes(text: &str) -> Vec<(&'static str, u64)> {
    let sort = |part: &str| {
        let (count, sort) = part.trim().split_once(' ')?;
        let sorts = ["imported", "filtered", "exported", "preferred"];
        Some((sorts.into_iter().find(|known| *known == sort)?, count.parse().ok()?))
    };
    text.split(',').filter_map(sort).collect()
}

/// Columns of the table of changes. Versions have more of them before the last one, in some lines fewer than in others.
const OUTCOMES: [&str; 4] = ["received", "rejected", "filtered", "ignored"];
const LAST_OUTCOME: &str = "accepted";
/// What is printed where there cannot be any.
const NONE: &str = "---";

fn changes(channel: &mut Channel, (direction, action): (&'static str, &'static str), text: &str) {
    // BIRD 3.0 leaves no space between its last two columns.
    let spaced = text.replace(NONE, " --- ");
    let cells: Vec<_> = spaced.split_whitespace().collect();
    let Some((last, others)) = cells.split_last().filter(|(_, others)| others.len() >= OUTCOMES.len()) else {
        return;
    };
    let named = OUTCOMES.into_iter().zip(others.iter().copied()).chain([(LAST_OUTCOME, *last)]);
    for (outcome, cell) in named {
        if let Ok(count) = cell.parse() {
            channel.changes.push(Change { direction, action, outcome, count });
        }
    }
}

#[cfg(test)]
mod tests;
