//! A real folder that changes, as people and Kubernetes change it. What is waited for is waited for, nothing sleeps.

use accountant_core::index::Index;
use accountant_datastore::convert::Settings;
use accountant_datastore::manifests::Manifests;
use accountant_datastore::{Status, Subscription, Update, start};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::time::timeout;

/// Longer than anything takes; only failures wait for it.
const LONG: Duration = Duration::from_secs(20);
/// Never, for tests in which inotify must do without reading again.
const NEVER: Duration = Duration::from_secs(3600);
const OFTEN: Duration = Duration::from_millis(20);

/// A followed folder.
struct Followed {
    subscription: Subscription,
    path: PathBuf,
    _folder: TempDir,
}

impl Followed {
    /// `path` is below a new folder, and is not made.
    fn start_at(path: &str, read_again_after: Duration) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(path);
        let settings = Settings::new("n1", "cali");
        let manifests = Manifests { folder: path.clone(), settings, read_again_after, retry_after: OFTEN };
        Self { subscription: start(manifests), path, _folder: folder }
    }

    fn start(read_again_after: Duration) -> Self {
        Self::start_at("", read_again_after)
    }

    /// Waits until these are the names.
    #[track_caller]
    fn expect(&mut self, want: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let mut last = None;
            let found = timeout(LONG, async {
                while let Some(update) = self.subscription.updates.recv().await {
                    let names = names(update);
                    if names == want {
                        return true;
                    }
                    last = Some(names);
                }
                false
            });
            let found = found.await;
            let status = self.subscription.status.borrow().clone();
            assert_eq!(found, Ok(true), "{want:?} at {caller}, but {last:?} and {status:?}");
        }
    }

    /// Waits until the status is like this.
    async fn expect_status(&mut self, like: impl Fn(&Status) -> bool) -> Status {
        let status = timeout(LONG, self.subscription.status.wait_for(|status| like(status))).await;
        status.expect("in time").expect("it still runs").clone()
    }

    async fn expect_error(&mut self, part: &str) -> Status {
        let status =
            self.expect_status(|status| status.errors.iter().any(|error| error.contains(part))).await;
        assert!(!status.in_sync);
        status
    }

    async fn expect_in_sync(&mut self) -> Status {
        self.expect_status(|status| status.in_sync && status.errors.is_empty()).await
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.file(name), text);
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("it can be written");
}

fn names(update: Update) -> String {
    let mut index = Index::default();
    let Update::Reset(objects) = &update else { panic!("manifests are handed over whole") };
    let names: Vec<_> = objects.keys().map(|(.., name)| name.to_string()).collect();
    update.apply_to(&mut index);
    assert_eq!(index.objects_by_kind().values().sum::<usize>(), names.len());
    names.join(" ")
}

fn namespace(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

#[tokio::test]
async fn files_come_change_and_go() {
    let begin = SystemTime::now();
    let mut folder = Followed::start(NEVER);
    folder.expect("").await;
    let status = folder.expect_in_sync().await;
    assert!(status.last_change.is_some_and(|at| at >= begin));

    folder.write("a.yaml", &namespace("a"));
    folder.expect("a").await;
    folder.write("b.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}"#);
    folder.expect("a b").await;
    folder.write("c.txt", &namespace("c"));
    folder.write(".a.yaml.new", &(namespace("a") + &namespace("z")));
    fs::rename(folder.file(".a.yaml.new"), folder.file("a.yaml")).expect("renamed");
    folder.expect("a b z").await;
    fs::remove_file(folder.file("a.yaml")).expect("removed");
    folder.expect("b").await;
    let status = folder.expect_in_sync().await;
    assert!(status.last_change.is_some_and(|at| at <= SystemTime::now()));
}

#[tokio::test]
async fn folders_come_and_go() {
    let mut folder = Followed::start(NEVER);
    folder.expect("").await;
    fs::create_dir_all(folder.file("one/two")).expect("made");
    folder.write("one/two/a.yml", &namespace("a"));
    folder.expect("a").await;
    folder.write("one/two/b.yml", &namespace("b"));
    folder.expect("a b").await;
    fs::rename(folder.file("one/two"), folder.file("three")).expect("renamed");
    folder.write("three/c.yml", &namespace("c"));
    folder.expect("a b c").await;
    fs::remove_dir_all(folder.file("three")).expect("removed");
    folder.expect("").await;
}

/// What kubelet does with the files of a ConfigMap.
fn publish(folder: &Path, version: &str, files: &[(&str, &str)]) {
    let data = folder.join(version);
    fs::create_dir(&data).expect("made");
    for (name, text) in files {
        write(&data.join(name), text);
    }
    let old = fs::read_link(folder.join("..data"));
    symlink(version, folder.join("..data_tmp")).expect("linked");
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("renamed");
    for (name, _) in files {
        let link = folder.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), link).expect("linked");
        }
    }
    if let Ok(old) = old {
        fs::remove_dir_all(folder.join(old)).expect("removed");
    }
}

