//! How fast the peer is set to notice and to route; everything else is the same in each profile. PURE.

/// Which settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Patroni's, HAProxy's and PgBouncer's own defaults; HAProxy's checks as in the template that Patroni ships.
    Defaults,
    /// The fastest that Patroni's validation lets through: it raises a lower ttl to 20 s, a lower retry_timeout to 3 s, a lower
    /// loop_wait to 1 s.
    Tuned,
}

/// The figures of a profile; seconds where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    pub ttl: u32,
    pub loop_wait: u32,
    pub retry_timeout: u32,
    /// HAProxy: how often and how many checks.
    pub checks: &'static str,
    pub check_timeout: u32,
    pub connect_timeout: u32,
    /// PgBouncer: after a failed login it waits so long before the next.
    pub login_retry: u32,
    pub server_connect_timeout: u32,
}

impl Profile {
    pub fn name(self) -> &'static str {
        match self {
            Profile::Defaults => "patroni",
            Profile::Tuned => "patroni-tuned",
        }
    }

    pub fn figures(self) -> Figures {
        match self {
            Profile::Defaults => Figures {
                ttl: 30,
                loop_wait: 10,
                retry_timeout: 10,
                checks: "inter 3s fall 3 rise 2",
                check_timeout: 5,
                connect_timeout: 4,
                login_retry: 15,
                server_connect_timeout: 15,
            },
            Profile::Tuned => Figures {
                ttl: 20,
                loop_wait: 1,
                retry_timeout: 3,
                checks: "inter 1s fastinter 500ms downinter 500ms fall 2 rise 1",
                check_timeout: 1,
                connect_timeout: 1,
                login_retry: 1,
                server_connect_timeout: 2,
            },
        }
    }

    /// For the record: one line per program.
    pub fn settings(self) -> Vec<String> {
        let Figures { ttl, loop_wait, retry_timeout, checks, check_timeout, connect_timeout, login_retry, server_connect_timeout } =
            self.figures();
        vec![
            format!(
                "patroni: ttl {ttl}, loop_wait {loop_wait}, retry_timeout {retry_timeout}; synchronous_mode quorum, synchronous_mode_strict, \
                 synchronous_node_count 1; use_pg_rewind, use_slots, remove_data_directory_on_rewind_failure, \
                 remove_data_directory_on_diverged_timelines; data checksums; no watchdog device; all else by default"
            ),
            "etcd: a member in each datacenter, every Patroni knows all three; heartbeat 100 ms and election 1000 ms, its defaults"
                .to_owned(),
            format!(
                "haproxy: option httpchk OPTIONS /primary and /replica, {checks} on-marked-down shutdown-sessions, timeout check \
                 {check_timeout}s, timeout connect {connect_timeout}s, retries 2"
            ),
            format!(
                "pgbouncer: pool_mode transaction, default_pool_size 20, server_login_retry {login_retry}, server_connect_timeout \
                 {server_connect_timeout}; all else by default"
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_pass_patronis_own_validation() {
        for profile in [Profile::Defaults, Profile::Tuned] {
            let f = profile.figures();
            assert!(f.ttl >= 20 && f.loop_wait >= 1 && f.retry_timeout >= 3, "{f:?}");
            assert!(f.loop_wait + 2 * f.retry_timeout <= f.ttl, "{f:?}");
        }
    }
}
