//! Patroni with etcd, HAProxy and PgBouncer in the same worlds under the same faults.
