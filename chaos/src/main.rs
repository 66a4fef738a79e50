//! Black-box fault harness: breaks whole clusters in worlds of its own, and checks every promise on what clients saw.
//!
//! ```text
//!   run (seed → plan) ──► world (namespaces, WAN, disks, cgroups) ──► cluster (node processes in it)
//!        │                        ▲                                        ▲
//!        ├──► fault: find the aim, wait for the phase, break, prove that it took hold, mend
//!        ├──► workload: clients in each datacenter ──► histories ──► check: one verdict each
//!        └──► record ──► report (HTML, JSON, terminal)
//! ```
//! It sees Trilithon as its users do: the program, its configuration, SQL, HTTP. Deliberately absent: any shortcut into the program
//! under test, and any verdict without evidence: a run whose fault did not take hold, or whose workload did too little, is
//! inconclusive.

mod check;
mod cluster;
mod fault;
mod peers;
mod record;
mod report;
mod run;
mod workload;
mod world;

fn main() {}
