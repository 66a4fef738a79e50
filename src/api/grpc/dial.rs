//! Connections to other members, for requests that only they can carry out.

use crate::api::PeerDialer;
use crate::consensus::tls::Tls;
use futures::future::BoxFuture;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Dials with this node's own certificate, or in plaintext on loopback.
#[derive(Clone, Debug, Default)]
pub struct GrpcDialer {
    pub tls: Option<Tls>,
}

impl PeerDialer for GrpcDialer {
    fn connect<'a>(&'a self, name: &'a str, address: &'a str) -> BoxFuture<'a, Result<Channel, String>> {
        Box::pin(async move {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|e| e.to_string())?;
            let endpoint = endpoint.connect_timeout(Duration::from_millis(500)).tcp_nodelay(true);
            let endpoint = match &self.tls {
                Some(tls) => endpoint.tls_config(tls.client(name)).map_err(|e| e.to_string())?,
                None => endpoint,
            };
            endpoint.connect().await.map_err(|e| e.to_string())
        })
    }
}
