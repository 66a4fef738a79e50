//! Who may do what: the organisational unit (OU) of the client's certificate names its role.

use std::sync::Arc;
use tonic::{Request, Status};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Ordered: each role may do what the ones below may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Asks.
    Reader,
    /// Changes.
    Operator,
    /// A member of the cluster; forwards for operators.
    Peer,
}

/// From what a listener attached to a request to its caller's role.
pub type RoleFunction = dyn Fn(&tonic::Extensions) -> Option<Role> + Send + Sync;

/// Where roles come from.
#[derive(Clone)]
pub enum RoleSource {
    /// The certificate that the connection was authenticated with, as tonic's own TLS listener keeps it.
    Certificate,
    /// Plaintext, which the configuration admits on loopback only: every caller is an operator.
    Loopback,
    /// Another listener's way to tell; `None`: no known role.
    Custom(Arc<RoleFunction>),
}

impl RoleSource {
    /// Refuse a caller whose role is below `needed`.
    pub(super) fn require<T>(&self, request: &Request<T>, needed: Role) -> Result<(), Status> {
        let role = match self {
            RoleSource::Loopback => Some(Role::Operator),
            RoleSource::Certificate => request.peer_certs().and_then(|chain| role_of_certificate(chain.first()?)),
            RoleSource::Custom(of) => of(request.extensions()),
        };
        match role {
            Some(role) if role >= needed => Ok(()),
            Some(role) => Err(Status::permission_denied(format!(
                "your certificate is a {}'s, this needs an {}'s; `trilithon certs issue NAME --role operator` makes one",
                word(role),
                word(needed)
            ))),
            None => Err(Status::unauthenticated(
                "your certificate names no role: its OU must be peer, operator or reader, as `trilithon certs issue` writes it",
            )),
        }
    }
}

fn word(role: Role) -> &'static str {
    match role {
        Role::Reader => "reader",
        Role::Operator => "operator",
        Role::Peer => "peer",
    }
}

/// The role that a DER certificate names. The chain was verified by TLS already.
#[must_use]
pub fn role_of_certificate(der: &[u8]) -> Option<Role> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    certificate.subject().iter_organizational_unit().filter_map(|unit| unit.as_str().ok()).find_map(|unit| match unit {
        "reader" => Some(Role::Reader),
        "operator" => Some(Role::Operator),
        "peer" => Some(Role::Peer),
        _ => None,
    })
}
