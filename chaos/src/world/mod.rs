//! A world to break: one network namespace per datacenter, joined by a userland WAN; fault-injecting disks; a cgroup each.
