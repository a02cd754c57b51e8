//! The rules of mapping, one named case each, on a real mount.
pub mod kit;
