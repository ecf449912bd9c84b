//! Faults in a random order, each repaired and each seen to be: `make chaos`.
//!
//! * [`plan`]: which fault hits which worker, from a seed;
//! * [`run`]: injects them, one after the other, and proves each repair;
//! * [`census`]: what a process holds, so that a run can be seen to leave nothing;
//! * [`disk`]: a disk that can be filled.

pub mod census;
pub mod disk;
pub mod plan;
pub mod run;
