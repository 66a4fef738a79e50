//! Which node serves a read: the nearest that is fit, and of equally near ones the least busy. Pure.

use crate::cluster::Topology;
use crate::types::NodeId;

/// Where the proxy stands and what it accepts.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub me: NodeId,
    pub datacenter: &'a str,
    /// A standby known to lag more is passed over.
    pub max_lag_bytes: u64,
}

/// Chooses among the standbys and, when it is given, the primary. `outstanding` counts the proxy's clients on a node; a node that
/// `shunned` names did not answer lately and is taken only if there is no other.
#[must_use]
pub fn choose(
    topology: &Topology,
    place: Place<'_>,
    primary: Option<NodeId>,
    shunned: impl Fn(NodeId) -> bool,
    outstanding: impl Fn(NodeId) -> u32,
) -> Option<NodeId> {
    let fit = topology.backends.iter().filter(|(node, backend)| {
        let standby = backend.readable && backend.lag_bytes.unwrap_or(0) <= place.max_lag_bytes;
        !backend.noloadbalance && (standby || Some(**node) == primary)
    });
    fit.min_by_key(|(node, backend)| {
        let distance = if **node == place.me {
            0
        } else if backend.datacenter == place.datacenter {
            1
        } else {
            2
        };
        (shunned(**node), distance, outstanding(**node), **node)
    })
    .map(|(node, _)| *node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Backend;

    fn backend(datacenter: &str, readable: bool, lag_bytes: Option<u64>) -> Backend {
        Backend { name: String::new(), datacenter: datacenter.into(), address: String::new(), readable, lag_bytes, noloadbalance: false }
    }

    fn topology(backends: &[(u64, Backend)]) -> Topology {
        Topology { backends: backends.iter().map(|(id, b)| (NodeId(*id), b.clone())).collect(), ..Topology::default() }
    }

    const HERE: Place<'static> = Place { me: NodeId(1), datacenter: "a", max_lag_bytes: 100 };

    #[test]
    fn nearest_first_then_least_busy() {
        let all = topology(&[(1, backend("a", true, None)), (2, backend("a", true, None)), (3, backend("b", true, None))]);
        assert_eq!(choose(&all, HERE, None, |_| false, |_| 0), Some(NodeId(1)));
        let far = topology(&[(3, backend("b", true, None)), (4, backend("c", true, None))]);
        assert_eq!(choose(&far, HERE, None, |_| false, |node| if node == NodeId(3) { 2 } else { 1 }), Some(NodeId(4)));
    }

    #[test]
    fn a_shunned_node_is_the_last_resort() {
        let all = topology(&[(1, backend("a", true, None)), (3, backend("b", true, None))]);
        assert_eq!(choose(&all, HERE, None, |node| node == NodeId(1), |_| 0), Some(NodeId(3)));
        assert_eq!(choose(&all, HERE, None, |_| true, |_| 0), Some(NodeId(1)));
    }

    #[test]
    fn unfit_standbys_are_passed_over() {
        let mut all = topology(&[(1, backend("a", true, Some(101))), (2, backend("b", false, None)), (3, backend("c", true, Some(100)))]);
        assert_eq!(choose(&all, HERE, None, |_| false, |_| 0), Some(NodeId(3)));
        all.backends.get_mut(&NodeId(3)).expect("present").noloadbalance = true;
        assert_eq!(choose(&all, HERE, None, |_| false, |_| 0), None);
    }

    #[test]
    fn a_near_primary_is_preferred_to_a_far_standby() {
        let all = topology(&[(1, backend("a", false, None)), (3, backend("b", true, None))]);
        assert_eq!(choose(&all, HERE, Some(NodeId(1)), |_| false, |_| 0), Some(NodeId(1)));
        assert_eq!(choose(&all, HERE, None, |_| false, |_| 0), Some(NodeId(3)));
    }
}
