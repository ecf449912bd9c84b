//! A client of registries (OCI distribution specification), as much of it as a pull needs.
//!
//! * [`challenge`] is what a registry demands before it answers;
//! * [`credentials`] is what this user can show it;
//! * [`client`] asks for manifests and blobs.
//!
//! A registry is hostile: it may say anything, of any length, and send us elsewhere. What it sends
//! is bounded here and checked against digests by those who ask. Passwords and tokens go to the
//! registry that they are for and to the token server that it names, over TLS; plain HTTP is for
//! registries on this host's loopback, and for those that the user names as insecure. They appear
//! in no message.

pub mod challenge;
pub mod client;
pub mod credentials;

pub use client::{Body, Client, RegistryError, RegistryOptions};
pub use credentials::{Credentials, CredentialsError, Login};
