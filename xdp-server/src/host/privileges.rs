//! Privileges: who the process is once it is set up, and what it may still do.
//!
//! Theory of operation
//! -------------------
//! Set-up needs rights: to load and attach the XDP program, to open AF_XDP sockets, to lock their memory, to
//! read keys that only root reads. Serving needs none of them: a worker works on descriptors and memory that
//! it has. So the main thread gives everything up between the two, by [`give_up`], before it has started any
//! other thread: those then inherit what is left, which is nothing.
//!
//! | what | still works because |
//! |---|---|
//! | AF_XDP rings, wake-ups, statistics | rights are asked for when the socket is opened |
//! | following the interface's addresses | from Linux 5.19 on, who holds a BPF map's descriptor may use it |
//! | detaching the XDP program | closing the link's descriptor does it |
//! | huge pages for connections | anonymous ones are everybody's, the pool is the limit |
//! | TLS | certificate and key are loaded before |
//! | `--dump` | the file is opened before |
//!
//! Linux before 5.19 refuses any use of BPF maps to those without CAP_BPF (where
//! `kernel.unprivileged_bpf_disabled` is set, which is the default). Whether that is so here is not guessed
//! from version numbers, which back-ports make lie, but tried; if it is, the main thread alone keeps CAP_BPF,
//! and every other thread begins with [`renounce`].
//!
//! `no_new_privs` is set in any case: nothing that this process could be made to execute gets rights back.
//! Becoming another user also makes the process undumpable, which is the kernel's doing and is left so: its
//! memory holds the private key, which other processes of that user (of `nobody`, say) then can neither trace
//! nor find in a core file.
//!
//! Credentials belong to threads: `setresuid` is spread over all by the C library, capabilities are not.
//! Hence the order.

use std::ffi::OsString;
use std::fmt;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{self, Gid, Uid};

/// A user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: Option<String>,
    uid: Uid,
    gid: Gid,
}

impl fmt::Display for User {
    /// Such as `nobody (user 65534, group 65534)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (user {}, group {})", self.uid, self.gid),
            None => write!(f, "user {}, group {}", self.uid, self.gid),
        }
    }
}

/// Why privileges cannot be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// `--user` names nobody.
    #[error(
        "--user {0}: there is no such user; `getent passwd` lists them; a number works too, also one without \
         an account"
    )]
    NoSuchUser(String),
    /// The user database cannot be read.
    #[error("--user {name}: cannot look the user up: {source}; give a number instead of a name")]
    Lookup {
        /// As given.
        name: String,
        /// Why not.
        source: Errno,
    },
    /// The kernel does not let us become the user.
    #[error("cannot become {user} ({call}: {source}); {}", become_remedy(*source))]
    Become {
        /// Whom.
        user: User,
        /// The system call that failed.
        call: &'static str,
        /// What it said.
        source: Errno,
    },
    /// Capabilities, or the promise never to get new ones.
    #[error(
        "cannot give up privileges ({what}: {reason}): a sandbox forbids it, allow prctl() and capset() in it"
    )]
    GiveUp {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        reason: String,
    },
}

fn become_remedy(source: Errno) -> &'static str {
    match source {
        Errno::EPERM => {
            "only root, or a process with CAP_SETUID and CAP_SETGID, becomes another user: use sudo, or \
             leave --user out"
        }
        Errno::EINVAL => {
            "this user namespace does not map that user or group: choose one of /proc/self/uid_map, or \
             --user root"
        }
        _ => "choose another user with --user",
    }
}

