//! Compiles the protos in pure Rust (protox), so that no protoc is needed.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["proto/trilithon/v1/admin.proto", "proto/trilithon/v1/peer.proto"];
    let descriptors = protox::compile(files, ["proto"]).map_err(io::Error::other)?;
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    // Messages of the admin service are also the documents of `-o json` and of HTTP: one definition for both.
    let documents = [
        "ClusterStatus",
        "LeaseStatus",
        "RuleStatus",
        "MemberStatus",
        "TagsStatus",
        "TopologyReply",
        "TopologyMember",
        "HistoryReply",
        "PrimaryChange",
        "Event",
        "RaftStatusReply",
        "RaftMember",
        "VersionReply",
        "ConfigShowReply",
    ];
    let build = tonic_prost_build::configure().bytes(".trilithon.v1").btree_map(".trilithon.v1");
    let derive = "#[derive(serde::Serialize, serde::Deserialize)]";
    let build = documents.iter().fold(build, |build, name| build.message_attribute(format!(".trilithon.v1.{name}"), derive));
    build.compile_fds(descriptors)
}
