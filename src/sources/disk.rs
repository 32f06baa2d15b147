//! Writing files so that a crash leaves the old content or the new one, never half of either.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Replaces `path` by a file with `bytes`: a new file beside it, flushed to the disk, renamed over it, and the
/// directory flushed, so that the new name survives a power failure too. Permissions of the old file are kept.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = directory_of(path);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    // Unique in the directory, also among processes that share it.
    let beside = directory.join(format!(".{name}.{}.new", std::process::id()));
    let written = write(&beside, path, bytes).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // Nothing is left behind, as far as the disk lets us; the first error is the one to tell.
        fs::remove_file(&beside).unwrap_or_default();
    }
    written?;
    sync(directory)
}

/// The directory that a path's file is in.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn write(beside: &Path, replaced: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(beside)?;
    if let Ok(metadata) = fs::metadata(replaced) {
        file.set_permissions(metadata.permissions())?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

/// A directory can be flushed where it can be opened, which is on every Unix.
fn sync(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
        // A directory in the way: the rename fails, and what was there stays.
        let taken = dir.path().join("taken");
        fs::create_dir_all(taken.join("inside")).unwrap();
        replace(&taken, b"three").unwrap_err();
        assert!(taken.join("inside").is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        replace(&dir.path().join("missing/x"), b"four").unwrap_err();
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_kept() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
