//! Configuration files of Calico's: CalicoAPIConfig as `--calico-config`, the same text as Felix' own file, and as a list of
//! variables. Whatever they say, it is a datastore or one error.
#![no_main]

use accountant_agent::config::{NameArgs, Surroundings};
use libfuzzer_sys::fuzz_target;
use std::io;
use std::path::Path;

/// Everything is in these files.
struct Only<'a> {
    file: &'a str,
    text: &'a str,
}

impl Surroundings for Only<'_> {
    fn variable(&self, name: &str) -> Option<String> {
        let line = |line: &'_ str| line.strip_prefix(name)?.strip_prefix('=').map(str::to_string);
        self.text.lines().find_map(line)
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        if path == Path::new(self.file) { Ok(self.text.into()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn host_name(&self) -> Option<String> {
        None
    }
}

fuzz_target!(|text: &str| {
    let args = NameArgs { calico_config: Some("file".into()), ..NameArgs::default() };
    let _ = args.resolve(&Only { file: "file", text });
    let names = NameArgs::default().resolve(&Only { file: "/etc/calico/felix.cfg", text });
    let _ = names.map(|names| names.shown());
});
