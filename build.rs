//! Compiles the protos in pure Rust (protox), so that no protoc is needed.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["proto/trilithon/v1/admin.proto", "proto/trilithon/v1/peer.proto"];
    let descriptors = protox::compile(files, ["proto"]).map_err(io::Error::other)?;
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".trilithon.v1").compile_fds(descriptors)
}
