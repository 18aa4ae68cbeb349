//! What is remembered over several readings.

use super::*;

fn settings() -> Settings {
    Settings::new("n1", "cali")
}

/// A file of namespaces; `!` stands for a document that does not parse.
fn file(names: &str) -> String {
    names
        .split_whitespace()
        .map(|name| match name {
            "!" => "---\n'\n".into(),
            name => format!("---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n"),
        })
        .collect()
}

/// What a reading finds of a path.
enum Found {
    /// A file of these namespaces.
    File(&'static str),
    BadFile,
    BadFolder,
}
use Found::*;

#[track_caller]
fn check(memory: &mut Memory, found: &[(&str, Found)], want_changed: bool, want: &str, want_errors: usize) {
    let mut reading = memory.reading();
    for (path, found) in found {
        let path = Path::new(path);
        match found {
            File(names) => reading.file(path, file(names).as_bytes(), &settings()),
            BadFile => reading.unreadable_file(path, "cannot read it".into()),
            BadFolder => reading.unreadable_folder(path, "cannot list it".into()),
        }
    }
    let changed = reading.finish();
    let names: Vec<_> = memory.objects().into_keys().map(|(.., name)| name).collect();
    assert_eq!((changed, names.join(" ").as_str()), (want_changed, want), "{:?}", memory.errors());
    assert_eq!(memory.errors().len(), want_errors, "{:?}", memory.errors());
    assert_eq!(memory.is_complete(), want_errors == 0);
}

#[test]
fn all_files_count_together() {
    let memory = &mut Memory::default();
    check(memory, &[("a", File("x")), ("b", File("y z"))], true, "x y z", 0);
    check(memory, &[("a", File("x")), ("b", File("y z"))], false, "x y z", 0);
    check(memory, &[("a", File("x")), ("b", File("z"))], true, "x z", 0);
    check(memory, &[("b", File("z"))], true, "z", 0);
    check(memory, &[("b", File("z")), ("c", File("z"))], true, "z", 0);
    check(memory, &[], true, "", 0);
    check(memory, &[], false, "", 0);
}

#[test]
fn a_bad_file_keeps_what_it_said_when_it_was_good() {
    let memory = &mut Memory::default();
    check(memory, &[("a", File("x y"))], true, "x y", 0);
    check(memory, &[("a", File("x !"))], false, "x y", 1);
    check(memory, &[("a", File("! z"))], true, "x y z", 1);
    check(memory, &[("a", File("!"))], true, "x y", 1);
    check(memory, &[("a", File("! !"))], false, "x y", 2);
    check(memory, &[("a", BadFile)], false, "x y", 1);
    check(memory, &[("a", File("y z"))], true, "y z", 0);
    check(memory, &[("a", BadFile)], false, "y z", 1);
    check(memory, &[("a", File("y z"))], false, "y z", 0);
    check(memory, &[], true, "", 0);
}

#[test]
fn a_file_that_was_never_good_says_what_can_be_read() {
    let memory = &mut Memory::default();
    check(memory, &[("a", File("x ! y"))], true, "x y", 1);
    check(memory, &[("a", File("! y"))], true, "y", 1);
    check(memory, &[("a", File("y"))], false, "y", 0);
}

#[test]
fn what_is_below_an_unreadable_folder_is_kept() {
    let memory = &mut Memory::default();
    check(memory, &[("f/a", File("x")), ("f/s/b", File("y")), ("f/st", File("z"))], true, "x y z", 0);
    check(memory, &[("f/a", File("x")), ("f/s", BadFolder)], true, "x y", 1);
    check(memory, &[("f", BadFolder)], false, "x y", 1);
    check(memory, &[("f/a", File("x"))], true, "x", 0);
}

#[test]
fn objects_that_differ_between_files_are_told() {
    let policy = |tier: &str| {
        format!(
            "{{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {{name: x}}, spec: {{tier: {tier}}}}}"
        )
    };
    let memory = &mut Memory::default();
    let read = |memory: &mut Memory, one: &str, other: &str| {
        let mut reading = memory.reading();
        reading.file(Path::new("f/b"), policy(other).as_bytes(), &settings());
        reading.file(Path::new("f/a"), policy(one).as_bytes(), &settings());
        reading.finish();
        (memory.objects().into_values().next(), memory.errors())
    };
    let (object, errors) = read(memory, "one", "other");
    assert!(matches!(object, Some(Object::Policy(_, tier)) if tier.as_str() == "other"));
    assert_eq!(
        errors,
        [
            "cannot tell which GlobalNetworkPolicy.projectcalico.org x counts: f/a and f/b differ, the latter is used; remove it from one"
        ]
    );
    assert!(!memory.is_complete());
    assert!(read(memory, "one", "one").1.is_empty());
    assert!(memory.is_complete());
}

#[test]
fn trouble_that_costs_no_names_leaves_them_complete() {
    let mut memory = Memory::default();
    let mut reading = memory.reading();
    reading.trouble("cannot watch".into());
    reading.finish();
    assert!(memory.is_complete());
    assert_eq!(memory.errors(), ["cannot watch"]);
    memory.reading().finish();
    assert!(memory.errors().is_empty());
}

#[test]
fn errors_are_told_up_to_a_limit() {
    let mut memory = Memory::default();
    let mut reading = memory.reading();
    for number in 0..MAX_ERRORS + 5 {
        reading.unreadable_file(Path::new(&format!("f/{number}")), "cannot read it".into());
    }
    reading.finish();
    let errors = memory.errors();
    assert_eq!(errors.len(), MAX_ERRORS + 1);
    assert_eq!(errors[MAX_ERRORS], "5 more errors are not shown; correct these first");
}
