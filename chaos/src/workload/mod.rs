//! Clients in each datacenter, and the histories they keep.
