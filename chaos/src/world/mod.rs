//! A world to break: one network namespace per datacenter, joined by a userland WAN; fault-injecting disks; a cgroup each.
//!
//! ```text
//!   dc1: namespace, cgroup, disk        dc2                     dc3
//!   ┌──────────────────────┐   ┌──────────────────┐   ┌──────────────────┐
//!   │ processes   wan0     │   │           wan0   │   │           wan0   │
//!   └────┬──────────┬──────┘   └────────────┬─────┘   └────────────┬─────┘
//!    ext4 on loop   TUN                     TUN                    TUN
//!        │          └──────────────► router thread ◄───────────────┘
//!    FUSE `disk`       a [`Link`] per direction: delay, loss, cuts …
//! ```
//! Everything is synchronous but [`SiteRuntime`], where a datacenter's clients live. Each thing is written to the world's state file
//! ([`manifest`]) before it is made, so that one routine takes everything down: at [`World::down`], on drop, at a second Ctrl-C, and
//! after kill -9 by the next start.
//!
//! Deliberately absent: any route, rule or address in the host's own network, and any knowledge of Trilithon. The harness itself never
//! calls the kernel in a way that waits for its own FUSE threads: mounting, unmounting and filling are done by child processes with a
//! deadline, since a thread that waits for a disk that its own process serves cannot be killed.

mod capability;
mod cgroup;
mod clock;
mod disk;
mod external;
mod interactive;
mod interrupt;
mod limits;
mod line;
mod manifest;
mod namespace;
mod packet;
mod router;
mod runtime;
mod site;
mod up;
mod wan;

pub use clock::SiteClock;
pub use disk::Disk;
pub use interactive::up_interactive;
pub use interrupt::Interrupts;
pub use site::{Site, mount_point};
pub use up::{Spec, World};
pub use wan::{Counters, Link, Preset};

#[cfg(test)]
mod tests;
