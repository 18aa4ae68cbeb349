//! A cluster of three: its leader is lost, members come back with what they had, and for a while most are gone.

use crate::common::{Names, set};
use crate::store::{ROOT, follow};
use accountant_datastore::etcdv3::{Connection, Servers};
use accountant_rigs::Etcd;
use etcd_client::Client;
use std::time::Duration;

struct Cluster {
    members: [Etcd; 3],
}

impl Cluster {
    /// One with a policy in it, and its names in sync.
    async fn with(policy: &str) -> (Self, Names) {
        let cluster = Self { members: Etcd::start_members().unwrap() };
        cluster.change(policy, "none").await;
        let servers = cluster.members.iter().map(|member| member.endpoint().into()).collect();
        let mut names = follow(Connection { servers: Servers::Endpoints(servers), ..Connection::default() });
        names.in_sync().await;
        (cluster, names)
    }

    /// A client of the members that run.
    async fn client(&self) -> Client {
        let running: Vec<_> =
            self.members.iter().filter(|member| member.pid().is_some()).map(Etcd::endpoint).collect();
        Client::connect(running, None).await.unwrap()
    }

    /// Which member leads, once one does.
    async fn leader(&self) -> usize {
        loop {
            for (number, member) in
                self.members.iter().enumerate().filter(|(_, member)| member.pid().is_some())
            {
                let mut client = Client::connect([member.endpoint()], None).await.unwrap();
                let Ok(status) = client.status().await else { continue };
                if status.leader() != 0 && status.header().unwrap().member_id() == status.leader() {
                    return number;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes a policy, and then takes another away. An election may be under way.
    async fn change(&self, made: &str, gone: &str) {
        let mut client = self.client().await;
        let key = |name: &str| format!("{ROOT}networkpolicies/n/{name}");
        while client.put(key(made), r#"{"spec": {"tier": "default"}}"#, None).await.is_err() {}
        while client.delete(key(gone), None).await.is_err() {}
    }
}

#[tokio::test]
async fn a_cluster_that_loses_its_leader_is_followed_on() {
    let (mut cluster, mut names) = Cluster::with("p0").await;
    for round in 1..=3 {
        let leader = cluster.leader().await;
        cluster.members[leader].kill();
        let [before, after] = [round - 1, round].map(|number| format!("p{number}"));
        cluster.change(&after, &before).await;
        let wanted = set(&[&format!("n/{after}")]);
        names.until("what came after the loss", |names| names.policy_names() == wanted).await;
        names.in_sync().await;
        Etcd::restart_members(&mut cluster.members).unwrap();
    }
}

/// Whoever is left answers, and knows that it does not know.
#[tokio::test]
async fn a_member_that_is_left_alone_is_not_believed() {
    let (mut cluster, mut names) = Cluster::with("stays").await;
    for left in 0..3 {
        for gone in (0..3).filter(|gone| *gone != left) {
            cluster.members[gone].kill();
        }
        names.until("the loss", |names| !names.status().in_sync).await;
        assert_eq!(names.policy_names(), set(&["n/stays"]));
        Etcd::restart_members(&mut cluster.members).unwrap();
        names.in_sync().await;
    }
    cluster.change("new", "stays").await;
    let mut client = cluster.client().await;
    let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    names.until("what came last", |names| names.policy_names() == set(&["n/new"])).await;
}
