//! What kernel tests stand on: a BPF filesystem and network namespaces of their own, gone when the test ends.

use std::path::Path;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, gettid};

use super::Capacity;
use super::load::Sizes;
use super::pin::{mount_bpffs, unmount_bpffs};

/// Small, so that tests are fast and modest.
pub(crate) const SIZES: Sizes = Sizes {
    capacity: Capacity {
        backends: 256,
        rows: 65_536,
        regions: 16,
        sets: 64,
        slots: 512,
        services: 64,
    },
    flows: 4_096,
    pins: 1024,
};

/// Whether kernel tests can run; says why not.
pub(crate) fn is_root(test: &str) -> bool {
    let root = Uid::effective().is_root();
    if !root {
        eprintln!("skipped: {test} needs root, to load programs and make network namespaces");
    }
    root
}

/// A BPF filesystem of its own.
pub(crate) struct BpfDir(tempfile::TempDir);

impl BpfDir {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount_bpffs(dir.path()).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for BpfDir {
    fn drop(&mut self) {
        unmount_bpffs(self.path()).unwrap();
    }
}

/// Runs `test` in a network namespace of its own, on a thread of its own; the namespace goes with the thread.
pub(crate) fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            test()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Runs `ip <words>` in the namespace of the calling thread.
pub(crate) fn ip(words: &str) {
    output("ip", words);
}

/// What `program <words>` prints in the namespace of the calling thread.
pub(crate) fn output(program: &str, words: &str) -> String {
    let output = Command::new(program)
        .args(words.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `ip link set … netns <here>` needs to name the namespace of the calling thread.
pub(crate) fn namespace_id() -> i32 {
    gettid().as_raw()
}
