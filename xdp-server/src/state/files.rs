//! Files that appear whole, private, and synced to the disk; and the reading of secrets.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::StateError;

/// Makes `path` with `content` and mode 0600, unless it is there already: `false` then, and nothing is
/// changed.
pub(super) fn create(path: &Path, content: &[u8]) -> Result<bool, StateError> {
    let temporary = write_temporary(path, content)?;
    // Unlike a rename, a link never replaces.
    let linked = fs::hard_link(&temporary, path);
    remove(&temporary);
    match linked {
        Ok(()) => sync_directory_of(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed("make", path)(error)),
    }
}

/// Puts `content` in place of whatever `path` is, with mode 0600.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let temporary = write_temporary(path, content)?;
    fs::rename(&temporary, path).map_err(|error| {
        remove(&temporary);
        failed("replace", path)(error)
    })?;
    sync_directory_of(path)
}

/// Reads a secret of at most `longest` bytes, and one more byte if there are more, so that the caller can
/// tell. `None` if there is no such file.
pub(super) fn read_secret(path: &Path, longest: usize) -> Result<Option<Vec<u8>>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let mode = file.metadata().map_err(failed("inspect", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StateError::Exposed { path: path.to_owned(), mode });
    }
    let mut content = Vec::new();
    file.take(longest as u64 + 1).read_to_end(&mut content).map_err(failed("read", path))?;
    Ok(Some(content))
}

/// Writes and syncs a file beside `path`, on the same file system. The name holds the process's number: two
/// servers that start together do not write into one file.
fn write_temporary(path: &Path, content: &[u8]) -> Result<PathBuf, StateError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    remove(&temporary); // of a process that had our number, and was killed
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|error| {
        remove(&temporary);
        failed("write", &temporary)(error)
    })?;
    Ok(temporary)
}

/// Makes the directory's new entry last.
fn sync_directory_of(path: &Path) -> Result<(), StateError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync", directory))
}

/// Removes a temporary file. That it is not there is the usual case; any other failure shows at the next use
/// of the name.
fn remove(temporary: &Path) {
    let _ = fs::remove_file(temporary);
}

/// Says what was tried on what, in front of why it failed.
pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creation_never_replaces_and_replacement_always_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read_secret(&path, 9).unwrap(), None);
        assert!(create(&path, b"first").unwrap());
        assert!(!create(&path, b"second").unwrap());
        assert_eq!(read_secret(&path, 9).unwrap().as_deref(), Some(&b"first"[..]));
        replace(&path, b"third").unwrap();
        assert_eq!(read_secret(&path, 9).unwrap().as_deref(), Some(&b"third"[..]));
        assert_eq!(read_secret(&path, 2).unwrap().as_deref(), Some(&b"thi"[..]), "one more than the limit");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_stale_temporary_file_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(dir.path().join(format!("file.{}.tmp", std::process::id())), "stale").unwrap();
        assert!(create(&path, b"new").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
