//! iii-vfs
