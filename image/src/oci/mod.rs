//! What registries and archives say about images: names, digests, manifests, configurations.
//!
//! * [`reference`](mod@reference) is what a user calls an image;
//! * [`digest`] is what an image's parts are called by their content;
//! * [`manifest`] is what an image is made of, and [`platform`] which of several fits this host;
//! * [`config`] is how it wants to be run.
//!
//! Everything here is pure: bytes in, types out. It is all hostile: sizes are bounded before
//! anything is parsed, unknown fields are passed over, and what is used is checked.

pub mod config;
pub mod digest;
pub mod manifest;
pub mod platform;
pub mod reference;

pub use config::{ImageConfig, RunConfig};
pub use digest::Digest;
pub use manifest::{Descriptor, Document, Manifest};
pub use platform::Platform;
pub use reference::Reference;
