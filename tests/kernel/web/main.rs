//! The endpoint as it faces a network: TLS, passwords, limits, and web configurations that are wrong. Asked by curl and
//! openssl.

mod admission;
mod certificates;
mod hostile;
mod pages;
mod site;
#[path = "../support/mod.rs"]
mod support;
mod transport;
