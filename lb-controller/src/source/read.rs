//! Reads one file once, and tells whether it held still meanwhile.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::files::Content;

/// Largest file: more than any list of 5,000 pods as Kubernetes writes them.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// What tells one version of a file from another without reading it: inode, length, time of change.
pub(super) type Version = (u64, u64, i64, i64);

/// The version that metadata tell of.
pub(super) fn version(metadata: &std::fs::Metadata) -> Version {
    (
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

/// What came of reading a file.
pub(super) enum Reading {
    Read(Content, Version),
    /// It changed on the way.
    Changing,
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Reading {
    match read_text(path) {
        Ok(reading) => reading,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Reading::Read(Content::Gone, (0, 0, 0, 0))
        }
        Err(error) => unreadable(format!("can not be read: {error}; make it a readable file")),
    }
}

/// Version 0 is never that of a file, so an unreadable one is tried again by every look at everything.
fn unreadable(sentence: String) -> Reading {
    Reading::Read(Content::Unreadable(sentence), (0, 0, 0, 0))
}

fn read_text(path: &Path) -> std::io::Result<Reading> {
    // A pipe would block for ever.
    if !std::fs::metadata(path)?.is_file() {
        return Ok(unreadable(
            "is not a regular file; replace it by one".to_owned(),
        ));
    }
    let file = std::fs::File::open(path)?;
    let before = file.metadata()?;
    if before.len() > FILE_BYTES_MAX {
        return Ok(unreadable(format!(
            "is larger than {} MiB; split it",
            FILE_BYTES_MAX >> 20
        )));
    }
    let mut bytes = Vec::new();
    (&file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let after = version(&file.metadata()?);
    if version(&before) != after || bytes.len() as u64 != after.1 {
        return Ok(Reading::Changing);
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Reading::Read(Content::Text(text), after),
        Err(error) => Reading::Read(
            Content::Unreadable(format!(
                "byte {} is not UTF-8; write it as UTF-8",
                error.utf8_error().valid_up_to()
            )),
            after,
        ),
    })
}
