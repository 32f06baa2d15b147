//! dev
#![allow(clippy::all, dead_code, unused_imports)]
mod control_plane_support;
mod support;
mod robustness {
    mod drain;
    mod engines;
    mod model;
    mod model_reload;
    mod raw;
    mod soak;
    mod together;
}
