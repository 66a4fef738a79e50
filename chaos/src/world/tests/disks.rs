//! Disks lose, fail, hang and fill up.

use super::*;

/// A world with disks, whose commands run by `sh` in dc1.
fn world_with_disk(name: &str) -> (tempfile::TempDir, World) {
    let (dir, spec) = spec(name, Preset::Lan);
    let world = World::up(&Spec { sites: 1, disks: true, ..spec }).expect("up");
    (dir, world)
}

/// Whether this shell line succeeded in `site`, in its folder.
fn sh(site: &Site, line: &str) -> bool {
    let line = format!("cd {} && {{ {line}; }}", site.dir().display());
    let output = site.command("sh").args(["-c", &line]).output().expect("starts");
    print!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

#[test]
fn a_power_loss_keeps_what_was_synced_and_loses_the_rest() {
    let (_dir, world) = world_with_disk("lost");
    let [site] = world.sites() else { panic!("one site") };
    let disk = site.disk().expect("a disk");
    let clock = crate::record::RunClock::start();
    assert!(sh(site, "dd if=/dev/zero of=w bs=8k count=500 oflag=dsync status=none; rm w"));
    println!("{} µs for a synced write of 8 KiB", clock.now().0 / 500);
    let clock = crate::record::RunClock::start();
    assert!(sh(site, "dd if=/dev/zero of=w bs=1M count=300 conv=fsync status=none; rm w; sync ."));
    println!("{} MB/s written", 300_000_000 / clock.now().0);
    // Two things can be lost: what the kernel has not written yet (b), and what the disk has not flushed (c).
    assert!(sh(site, "echo synced > a && head -c 1M /dev/zero > c && sync a c . && cp c b"));
    let ones = "t=$(mktemp -p /dev/shm) && yes | head -c 1M > $t && dd if=$t of=c bs=1M oflag=direct conv=notrunc status=none && rm $t";
    assert!(sh(site, ones));
    assert!(sh(site, "grep -q y c"));
    let file = site.dir().join("b");
    let mut holder = site.command("sh").arg("-c").arg(format!("exec 3<> {}; sleep 1000", file.display())).spawn().expect("starts");
    let lost = site.power_loss(None).expect("lost");
    holder.wait().expect("dead");
    assert!(disk.needs_remount() && !site.dir().exists());
    disk.remount().expect("recovers");
    assert!(lost >= 256, "{lost}");
    assert!(sh(site, "grep -q synced a && test ! -s b && test -s c && ! grep -q y c"), "what was synced is there, the rest is not");
    println!("{lost} blocks lost; {:?}", disk.counters());

    // Torn: ext4 still recovers, since a torn cache is what its journal is for.
    assert!(sh(site, "for i in $(seq 100); do echo $i > $i; done; echo 2 > c; sync c; dd if=/dev/zero of=d bs=1M count=5 status=none"));
    site.power_loss(Some(7)).expect("torn");
    disk.remount().expect("recovers");
    assert!(sh(site, "grep 2 c"));
    world.down().expect("down");
}

#[test]
fn fsyncs_and_writes_fail_are_slow_hang_and_recover() {
    let (_dir, world) = world_with_disk("eio");
    let [site] = world.sites() else { panic!("one site") };
    let disk = site.disk().expect("a disk");
    assert!(sh(site, "echo 1 > a && sync a"));
    disk.fsync_delay(Duration::from_millis(400));
    let clock = crate::record::RunClock::start();
    assert!(sh(site, "echo 2 > a && sync a"));
    assert!(clock.now().0 > 400_000 && disk.counters().delayed_fsyncs > 0);
    disk.heal().expect("healed");

    disk.hang(true);
    let mut child = site.command("sync").arg(site.dir().join("a")).spawn().expect("starts");
    assert!(sh(site, "true"));
    let mut write = site.command("dd");
    write.arg("if=/dev/zero").arg(format!("of={}", site.dir().join("h").display()));
    let mut write = write.args(["bs=1M", "count=1", "oflag=direct", "status=none"]).spawn().expect("starts");
    assert!(external::wait_until(Duration::from_secs(5), || disk.counters().hung > 0));
    assert!(write.try_wait().expect("asked").is_none());
    disk.heal().expect("healed");
    assert!(write.wait().expect("ended").success() && child.wait().expect("ended").success());

    disk.fail_fsyncs(true);
    assert!(!sh(site, "echo 3 > a && sync a"));
    assert!(disk.counters().failed_fsyncs > 0);
    disk.heal().expect("healed");
    disk.remount().expect("remounts");
    assert!(sh(site, "echo 4 > a && sync a"));

    disk.fail_writes(true);
    assert!(!sh(site, "dd if=/dev/zero of=e bs=1M count=1 oflag=direct status=none"));
    disk.heal().expect("healed");
    disk.remount().expect("remounts");

    disk.full(1 << 20).expect("full");
    assert!(!sh(site, "dd if=/dev/zero of=f bs=1M count=10 status=none"));
    disk.free().expect("freed");
    assert!(sh(site, "dd if=/dev/zero of=f bs=1M count=10 status=none"));
    disk.read_only().expect("read-only");
    assert!(!sh(site, "echo 5 > a") && disk.needs_remount());
    disk.remount().expect("remounts");
    assert!(sh(site, "echo 6 > a"));
    world.down().expect("down");
}

#[test]
fn a_hung_disk_can_be_taken_down() {
    let (dir, world) = world_with_disk("hung");
    let [site] = world.sites() else { panic!("one site") };
    site.disk().expect("a disk").hang(true);
    let mut child =
        site.command("sh").arg("-c").arg(format!("echo x > {0}; sync {0}", site.dir().join("a").display())).spawn().expect("starts");
    let mut sleeper = site.command("sleep").arg("1000").spawn().expect("starts");
    // What waits for the disk in the kernel cannot be frozen; the rest is.
    let _ = site.freeze();
    world.down().expect("down");
    child.wait().expect("ended");
    sleeper.wait().expect("ended");
    assert_eq!(traces(dir.path()), [] as [String; 0]);
}
