//! One local data directory and the server that runs in it.
//!
//! [`Instance`] decides nothing: each method is one action, safe to call again, and safe to drop at any await. Only one action runs
//! at a time ([`Error::Busy`]); `facts`, `detach`-free reads and [`Emergency`] go on beside it, and `demote` breaks in.

use super::conf::{self, Intent, SyncNames, Wishes};
use super::control::ControlData;
use super::durable::write_atomic;
use super::error::{Error, io};
use super::hba;
use super::history::Ancestry;
use super::identify::Identifier;
use super::install::Install;
use super::layout::Layout;
use super::lifecycle::POLL;
use super::process::{Emergency, Postmaster, Supervisor, lock};
use super::procfs::{self, PidFile};
use super::recovery::Recovery;
use super::secrets;
use super::session::{Session, Target};
use super::swap;
use super::tool::{blocking, within};
use super::user::{self, RunAs};
use crate::cluster::Secrets;
use crate::telemetry::Clock;
use crate::types::{Epoch, Millis, NodeId, SystemId, Timeline};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// What the caller configures.
#[derive(Clone, Debug)]
pub struct InstanceConfig {
    /// Id of this member; [`Instance::set_node`] changes it when it is given out later.
    pub node: NodeId,
    /// The node's own directory; everything but a configured `pgdata` lies below it.
    pub node_dir: PathBuf,
    /// Data directory, `<node_dir>/pgdata` by default.
    pub pgdata: Option<PathBuf>,
    /// Found by itself where absent.
    pub bin_dir: Option<PathBuf>,
    /// `listen_addresses`.
    pub listen: String,
    pub port: u16,
    /// User that Postgres runs as when the node runs as root; `postgres` by default.
    pub os_user: Option<String>,
    pub parameters: BTreeMap<String, String>,
    /// Lines for pg_hba.conf.
    pub hba: Vec<String>,
}

/// What is being done to the data directory right now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    #[default]
    Idle,
    Initialising,
    Starting,
    Stopping,
    /// Clients still finish; `committed`: the shutdown has begun and the primary cannot simply resume.
    Draining {
        committed: bool,
    },
    Configuring,
    Promoting,
    /// Bytes copied of bytes expected, as pg_basebackup estimates them; zero while unknown.
    Cloning {
        done: u64,
        total: u64,
    },
    Rewinding,
}

/// See the module's header.
pub struct Instance {
    pub(super) layout: Layout,
    pub(super) run_as: RunAs,
    pub(super) clock: Clock,
    pub(super) listen: String,
    pub(super) port: u16,
    pub(super) supervisor: Supervisor,
    pub(super) activity: watch::Sender<Activity>,
    pub(super) model: Arc<Mutex<Model>>,
    /// Held while our files are rendered and written, so that the newest intent always wins.
    pub(super) files: Arc<Mutex<()>>,
    bin_dir: Option<PathBuf>,
    busy: Arc<AtomicBool>,
    /// The postmaster that is known to have its signal handlers.
    begun: AtomicI32,
    /// The timeline whose primary has files for all numbers below.
    pub(super) told: AtomicU32,
    control: Mutex<Option<Arc<Session>>>,
    pub(super) identifier: Mutex<Option<Identifier>>,
    pub(super) probe: Mutex<Probe>,
    pub(super) stopped: Mutex<Option<(std::time::SystemTime, ControlData)>>,
    pub(super) recovery: Mutex<Option<Recovery>>,
    /// Ancestors of the timeline that the running server writes or follows.
    pub(super) ancestry: Mutex<Option<(Timeline, Ancestry)>>,
}

/// What is wanted and what is known, behind one lock that is never held across an await.
pub(super) struct Model {
    pub node: NodeId,
    pub install: Install,
    /// What the cluster asked for last; `None`: nothing yet, only the node's own file did.
    pub asked: Option<Wishes>,
    /// What of it PostgreSQL takes.
    pub wishes: Wishes,
    pub secrets: Option<Secrets>,
    pub intent: Intent,
    /// Sizes demanded by pg_control when the server was last started.
    pub sizes: BTreeMap<String, u64>,
    /// Commits of this very server have to wait for standbys: proved, because `synchronous_standby_names` was not empty when it
    /// started or because its checkpointer has loaded a list since.
    pub waits: bool,
}

