//! BIRD's protocols under the names that exporters of BIRD have: `bird_up`, `bird_routes`, `bird_bgp_state`, …
//!
//! Labels are theirs, too. Only where series would be the same do they have one more: `bird_daemon` for a second daemon,
//! `bird_channel` for protocols with several channels. Without a socket nothing of this is there.

use super::metrics::{self, Metric};
use super::text::{Text, render_labels};
use accountant_dataplane::bird::follow::Followed;
use accountant_dataplane::bird::{Channel, Daemon, State};

/// Writes the families.
pub(super) fn families(text: &mut Text<'_>, daemons: &[Daemon]) {
    if daemons.iter().all(|daemon| daemon.state == State::Absent) {
        return;
    }
    daemons_themselves(text, daemons);
    let mut each = |metric: &Metric, value: &dyn Fn(&Followed) -> Option<f64>| {
        text.family(metric);
        for (daemon, followed) in protocols(daemons) {
            if let Some(value) = value(followed) {
                text.sample_f64(metric.name, &labels(daemon, followed, None, &[]), value);
            }
        }
    };
    each(&metrics::BIRD_UP, &|followed| Some(f64::from(u8::from(followed.protocol.state == "up"))));
    each(&metrics::BIRD_UPTIME, &|followed| {
        followed.age.filter(|_| followed.protocol.state == "up").map(|age| age.as_secs_f64())
    });
    each(&metrics::BIRD_STATE_CHANGES, &|followed| Some(followed.changes as f64));
    each(&metrics::BIRD_HOLD_CURRENT, &|followed| followed.protocol.hold_timer.map(|timer| timer.0));
    each(&metrics::BIRD_HOLD_INITIAL, &|followed| followed.protocol.hold_timer.map(|timer| timer.1));
    each(&metrics::BIRD_KEEPALIVE_CURRENT, &|followed| {
        followed.protocol.keepalive_timer.map(|timer| timer.0)
    });
    each(&metrics::BIRD_KEEPALIVE_INITIAL, &|followed| {
        followed.protocol.keepalive_timer.map(|timer| timer.1)
    });
    sessions(text, daemons);
    channels(text, daemons);
}

fn daemons_themselves(text: &mut Text<'_>, daemons: &[Daemon]) {
    text.family(&metrics::BIRD_ANSWERS);
    for daemon in daemons.iter().filter(|daemon| daemon.state != State::Absent) {
        let answers = matches!(daemon.state, State::Answering(_));
        text.sample(metrics::BIRD_ANSWERS.name, &render_labels(name(daemon)), u64::from(answers));
    }
    text.family(&metrics::BIRD_ERRORS);
    for daemon in daemons {
        for (reason, count) in &daemon.errors {
            let labels = render_labels(name(daemon).chain([("reason", *reason)]));
            text.sample(metrics::BIRD_ERRORS.name, &labels, *count);
        }
    }
}

fn sessions(text: &mut Text<'_>, daemons: &[Daemon]) {
    text.family(&metrics::BIRD_BGP_STATE);
    for (daemon, followed) in protocols(daemons) {
        if let Some(state) = &followed.protocol.bgp_state {
            text.sample(
                metrics::BIRD_BGP_STATE.name,
                &labels(daemon, followed, None, &[("bird_bgp_state", state)]),
                1,
            );
        }
    }
}

/// Labels beside those of the channel, and a value.
type Sample<'a> = (Vec<(&'a str, &'a str)>, u64);

fn channels(text: &mut Text<'_>, daemons: &[Daemon]) {
    let mut each = |metric: &Metric, samples: &dyn Fn(&Channel) -> Vec<Sample<'_>>| {
        text.family(metric);
        for (daemon, followed) in protocols(daemons) {
            for channel in &followed.protocol.channels {
                for (more, value) in samples(channel) {
                    text.sample(metric.name, &labels(daemon, followed, Some(channel), &more), value);
                }
            }
        }
    };
    each(&metrics::BIRD_PREFERENCE, &|channel| {
        channel.preference.map(|value| (vec![], value)).into_iter().collect()
    });
    each(&metrics::BIRD_ROUTES, &|channel| {
        channel.routes.iter().map(|(sort, count)| (vec![("bird_route_type", *sort)], *count)).collect()
    });
    each(&metrics::BIRD_ROUTE_CHANGES, &|channel| {
        let sample = |change: &accountant_dataplane::bird::decode::Change| {
            let labels = [
                ("bird_direction", change.direction),
                ("bird_action", change.action),
                ("bird_outcome", change.outcome),
            ];
            (labels.to_vec(), change.count)
        };
        channel.changes.iter().map(sample).collect()
    });
}

fn protocols(daemons: &[Daemon]) -> impl Iterator<Item = (&Daemon, &Followed)> {
    daemons.iter().flat_map(|daemon| daemon.protocols.iter().map(move |followed| (daemon, followed)))
}

/// What tells a daemon from the first one.
fn name(daemon: &Daemon) -> impl Iterator<Item = (&str, &str)> {
    Some(("bird_daemon", daemon.name.as_str())).filter(|(_, name)| !name.is_empty()).into_iter()
}

fn labels<'a>(
    daemon: &'a Daemon,
    followed: &'a Followed,
    channel: Option<&'a Channel>,
    more: &[(&'a str, &'a str)],
) -> String {
    let several = followed.protocol.channels.len() > 1;
    let channel = channel.filter(|_| several).map(|channel| ("bird_channel", channel.name.as_str()));
    let instance = [("bird_protocol_instance", followed.protocol.name.as_str())];
    render_labels(instance.into_iter().chain(name(daemon)).chain(channel).chain(more.iter().copied()))
}
