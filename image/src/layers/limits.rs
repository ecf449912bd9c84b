//! What no image may go beyond. Each stops an attack; real images stay far below.

/// Files of an image, implied directories and replaced files included: a layer of headers alone
/// packs a million of them into a few hundred kilobytes, and each costs memory here and in every
/// guest.
pub const MAX_FILES: usize = 2_000_000;

/// Memory for names, link targets and attributes: a hundred thousand paths of 4 KiB compress to
/// nothing.
pub const MAX_NAMES: usize = 512 << 20;

/// Content of an image: a layer that never ends would fill the disk.
pub const MAX_CONTENT: u64 = 128 << 30;

/// What any layer may unpack to, however small it is: real ones hold preallocated, empty databases.
const FREE_UNPACKED: u64 = 2 << 30;
/// And how much more for each of its bytes: a zip bomb unpacks to thousands of times its size,
/// files to 2 to 10 times.
const MAX_RATIO: u64 = 200;

/// Layers of an image; runtimes that mount each stop at 128.
pub const MAX_LAYERS: usize = 512;

/// Symbolic links and directories that lead to one entry: a few chains of links to each other are
/// walked for longer than anybody waits.
pub const MAX_STEPS: usize = 8192;

/// Bytes to which a layer of `compressed` bytes may unpack.
pub fn most_unpacked(compressed: u64) -> u64 {
    compressed
        .saturating_mul(MAX_RATIO)
        .saturating_add(FREE_UNPACKED)
        .min(MAX_CONTENT)
}
