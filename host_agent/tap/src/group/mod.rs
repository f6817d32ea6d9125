//! One group: its disks, its stream or its recovered files, its clients; one thread, nothing
//! shared with others.

pub mod control;
pub mod core;
pub mod delta;
pub mod exports;
pub mod extents;
pub mod fill;
pub mod flush;
pub mod hold;
pub mod left;
pub mod marks;
pub mod mirror;
pub mod open;
pub mod ops;
pub mod orders;
pub mod report;
pub mod run;
pub mod spin;
pub mod sync;
pub mod verbs;
