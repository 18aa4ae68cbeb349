//! Folders with what should not be in them.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

/// Reads what `make` puts into a new folder; `want` are the names, and a part of each error.
#[track_caller]
fn check(make: impl FnOnce(&Path), want: &str, want_errors: &[&str]) -> Outcome {
    let folder = tempfile::tempdir().expect("a folder");
    make(folder.path());
    let mut memory = Memory::default();
    let no_inotify = || Err(io::Error::from_raw_os_error(nix::libc::EMFILE));
    let outcome = read(folder.path(), &Settings::new("n1", ""), no_inotify(), &mut memory);
    let names: Vec<_> = memory.objects().into_keys().map(|(.., name)| name).collect();
    assert_eq!(names.join(" "), want);
    let errors = memory.errors();
    let (first, others) = errors.split_first().expect("there is no inotify");
    assert!(first.starts_with("cannot watch") && first.contains("Too many open files"), "{first}");
    assert_eq!(others.len(), want_errors.len(), "{others:?}");
    for (error, part) in others.iter().zip(want_errors) {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(memory.is_complete(), want_errors.is_empty());
    outcome
}

fn write(path: &Path, name: &str) {
    let text = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
    fs::write(path, text).expect("it can be written");
}

#[test]
fn without_inotify_all_is_read() {
    let outcome = check(|folder| write(&folder.join("a.yaml"), "a"), "a", &[]);
    assert_eq!(outcome, Outcome { listed: true, changed: true, try_again: false });
}

#[test]
fn what_is_no_regular_file_is_left_out() {
    let make = |folder: &Path| {
        write(&folder.join("a.yaml"), "a");
        UnixListener::bind(folder.join("socket.yaml")).expect("bound");
        fs::create_dir(folder.join("folder.yaml")).expect("made");
        write(&folder.join("folder.yaml/b.yml"), "b");
        symlink("nowhere", folder.join("gone")).expect("linked");
    };
    check(make, "a b", &[]);
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let make = |folder: &Path| {
        write(&folder.join("z.yaml"), "z");
        let file = File::create(folder.join("a.yaml")).expect("made");
        file.set_len(MAX_FILE_BYTES as u64 + 1).expect("grown");
    };
    check(make, "z", &["a.yaml: it has more than 67108864 bytes; split it"]);
}

#[test]
fn links_that_lead_nowhere_are_told() {
    let make = |folder: &Path| {
        symlink("nowhere", folder.join("a.yaml")).expect("linked");
        symlink("b.yaml", folder.join("b.yaml")).expect("linked");
        symlink("circle", folder.join("circle")).expect("linked");
        write(&folder.join("z.yaml"), "z");
    };
    let outcome = check(make, "z", &["circle", "a.yaml\": No such file", "b.yaml\": Too many levels"]);
    assert_eq!(outcome, Outcome { listed: true, changed: true, try_again: true });
}

#[test]
fn there_is_an_end_to_depth() {
    let make = |folder: &Path| {
        write(&folder.join("a.yaml"), "a");
        let mut deep = folder.to_path_buf();
        for _ in 0..MAX_DEPTH + 3 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).expect("made");
        write(&deep.join("b.yaml"), "b");
    };
    check(make, "a", &["more than 32 levels; name a folder that holds nothing but manifests"]);
}

#[test]
fn a_file_in_place_of_the_folder_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.yaml");
    write(&file, "a");
    let mut memory = Memory::default();
    let no_inotify = Err(io::Error::from_raw_os_error(nix::libc::EMFILE));
    let outcome = read(&file, &Settings::new("n1", ""), no_inotify, &mut memory);
    assert_eq!(outcome, Outcome { listed: false, changed: false, try_again: true });
    assert!(memory.errors().iter().any(|error| error.contains("Not a directory")), "{:?}", memory.errors());
}
