//! Where everything of one node's Postgres lies.
//!
//! ```text
//!   <node_dir>/pgdata              the data directory (may be configured elsewhere)
//!   <node_dir>/pgdata.incoming     a base backup that is being taken, a database that is being initialised
//!   <node_dir>/pgdata.previous     the directory that the last copy replaced, kept aside (INV-10)
//!   <node_dir>/pgdata.discarded    the one before that, about to be deleted
//!   <node_dir>/pgdata.SWAPPING     a copy is taking the place of the data directory
//!   <node_dir>/pgdata.INCOMPLETE   a rewind broke off: never start this directory
//!   <node_dir>/postgres/           our configuration and state; owned by the user that Postgres runs as
//!   <node_dir>/run/                unix socket
//!   <node_dir>/secrets/            passwords, mode 0600
//!   <node_dir>/postgres.log
//! ```
//! Our configuration lies outside the data directory on purpose: pg_rewind and pg_basebackup overwrite what is inside with the
//! files of another node.

use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub node_dir: PathBuf,
    pub pgdata: PathBuf,
    pub run: PathBuf,
}

impl Layout {
    /// A unix socket's path may have 107 bytes, `/.s.PGSQL.65535.lock` takes 20 of them.
    const SOCKET_DIR_BYTES_MAX: usize = 87;

    pub fn new(node_dir: &Path, pgdata: Option<&Path>) -> Layout {
        let run = node_dir.join("run");
        let run = if run.as_os_str().len() <= Self::SOCKET_DIR_BYTES_MAX {
            run
        } else {
            let digest = crc32c::crc32c(node_dir.as_os_str().as_encoded_bytes());
            std::env::temp_dir().join(format!("trilithon-{digest:08x}"))
        };
        let pgdata = pgdata.map_or_else(|| node_dir.join("pgdata"), Path::to_path_buf);
        Layout { node_dir: node_dir.to_path_buf(), pgdata, run }
    }

    pub fn home(&self) -> PathBuf {
        self.node_dir.join("postgres")
    }

    pub fn config_file(&self) -> PathBuf {
        self.home().join("postgresql.conf")
    }

    pub fn hba_file(&self) -> PathBuf {
        self.home().join("pg_hba.conf")
    }

    pub fn ident_file(&self) -> PathBuf {
        self.home().join("pg_ident.conf")
    }

    pub fn intent_file(&self) -> PathBuf {
        self.home().join("intent.json")
    }

    pub fn secrets(&self) -> PathBuf {
        self.node_dir.join("secrets")
    }

    pub fn log_file(&self) -> PathBuf {
        self.node_dir.join("postgres.log")
    }

    pub fn wal(&self) -> PathBuf {
        self.pgdata.join("pg_wal")
    }

    pub fn incoming(&self) -> PathBuf {
        self.beside("incoming")
    }

    pub fn previous(&self) -> PathBuf {
        self.beside("previous")
    }

    pub fn discarded(&self) -> PathBuf {
        self.beside("discarded")
    }

    pub fn swapping(&self) -> PathBuf {
        self.beside("SWAPPING")
    }

    pub fn poison(&self) -> PathBuf {
        self.beside("INCOMPLETE")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.pgdata.file_name().unwrap_or_default().to_os_string();
        name.push(".");
        name.push(suffix);
        self.pgdata.with_file_name(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_moves_only_the_socket() {
        let deep = PathBuf::from(format!("/{}", "d".repeat(120)));
        let layout = Layout::new(&deep, None);
        assert!(layout.run.as_os_str().len() <= Layout::SOCKET_DIR_BYTES_MAX);
        assert_eq!(layout.pgdata, deep.join("pgdata"));
    }

    #[test]
    fn aside_directories_share_the_file_system_of_the_data() {
        let layout = Layout::new(Path::new("/n"), Some(Path::new("/data/main")));
        assert_eq!(layout.previous(), PathBuf::from("/data/main.previous"));
        assert_eq!(layout.poison(), PathBuf::from("/data/main.INCOMPLETE"));
    }
}
