//! iii-firmware
