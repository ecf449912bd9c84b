//! iii-image