#[tokio::test]
async fn a_config_map_is_swapped() {
    let mut folder = Followed::start(NEVER);
    folder.expect("").await;
    publish(&folder.path, "..2026_08_01", &[("p.yaml", &namespace("a")), ("q.yaml", &namespace("b"))]);
    folder.expect("a b").await;
    publish(&folder.path, "..2026_08_02", &[("p.yaml", &namespace("c")), ("q.yaml", &namespace("b"))]);
    folder.expect("b c").await;
    publish(&folder.path, "..2026_08_03", &[("p.yaml", &namespace("d"))]);
    folder.expect("b d").await;
    folder.expect_error("cannot read").await;
    fs::remove_file(folder.file("q.yaml")).expect("removed");
    folder.expect("d").await;
    folder.expect_in_sync().await;
}

#[tokio::test]
async fn a_broken_file_keeps_its_names_until_it_is_repaired() {
    let mut folder = Followed::start(NEVER);
    folder.write("a.yaml", &(namespace("a") + &namespace("b")));
    folder.expect("a b").await;
    folder.expect_in_sync().await;

    folder.write("a.yaml", &(namespace("a") + "---\nkind: 'Na"));
    let status = folder.expect_error("a.yaml:6: ").await;
    assert_eq!(status.errors.len(), 1);
    folder.write("c.yaml", &namespace("c"));
    folder.expect("a b c").await;
    folder.expect_error("a.yaml:6: ").await;
    folder.write("a.yaml", &namespace("b"));
    folder.expect("b c").await;
    folder.expect_in_sync().await;
}

#[tokio::test]
async fn a_folder_may_come_later_and_go() {
    let mut folder = Followed::start_at("not/yet", NEVER);
    let status = folder.expect_error("cannot read the folder of manifests").await;
    assert_eq!(status.last_change, None);
    assert!(status.errors[0].contains("not/yet"), "{status:?}");
    assert!(status.errors[0].ends_with("create or mount it, or name another; it is tried again"));
    assert!(folder.subscription.updates.try_recv().is_err());

    fs::create_dir_all(&folder.path).expect("made");
    folder.expect("").await;
    folder.write("a.yaml", &namespace("a"));
    folder.expect("a").await;
    folder.expect_in_sync().await;

    fs::rename(&folder.path, folder.path.with_file_name("gone")).expect("renamed");
    folder.expect_error("cannot read the folder of manifests").await;
    fs::create_dir_all(&folder.path).expect("made");
    folder.write("b.yaml", &namespace("b"));
    folder.expect("b").await;
    folder.expect_in_sync().await;
}

#[tokio::test]
async fn links_never_lead_in_circles() {
    let mut folder = Followed::start(NEVER);
    folder.expect("").await;
    symlink(".", folder.file("again")).expect("linked");
    fs::create_dir(folder.file("sub")).expect("made");
    symlink("..", folder.file("sub/up")).expect("linked");
    symlink("self.yaml", folder.file("self.yaml")).expect("linked");
    folder.write("sub/a.yaml", &namespace("a"));
    folder.expect("a").await;
    folder.expect_error("self.yaml").await;
}

#[tokio::test]
async fn what_is_behind_a_link_is_found_when_all_is_read_again() {
    let outside = tempfile::tempdir().expect("a folder");
    let target = outside.path().join("target");
    write(&target, &namespace("a"));
    let mut folder = Followed::start(OFTEN);
    symlink(&target, folder.file("a.yaml")).expect("linked");
    folder.expect("a").await;
    write(&target, &namespace("b"));
    folder.expect("b").await;
}

#[tokio::test]
async fn it_ends_when_nobody_listens() {
    let Followed { subscription, .. } = Followed::start(NEVER);
    let Subscription { updates, mut status } = subscription;
    drop(updates);
    let ended = async { while status.changed().await.is_ok() {} };
    timeout(LONG, ended).await.expect("the datastore let go of its status");
}
