//! End-to-end tests that boot VMs.
