//! The datastore `kubernetes` against a real API server: what Calico stores, changes, and faults. Afterwards the names are
//! what the store has.
//!
//! The server is built with Go. Where there is none, each of these tests is listed as ignored; with
//! `ACCOUNTANT_REQUIRE_SERVERS` set, as in CI, that is a failure.
#![allow(unreachable_pub, reason = "as in the other tests' common part")]

#[path = "../common/mod.rs"]
mod common;

mod changes;
mod cluster;
mod faults;
mod proxy;
mod tunnel;

use libtest_mimic::{Arguments, Failed, Trial};
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each has a server of its own, which takes 300 MB.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let binary = match arguments.list {
        true => Err("not needed to list tests".to_string()),
        false => accountant_rigs::binary().expect("the API server").map_err(|unavailable| unavailable.0),
    };
    if let Err(reason) = &binary {
        if !arguments.list && std::env::var_os("ACCOUNTANT_REQUIRE_SERVERS").is_some() {
            eprintln!("the tests of the datastore kubernetes are required, and cannot run: it {reason}");
            return ExitCode::FAILURE;
        }
        if !arguments.list {
            eprintln!("NOT RUN: the tests of the datastore kubernetes: it {reason}");
        }
    }
    let trials = tests().into_iter().map(|(name, test)| {
        let (run, missing) = match binary.clone() {
            Ok(binary) => (binary, false),
            Err(_) => (PathBuf::new(), true),
        };
        Trial::test(name, move || test(run)).with_ignored_flag(missing)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

type Test = fn(PathBuf) -> Result<(), Failed>;

fn run<F: Future<Output = ()>>(test: F) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(test);
    runtime.shutdown_background();
    Ok(())
}

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        fn tests() -> Vec<(&'static str, Test)> {
            vec![$((stringify!($name), |binary| run($module::$name(binary)))),*]
        }
    };
}

tests! {
    changes::what_calico_3_31_stores_is_named_as_expected,
    changes::changes_are_followed_and_other_nodes_are_not_asked_for,
    changes::kinds_that_are_installed_later_are_found,
    changes::native_objects_of_3_32_are_named,
    changes::a_migration_from_v1_to_v3_loses_no_name,
    changes::a_configuration_and_felixs_own_files_tell_interfaces,
    changes::the_proxy_of_a_kubeconfig_is_gone_through,
    faults::a_server_that_is_gone_takes_no_name_and_afterwards_all_is_as_stored,
    faults::answers_that_refuse_are_outlasted,
    faults::what_the_server_does_not_tell_takes_no_name,
    faults::a_connection_that_is_dead_is_given_up,
    faults::tokens_and_authorities_are_checked_and_read_again,
    faults::a_restart_with_other_certificates_is_followed,
    faults::objects_that_cannot_be_used_are_told_by_name,
    faults::the_role_that_we_ship_is_enough_and_less_is_told,
    faults::a_datastore_that_is_not_ready_keeps_its_last_names,
}
