//! A Trilithon cluster in a world: certificates, configuration, one node process per datacenter, and what it says of itself.
