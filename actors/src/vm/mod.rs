//! One VM and the actor that owns it.
pub mod lifecycle;
