//! Who may talk to whom: mutual TLS, and the certificate says what its owner is.
//!
//! The subject of a certificate carries CN = name and OU = role (`peer`, `operator`, `reader`). A member's certificate also carries
//! its name as a DNS alternative name: whoever connects to `dc2` accepts only the certificate of `dc2`, wherever that runs.
//! Plaintext is allowed only while every address is a loopback one ([`require_tls`]). `trilithon certs` issues such certificates;
//! the Admin service uses the same server configuration and [`caller`]. One TLS provider: ring.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use thiserror::Error;
use tonic::Request;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a certificate entitles to. Ordered: a peer may do what an operator may, an operator what a reader may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Reader,
    Operator,
    Peer,
}

impl Role {
    /// The word in the certificate's OU.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Operator => "operator",
            Role::Peer => "peer",
        }
    }

    fn parse(word: &str) -> Option<Role> {
        [Role::Reader, Role::Operator, Role::Peer].into_iter().find(|role| role.word() == word)
    }
}

/// Whoever sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub role: Role,
    /// CN of the certificate; `None` over plaintext, which is loopback only.
    pub name: Option<String>,
}

/// Why certificates cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not a PEM certificate: {why}")]
    Certificate { path: PathBuf, why: String },
    #[error(
        "{path} was issued to {found}, but this node is {expected} and needs a certificate with OU={role}, CN={expected}; issue one with `trilithon certs issue`"
    )]
    Subject { path: PathBuf, found: String, expected: String, role: &'static str },
    #[error(
        "address {address} is not a loopback one, so traffic between members must be encrypted: set [api.tls] (see `trilithon certs init`)"
    )]
    Required { address: String },
    #[error("the certificate's subject has no OU that names a role (peer, operator, reader)")]
    NoRole,
}

/// This node's certificate and the authority that all members trust.
#[derive(Clone)]
pub struct Tls {
    ca: Certificate,
    identity: Identity,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Read the PEM files of a certificate of any role. Blocking.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Tls, TlsError> {
        let [ca_pem, cert_pem, key_pem] = [read(ca)?, read(cert)?, read(key)?];
        subject_of_pem(ca, &ca_pem)?;
        subject_of_pem(cert, &cert_pem)?;
        Ok(Tls { ca: Certificate::from_pem(ca_pem), identity: Identity::from_pem(cert_pem, key_pem) })
    }

    /// Read the PEM files of the member called `name`, and check that they are its own.
    pub fn load_member(ca: &Path, cert: &Path, key: &Path, name: &str) -> Result<Tls, TlsError> {
        let (role, cn) = subject_of_pem(cert, &read(cert)?)?;
        if role != Some(Role::Peer) || cn != name {
            let found = format!("OU={}, CN={cn}", role.map_or("nothing", Role::word));
            return Err(TlsError::Subject { path: cert.to_owned(), found, expected: name.to_owned(), role: Role::Peer.word() });
        }
        Tls::load(ca, cert, key)
    }

    /// For the gRPC listener: every client must show a certificate of the same authority.
    #[must_use]
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(self.ca.clone())
    }

    /// To reach the member called `name`.
    #[must_use]
    pub fn client(&self, name: &str) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(self.ca.clone()).identity(self.identity.clone()).domain_name(name)
    }
}

/// Who sent `request`: the certificate's subject, or over plaintext (loopback only) somebody on this machine, trusted as a peer.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, TlsError> {
    let Some(certs) = request.peer_certs() else {
        return Ok(Caller { role: Role::Peer, name: None });
    };
    let leaf = certs.first().ok_or(TlsError::NoRole)?;
    let (_, cert) = X509Certificate::from_der(leaf.as_ref()).map_err(|_| TlsError::NoRole)?;
    let (role, name) = subject(&cert);
    Ok(Caller { role: role.ok_or(TlsError::NoRole)?, name: Some(name) })
}

/// Without certificates every address must be a loopback one. Host names are resolved; blocking.
pub fn require_tls<'a>(tls: Option<&Tls>, addresses: impl IntoIterator<Item = &'a str>) -> Result<(), TlsError> {
    if tls.is_some() {
        return Ok(());
    }
    let remote = addresses.into_iter().find(|address| !is_loopback(address));
    remote.map_or(Ok(()), |address| Err(TlsError::Required { address: address.to_owned() }))
}

/// Does `host:port` lead to this machine only? A name that does not resolve counts as remote.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    if let Ok(ip) = host.parse::<IpAddr>() {
        return ip.is_loopback();
    }
    (host, 0).to_socket_addrs().is_ok_and(|mut all| {
        let first = all.next().is_some_and(|a| a.ip().is_loopback());
        first && all.all(|a| a.ip().is_loopback())
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn subject_of_pem(path: &Path, pem: &[u8]) -> Result<(Option<Role>, String), TlsError> {
    let bad = |why: String| TlsError::Certificate { path: path.to_owned(), why };
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|e| bad(e.to_string()))?;
    let cert = pem.parse_x509().map_err(|e| bad(e.to_string()))?;
    Ok(subject(&cert))
}

fn subject(cert: &X509Certificate<'_>) -> (Option<Role>, String) {
    let role = cert.subject().iter_organizational_unit().find_map(|ou| Role::parse(ou.as_str().ok()?));
    let name = cert.subject().iter_common_name().find_map(|cn| cn.as_str().ok()).unwrap_or_default();
    (role, name.to_owned())
}
