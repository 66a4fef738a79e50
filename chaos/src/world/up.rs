//! Builds a world, and takes it down.

use super::capability::{self, Wanted};
use super::cgroup::{self, Cgroup};
use super::clock::{self, SiteClock};
use super::disk::Disk;
use super::external::wait_until;
use super::limits::{self, Limits};
use super::manifest::{Manifest, Thing};
use super::namespace::Namespace;
use super::router::Router;
use super::runtime::SiteRuntime;
use super::site::{Site, VOLUMES, mount_point, volume};
use super::wan::{Preset, Wan};
use anyhow::{Context, Result, bail};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// All datacenters are in it; nothing outside the world's namespaces is routed there.
const NETWORK: &str = "10.99.0.0/16";
const MTU: u16 = 1500;
/// The router keeps a bit per site, and addresses have a byte.
const SITES_MAX: usize = 16;
const THREAD_DEADLINE: Duration = Duration::from_secs(5);

/// The world that is wanted.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// A short word, for what people see of the world: `/run/trilithon-chaos/<name>-<pid>` and its cgroups.
    pub name: String,
    /// The world's folder; made when it does not exist. The logs in it outlive the world.
    pub dir: PathBuf,
    pub sites: usize,
    pub preset: Preset,
    /// Each datacenter has a fault-injecting disk of its own.
    pub disks: bool,
    /// Each datacenter has a clock of its own, for processes that are started by [`Site::command`].
    pub clocks: bool,
    /// Of the lines' loss, jitter and so on.
    pub seed: u64,
}

/// A world that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct World {
    sites: Vec<Site>,
    wan: Wan,
    /// The world's folder.
    dir: PathBuf,
    manifest: Manifest,
    router: Option<Router>,
    /// They end when their file systems are unmounted.
    disk_threads: Vec<JoinHandle<()>>,
    is_down: bool,
}

impl World {
    /// Builds a world. What dead processes left of theirs is taken down first, and said on stderr.
    ///
    /// # Errors
    /// When the machine lacks something, a living process has a world in that folder, or the kernel refuses; nothing stays then.
    pub fn up(spec: &Spec) -> Result<World> {
        capability::check(Wanted { disks: spec.disks, clocks: spec.clocks })?;
        if spec.sites == 0 || spec.sites > SITES_MAX {
            bail!("a world has 1 to {SITES_MAX} datacenters, not {}", spec.sites);
        }
        let whole = |word: &str| !word.is_empty() && !word.chars().any(|c| c.is_whitespace() || c == '/' || c == '\\' || c == '\'');
        if !whole(&spec.name) || !spec.dir.to_str().is_some_and(|dir| dir.split('/').all(|part| part.is_empty() || whole(part))) {
            bail!(
                "the world's name {:?} and folder {} must be words without spaces, quotes and backslashes",
                spec.name,
                spec.dir.display()
            );
        }
        for error in World::clean_dead().1 {
            eprintln!("world: {error:#}");
        }
        folder(&spec.dir)?;
        let dir = spec.dir.canonicalize().with_context(|| spec.dir.display().to_string())?;
        World::clean_left_over(&dir)?;

        let mut manifest = Manifest::create(&dir, &spec.name)?;
        match build(spec, &dir, &mut manifest) {
            Ok(Built { sites, wan, router, disk_threads }) => {
                Ok(World { sites, wan, dir, manifest, router: Some(router), disk_threads, is_down: false })
            }
            Err(error) => {
                if let Err(left) = manifest.undo() {
                    eprintln!("world: {left:#}");
                }
                Err(error.context("the world could not be built"))
            }
        }
    }

    /// Takes down what a dead process left in `dir`, and says so; whether there was anything.
    ///
    /// # Errors
    /// When the owner lives, or something resists.
    pub fn clean_left_over(dir: &Path) -> Result<bool> {
        let Some(left) = Manifest::left_over(dir)? else { return Ok(false) };
        take_down(dir, &left).map(|()| true)
    }

    /// Takes down the worlds of all dead owners on this machine; those of the living are left alone.
    /// The folders of those that are gone now; an error names what could not be taken down.
    pub fn clean_dead() -> (Vec<PathBuf>, Vec<anyhow::Error>) {
        let (mut gone, mut faults) = (Vec::new(), Vec::new());
        for dir in Manifest::registered() {
            // A living owner's world is none of our business.
            if let Ok(Some(left)) = Manifest::left_over(&dir) {
                match take_down(&dir, &left) {
                    Ok(()) => gone.push(dir),
                    Err(error) => faults.push(error),
                }
            }
        }
        (gone, faults)
    }

    /// In order: `dc1`, `dc2`, …
    #[must_use]
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The datacenter of this name; `None`: there is no such.
    #[must_use]
    pub fn site(&self, name: &str) -> Option<&Site> {
        self.sites.iter().find(|site| site.name() == name)
    }

