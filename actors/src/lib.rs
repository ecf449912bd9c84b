//! iii-actors
