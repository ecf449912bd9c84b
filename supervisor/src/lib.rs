//! iii-supervisor
