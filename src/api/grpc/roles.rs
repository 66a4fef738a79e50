//! Who may do what: the caller's certificate names its role (`consensus::tls`), each method names the role that it needs.

pub use crate::consensus::tls::Role;
use crate::consensus::tls::caller;
use std::sync::Arc;
use tonic::{Request, Status};

/// From what a listener attached to a request to its caller's role.
pub type RoleFunction = dyn Fn(&tonic::Extensions) -> Option<Role> + Send + Sync;

/// Where roles come from.
#[derive(Clone)]
pub enum RoleSource {
    /// The certificate of a TLS connection; without TLS, which the configuration admits on loopback only, everybody is an operator.
    Certificate,
    /// Another listener's way to tell; `None`: no known role.
    Custom(Arc<RoleFunction>),
}

impl RoleSource {
    /// Refuse a caller whose role is below `needed`.
    pub(super) fn require<T>(&self, request: &Request<T>, needed: Role) -> Result<(), Status> {
        let role = match self {
            RoleSource::Certificate => caller(request).ok().map(|caller| caller.role),
            RoleSource::Custom(of) => of(request.extensions()),
        };
        match role {
            Some(role) if role >= needed => Ok(()),
            Some(role) => Err(Status::permission_denied(format!(
                "your certificate is a {}'s, this needs an {}'s; `trilithon certs issue NAME --role operator` makes one",
                role.word(),
                needed.word()
            ))),
            None => Err(Status::unauthenticated(
                "your certificate names no role: its OU must be peer, operator or reader, as `trilithon certs issue` writes it",
            )),
        }
    }
}
