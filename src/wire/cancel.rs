//! Cancel keys: what BackendKeyData hands out and a CancelRequest brings back.
//!
//! The proxy issues its own. The process id carries the issuing node, so that a request which reaches another node can be passed on to
//! the right one; the sign bit stays clear because clients print it as a signed number.

use crate::types::NodeId;

const SESSION_BITS: u32 = 21;
const NODE_MASK: u32 = (1 << (31 - SESSION_BITS)) - 1;
const SESSION_MASK: u32 = (1 << SESSION_BITS) - 1;

/// Process id and secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CancelKey {
    pub pid: u32,
    pub secret: u32,
}

impl CancelKey {
    /// The key of session number `session` (modulo 2^21) on `node` (modulo 2^10).
    #[must_use]
    pub fn issue(node: NodeId, session: u32, secret: u32) -> CancelKey {
        CancelKey { pid: node_bits(node) << SESSION_BITS | (session & SESSION_MASK), secret }
    }

    /// Whether `node` issued it, as far as ten bits can tell.
    #[must_use]
    pub fn is_from(self, node: NodeId) -> bool {
        self.pid >> SESSION_BITS == node_bits(node)
    }

    /// From the body of a CancelRequest or BackendKeyData.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<CancelKey> {
        let body: &[u8; 8] = body.try_into().ok()?;
        let word = |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        Some(CancelKey { pid: word(0), secret: word(4) })
    }
}

fn node_bits(node: NodeId) -> u32 {
    // The mask leaves ten bits, which fit.
    (node.0 & u64::from(NODE_MASK)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_its_node_and_stays_positive() {
        let key = CancelKey::issue(NodeId(3), 0xFFFF_FFFF, 9);
        assert!(key.is_from(NodeId(3)) && !key.is_from(NodeId(2)));
        assert!(key.pid <= i32::MAX.unsigned_abs());
    }
}
