//! Transcripts of BIRD and what they say; replies as they should not be.

use super::*;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/bird")
}

/// A protocol in the form of `expected-bird.json`: one entry a channel.
fn entries(protocol: &Protocol) -> Vec<Value> {
    let timer = |timer: Option<(f64, f64)>| timer.map(|(left, all)| json!([left, all]));
    let entry = |channel: &Channel| {
        let mut entry = Map::new();
        entry.insert("protocol".into(), protocol.name.clone().into());
        entry.insert("up".into(), u64::from(protocol.state == "up").into());
        let named = Some(Value::from(channel.name.clone())).filter(|name| name != "");
        let routes: Map<_, _> =
            channel.routes.iter().map(|(sort, n)| ((*sort).into(), (*n).into())).collect();
        let changes: Map<String, Value> = channel
            .changes
            .iter()
            .map(|c| (format!("{}/{}/{}", c.direction, c.action, c.outcome), c.count.into()))
            .collect();
        let fields = [
            ("channel", named),
            ("bgp_state", protocol.bgp_state.clone().map(Value::from)),
            ("hold", timer(protocol.hold_timer)),
            ("keepalive", timer(protocol.keepalive_timer)),
            ("preference", channel.preference.map(Value::from)),
            ("routes", Some(Value::from(routes)).filter(|routes| routes != &json!({}))),
            ("changes", Some(Value::from(changes)).filter(|changes| changes != &json!({}))),
        ];
        entry.extend(fields.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))));
        Value::from(entry)
    };
    protocol.channels.iter().map(entry).collect()
}

#[test]
fn transcripts_say_what_they_say() {
    let expected = fs::read_to_string(fixtures().join("expected-bird.json")).unwrap();
    let expected: Map<String, Value> = serde_json::from_str(&expected).unwrap();
    let mut read = 0;
    for (file, want) in &expected {
        let text =
            fs::read_to_string(fixtures().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let got: Vec<_> = protocols(&text).unwrap().iter().flat_map(entries).collect();
        assert_eq!(&Value::from(got), want, "{file}");
        read += 1;
    }
    assert_eq!(read, 4);
}

#[test]
fn what_a_real_bird_said() {
    let text = fs::read_to_string(fixtures().join("captured-bird-1.6.8.txt")).unwrap();
    let protocols = protocols(&text).unwrap();
    let states = protocols.iter().map(|p| (p.name.as_str(), p.state.as_str(), p.bgp_state.as_deref()));
    assert_eq!(
        states.collect::<Vec<_>>(),
        [
            ("device1", "up", None),
            ("static1", "up", None),
            ("Mesh_127_0_0_2", "start", Some("Active")),
            ("Node_127_0_0_9", "start", Some("Active")),
            ("Global_127_0_0_8", "down", Some("Down")),
        ]
    );
    assert_eq!(protocols[2].since, "05:22:08");
}

#[test]
fn lines_that_are_not_like_others() {
    let text = "2002-Name\n1002-p BGP --- up 2018-06-21 17:42:44  Established\n\
        1006-  Description:    Routes: 7 imported, 7 exported\n     Restart timer:    120/-\n     Hold timer:       9/-\n\
        \x20  Channel ipv4\n     Routes:         161 imported, 3 filtered, 4294967295 exported, x preferred\n\
        \x20      Export withdraws:            5        ---        ---        ---         ---4294967295\n\
        \x20      Import updates:            5\n+ a message of the log\n0000 \n";
    let protocols = protocols(text).unwrap();
    let [protocol] = &protocols[..] else { panic!("{protocols:?}") };
    assert_eq!(protocol.since, "2018-06-21 17:42:44");
    assert_eq!(protocol.hold_timer, None);
    let [channel] = &protocol.channels[..] else { panic!("{protocol:?}") };
    assert_eq!(channel.routes, [("imported", 161), ("filtered", 3), ("exported", 4_294_967_295)]);
    let counts: Vec<_> = channel.changes.iter().map(|change| (change.outcome, change.count)).collect();
    assert_eq!(counts, [("received", 5), ("accepted", 4_294_967_295)]);
}

#[test]
fn replies_that_are_none() {
    let fine = fs::read_to_string(fixtures().join("bird-2.15.txt")).unwrap();
    for end in (0..fine.len() - 1).filter(|end| fine.is_char_boundary(*end)) {
        // The greeting is a reply of its own.
        let cut = protocols(&fine[..end]);
        let greeting = fine[..end].lines().count() == 1;
        assert!(cut.is_err() || greeting || fine[..end].ends_with("0000 "), "{end}: {cut:?}");
    }
    assert_eq!(protocols(""), Err(DecodeError::CutShort));
    let refused = DecodeError::Refused { code: 9001, text: "syntax error".into() };
    assert_eq!(protocols("9001 syntax error\n"), Err(refused));
    for strange in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "1002-p\n0000 \n",
        "1002-p BGP --- up x\n0000 \n",
        "\u{e9}\u{e9}\n0000 \n",
    ] {
        assert!(matches!(protocols(strange), Err(DecodeError::NotUnderstood(_))), "{strange}");
    }
}
