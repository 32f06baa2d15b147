//! Code generated from `proto/etcd/etcd.proto`.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::pedantic,
    clippy::large_futures,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

tonic::include_proto!("etcdserverpb");
