//! What goes out: one module for each form in which the published view is told.

pub mod denied;
pub mod http;
pub mod json;
pub mod prometheus;
pub mod table;
