//! iii-net
