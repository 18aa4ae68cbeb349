//! The node agent: command line, configuration, the one event loop, and what goes out.
//!
//! [`engine`] owns the books and is the only one who changes them; [`export`] and [`commands`] read what it publishes.

#![forbid(unsafe_code)]

pub mod commands;
pub mod config;
pub mod engine;
pub mod export;
#[cfg(test)]
mod generated;
