//! Two routers with a BGP session between them, each a BIRD in a namespace of its own.

use accountant_lab::Namespace;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use tempfile::TempDir;

/// Which BIRD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1_6,
    V2,
}

impl Version {
    /// Where `cargo xtask setup` unpacked it.
    fn folder(self) -> PathBuf {
        let name = if self == Self::V1_6 { "bird1" } else { "bird2" };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools").join(name)
    }

    fn program(self, name: &str) -> String {
        let path = self.folder().join("usr/sbin").join(name);
        assert!(path.is_file(), "{} is not there: run `cargo xtask setup`", path.display());
        path.canonicalize().unwrap().display().to_string()
    }

    /// A BGP session, importing all but one route.
    fn session(self, name: &str, (here, there): (&str, &str)) -> String {
        let what = "import keep filtered on; import filter { if net = 203.0.113.0/24 then reject; accept; }; export all;";
        let channel = if self == Self::V1_6 { what.into() } else { format!("ipv4 {{ {what} }};") };
        let number = |address: &str| 64500 + address.rsplit('.').next().unwrap().parse::<u32>().unwrap();
        format!(
            "protocol bgp {name} {{ local {here} as {}; neighbor {there} as {}; hold time 30;\n\
             connect delay time 1; connect retry time 1; error wait time 1, 1; {channel} }}\n",
            number(here),
            number(there)
        )
    }

    fn config(self, here: &str, routes: [&str; 2], sessions: &str) -> String {
        let channel = if self == Self::V1_6 { "" } else { "ipv4;" };
        let [first, second] = routes;
        format!(
            "router id {here};\nprotocol device device1 {{ }}\n\
             protocol static static1 {{ {channel} route {first} blackhole; route {second} blackhole; }}\n{sessions}"
        )
    }
}

/// A running daemon, ended when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The two routers.
pub struct Pair {
    version: Version,
    namespaces: [Namespace; 2],
    folder: TempDir,
    daemons: Vec<Daemon>,
}

const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const NAMES: [&str; 2] = ["Mesh_192_0_2_2", "Mesh_192_0_2_1"];

impl Pair {
    pub fn new(version: Version) -> Self {
        let namespaces = ["here", "there"].map(|label| Namespace::new(label).unwrap());
        let [here, there] = &namespaces;
        let lines = format!("link add to-there type veth peer name to-here netns {}\n", there.name());
        here.ip_batch(&(lines + "addr add 192.0.2.1/24 dev to-there\nlink set to-there up\n")).unwrap();
        there.ip_batch("addr add 192.0.2.2/24 dev to-here\nlink set to-here up\n").unwrap();
        let mut pair =
            Self { version, namespaces, folder: tempfile::tempdir().unwrap(), daemons: Vec::new() };
        let session = |here: usize| version.session(NAMES[here], (ADDRESSES[here], ADDRESSES[1 - here]));
        let nobody = version.session("Node_192_0_2_9", ("192.0.2.1", "192.0.2.9"));
        let routes = [["198.51.100.0/24", "198.51.101.0/24"], ["203.0.113.0/24", "192.88.99.0/24"]];
        let configs = [
            version.config(ADDRESSES[0], routes[0], &(session(0) + &nobody)),
            version.config(ADDRESSES[1], routes[1], &session(1)),
        ];
        for (router, config) in configs.iter().enumerate() {
            fs::write(pair.path(router, "conf"), config).unwrap();
        }
        if version == Version::V1_6 {
            let six = "router id 192.0.2.1;\nprotocol static static1 { route 2001:db8::/32 blackhole; }\n";
            fs::write(pair.folder.path().join("bird6.conf"), six).unwrap();
        }
        pair.start();
        pair
    }

    /// The router that the agent is on.
    pub fn here(&self) -> &Namespace {
        &self.namespaces[0]
    }

    /// What to give as `--bird-socket`.
    pub fn sockets(&self) -> String {
        let first = self.path(0, "ctl");
        match self.version {
            Version::V1_6 => format!("{first},{}", self.folder.path().join("bird6.ctl").display()),
            Version::V2 => first,
        }
    }

    fn path(&self, router: usize, end: &str) -> String {
        let folder = self.folder.path().join(["here", "there"][router]);
        fs::create_dir_all(&folder).unwrap();
        folder.join(format!("bird.{end}")).display().to_string()
    }

    /// Starts all daemons.
    pub fn start(&mut self) {
        for router in [0, 1] {
            self.run(router, "bird", &self.path(router, "conf"), &self.path(router, "ctl"));
        }
        if self.version == Version::V1_6 {
            let [conf, ctl] = ["conf", "ctl"]
                .map(|end| self.folder.path().join(format!("bird6.{end}")).display().to_string());
            self.run(0, "bird6", &conf, &ctl);
        }
    }

    fn run(&mut self, router: usize, program: &str, conf: &str, ctl: &str) {
        let mut command = self.namespaces[router].command(&self.version.program(program)).unwrap();
        let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        command.env("LD_LIBRARY_PATH", self.version.folder().join(libraries));
        command.args(["-f", "-c", conf, "-s", ctl, "-P", &format!("{ctl}.pid")]);
        self.daemons.push(Daemon(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()));
    }

    /// Ends all daemons without a word, their sockets left behind.
    pub fn kill(&mut self) {
        self.daemons.clear();
    }

    /// Has the other router do something about the session.
    pub fn there(&self, what: &str) {
        let client = self.version.program("birdc");
        let arguments = ["-s", &self.path(1, "ctl"), what, NAMES[1]];
        self.namespaces[1].run(&client, &arguments).unwrap();
    }
}
