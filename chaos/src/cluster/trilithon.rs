//! Trilithon as a [`System`]: `trilithon node` in each datacenter, from configuration files as a person would write them.

use super::process::output_within;
use super::status::Status;
use super::system::{Part, Ports, Program, Question, System, Tells};
use super::{certs, config};
use crate::world::Site;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How to run it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The program under test.
    pub binary: PathBuf,
    /// PostgreSQL's programs; `None`: it finds them by itself.
    pub pg_bin: Option<PathBuf>,
    /// Section → key → TOML literal; wins over what the harness writes.
    pub settings: BTreeMap<String, BTreeMap<String, String>>,
    /// Datacenter that only votes.
    pub witness: Option<String>,
    /// Nodes write down what their core is asked and answers, beside their logs.
    pub core_trace: bool,
    /// Environment of the node processes.
    pub environment: BTreeMap<String, String>,
}

impl Options {
    /// Set one key, as in `("ha", "lease_ttl", "\"5s\"")`.
    pub fn set(&mut self, section: &str, key: &str, literal: &str) {
        self.settings.entry(section.to_owned()).or_default().insert(key.to_owned(), literal.to_owned());
    }
}

const VERSION_LIMIT: Duration = Duration::from_secs(5);
/// The one program that does everything.
const NODE: &str = "node";

pub struct Trilithon {
    options: Options,
    /// Certificates and configuration; outside the datacenters' disks, which break.
    dir: PathBuf,
}

impl Trilithon {
    /// Files go below `dir`.
    ///
    /// # Errors
    /// The program is not there.
    pub fn new(options: Options, dir: &Path) -> Result<Trilithon> {
        let binary = options.binary.canonicalize().with_context(|| {
            let shown = options.binary.display();
            format!("there is no program at {shown}: build it (`cargo build --release --bin trilithon`), or name it with --binary")
        })?;
        Ok(Trilithon { options: Options { binary, ..options }, dir: dir.join("cluster") })
    }

    fn config_file(&self, site: &Site) -> PathBuf {
        self.dir.join(format!("{}.toml", site.name()))
    }

    fn certs(&self) -> PathBuf {
        self.dir.join("certs")
    }
}

impl System for Trilithon {
    fn name(&self) -> &str {
        "trilithon"
    }

    fn ports(&self) -> Ports {
        Ports { postgres: 5432, auto: 6432, primary: 6433, standby: 6434, grpc: 7432, http: 8008 }
    }

    fn prepare(&self, sites: &[Site]) -> Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {}", self.dir.display()))?;
        certs::make(&self.options.binary, &self.certs(), sites)?;
        for site in sites {
            let data = self.data_dir(site);
            fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
            // Postgres runs as another user, who must be able to walk down to its data.
            for dir in [site.dir(), data.as_path()] {
                let opened = fs::set_permissions(dir, fs::Permissions::from_mode(0o755));
                opened.with_context(|| format!("cannot open up {}", dir.display()))?;
            }
            let written = config::Written { options: &self.options, certs: &self.certs(), data: &data, grpc: self.ports().grpc };
            let file = self.config_file(site);
            fs::write(&file, written.node(site, sites)).with_context(|| format!("cannot write {}", file.display()))?;
            check(&self.options.binary, &file)?;
            let file = self.dir.join(format!("cli-{}.toml", site.name()));
            fs::write(&file, written.cli(site, sites)).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    fn programs(&self, site: &Site) -> Vec<Program> {
        let mut command = site.command(&self.options.binary);
        command.arg("node").arg("--config").arg(self.config_file(site)).envs(&self.options.environment);
        vec![Program { name: NODE.to_owned(), command }]
    }

    fn program_of(&self, part: Part) -> &'static str {
        match part {
            Part::Node | Part::Consensus => NODE,
        }
    }

    fn tells(&self) -> Tells {
        Tells { epochs: true, phases: true, history: true, contract: true }
    }

    fn is_witness(&self, site: &Site) -> bool {
        self.options.witness.as_deref() == Some(site.name())
    }

    fn data_dir(&self, site: &Site) -> PathBuf {
        site.dir().join("node")
    }

    fn pgdata(&self, site: &Site) -> PathBuf {
        self.data_dir(site).join("pgdata")
    }

    fn password(&self, sites: &[Site]) -> Result<String> {
        let found = sites.iter().find_map(|site| fs::read_to_string(self.data_dir(site).join("secrets/superuser")).ok());
        Ok(found.context("no node has written its secrets; see the nodes' logs")?.trim().to_owned())
    }

    fn questions(&self) -> &'static [Question] {
        &[Question { port: 8008, path: "/status", body: None }]
    }

    fn parse_status(&self, node: &str, answers: &[String]) -> Result<Status> {
        let body = answers.first().context("a question was not asked")?;
        serde_json::from_str(body).with_context(|| format!("{node} answers {:?} to /status", body.chars().take(80).collect::<String>()))
    }

    fn versions(&self) -> BTreeMap<String, String> {
        let mut command = Command::new(&self.options.binary);
        command.arg("--version");
        let said = output_within(command, VERSION_LIMIT).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
        BTreeMap::from([("trilithon".to_owned(), said.trim_start_matches("trilithon ").to_owned())])
    }

    fn settings(&self) -> Vec<String> {
        let set = self.options.settings.iter().flat_map(|(section, keys)| keys.iter().map(move |(key, value)| (section, key, value)));
        let set: Vec<String> = set.map(|(section, key, value)| format!("{section}.{key} = {value}")).collect();
        let ours = if set.is_empty() { "all settings are the defaults".to_owned() } else { set.join(", ") };
        vec![format!("trilithon: {ours}")]
    }

    fn cli(&self, site: &Site, words: &[&str]) -> Result<Command> {
        let mut command = site.command(&self.options.binary);
        command.args(words).env("TRILITHON_CLI_CONFIG", self.dir.join(format!("cli-{}.toml", site.name())));
        Ok(command)
    }
}

/// Faults in the configuration are the harness's own: said before anything starts.
fn check(binary: &Path, file: &Path) -> Result<()> {
    let output = Command::new(binary).args(["config", "check"]).arg(file).output();
    let output = output.with_context(|| format!("cannot run {}", binary.display()))?;
    if !output.status.success() {
        bail!("{} refuses {}: {}", binary.display(), file.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