/// Whom to become: the user `chosen` by name or number; or else, for root, the caller of sudo, whom the
/// variables SUDO_UID and SUDO_GID tell (`env` looks one up). `None`: stay who we are.
///
/// A number without an account stands for a group of the same number.
///
/// # Errors
/// [`PrivilegeError::NoSuchUser`], [`PrivilegeError::Lookup`].
pub fn user(
    chosen: Option<&str>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<User>, PrivilegeError> {
    let found = match chosen {
        Some(name) => Some(look_up(name)?),
        None if unistd::geteuid().is_root() => sudo_caller(env),
        None => None,
    };
    Ok(found.filter(|user| !is_current(user)))
}

fn look_up(name: &str) -> Result<User, PrivilegeError> {
    let failed = |source| PrivilegeError::Lookup { name: name.to_owned(), source };
    // Names first: there are accounts that are called by a number.
    if let Some(user) = unistd::User::from_name(name).map_err(failed)? {
        return Ok(User { name: Some(user.name), uid: user.uid, gid: user.gid });
    }
    match name.parse::<u32>() {
        // The highest number stands for "leave as it is" in the system calls.
        Ok(number) if number != u32::MAX => {
            let account = unistd::User::from_uid(Uid::from_raw(number)).map_err(failed)?;
            Ok(match account {
                Some(user) => User { name: Some(user.name), uid: user.uid, gid: user.gid },
                None => User { name: None, uid: Uid::from_raw(number), gid: Gid::from_raw(number) },
            })
        }
        _ => Err(PrivilegeError::NoSuchUser(name.to_owned())),
    }
}

fn sudo_caller(env: &dyn Fn(&str) -> Option<OsString>) -> Option<User> {
    let number = |variable| env(variable)?.to_str()?.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    let uid = number("SUDO_UID")?;
    let gid = number("SUDO_GID")?;
    let name = env("SUDO_USER").and_then(|name| name.into_string().ok());
    Some(User { name, uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
}

fn is_current(user: &User) -> bool {
    (user.uid, user.gid) == (unistd::geteuid(), unistd::getegid()) && user.uid == unistd::getuid()
}

/// Becomes `user`, if one is given, and gives up all capabilities, but for CAP_BPF if `maps_work` says,
/// without it, that the XDP program's maps do not. Returns what there is to say.
///
/// To be called when everything is set up, on a process's only thread.
///
/// # Errors
/// [`PrivilegeError::Become`], [`PrivilegeError::GiveUp`]. The process is then somewhere in between, and must
/// end.
pub fn give_up(
    user: Option<&User>,
    maps_work: impl FnOnce() -> bool,
) -> Result<Option<String>, PrivilegeError> {
    let held = permitted()?;
    if let Some(user) = user {
        // Or else none would be left to keep.
        prctl::set_keepcaps(true).map_err(|source| refused("prctl(PR_SET_KEEPCAPS)", source))?;
        switch_to(user)?;
    }
    let mut keep = CapsHashSet::new();
    if held.contains(&Capability::CAP_BPF) {
        set_effective(&CapsHashSet::new())?;
        if !maps_work() {
            keep.insert(Capability::CAP_BPF);
        }
    }
    limit_to(&keep)?;
    prctl::set_no_new_privs().map_err(|source| refused("prctl(PR_SET_NO_NEW_PRIVS)", source))?;

    let left = match keep.is_empty() {
        true => "without capabilities",
        false => "with CAP_BPF alone, which this kernel wants for the use of BPF maps",
    };
    Ok(match user {
        Some(user) => Some(format!("set up, and from here on {user}, {left}")),
        None if unistd::geteuid().is_root() => {
            Some(format!("set up, and from here on root {left}; --user NAME gives up root's files, too"))
        }
        None if !held.is_empty() => Some(format!("set up, and from here on {left}")),
        None => None,
    })
}

/// Gives up what capabilities the calling thread has inherited from the main thread.
///
/// # Errors
/// [`PrivilegeError::GiveUp`]: a sandbox forbids it.
pub fn renounce() -> Result<(), PrivilegeError> {
    limit_to(&CapsHashSet::new())
}

/// All user and group IDs, and no supplementary groups: what those open (`docker`, `disk`) is often as good
/// as root.
fn switch_to(user: &User) -> Result<(), PrivilegeError> {
    let failed = |call| move |source| PrivilegeError::Become { user: user.clone(), call, source };
    unistd::setgroups(&[]).map_err(failed("setgroups"))?;
    unistd::setresgid(user.gid, user.gid, user.gid).map_err(failed("setresgid"))?;
    unistd::setresuid(user.uid, user.uid, user.uid).map_err(failed("setresuid"))
}

fn permitted() -> Result<CapsHashSet, PrivilegeError> {
    caps::read(None, CapSet::Permitted).map_err(|error| refused("capget", error))
}

fn set_effective(to: &CapsHashSet) -> Result<(), PrivilegeError> {
    caps::set(None, CapSet::Effective, to).map_err(|error| refused("capset", error))
}

/// Leaves the calling thread those of its capabilities that are in `keep`, in effect. Ambient ones go by
/// themselves: they are always both permitted and inheritable.
fn limit_to(keep: &CapsHashSet) -> Result<(), PrivilegeError> {
    let held = permitted()?;
    // Nothing to lose: no reason to ask a sandbox.
    if held.is_empty() {
        return Ok(());
    }
    let rest = held.intersection(keep).copied().collect();
    caps::clear(None, CapSet::Inheritable).map_err(|error| refused("capset", error))?;
    set_effective(&rest)?;
    caps::set(None, CapSet::Permitted, &rest).map_err(|error| refused("capset", error))
}

fn refused(what: &'static str, reason: impl fmt::Display) -> PrivilegeError {
    PrivilegeError::GiveUp { what, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn found(chosen: Option<&str>, env: &[(&str, &str)]) -> Result<Option<User>, PrivilegeError> {
        let env: HashMap<_, _> = env.iter().copied().collect();
        user(chosen, &|name| env.get(name).map(Into::into))
    }

    fn ids(user: &User) -> (u32, u32) {
        (user.uid.as_raw(), user.gid.as_raw())
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let by_name = look_up("nobody").unwrap();
        assert_eq!(by_name.name.as_deref(), Some("nobody"));
        assert_eq!(look_up(&by_name.uid.to_string()).unwrap(), by_name);
        assert_eq!(by_name.to_string(), format!("nobody (user {}, group {})", by_name.uid, by_name.gid));

        // Above what distributions give to accounts, and below what they give to user namespaces.
        let stranger = look_up("65432").unwrap();
        assert_eq!((ids(&stranger), stranger.name.as_deref()), ((65_432, 65_432), None));
        assert_eq!(stranger.to_string(), "user 65432, group 65432");
    }

    #[test]
    fn users_that_there_are_not_are_refused() {
        for name in ["no-such-user", "-1", "4294967295", "4294967296", "1.5"] {
            let text = found(Some(name), &[]).unwrap_err().to_string();
            assert!(text.contains(&format!("--user {name}: there is no such user")), "{text}");
            assert!(text.contains("getent passwd"), "{text}");
        }
    }

    #[test]
    fn root_becomes_the_caller_of_sudo_unless_told_otherwise() {
        let sudo = [("SUDO_UID", "65432"), ("SUDO_GID", "65431"), ("SUDO_USER", "ann")];
        let caller = found(None, &sudo).unwrap();
        if !unistd::geteuid().is_root() {
            assert_eq!(caller, None, "the variables are anybody's to set");
            return;
        }
        assert_eq!(caller.as_ref().map(ids), Some((65_432, 65_431)));
        assert_eq!(caller.unwrap().to_string(), "ann (user 65432, group 65431)");
        assert_eq!(found(None, &[]).unwrap(), None);
        assert_eq!(found(None, &sudo[..1]).unwrap(), None, "half of a caller is none");
        assert_eq!(
            found(None, &[("SUDO_UID", "0"), ("SUDO_GID", "0")]).unwrap(),
            None,
            "sudo in a root shell"
        );
        assert_eq!(found(None, &[("SUDO_UID", "x"), ("SUDO_GID", "0")]).unwrap(), None);
        assert_eq!(found(Some("root"), &sudo).unwrap(), None, "--user root stays root");
        assert_eq!(ids(&found(Some("65430"), &sudo).unwrap().unwrap()), (65_430, 65_430));
    }

    #[test]
    fn what_a_thread_renounces_is_gone_for_it_alone() {
        let before = permitted().unwrap();
        std::thread::spawn(|| {
            renounce().unwrap();
            for set in [CapSet::Permitted, CapSet::Effective, CapSet::Inheritable, CapSet::Ambient] {
                assert_eq!(caps::read(None, set).unwrap(), CapsHashSet::new(), "{set:?}");
            }
            renounce().unwrap();
        })
        .join()
        .unwrap();
        assert_eq!(permitted().unwrap(), before);
    }

    #[test]
    fn refusals_say_what_to_do() {
        let error =
            |source| PrivilegeError::Become { user: look_up("65432").unwrap(), call: "setresuid", source };
        let text = error(Errno::EPERM).to_string();
        assert!(text.contains("become user 65432") && text.contains("use sudo"), "{text}");
        let text = error(Errno::EINVAL).to_string();
        assert!(text.contains("/proc/self/uid_map") && text.contains("--user root"), "{text}");
    }
}
