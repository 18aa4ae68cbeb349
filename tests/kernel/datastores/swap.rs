//! The image swapped in calico-accountant's DaemonSet: no argument, and its environment as it is.

use super::support::{program, scrape, wait_until};
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{NODE_NAME, Visit, demo, etcd_entry};
use accountant_lab::{Agent, Scenario};
use accountant_rigs::Etcd;
use libtest_mimic::Failed;

pub(crate) fn its_environment_is_enough() -> Result<(), Failed> {
    let scenario: Scenario = demo();
    let node = scenario.node().unwrap();
    node.felix(Dialect::new(Version::V3_31, Backend::IptablesNft).unwrap()).apply(&scenario.model).unwrap();
    let etcd = node.host().enter(|| Etcd::start().unwrap()).unwrap();
    for (key, value) in scenario.objects().unwrap().iter().map(etcd_entry) {
        node.host().enter(|| etcd.put(&key, &value.to_string()).unwrap()).unwrap();
    }
    // Its manifest names the node in NODE_NAME.
    let environment = [
        ("DATASTORE_TYPE", "etcdv3"),
        ("ETCD_ENDPOINTS", &etcd.endpoint()),
        ("NODE_NAME", NODE_NAME),
        ("METRICS_SERVER_PORT", "9009"),
        ("MINIMUM_COUNTER", "1"),
    ];
    let agent = Agent::start_by_environment(node.host(), program(), &environment).unwrap();
    Visit::new(&node).unwrap().round(&scenario.model, &mut Truth::default(), || ()).unwrap();
    let of = [
        ("pod", "db"),
        ("pod_namespace", "shop"),
        ("type", "tw"),
        ("policy", "shop/knp.default.db-from-web"),
    ];
    wait_until("the policy accepted", || scrape(&agent).sum("policy_accept_counter", &of) > 0.0);
    wait_until("nothing matched", || scrape(&agent).sum("no_policy_drop_counter", &[("type", "tw")]) > 0.0);
    drop((agent, etcd));
    Ok(())
}
