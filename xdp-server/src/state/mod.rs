//! The state directory: what must outlive a restart.
//!
//! Theory of operation
//! -------------------
//! The directory (mode 0700 when made here) holds
//!
//! | file | content | mode | renewed |
//! |---|---|---|---|
//! | `connection-id.key` | AES-128 key of the connection IDs, 16 bytes | 0600 | never |
//! | `reset.key` | key of the stateless reset tokens, 32 bytes | 0600 | never |
//! | `ticket.key` | key that seals TLS session tickets, 48 bytes | 0600 | never |
//! | `cert.pem`, `cert.key` | self-signed certificate and its key, PEM | 0600 | a day before it expires |
//!
//! The first two make a restarted server recognise its earlier connections, and reset them at once instead of
//! leaving their clients to time out; the third lets its clients resume, at a fraction of a handshake's cost.
//! Whoever reads them can forge what they protect (with the third: answer in the server's name a client that
//! resumes, but not read recorded traffic), so a key that others can read is refused, not used. To change
//! one, remove its file and restart: with another ticket key, clients make whole handshakes once.
//!
//! Files appear whole or not at all: written under a temporary name, synced, then linked (keys: the first of
//! two servers that start together wins, and both use its key) or renamed (certificate) into place. There is
//! no lock: two servers may share a directory.
//!
//! Used at start, before workers run; secrets are handed out by value.

mod certificate;
mod files;

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::quic::tls::TICKET_KEY_LEN;
pub use certificate::{CertificateError, Identity};

const CONNECTION_ID_KEY: &str = "connection-id.key";
const RESET_KEY: &str = "reset.key";
const TICKET_KEY: &str = "ticket.key";

/// Where root keeps state, by the Filesystem Hierarchy Standard.
const ROOT_DIR: &str = "/var/lib/xdp-server";

/// A state directory that exists and is fit for secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

/// The secrets of a server. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// AES-128 key that encrypts connection IDs (`PROTOCOL.md`, section 6).
    pub connection_id: [u8; 16],
    /// Key that stateless reset tokens are derived with.
    pub reset: [u8; 32],
    /// Key that seals TLS session tickets.
    pub ticket: [u8; TICKET_KEY_LEN],
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(secret)")
    }
}

/// Why the state directory, or a key in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is no usual place: neither `$HOME` nor any of the others is set.
    #[error(
        "no place to keep state: none of STATE_DIRECTORY, XDG_STATE_HOME and HOME is set; give --state DIR"
    )]
    NoPlace,
    /// Reading or writing failed.
    #[error("cannot {action} {}: {source}; the directory can be chosen with --state DIR", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The path of the directory leads to something else.
    #[error("{} is not a directory; give another with --state DIR", .0.display())]
    NotADirectory(PathBuf),
    /// Others could put keys of their own into the directory.
    #[error("others can write to the state directory {path}; type `chmod go-w {path}`", path = .0.display())]
    WritableByOthers(PathBuf),
    /// Others can read a secret.
    #[error(
        "others can read the secret {file} (mode {mode:04o}); if they never did, type `chmod 600 {file}`; \
         if they may have, remove it, and a new one will be made",
        file = path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key has the wrong length.
    #[error(
        "{} has {got} bytes, not {expected}: it is no key of this server; \
         remove it, and a new one will be made",
        path.display()
    )]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Bytes that a key has.
        expected: usize,
        /// Bytes in the file; no more than one too many are counted.
        got: usize,
    },
    /// The system has no randomness to make a key of.
    #[error("the system gives no random bytes: {0}")]
    NoRandomness(getrandom::Error),
}