/// Result of the last attempt to open a new connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Probe {
    pub at: Option<Millis>,
    pub answered: bool,
}

/// Ends the activity when the action ends, also when it is dropped.
pub(super) struct Working {
    activity: watch::Sender<Activity>,
    busy: Arc<AtomicBool>,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.activity.send_replace(Activity::Idle);
        self.busy.store(false, Ordering::Release);
    }
}

/// Longest wait for a connection or a cheap query to our own server: a server that takes longer counts as unresponsive.
pub(super) const QUERY_LIMIT: Duration = Duration::from_secs(1);
/// Making or dropping a slot ends only when its files are on the disk.
pub(super) const SLOT_LIMIT: Duration = Duration::from_secs(5);
/// A postmaster that has not begun by then hangs, on a slow disk.
const HANDLERS_LIMIT: Duration = Duration::from_secs(5);

impl Instance {
    /// Finds the binaries, checks the directories, and adopts a server that survived the previous process. Starts and changes nothing.
    pub async fn open(config: InstanceConfig, clock: Clock) -> Result<Instance, Error> {
        let instance = blocking(move || Instance::lay_out(config, clock)).await?;
        if instance.supervisor.adopt(&instance.layout)?.is_some() {
            // Which settings that server started with is unknown here; the next rule proves it anew.
            lock(&instance.model).waits = false;
        }
        Ok(instance)
    }

    fn lay_out(config: InstanceConfig, clock: Clock) -> Result<Instance, Error> {
        let run_as = RunAs::resolve(config.os_user.as_deref())?;
        let layout = Layout::new(&config.node_dir, config.pgdata.as_deref());
        std::fs::create_dir_all(&layout.node_dir).map_err(io("cannot create", &layout.node_dir))?;
        run_as.check_traversable(&layout.node_dir)?;
        for dir in [layout.home(), layout.run.clone()] {
            std::fs::create_dir_all(&dir).map_err(io("cannot create", &dir))?;
            run_as.own(&dir)?;
        }
        set_mode(&layout.home(), 0o700)?;
        procfs::end_tools(&layout)?;
        swap::mend(&layout)?;
        let major = data_major(&layout)?;
        check_owner(&layout, &run_as)?;
        let install = Install::find(config.bin_dir.as_deref(), major, &layout.pgdata)?;
        let model = Model {
            node: config.node,
            install,
            asked: None,
            wishes: Wishes { parameters: config.parameters, hba: config.hba },
            secrets: secrets::load(&layout.secrets())?,
            intent: load_intent(&layout)?,
            sizes: BTreeMap::new(),
            waits: false,
        };
        Ok(Instance {
            layout,
            run_as,
            clock,
            listen: config.listen,
            port: config.port,
            supervisor: Supervisor::new(),
            activity: watch::Sender::new(Activity::Idle),
            model: Arc::new(Mutex::new(model)),
            files: Arc::default(),
            bin_dir: config.bin_dir,
            busy: Arc::default(),
            begun: AtomicI32::new(0),
            told: AtomicU32::new(0),
            control: Mutex::new(None),
            identifier: Mutex::new(None),
            probe: Mutex::new(Probe::default()),
            stopped: Mutex::new(None),
            recovery: Mutex::new(None),
            ancestry: Mutex::new(None),
        })
    }

    /// The consensus id of this member: its walreceiver and its slots are called after it. Takes effect with the next action.
    pub fn set_node(&self, node: NodeId) {
        lock(&self.model).node = node;
    }

    /// Passwords handed over by another member, or read from disk at start.
    #[must_use]
    pub fn secrets(&self) -> Option<Secrets> {
        lock(&self.model).secrets.clone()
    }

