//! `host:port` as people write it.

use std::{fmt, net::IpAddr, str::FromStr};

/// A host (name or address) and a port; not resolved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Without brackets, also where it is an IPv6 address.
    pub host: String,
    pub port: u16,
}

impl HostPort {
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> HostPort {
        HostPort { host: host.into(), port }
    }

    /// Does this reach only the machine itself?
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Bind-all (`0.0.0.0`, `::`): fit to listen on, not to be told to others.
    #[must_use]
    pub fn is_unspecified(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

impl FromStr for HostPort {
    /// What is wrong with the text.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<HostPort, Self::Err> {
        let (host, port) = text.trim().rsplit_once(':').ok_or("has no port")?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err("has brackets around something other than an IPv6 address"),
            None if host.contains(':') => return Err("is an IPv6 address without brackets"),
            None if host == "*" => "0.0.0.0",
            None => host,
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err("has no usable host");
        }
        let port = port.parse().map_err(|_| "has no usable port (0 to 65535)")?;
        Ok(HostPort { host: host.to_owned(), port })
    }
}
