//! What `iii-super run` prints: [`human`] lines or [`json`], written by [`printer`].
//!
//! The formatting functions are pure: what they return depends on their arguments alone.

pub mod escape;
pub mod human;
pub mod json;
pub mod printer;
pub mod screen;