    /// Keeps the passwords of the cluster that this member joins. New ones are used from the next connection on.
    pub async fn set_secrets(&self, secrets: Secrets) -> Result<(), Error> {
        if self.secrets().as_ref() == Some(&secrets) {
            return Ok(());
        }
        let (dir, kept) = (self.layout.secrets(), secrets.clone());
        blocking(move || secrets::save(&kept, &dir)).await?;
        lock(&self.model).secrets = Some(secrets);
        self.retune(|_| {}).await
    }

    /// Ends of the postmaster, noticed at once.
    #[must_use]
    pub fn postmaster(&self) -> watch::Receiver<Postmaster> {
        self.supervisor.subscribe()
    }

    /// What is being done, with its progress.
    #[must_use]
    pub fn activity(&self) -> watch::Receiver<Activity> {
        self.activity.subscribe()
    }

    /// Stops the server from any thread without waiting.
    #[must_use]
    pub fn emergency(&self) -> Emergency {
        self.supervisor.emergency()
    }

    /// The upstream that Postgres is configured to stream from and the epoch of that decision; `None`: detached.
    #[must_use]
    pub fn following(&self) -> Option<(NodeId, Epoch)> {
        lock(&self.model).intent.upstream.as_ref().map(|u| (u.node, u.epoch))
    }

    /// Epoch of the last promotion that we ordered here, with its timeline: on a primary that runs on another timeline it means nothing.
    #[must_use]
    pub fn promoted(&self) -> Option<(Epoch, Timeline)> {
        lock(&self.model).intent.promotion.map(|p| (p.epoch, p.timeline))
    }

