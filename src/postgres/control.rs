//! What pg_control says about a data directory that no server runs in, through pg_controldata.

use super::error::Error;
use super::install::Install;
use super::layout::Layout;
use super::tool;
use super::user::RunAs;
use crate::types::{Lsn, SystemId, Timeline};
use std::collections::BTreeMap;
use std::time::Duration;

/// How the last server ended, as far as pg_control knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastState {
    /// A primary shut down cleanly: the checkpoint record is the last one.
    ShutDown,
    /// A standby shut down cleanly: received WAL may lie beyond what is recorded here.
    ShutDownInRecovery,
    /// It crashed, or something else interrupted it.
    Unclean,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ControlData {
    pub system: SystemId,
    pub state: LastState,
    pub checkpoint: Lsn,
    pub checkpoint_timeline: Timeline,
    pub min_recovery_end: Lsn,
    pub min_recovery_timeline: Timeline,
    /// Bytes.
    pub wal_segment: u64,
    pub checksums: bool,
    /// Sizes that a standby must not undercut, under their parameter's name.
    pub sizes: BTreeMap<String, u64>,
    /// Tells one state of the file from another.
    pub digest: String,
}

impl ControlData {
    pub async fn read(install: &Install, run_as: &RunAs, layout: &Layout) -> Result<ControlData, Error> {
        let mut command = tool::command(install, "pg_controldata", run_as, &layout.node_dir);
        command.arg("-D").arg(&layout.pgdata);
        let text = tool::run(command, "pg_controldata", Duration::from_secs(5)).await?;
        ControlData::parse(&text)
    }

    /// Reads the output in the C locale.
    fn parse(text: &str) -> Result<ControlData, Error> {
        let fields: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect();
        let get = |what: &'static str| fields.get(what).copied().ok_or(Error::Unreadable { tool: "pg_controldata", what });
        let bad = |what: &'static str| Error::Unreadable { tool: "pg_controldata", what };
        let lsn = |what: &'static str| get(what)?.parse::<Lsn>().map_err(|_| bad(what));
        let timeline = |what: &'static str| get(what)?.parse::<u32>().map(Timeline).map_err(|_| bad(what));
        const SYSTEM: &str = "Database system identifier";
        const SEGMENT: &str = "Bytes per WAL segment";
        let state = match get("Database cluster state")? {
            "shut down" => LastState::ShutDown,
            "shut down in recovery" => LastState::ShutDownInRecovery,
            _ => LastState::Unclean,
        };
        let sizes = [
            ("max_connections", "max_connections setting"),
            ("max_worker_processes", "max_worker_processes setting"),
            ("max_wal_senders", "max_wal_senders setting"),
            ("max_prepared_transactions", "max_prepared_xacts setting"),
            ("max_locks_per_transaction", "max_locks_per_xact setting"),
        ];
        let sizes = sizes.iter().filter_map(|(name, key)| Some(((*name).to_owned(), fields.get(key)?.parse().ok()?))).collect();
        Ok(ControlData {
            system: get(SYSTEM)?.parse().map(SystemId).map_err(|_| bad(SYSTEM))?,
            state,
            checkpoint: lsn("Latest checkpoint location")?,
            checkpoint_timeline: timeline("Latest checkpoint's TimeLineID")?,
            min_recovery_end: lsn("Minimum recovery ending location")?,
            min_recovery_timeline: timeline("Min recovery ending loc's timeline")?,
            wal_segment: get(SEGMENT)?.parse().ok().filter(|size| *size > 0).ok_or_else(|| bad(SEGMENT))?,
            checksums: get("Data page checksum version")? != "0",
            sizes,
            digest: format!("{:08x}", crc32c::crc32c(text.as_bytes())),
        })
    }

    /// Name of the file with the WAL at `lsn`.
    pub fn wal_file(&self, timeline: Timeline, lsn: Lsn) -> String {
        let (segment, each) = (lsn.0 / self.wal_segment, (1 << 32) / self.wal_segment);
        format!("{:08X}{:08X}{:08X}", timeline.0, segment / each, segment % each)
    }

    /// Timeline of the newest WAL that pg_control knows of.
    pub fn timeline(&self) -> Timeline {
        self.checkpoint_timeline.max(self.min_recovery_timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
pg_control version number:            1300
Database system identifier:           7312345678901234567
Database cluster state:               shut down in recovery
Latest checkpoint location:           0/3000060
Latest checkpoint's TimeLineID:       4
Minimum recovery ending location:     0/3000148
Min recovery ending loc's timeline:   4
Bytes per WAL segment:                16777216
max_connections setting:              250
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
Data page checksum version:           1
";

    impl ControlData {
        /// The sample with these fields.
        pub fn sample(fields: &[(&str, &str)]) -> ControlData {
            let line = |line: &str| {
                let (name, _) = line.split_once(':')?;
                let (_, value) = fields.iter().find(|(field, _)| *field == name)?;
                Some(format!("{name}: {value}\n"))
            };
            let text: String = SAMPLE.lines().map(|l| line(l).unwrap_or(format!("{l}\n"))).collect();
            ControlData::parse(&text).unwrap()
        }
    }

    #[test]
    fn control_data_is_read() {
        let control = ControlData::parse(SAMPLE).unwrap();
        assert_eq!(control.state, LastState::ShutDownInRecovery);
        assert_eq!(control.checkpoint, Lsn(0x300_0060));
        assert_eq!(control.timeline(), Timeline(4));
        assert_eq!(control.sizes["max_connections"], 250);
        assert!(control.checksums);
        assert_eq!(control.wal_file(Timeline(10), Lsn(0x2_FE00_0028)), "0000000A00000002000000FE");
    }

    #[test]
    fn a_missing_line_is_named() {
        let refused = ControlData::parse(&SAMPLE.replace("Latest checkpoint location", "x")).unwrap_err();
        assert!(refused.to_string().contains("Latest checkpoint location"));
    }

    #[test]
    fn unknown_states_count_as_unclean() {
        let control = ControlData::parse(&SAMPLE.replace("shut down in recovery", "in production")).unwrap();
        assert_eq!(control.state, LastState::Unclean);
    }
}
