//! The name of this node, in the order of calico-node (`node/pkg/lifecycle/utils/utils.go`, `DetermineNodeName`).
//!
//! `NODENAME` keeps its case, the nodename file is used as it is, host names are trimmed and lower-cased. Between the first
//! two come the names that DaemonSets of other programs use for the same thing.

use super::setting::{Given, Origin};
use super::surroundings::Surroundings;
use std::path::Path;

/// Where calico-node keeps the name that it chose.
const NODENAME_FILE: &str = "/var/lib/calico/nodename";
/// Variables with the name as it is, in order.
const EXACT: [&str; 3] = ["NODENAME", "NODE_NAME", "KUBERNETES_NODE_NAME"];

/// The name of this node.
pub(super) fn name(flag: Option<&str>, around: &dyn Surroundings) -> Given<String> {
    let given = |value: String, origin| {
        let value = value.trim().to_string();
        (!value.is_empty()).then(|| Given::new(value, origin))
    };
    let from_flag = || given(flag?.into(), Origin::Flag("--node-name"));
    let from_variables = || {
        let variable = |name: &&str| given(around.variable(name)?, Origin::Variable((*name).into()));
        EXACT.iter().find_map(variable)
    };
    let from_file = || {
        let file = around.variable("CALICO_NODENAME_FILE").filter(|file| !file.is_empty());
        let file = file.unwrap_or(NODENAME_FILE.into());
        let name = around.read(Path::new(&file)).ok().filter(|name| !name.is_empty())?;
        Some(Given::new(name, Origin::File(file.into())))
    };
    let from_host_name = || {
        let variable = around.variable("HOSTNAME").map(|name| name.to_lowercase());
        given(variable?, Origin::Variable("HOSTNAME".into()))
    };
    let from_kernel = || given(around.host_name()?.to_lowercase(), Origin::Kernel);
    from_flag()
        .or_else(from_variables)
        .or_else(from_file)
        .or_else(from_host_name)
        .or_else(from_kernel)
        .unwrap_or(Given::new(String::new(), Origin::Default))
}

#[cfg(test)]
mod tests {
    use super::super::surroundings::fake::Fake;

    #[track_caller]
    fn check(flag: Option<&str>, around: &Fake, name: &str, origin: &str) {
        let found = super::name(flag, around);
        assert_eq!((found.value.as_str(), found.origin.to_string().as_str()), (name, origin));
    }

    #[test]
    fn the_order_is_that_of_calico_node() {
        let mut around = Fake { host_name: Some(" Kernel ".into()), ..Fake::default() };
        check(None, &around, "kernel", "the kernel's host name");
        around = around.and(&[("HOSTNAME", "Host.Example ")]);
        check(None, &around, "host.example", "$HOSTNAME");
        around = around.file("/var/lib/calico/nodename", "File Name\n");
        check(None, &around, "File Name\n", "/var/lib/calico/nodename");
        around = around.and(&[("KUBERNETES_NODE_NAME", "K")]);
        check(None, &around, "K", "$KUBERNETES_NODE_NAME");
        around = around.and(&[("NODE_NAME", "N")]);
        check(None, &around, "N", "$NODE_NAME");
        around = around.and(&[("NODENAME", " Worker-1 ")]);
        check(None, &around, "Worker-1", "$NODENAME");
        check(Some("flag"), &around, "flag", "--node-name");
        around = around.and(&[("NODENAME", " ")]);
        check(Some(""), &around, "N", "$NODE_NAME");
    }

    #[test]
    fn the_nodename_file_may_be_elsewhere() {
        let around = Fake::with(&[("CALICO_NODENAME_FILE", "/x"), ("HOSTNAME", "h")]);
        check(None, &around, "h", "$HOSTNAME");
        check(None, &around.clone().file("/x", "n"), "n", "/x");
        check(None, &around.file("/x", ""), "h", "$HOSTNAME");
    }
}
