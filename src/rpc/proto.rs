//! Code generated from `proto/pointsman/v1`, and the descriptors that reflection serves.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::large_enum_variant,
    clippy::large_futures,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

tonic::include_proto!("pointsman.v1");

/// The encoded descriptors of every message and service, comments included.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pointsman_descriptor.bin"));
