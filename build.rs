//! Compiles the wire contract, and what is spoken with etcd, with protox, so that no protoc has to be installed.

use std::path::PathBuf;

const PROTO_ROOT: &str = "proto";
const ETCD_FILE: &str = "etcd/etcd.proto";
const PROTO_FILES: [&str; 3] = ["pointsman/v1/router.proto", "pointsman/v1/policy.proto", "pointsman/v1/info.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    let descriptors = protox::compile(PROTO_FILES, [PROTO_ROOT])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Reflection serves the same descriptors that the code is made from, comments included.
    std::fs::write(out.join("pointsman_descriptor.bin"), prost_types_bytes(&descriptors)?)?;
    tonic_prost_build::configure()
        .codec_path("crate::rpc::codec::StrictCodec")
        .build_transport(false)
        .compile_fds(descriptors)?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .compile_fds(protox::compile([ETCD_FILE], [PROTO_ROOT])?)?;
    Ok(())
}

fn prost_types_bytes(descriptors: &prost_types::FileDescriptorSet) -> Result<Vec<u8>, prost::EncodeError> {
    use prost::Message as _;
    let mut bytes = Vec::with_capacity(descriptors.encoded_len());
    descriptors.encode(&mut bytes)?;
    Ok(bytes)
}
