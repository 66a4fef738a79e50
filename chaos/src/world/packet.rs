//! As much of IPv4 as a router of datacenters needs: who to, which ports, and a TCP reset in answer.

use std::net::Ipv4Addr;

const IPV4: u8 = 4;
const IPV4_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const TCP: u8 = 6;
const UDP: u8 = 17;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Flags that take a sequence number of their own: SYN and FIN.
const COUNTED: u8 = 0x02 | 0x01;

/// The addresses and ports of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    /// Source and destination; `None` for what is neither TCP nor UDP.
    pub ports: Option<(u16, u16)>,
}

/// Reads `packet`; `None` for what is not whole IPv4.
pub(super) fn flow(packet: &[u8]) -> Option<Flow> {
    let header = header(packet)?;
    let ports = matches!(packet[9], TCP | UDP).then(|| Some((word(packet, header)?, word(packet, header + 2)?))).flatten();
    Some(Flow { from: address(packet, 12), to: address(packet, 16), ports })
}

/// The reset that a receiver without such a connection would send (RFC 9293, 3.10.7.1); `None` in answer to what is no TCP, or is a
/// reset itself.
pub(super) fn reset_for(packet: &[u8]) -> Option<Vec<u8>> {
    let header = header(packet)?;
    let tcp = packet.get(header..).filter(|tcp| tcp.len() >= TCP_HEADER)?;
    if packet[9] != TCP || tcp[13] & RST != 0 {
        return None;
    }
    let offset = usize::from(tcp[12] >> 4) * 4;
    let payload = u32::try_from(tcp.len().saturating_sub(offset)).ok()?;
    let counted = (tcp[13] & COUNTED).count_ones();

    let mut answer = vec![0_u8; IPV4_HEADER + TCP_HEADER];
    answer[0] = 0x45;
    answer[2..4].copy_from_slice(&40_u16.to_be_bytes());
    answer[8] = 64;
    answer[9] = TCP;
    answer[12..16].copy_from_slice(&packet[16..20]);
    answer[16..20].copy_from_slice(&packet[12..16]);
    let sum = checksum(0, &answer[..IPV4_HEADER]);
    answer[10..12].copy_from_slice(&sum.to_be_bytes());

    let pseudo = u32::from(TCP) + 20 + sum_of(&answer[12..20]);
    let reset = &mut answer[IPV4_HEADER..];
    reset[0..2].copy_from_slice(&tcp[2..4]);
    reset[2..4].copy_from_slice(&tcp[0..2]);
    reset[12] = 5 << 4;
    if tcp[13] & ACK != 0 {
        reset[4..8].copy_from_slice(&tcp[8..12]);
        reset[13] = RST;
    } else {
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        reset[8..12].copy_from_slice(&sequence.wrapping_add(payload).wrapping_add(counted).to_be_bytes());
        reset[13] = RST | ACK;
    }
    let sum = checksum(pseudo, reset);
    reset[16..18].copy_from_slice(&sum.to_be_bytes());
    Some(answer)
}

/// Length of the IPv4 header.
fn header(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    (first >> 4 == IPV4 && header >= IPV4_HEADER && packet.len() >= header).then_some(header)
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

fn address(packet: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
}

fn sum_of(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// The internet's checksum (RFC 1071) of `bytes`, after `before`.
fn checksum(before: u32, bytes: &[u8]) -> u16 {
    let mut sum = before + sum_of(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN from 10.99.1.1:40000 to 10.99.2.1:5432, sequence 7.
    fn syn() -> Vec<u8> {
        let mut packet = vec![0_u8; 40];
        packet[0] = 0x45;
        packet[9] = TCP;
        packet[12..16].copy_from_slice(&[10, 99, 1, 1]);
        packet[16..20].copy_from_slice(&[10, 99, 2, 1]);
        packet[20..22].copy_from_slice(&40_000_u16.to_be_bytes());
        packet[22..24].copy_from_slice(&5432_u16.to_be_bytes());
        packet[27] = 7;
        packet[32] = 5 << 4;
        packet[33] = 0x02;
        packet
    }

    #[test]
    fn a_flow_has_its_addresses_and_ports() {
        let flow = flow(&syn()).expect("a flow");
        assert_eq!(flow.to, Ipv4Addr::new(10, 99, 2, 1));
        assert_eq!(flow.ports, Some((40_000, 5432)));
    }

    #[test]
    fn what_is_not_ipv4_has_no_flow() {
        assert_eq!(flow(&[0x60; 48]), None);
        assert_eq!(flow(&[]), None);
        assert_eq!(flow(&[0x4f; 20]), None);
    }

    #[test]
    fn a_syn_is_answered_with_a_reset_that_acknowledges_it() {
        let reset = reset_for(&syn()).expect("a reset");
        let flow = flow(&reset).expect("a flow");
        assert_eq!((flow.from, flow.ports), (Ipv4Addr::new(10, 99, 2, 1), Some((5432, 40_000))));
        assert_eq!(reset[33], RST | ACK);
        assert_eq!(reset[31], 8, "sequence 7 and the SYN itself");
        assert_eq!(checksum(0, &reset[..20]), 0, "a right checksum sums to zero");
        assert_eq!(checksum(u32::from(TCP) + 20 + sum_of(&reset[12..20]), &reset[20..]), 0);
        assert_eq!(reset_for(&reset), None, "no reset for a reset");
    }
}
