//! iii-vmm
