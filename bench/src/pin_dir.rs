//! Where a suite pins maps: a BPF file system of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lb_controller::dataplane::pin;

/// A BPF file system that is gone when this is.
pub(crate) struct PinDir(PathBuf);

impl PinDir {
    /// Makes one; needs root.
    pub(crate) fn make() -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("bowline-bench-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        pin::mount_bpffs(&dir).context("mount a BPF file system (this needs root)")?;
        Ok(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        // Nothing else can be done about it here, and the next run makes another.
        let _ = pin::unmount_bpffs(&self.0);
        let _ = fs::remove_dir(&self.0);
    }
}
