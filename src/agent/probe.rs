//! Proof of death: a peer whose process and whose postmaster both *refuse* connections is not merely silent.
//!
//! A refusal comes from the kernel of a machine that lives while the programs do not. A middlebox can forge it, so a decision
//! asks for the same answer from every member that it hears, and safety never rests on it: sealing does (INV-9, docs/INVARIANTS).

use crate::types::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

/// A refusal comes within one round trip; silence is not awaited longer.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Of `suspects` (`host:port` of the process and of Postgres), those that refuse both.
pub async fn refusing(suspects: &BTreeMap<NodeId, (String, String)>) -> BTreeSet<NodeId> {
    let probes = suspects.iter().map(|(node, (process, postgres))| async move {
        let (process, postgres) = tokio::join!(refuses(process), refuses(postgres));
        (process && postgres).then_some(*node)
    });
    futures::future::join_all(probes).await.into_iter().flatten().collect()
}

async fn refuses(address: &str) -> bool {
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Ok(Ok(_)) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket};

    #[tokio::test]
    async fn one_listening_port_disproves_death() {
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Bound, so that nobody else listens there, but closed: connections are refused.
        let closed = TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (open_at, closed_at) = (open.local_addr().unwrap().to_string(), closed.local_addr().unwrap().to_string());
        let suspects = BTreeMap::from([(NodeId(1), (closed_at.clone(), open_at)), (NodeId(2), (closed_at.clone(), closed_at))]);
        assert_eq!(refusing(&suspects).await, BTreeSet::from([NodeId(2)]));
    }
}