impl StateDir {
    /// Opens the directory `chosen`, or the usual one, and makes it if it is not there.
    ///
    /// # Errors
    /// [`StateError`]: it cannot be made, is no directory, or is writable by others.
    pub fn open(chosen: Option<&Path>) -> Result<StateDir, StateError> {
        let path = Self::place(chosen)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|error| {
            match error.kind() {
                io::ErrorKind::AlreadyExists => StateError::NotADirectory(path.clone()),
                _ => files::failed("make the state directory", &path)(error),
            }
        })?;
        Self::existing(path)
    }

    /// The directory `chosen`, or the usual one; it may or may not exist.
    ///
    /// # Errors
    /// [`StateError::NoPlace`].
    pub fn place(chosen: Option<&Path>) -> Result<PathBuf, StateError> {
        let is_root = nix::unistd::geteuid().is_root();
        match chosen {
            Some(path) => Ok(path.to_owned()),
            None => usual_place(&|variable| std::env::var_os(variable), is_root).ok_or(StateError::NoPlace),
        }
    }

    /// The directory at `path`, which is there, as it is.
    ///
    /// # Errors
    /// [`StateError`]: it cannot be inspected, is no directory, or is writable by others.
    pub fn existing(path: PathBuf) -> Result<StateDir, StateError> {
        let metadata = fs::metadata(&path).map_err(files::failed("inspect the state directory", &path))?;
        if !metadata.is_dir() {
            return Err(StateError::NotADirectory(path));
        }
        // Readable is well: systemd makes state directories 0755, and the files guard themselves.
        if metadata.mode() & 0o022 != 0 {
            return Err(StateError::WritableByOthers(path));
        }
        Ok(StateDir { path })
    }

    /// Checks the secrets that are kept already, and makes none.
    ///
    /// # Errors
    /// [`StateError`]: one cannot be read, is readable by others, or has the wrong length.
    pub fn check_secrets(&self) -> Result<(), StateError> {
        self.kept::<16>(CONNECTION_ID_KEY)?;
        self.kept::<32>(RESET_KEY)?;
        self.kept::<TICKET_KEY_LEN>(TICKET_KEY)?;
        certificate::check_secret(self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The server's keys; made on first use.
    ///
    /// # Errors
    /// [`StateError`]: a key cannot be read or made, is readable by others, or has the wrong length.
    pub fn keys(&self) -> Result<Keys, StateError> {
        Ok(Keys {
            connection_id: self.key(CONNECTION_ID_KEY)?,
            reset: self.key(RESET_KEY)?,
            ticket: self.key(TICKET_KEY)?,
        })
    }

    fn key<const N: usize>(&self, name: &str) -> Result<[u8; N], StateError> {
        if let Some(key) = self.kept(name)? {
            return Ok(key);
        }
        let path = self.path.join(name);
        let mut key = [0; N];
        getrandom::fill(&mut key).map_err(StateError::NoRandomness)?;
        if files::create(&path, &key)? {
            return Ok(key);
        }
        // Another server made one in between: both use that.
        exactly(files::read_secret(&path, N)?.unwrap_or_default(), path)
    }

    /// The key that is kept already, if there is one.
    fn kept<const N: usize>(&self, name: &str) -> Result<Option<[u8; N]>, StateError> {
        let path = self.path.join(name);
        files::read_secret(&path, N)?.map(|key| exactly(key, path)).transpose()
    }
}

fn exactly<const N: usize>(bytes: Vec<u8>, path: PathBuf) -> Result<[u8; N], StateError> {
    bytes.try_into().map_err(|bytes: Vec<u8>| StateError::WrongLength { path, expected: N, got: bytes.len() })
}

/// The directory that is meant when none is named. `env` looks up a variable.
///
/// Root's place comes before the XDG ones: under sudo these may be the calling user's, whose directory would
/// then hold files that only root can read.
fn usual_place(env: &dyn Fn(&str) -> Option<OsString>, is_root: bool) -> Option<PathBuf> {
    // The XDG specification wants relative ones ignored.
    let absolute = |path: &Path| path.is_absolute().then(|| path.to_owned());
    if let Some(list) = env("STATE_DIRECTORY") {
        // systemd separates several by colons; the first is the unit's own.
        let first = std::env::split_paths(&list).next();
        if let Some(path) = first.as_deref().and_then(absolute) {
            return Some(path);
        }
    }
    if is_root {
        return Some(ROOT_DIR.into());
    }
    let xdg = env("XDG_STATE_HOME").as_deref().map(Path::new).and_then(absolute);
    let home =
        || env("HOME").as_deref().map(Path::new).and_then(absolute).map(|home| home.join(".local/state"));
    Some(xdg.or_else(home)?.join("xdp-server"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn fresh() -> (tempfile::TempDir, StateDir) {
        let parent = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(&parent.path().join("a/state"))).unwrap();
        (parent, state)
    }

    #[test]
    fn the_usual_place_depends_on_who_runs_where() {
        let place = |env: &[(&str, &str)], is_root| {
            let env: HashMap<_, _> = env.iter().copied().collect();
            let found = usual_place(&|name| env.get(name).map(Into::into), is_root);
            found.map(|path| path.to_str().unwrap().to_owned())
        };
        let all = [("STATE_DIRECTORY", "/s/a:/s/b"), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")];
        for (env, is_root, expected) in [
            (&all[..], false, Some("/s/a")),
            (&all[..], true, Some("/s/a")),
            (&all[1..], true, Some("/var/lib/xdp-server")),
            (&all[1..], false, Some("/x/xdp-server")),
            (&all[2..], false, Some("/h/.local/state/xdp-server")),
            (&[("XDG_STATE_HOME", "x"), ("HOME", "/h")], false, Some("/h/.local/state/xdp-server")),
            (&[("STATE_DIRECTORY", ""), ("HOME", "/h")], false, Some("/h/.local/state/xdp-server")),
            (&[], true, Some("/var/lib/xdp-server")),
            (&[], false, None),
        ] {
            assert_eq!(place(env, is_root).as_deref(), expected, "{env:?} {is_root}");
        }
    }

    #[test]
    fn keys_are_made_once_private_and_kept() {
        let (_parent, state) = fresh();
        let keys = state.keys().unwrap();
        assert_ne!(keys.connection_id, [0; 16]);
        assert_ne!(keys.reset, [0; 32]);
        assert_ne!(keys.ticket, [0; TICKET_KEY_LEN]);
        assert_eq!(StateDir::open(Some(state.path())).unwrap().keys().unwrap(), keys);
        assert_eq!(format!("{keys:?}"), "Keys(secret)");

        assert_eq!(mode(state.path()), 0o700);
        let mut names: Vec<_> = fs::read_dir(state.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["connection-id.key", "reset.key", "ticket.key"], "and no temporary file is left");
        assert!(names.iter().all(|name| mode(&state.path().join(name)) == 0o600));

        let (_parent, other) = fresh();
        assert_ne!(other.keys().unwrap(), keys);
    }

    #[test]
    fn keys_that_others_can_read_are_refused() {
        let (_parent, state) = fresh();
        state.keys().unwrap();
        let path = state.path().join(RESET_KEY);
        for mode in [0o640, 0o604, 0o660, 0o601] {
            chmod(&path, mode);
            let text = state.keys().unwrap_err().to_string();
            assert!(text.contains("chmod 600") && text.contains("reset.key"), "{text}");
            assert!(text.contains(&format!("{mode:04o}")), "{text}");
        }
        assert!(state.check_secrets().is_err());
        chmod(&path, 0o400);
        state.check_secrets().unwrap();
        state.keys().unwrap();
    }

    #[test]
    fn keys_of_the_wrong_length_are_refused() {
        let (_parent, state) = fresh();
        let path = state.path().join(CONNECTION_ID_KEY);
        for (length, counted) in [(0, 0), (15, 15), (17, 17), (100_000, 17)] {
            fs::write(&path, vec![1; length]).unwrap();
            chmod(&path, 0o600);
            let text = state.keys().unwrap_err().to_string();
            assert!(
                text.contains(&format!("has {counted} bytes, not 16")) && text.contains("remove it"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_check_makes_nothing() {
        let (_parent, state) = fresh();
        state.check_secrets().unwrap();
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
        fs::write(state.path().join(CONNECTION_ID_KEY), [1; 17]).unwrap();
        chmod(&state.path().join(CONNECTION_ID_KEY), 0o600);
        assert!(matches!(state.check_secrets(), Err(StateError::WrongLength { got: 17, .. })));
    }

    #[test]
    fn a_directory_unfit_for_secrets_is_refused() {
        let (_parent, state) = fresh();
        for mode in [0o770, 0o707, 0o777] {
            chmod(state.path(), mode);
            let text = StateDir::open(Some(state.path())).unwrap_err().to_string();
            assert!(text.contains("chmod go-w"), "{text}");
        }
        chmod(state.path(), 0o755);
        StateDir::open(Some(state.path())).unwrap();

        let file = state.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(StateDir::open(Some(&file)), Err(StateError::NotADirectory(_))));
        let text = StateDir::open(Some(&file.join("below"))).unwrap_err().to_string();
        assert!(text.contains("--state DIR"), "{text}");
        assert!(matches!(StateDir::open(Some(Path::new("/proc/none"))), Err(StateError::Io { .. })));
    }
}
