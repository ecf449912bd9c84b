//! What `iii-super run` and `logs` print: [`human`] lines or [`json`], written by [`printer`], or by
//! [`lines`] in a command that gets them from a running supervisor; and the columns of other commands.
//!
//! The formatting functions are pure: what they return depends on their arguments alone.

pub mod escape;
pub mod human;
pub mod json;
pub mod lines;
pub mod printer;
pub mod screen;
pub mod stamp;
pub mod table;
pub mod words;
