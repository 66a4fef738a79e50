//! The Admin service, with health and reflection, as routes that the node serves on the same port as the Peer service.
//!
//! Roles come from the caller's certificate (`roles`); a mutating call needs an operator's. Event streams are bounded: a slow
//! consumer is dropped with RESOURCE_EXHAUSTED and the revision to resume from. Serving, TLS and shutdown are the node's.
//!
//! Entry points: [`routes`], [`GrpcDialer`].

mod admin;
mod dial;
mod roles;
mod stream;

pub use dial::GrpcDialer;
pub use roles::{Role, RoleSource};

use super::ClusterAccess;
use crate::proto;
use crate::proto::v1::admin_server::AdminServer;
use admin::AdminService;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Requests are short texts; whatever is longer is a mistake or an attack.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Admin, health and reflection. Add the Peer service with [`Routes::add_service`], or pass its own routes through
/// [`RoutesBuilder`]. The reporter sets the health of other services.
pub async fn routes(access: ClusterAccess, roles: RoleSource) -> (Routes, HealthReporter) {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", ServingStatus::Serving).await;
    reporter.set_service_status("trilithon.v1.Admin", ServingStatus::Serving).await;
    let admin = AdminServer::new(AdminService::new(access, roles)).max_decoding_message_size(REQUEST_BYTES_MAX);
    let mut builder = RoutesBuilder::default();
    builder.add_service(admin);
    builder.add_service(health);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    builder.add_service(reflection.expect("the descriptors were compiled from our own protos, as a test shows"));
    (builder.routes(), reporter)
}
