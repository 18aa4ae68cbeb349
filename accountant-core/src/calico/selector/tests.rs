//! The grammar and its meaning, by example.

use super::*;
use proptest::prelude::*;

/// The labels `a` = `x`, `b` empty, `in` = `in`, `app.kubernetes.io/name` = `web-1`.
#[track_caller]
fn check(selector: &str, selects: bool) {
    let label = |name: &str| match name {
        "a" => Some("x"),
        "b" => Some(""),
        "in" => Some("in"),
        "app.kubernetes.io/name" => Some("web-1"),
        _ => None,
    };
    let parsed = Selector::parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}"));
    assert_eq!(parsed.selects(label), selects, "{selector}");
}

#[track_caller]
fn refused(selector: &str, at: usize) {
    let error = Selector::parse(selector).expect_err(selector);
    assert_eq!(error.at, at, "{selector}: {error}");
}

#[test]
fn everything_is_selected_by_nothing_and_all() {
    for selector in ["", " \t", "all()", "all( )", "global()", "! ! all()", "(all())"] {
        check(selector, true);
    }
    check("!all()", false);
}

#[test]
fn labels_are_compared() {
    check("a == 'x'", true);
    check("a==\"x\"", true);
    check("a == 'y'", false);
    check("a != 'y'", true);
    check("app.kubernetes.io/name contains 'eb'", true);
    check("app.kubernetes.io/name starts with \"web\"", true);
    check("app.kubernetes.io/name startswith 'eb'", false);
    check("app.kubernetes.io/name ends with '-1'", true);
    check("a in {'y', 'x',}", true);
    check("a in{'x'}", true);
    check("a in {}", false);
    check("a not in { 'x' }", false);
    check("a notin {'y'}", true);
    check("in in {'in'}", true);
    check("has(b)", true);
    check("has( c )", false);
}

#[test]
fn what_is_not_there_is_unlike_everything() {
    for selector in ["c == ''", "c contains ''", "c starts with ''", "c ends with ''", "c in {''}", "has(c)"]
    {
        check(selector, false);
    }
    for selector in ["c != ''", "c not in {''}", "b == ''", "!has(c)", "! c == 'x'"] {
        check(selector, true);
    }
}

#[test]
fn and_binds_closer_than_or_and_not_closest() {
    check("has(c) && has(a) || has(b)", true);
    check("has(c) && (has(a) || has(b))", false);
    check("!has(c) && has(a)", true);
    check("!(has(c) && has(a)) && !!has(b)", true);
}

#[test]
fn what_is_no_selector_is_refused_with_its_place() {
    for (selector, at) in [
        ("b == b", 5),
        ("b", 1),
        ("a b", 2),
        ("!", 1),
        ("(", 1),
        ("()", 1),
        ("%", 0),
        ("'x' == b", 0),
        ("foo in \"\"", 7),
        ("foo == \"bar\" &", 13),
        ("has(foo) &&", 11),
        ("a == 'x", 5),
        ("a in {'x' 'y'}", 10),
        ("a = 'x'", 2),
        ("all", 3),
        ("has (a)", 4),
        ("a\n== 'x'", 1),
        ("a containsx 'x'", 2),
    ] {
        refused(selector, at);
    }
    assert!(Selector::parse(&"(".repeat(100_000)).is_err());
    check(&format!("{}has(a)", "!".repeat(100_000)), true);
}

proptest! {
    #[test]
    fn any_text_is_a_selector_or_an_error(text in r#"([a-c!(){}'",&|= \n]|has\(|all\(|in|not|starts with|é){0,40}"#) {
        if let Ok(selector) = Selector::parse(&text) {
            let _ = selector.selects(|name| (name == "a").then_some("x"));
        }
    }
}
