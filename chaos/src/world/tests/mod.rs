//! Real worlds, as root.

use super::*;
use std::path::PathBuf;
use std::time::Duration;

mod disks;
mod lines;
mod processes;
mod teardown;

fn spec(name: &str, preset: Preset) -> (tempfile::TempDir, Spec) {
    let dir = tempfile::Builder::new().prefix("chaos-world-").tempdir().expect("a folder");
    let spec = Spec { name: name.to_owned(), dir: dir.path().join("w"), sites: 3, preset, seed: 7, ..Spec::default() };
    (dir, spec)
}

/// What of a world in `dir` the kernel still knows.
fn traces(dir: &std::path::Path) -> Vec<String> {
    let dir = dir.to_str().expect("a path");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let mut traces: Vec<String> = mounts.lines().filter(|line| line.contains(dir)).map(str::to_owned).collect();
    let loops = std::fs::read_dir("/sys/block").expect("devices").flatten();
    traces.extend(
        loops.filter_map(|entry| std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()).filter(|file| file.contains(dir)),
    );
    traces
}

fn cgroups_of(name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cgroup::mounted().expect("cgroup2")).expect("cgroups").flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().contains(&format!("trilithon-chaos-{name}"))).collect()
}

/// No test of its own: what other tests start as a process.
#[test]
fn as_a_child() {
    match std::env::var("CHAOS_TEST_CHILD").as_deref() {
        Ok("boottime") => {
            let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            println!("\nboottime {}.{:09}", t.tv_sec, t.tv_nsec);
        }
        Ok("interactive") => {
            let dir = std::env::var("CHAOS_TEST_DIR").expect("a folder");
            up_interactive(&Spec {
                name: "talk".to_owned(),
                dir: dir.into(),
                sites: 2,
                disks: std::env::var_os("CHAOS_TEST_DISKS").is_some(),
                ..Spec::default()
            })
            .expect("down");
        }
        Ok("leave") => {
            let dir = std::env::var("CHAOS_TEST_DIR").expect("a folder");
            let spec = Spec { name: "left".to_owned(), dir: dir.into(), sites: 2, disks: true, ..Spec::default() };
            let _interrupts = Interrupts::listen().expect("listens");
            let world = World::up(&spec).expect("up");
            let mut child = world.sites()[0].command("sh");
            child.arg("-c").arg(format!("while :; do echo x >> {}; done", world.sites()[0].dir().join("a").display()));
            let mut child = child.spawn().expect("starts");
            let hung = world.sites()[1].disk().expect("a disk");
            hung.hang(true);
            let mut write = world.sites()[1].command("sh");
            let line = format!("echo x > {0}; sync {0}", world.sites()[1].dir().join("a").display());
            let mut writer = write.args(["-c", &line]).spawn().expect("starts");
            assert!(external::wait_until(Duration::from_secs(5), || hung.counters().hung > 0));
            println!("\nworld is up");
            // Until the test kills this process.
            child.wait().and_then(|_| writer.wait()).expect("ended");
        }
        _ => {}
    }
}
