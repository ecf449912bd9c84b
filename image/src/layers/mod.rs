//! Layers of an image, merged into one EROFS file.
//!
//! * [`stream`] is what a layer's blob holds: decompressed, counted, and its digest taken;
//! * [`merge`] applies a layer's entries to the tree of those below it: whiteouts, opaque
//!   directories, links;
//! * [`path`] is the checked form of an entry's name;
//! * [`assembly`] is the file that is being made: contents go into it as they come, the tree behind
//!   them;
//! * [`limits`] is what no image may go beyond.
//!
//! Nothing of a layer touches the host's file system but the one file: a name is a key of a map, a
//! symbolic link is data, owners and devices are numbers. So there is nothing to escape from, and
//! nothing that needs root.

pub mod assembly;
pub mod limits;
pub mod merge;
pub mod path;
pub mod stream;

pub use assembly::{Assembly, AssemblyError, Finished};
pub use merge::LayerError;
