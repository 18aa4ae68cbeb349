//! The datastore `etcdv3` against a real etcd: what Calico's own client wrote, changes, and faults. Afterwards the names are
//! what the store has.
#![allow(unreachable_pub, reason = "as in the other tests' common part")]

mod changes;
#[path = "../common/mod.rs"]
mod common;
mod faults;
mod members;
mod store;