    /// A rewind broke off: this data directory must never be started.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.layout.poison().exists()
    }

    /// The data directory.
    #[must_use]
    pub fn pgdata(&self) -> &Path {
        &self.layout.pgdata
    }

    /// Directory of the unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.layout.run
    }

    /// Port of the server.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The PostgreSQL that is used.
    #[must_use]
    pub fn install(&self) -> Install {
        lock(&self.model).install.clone()
    }

    /// Looks for binaries again: the data directory may be of another version since it was copied.
    pub(super) async fn refresh_install(&self) -> Result<Install, Error> {
        let (layout, bin_dir) = (self.layout.clone(), self.bin_dir.clone());
        let install = blocking(move || {
            let major = data_major(&layout)?;
            Install::find(bin_dir.as_deref(), major, &layout.pgdata)
        })
        .await?;
        lock(&self.model).install = install.clone();
        Ok(install)
    }

    /// Claims the right to act, and publishes as what.
    pub(super) fn begin(&self, activity: Activity) -> Result<Working, Error> {
        if self.busy.swap(true, Ordering::Acquire) {
            return Err(Error::Busy(*self.activity.borrow()));
        }
        self.activity.send_replace(activity);
        Ok(Working { activity: self.activity.clone(), busy: Arc::clone(&self.busy) })
    }

    pub(super) fn target(&self) -> Target {
        let model = lock(&self.model);
        let password = model.secrets.as_ref().map(|s| s.superuser.clone());
        Target::local(&self.layout.run, self.port, password, model.install.major)
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Session, Error> {
        Session::open(&self.target(), QUERY_LIMIT).await
    }

    /// The connection that is kept open.
    pub(super) async fn session(&self) -> Result<Arc<Session>, Error> {
        let kept = lock(&self.control).clone().filter(|s| !s.is_closed());
        if let Some(session) = kept {
            return Ok(session);
        }
        let session = Arc::new(self.connect().await?);
        *lock(&self.control) = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Closes the kept connections; the next use opens new ones.
    pub(super) fn forget_connections(&self) {
        *lock(&self.control) = None;
        *lock(&self.identifier) = None;
        *lock(&self.probe) = Probe::default();
        *lock(&self.ancestry) = None;
    }

    /// Changes what Postgres is told to be: persists it, then writes the files that Postgres reads.
    pub(super) async fn retune(&self, change: impl FnOnce(&mut Intent)) -> Result<(), Error> {
        {
            let mut model = lock(&self.model);
            change(&mut model.intent);
            if model.intent.upstream.is_some() || model.intent.promotion.is_some() {
                model.intent.alone = None;
            }
            if model.intent.sync.value().is_empty() {
                model.waits = false;
            }
        }
        let (layout, run_as) = (self.layout.clone(), self.run_as.clone());
        let (model, files) = (Arc::clone(&self.model), Arc::clone(&self.files));
        blocking(move || {
            let _writing = lock(&files);
            let rendered = Files::render(&layout, &run_as, &lock(&model))?;
            rendered.write(&layout, &run_as)
        })
        .await
    }

    /// Makes the server read its files again. One that has only just begun would die of the signal, silently, and may have read them
    /// before they changed: it is awaited.
    pub(super) async fn reload(&self) -> Result<(), Error> {
        within(HANDLERS_LIMIT, "the beginning of the postmaster", async {
            loop {
                let pid = self.supervisor.pid().ok_or(Error::NotRunning)?;
                if self.begun.load(Ordering::Relaxed) == pid {
                    return Ok(());
                }
                let pgdata = self.layout.pgdata.clone();
                // It writes its pid after it has set its signal handlers.
                if blocking(move || PidFile::read(&pgdata)).await.is_some_and(|file| file.pid == pid) {
                    self.begun.store(pid, Ordering::Relaxed);
                } else {
                    sleep(POLL).await;
                }
            }
        })
        .await?;
        if self.supervisor.send(Signal::HUP) { Ok(()) } else { Err(Error::NotRunning) }
    }

    /// Cluster-wide settings changed. What needs a restart waits for one; what PostgreSQL refuses is left out, with a warning.
    pub async fn configure(&self, parameters: BTreeMap<String, String>, hba: Vec<String>) -> Result<(), Error> {
        let asked = Wishes { parameters, hba };
        if lock(&self.model).asked.as_ref() == Some(&asked) {
            return Ok(());
        }
        let wishes = Wishes { parameters: self.acceptable(&asked.parameters).await, hba: asked.hba.clone() };
        {
            let mut model = lock(&self.model);
            model.asked = Some(asked);
            if model.wishes == wishes {
                return Ok(());
            }
            model.wishes = wishes;
        }
        self.retune(|_| {}).await?;
        if self.supervisor.pid().is_none() {
            return Ok(());
        }
        // Without an answer the server keeps, and says in its log, what it cannot read; its next start leaves it out.
        let _ = self.leave_out_unreadable_hba().await;
        self.reload().await
    }

    /// Are all processes of this data directory gone? Reads /proc.
    pub(super) async fn leftovers(&self) -> Vec<i32> {
        let layout = self.layout.clone();
        blocking(move || {
            let mut pids = procfs::processes_in(&layout.pgdata);
            pids.extend(procfs::tools_of(&layout));
            let attached = procfs::PidFile::read(&layout.pgdata).and_then(|f| f.shared_memory).map_or(0, procfs::SharedMemory::attached);
            // The kernel's count covers processes whose directory may not be looked up.
            if pids.is_empty() && attached > 0 { vec![0] } else { pids }
        })
        .await
    }

    pub(super) async fn control_data(&self) -> Result<ControlData, Error> {
        let path = self.layout.pgdata.join("global/pg_control");
        let missing = blocking(move || matches!(path.metadata(), Err(e) if e.kind() == std::io::ErrorKind::NotFound)).await;
        if missing && self.layout.pgdata.join("PG_VERSION").exists() {
            return Err(Error::NeedsClone("its global/pg_control is missing".to_owned()));
        }
        let install = self.install();
        ControlData::read(&install, &self.run_as, &self.layout).await
    }

    /// Refuses a directory of another system; damages nothing.
    pub(super) fn check_system(&self, control: &ControlData, expected: Option<SystemId>) -> Result<(), Error> {
        match expected {
            Some(expected) if expected != control.system => {
                Err(Error::OtherSystem { path: self.layout.pgdata.clone(), found: control.system, expected })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Everything that Postgres reads and we own.
pub(super) struct Files {
    intent: String,
    pub config: String,
    pub hba: String,
    pub ident: String,
    passfile: Option<(PathBuf, String)>,
}

impl Files {
    pub fn render(layout: &Layout, run_as: &RunAs, model: &Model) -> Result<Files, Error> {
        let intent = &model.intent;
        let passfile = match (&intent.upstream, &model.secrets) {
            (Some(upstream), Some(secrets)) => {
                let path = layout.home().join(conf::passfile_name(upstream));
                Some((path, format!("*:*:*:{}:{}\n", conf::REPLICATION_ROLE, secrets.replication)))
            }
            (Some(_), None) => return Err(Error::NoSecrets),
            (None, _) => None,
        };
        let name = passfile.as_ref().map(|(path, _)| path.display().to_string());
        Ok(Files {
            intent: serde_json::to_string_pretty(intent).expect("an intent has only string keys"),
            config: conf::render(layout, model.node, &model.wishes, intent, name.as_deref(), &model.sizes),
            hba: hba::render_hba(&model.wishes.hba, user::own_name().is_some()),
            ident: conf::render_ident(&run_as.user.name),
            passfile,
        })
    }

    /// The password file of an upstream that is no longer wanted goes first: from then on no walreceiver can connect to it any
    /// more, whatever configuration it still remembers (INV-1: a sealed node follows no older epoch).
    pub fn write(&self, layout: &Layout, run_as: &RunAs) -> Result<(), Error> {
        let keep = self.passfile.as_ref().map(|(path, _)| path.clone());
        remove_passfiles(layout, keep.as_deref())?;
        replace(&layout.intent_file(), &self.intent, None)?;
        if let Some((path, text)) = &self.passfile {
            replace(path, text, Some(run_as))?;
        }
        replace(&layout.hba_file(), &self.hba, Some(run_as))?;
        replace(&layout.ident_file(), &self.ident, Some(run_as))?;
        replace(&layout.config_file(), &self.config, Some(run_as))
    }
}

fn replace(path: &Path, text: &str, owner: Option<&RunAs>) -> Result<(), Error> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) && owner.is_none_or(|owner| owner.owns(path)) {
        return Ok(());
    }
    write_atomic(path, text, 0o600, owner)
}

fn remove_passfiles(layout: &Layout, keep: Option<&Path>) -> Result<(), Error> {
    let home = layout.home();
    for entry in std::fs::read_dir(&home).map_err(io("cannot list", &home))?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "pgpass") && Some(path.as_path()) != keep {
            std::fs::remove_file(&path).map_err(io("cannot remove", path))?;
        }
    }
    Ok(())
}

fn load_intent(layout: &Layout) -> Result<Intent, Error> {
    let path = layout.intent_file();
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|e| io("cannot read", path)(e.into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Intent { sync: SyncNames::Closed, ..Intent::default() }),
        Err(e) => Err(io("cannot read", path)(e)),
    }
}

/// Major version that wrote the data directory; `None` where there is none yet. Refuses a directory of something else.
pub(super) fn data_major(layout: &Layout) -> Result<Option<u32>, Error> {
    let path = &layout.pgdata;
    match std::fs::read_to_string(path.join("PG_VERSION")) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match first_entry(path)? {
            Some(found) => Err(Error::ForeignDirectory { path: path.clone(), found }),
            None => Ok(None),
        },
        Err(e) => Err(io("cannot read", path.join("PG_VERSION"))(e)),
    }
}

/// One name in `path`, `None` where it is empty or missing. `lost+found` is what a fresh file system has.
fn first_entry(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_dir(path) {
        Ok(entries) => Ok(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).find(|n| n != "lost+found")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io("cannot list", path)(e)),
    }
}

/// PostgreSQL refuses a directory of another owner with words that do not say what to do.
fn check_owner(layout: &Layout, run_as: &RunAs) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(layout.pgdata.join("PG_VERSION")) {
        Ok(meta) if meta.uid() != run_as.user.uid => {
            Err(Error::OtherOwner { path: layout.pgdata.clone(), found: meta.uid(), expected: run_as.user.uid })
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io("cannot set the mode of", path))
}
