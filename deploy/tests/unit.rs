//! The systemd unit, by systemd's own judgement. That the agent counts with what it allows is tested in tests/kernel/container.rs.

use accountant_deploy::{read, root};
use std::process::Command;

const UNIT: &str = "deploy/systemd/calico-packet-accountant.service";
/// In tenths, as `systemd-analyze` takes it; docs/install.md has the figure.
const EXPOSURE: &str = "22";

fn analyze(arguments: &[&str]) -> (bool, String) {
    let unit = root().join(UNIT);
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), said.concat())
}

#[test]
fn it_exposes_little() {
    let (fine, said) = analyze(&["security", "--offline=true", &format!("--threshold={EXPOSURE}")]);
    assert!(fine, "{said}");
}

/// A word that systemd does not know is skipped by it, and protects nothing.
#[test]
fn systemd_knows_every_word() {
    let (_, said) = analyze(&["verify", "--man=no"]);
    let wrong = said.lines().filter(|line| line.contains("calico-packet-accountant"));
    // The package puts the program there.
    let wrong: Vec<_> =
        wrong.filter(|line| !line.contains("/usr/bin/accountant is not executable")).collect();
    assert_eq!(wrong, Vec::<&str>::new());
}

#[test]
fn the_settings_are_those_that_it_reads() {
    let unit = read(UNIT).unwrap();
    assert!(unit.contains("EnvironmentFile=-/etc/default/calico-packet-accountant\n"));
    // Every variable that is proposed exists.
    let documented = ["docs/datastore.md", "docs/configure.md"].map(|page| read(page).unwrap()).concat();
    let settings = read("deploy/debian/default").unwrap();
    let proposed = settings.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    let names: Vec<_> = proposed.map(|(name, _)| name).filter(|name| !name.contains(' ')).collect();
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        assert!(documented.contains(&format!("`{name}`")), "there is no {name}");
    }
}