    /// The world's folder, on this machine's own disk.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lines between the datacenters.
    #[must_use]
    pub fn wan(&self) -> &Wan {
        &self.wan
    }

    /// Kills all processes, and takes everything down but the logs.
    ///
    /// # Errors
    /// With what could not be taken down; the next start tries again.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_down, true) {
            return Ok(());
        }
        self.sites.iter().for_each(|site| site.runtime().stop());
        self.sites.iter().filter_map(Site::disk).for_each(Disk::heal_requests);
        let undone = self.manifest.undo();
        drop(self.router.take());
        for thread in self.disk_threads.drain(..) {
            // One whose file system is still mounted serves on; the process may still be asked to look at it.
            if wait_until(THREAD_DEADLINE, || thread.is_finished()) {
                let _ = thread.join();
            }
        }
        undone
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("world: {error:#}");
        }
    }
}

fn take_down(dir: &Path, left: &Manifest) -> Result<()> {
    eprintln!("world: process {} left a world in {}; taking it down", left.owner(), dir.display());
    left.undo()
}

struct Built {
    sites: Vec<Site>,
    wan: Wan,
    router: Router,
    disk_threads: Vec<JoinHandle<()>>,
}

fn build(spec: &Spec, dir: &Path, manifest: &mut Manifest) -> Result<Built> {
    let mut rng = StdRng::seed_from_u64(spec.seed);
    let cgroups = cgroups(dir, manifest)?;
    let library = dir.join("clock.so");
    if spec.clocks {
        clock::compile(&library)?;
    }
    let (mut sites, mut tuns, mut disk_threads) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..spec.sites {
        let what = || format!("datacenter dc{}", index + 1);
        let (mut site, tun) = site(index, dir, &cgroups, manifest).with_context(what)?;
        if spec.disks {
            let (disk, thread) = Disk::create(&site.name, &dir.join(&site.name), manifest).with_context(what)?;
            site.dir = disk.data();
            site.disk = Some(Arc::new(disk));
            disk_threads.push(thread);
        }
        if spec.clocks {
            site.clock = Some(Arc::new(SiteClock::create(&library, &dir.join(&site.name).join("clock"))?));
        }
        sites.push(site);
        tuns.push(tun);
    }
    let wan = Wan::new(spec.sites, spec.preset);
    let router = Router::start(&wan, tuns, rng.next_u64())?;
    Ok(Built { sites, wan, router, disk_threads })
}

/// The cgroup that all of the world's are in.
fn cgroups(dir: &Path, manifest: &mut Manifest) -> Result<PathBuf> {
    let root = match cgroup::mounted() {
        Some(root) => root,
        None => {
            let root = dir.join("cgroup");
            folder(&root)?;
            manifest.will_make(Thing::Bind(root.clone()))?;
            rustix::mount::mount("cgroup2", &root, "cgroup2", rustix::mount::MountFlags::empty(), None).context("mounting cgroup2")?;
            root
        }
    };
    let path = root.join(format!("trilithon-chaos-{}", manifest.name()));
    manifest.will_make(Thing::Cgroup(path.clone()))?;
    Cgroup::create(&path)?;
    limits::delegate(&path);
    Ok(path)
}

fn site(index: usize, dir: &Path, cgroups: &Path, manifest: &mut Manifest) -> Result<(Site, OwnedFd)> {
    let number = u8::try_from(index + 1).context("too many datacenters")?;
    let name = format!("dc{number}");
    let home = dir.join(&name);
    let (data, logs, net) = (home.join("data"), home.join("logs"), home.join("net"));
    for path in [&home, &data, &logs] {
        folder(path)?;
    }

    manifest.will_make(Thing::Cgroup(cgroups.join(&name)))?;
    let cgroup = Cgroup::create(&cgroups.join(&name))?;
    let limits = Limits::create(&cgroup, &format!("trilithon-chaos-{}-{name}", manifest.name()), manifest)?;

    for image in VOLUMES.map(|part| volume(&logs, part)) {
        manifest.will_make(Thing::File(image.clone()))?;
        manifest.will_make(Thing::Loop(image.clone()))?;
        manifest.will_make(Thing::Mount(mount_point(&image)))?;
    }

    manifest.will_make(Thing::File(net.clone()))?;
    manifest.will_make(Thing::Bind(net.clone()))?;
    let namespace = Namespace::create(&net)?;
    let address = Ipv4Addr::new(10, 99, number, 1);
    let tun = namespace.open_tun(address, NETWORK, MTU)?;

    let runtime = SiteRuntime::start(&name, namespace.clone())?;
    let runtime = Arc::new(runtime);
    Ok((Site { name, index, address, dir: data, logs, namespace, cgroup, limits, disk: None, clock: None, runtime }, tun))
}

/// Makes a folder that others may enter: databases refuse to run as root.
pub(super) fn folder(path: &Path) -> Result<()> {
    let what = || format!("the folder {}", path.display());
    if !path.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path).with_context(what)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(what)?;
    }
    Ok(())
}
