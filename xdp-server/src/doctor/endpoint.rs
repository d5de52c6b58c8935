//! What the server serves with: the port, the metrics' address, the state directory, the certificate. Nothing
//! is made or changed, and the ports are free again at once.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use time::OffsetDateTime;

use super::row::{Remedy, Row, quoted};
use super::wanted::Wanted;
use crate::cli::{CertificateFiles, Metrics};
use crate::metrics::{Endpoint, MetricsError};
use crate::net::socket::{BindError, SocketConfig, SocketGroup};
use crate::report::minute;
use crate::state::{CertificateError, Identity, StateDir, StateError};

/// Ports after the one asked for that are tried when that is taken: enough to find one among a few servers.
const OTHER_PORTS: u16 = 16;

/// Smallest socket buffer, in bytes, for sockets that carry nothing.
const NO_BUFFER: usize = 4096;

/// What was found.
#[derive(Debug)]
pub struct Facts {
    /// Binding the port.
    pub port: Result<SocketAddr, BindError>,
    /// A port nearby that is free, if that one is taken.
    pub free_port: Option<u16>,
    /// Binding the metrics' address: where, or `None` if there are to be none.
    pub metrics: Result<Option<SocketAddr>, MetricsError>,
    /// The state directory, or why it is unfit.
    pub state: Result<State, StateError>,
    /// The certificate that was given, if one was.
    pub certificate: Option<Result<Identity, CertificateError>>,
    /// The user, for commands that give something to them.
    pub user: u32,
}

/// A state directory, there or to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Where it is.
    pub path: PathBuf,
    /// It is there already.
    pub exists: bool,
    /// This process may write to it, or make it.
    pub writable: bool,
}

impl Facts {
    /// Tries what can be tried without leaving a trace.
    pub fn gather(wanted: &Wanted<'_>) -> Self {
        let settings = wanted.settings;
        let port = bind(settings.listen);
        let free_port = matches!(port, Err(BindError::PortTaken { .. })).then(|| {
            let next = settings.listen.port()..=settings.listen.port().saturating_add(OTHER_PORTS);
            next.skip(1).find(|port| bind(SocketAddr::new(settings.listen.ip(), *port)).is_ok())
        });
        let now = OffsetDateTime::now_utc();
        Self {
            port,
            metrics: bind_metrics(settings.metrics),
            free_port: free_port.flatten(),
            state: examine(settings.state.as_deref()),
            certificate: settings.certificate.as_ref().map(|files| Identity::given(files, now)),
            user: nix::unistd::geteuid().as_raw(),
        }
    }

    /// The checks.
    pub fn rows(&self, wanted: &Wanted<'_>) -> Vec<Row> {
        let settings = wanted.settings;
        let metrics = self.metrics(settings.metrics);
        vec![self.port(settings.listen), metrics, self.state(), self.certificate(wanted)]
    }

    fn metrics(&self, asked: Metrics) -> Row {
        const CHECK: &str = "metrics";
        let error = match &self.metrics {
            Ok(None) => return Row::skip(CHECK, "--metrics off"),
            Ok(Some(address)) => return Row::ok(CHECK, format!("{address} is free (TCP)")),
            Err(error) => error,
        };
        let MetricsError { address, source } = error;
        let mut near = (1..=OTHER_PORTS).filter_map(|more| {
            // In the same place if that is only taken, else on loopback.
            let taken = source.kind() == std::io::ErrorKind::AddrInUse;
            let from = if taken { *address } else { Metrics::USUAL };
            Some(SocketAddr::new(from.ip(), from.port().checked_add(more)?))
        });
        let free = near.find(|address| bind_metrics(Metrics::At(*address)).is_ok());
        let off = "--metrics off".to_owned();
        let remedy = match free {
            Some(free) => Remedy::flags(format!("--metrics {free}")).or(off),
            None => Remedy::flags(off),
        };
        let found = format!("{address}: {source}");
        match asked {
            Metrics::At(_) => Row::fail(CHECK, found, remedy),
            Metrics::Usual | Metrics::Off => Row::warn(CHECK, found + ": there will be none", remedy),
        }
    }

    fn port(&self, listen: SocketAddr) -> Row {
        const CHECK: &str = "port";
        let (ip, port) = (listen.ip(), listen.port());
        let error = match &self.port {
            Ok(bound) if *bound == listen => return Row::ok(CHECK, format!("{listen} is free")),
            Ok(bound) => return Row::ok(CHECK, format!("{bound} is free; the host has no IPv6")),
            Err(error) => error,
        };
        let (found, remedy) = match error {
            BindError::PortTaken { .. } => {
                let who = format!("sudo ss -ulpn 'sport = :{port}'");
                let remedy = match self.free_port {
                    Some(free) => {
                        let other = SocketAddr::new(ip, free);
                        Remedy::flags(format!("--listen {other}"))
                            .or(format!("stop who has it; to see: {who}"))
                    }
                    None => Remedy::command(who).or("and stop it, or give another port with --listen"),
                };
                (format!("{listen} is taken, perhaps by a server that is running"), remedy)
            }
            BindError::PrivilegedPort { first, .. } => (
                format!("{port} is privileged: below {first}"),
                Remedy::command(format!("sudo sysctl -w net.ipv4.ip_unprivileged_port_start={port}"))
                    .or("run it with sudo, or with the capability cap_net_bind_service"),
            ),
            BindError::NoIpv6 { .. } => {
                ("the host has no IPv6".into(), Remedy::flags(format!("--listen 0.0.0.0:{port}")))
            }
            BindError::AddressNotAvailable { .. } => (
                format!("{ip} is no address of this host"),
                Remedy::flags(format!("--listen [::]:{port}")).or("see which are: ip -brief address"),
            ),
            other => (other.to_string(), Remedy::flags(format!("--listen [::]:{port}"))),
        };
        Row::fail(CHECK, found, remedy)
    }

    fn state(&self) -> Row {
        const CHECK: &str = "state directory";
        let elsewhere = || Remedy::flags("--state \"$(mktemp -d)\"").or("any other directory of your own");
        match &self.state {
            Ok(State { path, writable: false, exists }) => {
                let word = quoted(&path.to_string_lossy());
                let can = if *exists { "written to" } else { "made" };
                let command = match exists {
                    true => format!("sudo chown {} {word}", self.user),
                    false => format!("sudo install -d -m 700 -o {} {word}", self.user),
                };
                let found = format!("{} cannot be {can} by this user", path.display());
                Row::fail(CHECK, found, Remedy::command(command).or("--state DIR, a directory of your own"))
            }
            Ok(State { path, exists: true, .. }) => Row::ok(CHECK, path.display().to_string()),
            Ok(State { path, .. }) => Row::ok(CHECK, format!("{} will be made", path.display())),
            Err(error) => {
                let remedy = match error {
                    StateError::WritableByOthers(path) => {
                        Remedy::command(format!("chmod go-w {}", quoted(&path.to_string_lossy())))
                    }
                    StateError::Exposed { path, .. } => {
                        let path = quoted(&path.to_string_lossy());
                        Remedy::command(format!("chmod 600 {path}"))
                            .or(format!("if somebody may have read it: rm {path}"))
                    }
                    StateError::WrongLength { path, .. } => {
                        Remedy::command(format!("rm {}", quoted(&path.to_string_lossy())))
                    }
                    _ => elsewhere(),
                };
                Row::fail(CHECK, first_clause(&error.to_string()), remedy)
            }
        }
    }

    fn certificate(&self, wanted: &Wanted<'_>) -> Row {
        const CHECK: &str = "certificate";
        let (Some(result), Some(files)) = (&self.certificate, &wanted.settings.certificate) else {
            return Row::ok(CHECK, "self-signed, made at start and kept with the state");
        };
        match result {
            Err(error) => Row::fail(CHECK, first_clause(&error.to_string()), new_pair(files)),
            Ok(identity) => match identity.notes.first() {
                None => Row::ok(CHECK, format!("valid until {}", minute(identity.not_after))),
                Some(note) if note.contains("private key") => {
                    let command = format!("chmod o= {}", quoted(&files.key.to_string_lossy()));
                    Row::warn(CHECK, first_clause(note), Remedy::command(command))
                }
                Some(note) => Row::warn(CHECK, first_clause(note), new_pair(files)),
            },
        }
    }
}

/// A new pair in place of one that is of no use.
fn new_pair(files: &CertificateFiles) -> Remedy {
    let word = |path: &Path| quoted(&path.to_string_lossy());
    Remedy::command(format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 13 -subj /CN=xdp-server \
         -keyout {} -out {}",
        word(&files.key),
        word(&files.cert)
    ))
    .or("that replaces both files; if an authority issued them, have it issue new ones")
}

/// Binds the port as the server would, and gives it back.
fn bind(listen: SocketAddr) -> Result<SocketAddr, BindError> {
    let config = SocketConfig {
        listen,
        workers: NonZeroUsize::MIN,
        rcvbuf: NO_BUFFER,
        sndbuf: NO_BUFFER,
        busy_poll: None,
    };
    SocketGroup::bind(&config).map(|group| group.local)
}

/// The state directory as it is; it is not made.
fn examine(chosen: Option<&Path>) -> Result<State, StateError> {
    let path = StateDir::place(chosen)?;
    let may_write = |path: &Path| access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    if !path.exists() {
        // What would be made, is made in the nearest directory that is there.
        let parent = path.ancestors().skip(1).find(|parent| parent.as_os_str().is_empty() || parent.exists());
        let parent = parent.filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let writable = parent.is_dir() && may_write(parent);
        return Ok(State { path, exists: false, writable });
    }
    let state = StateDir::existing(path.clone())?;
    if may_write(&path) {
        state.check_secrets()?;
        return Ok(State { path, exists: true, writable: true });
    }
    Ok(State { path, exists: true, writable: false })
}

/// What an error says before it comes to the remedy, which the row has of its own.
fn first_clause(text: &str) -> String {
    let text = text.strip_prefix("bad certificate: ").unwrap_or(text);
    text.split("; ").next().unwrap_or(text).split(": `").next().unwrap_or(text).to_owned()
}

/// Binds where metrics would be served, for a moment.
fn bind_metrics(asked: Metrics) -> Result<Option<SocketAddr>, MetricsError> {
    let address = match asked {
        Metrics::Off => return Ok(None),
        Metrics::Usual => Metrics::USUAL,
        Metrics::At(address) => address,
    };
    let opened = Endpoint::open(Metrics::At(address), &mut Vec::new())?;
    Ok(opened.map(|_| address))
}

#[cfg(test)]
mod tests {
    use super::super::row::Status::{Fail, Ok as Good, Skip, Warn};
    use super::super::tests::{host, settings, typed};
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn row(flags: &str, check: &str) -> Row {
        let (settings, host) = (settings(flags), host());
        let wanted = Wanted::new(&settings, &host);
        let rows = Facts::gather(&wanted).rows(&wanted);
        rows.into_iter().find(|row| row.check == check).unwrap()
    }

    fn sh(command: &str) {
        let output = std::process::Command::new("sh").args(["-c", command]).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }

    #[test]
    fn a_port_that_is_taken_has_a_neighbour() {
        // Below the range from which the kernel gives ports to other tests.
        let mut ports = (20_000..30_000).step_by(50);
        let held = ports.find_map(|port| std::net::UdpSocket::bind(("127.77.0.1", port)).ok()).unwrap();
        let address = held.local_addr().unwrap();
        let taken = row(&format!("--listen {address}"), "port");
        assert_eq!(taken.status, Fail);
        assert!(taken.found.contains("taken"), "{taken:?}");
        assert_eq!(row(typed(&taken), "port").status, Good, "{taken:?}");
        let foreign = row("--listen 192.0.2.1:5999", "port");
        assert_eq!((foreign.status, typed(&foreign)), (Fail, "--listen [::]:5999"));
    }

    #[test]
    fn an_address_for_metrics_that_is_taken_has_a_neighbour() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let flags = format!("--metrics {held}");
        assert_eq!(row(&flags, "metrics").status, Good);
        let _held = std::net::TcpListener::bind(held).unwrap();
        let taken = row(&flags, "metrics");
        assert!(taken.status == Fail && taken.found.contains("in use"), "{taken:?}");
        assert_eq!(row(typed(&taken), "metrics").status, Good, "{taken:?}");
        let foreign = row("--metrics 192.0.2.1:9464", "metrics");
        assert!(foreign.status == Fail && typed(&foreign).starts_with("--metrics 127.0.0.1:"), "{foreign:?}");
        assert_eq!(row("--metrics off", "metrics").status, Skip);
    }

    #[test]
    fn the_state_directory_is_judged_and_not_made() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/state");
        let flags = format!("--state {}", path.display());
        let row = || row(&flags, "state directory");
        assert!(row().status == Good && row().found.ends_with("will be made"), "{:?}", row());
        assert!(!path.exists());
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(row().status, Fail);
        sh(typed(&row()));
        assert_eq!((row().status, row().found), (Good, path.display().to_string()));

        let key = path.join("reset.key");
        for (content, mode) in [(vec![0; 32], 0o644), (vec![0; 7], 0o600)] {
            fs::write(&key, content).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            let bad = row();
            assert!(bad.status == Fail && bad.found.contains("reset.key"), "{bad:?}");
            sh(typed(&bad));
            assert_eq!(row().status, Good, "{bad:?}");
        }
    }

    #[test]
    fn a_certificate_of_no_use_is_replaced_by_one_that_is() {
        let directory = tempfile::tempdir().unwrap();
        let [cert, key] = ["c.pem", "k.pem"].map(|name| directory.path().join(name));
        let flags = format!("--cert {} --key {}", cert.display(), key.display());
        assert_eq!(row("", "certificate").status, Good);
        let missing = row(&flags, "certificate");
        assert_eq!(missing.status, Fail);
        sh(typed(&missing));
        assert_eq!(row(&flags, "certificate").status, Good, "{missing:?}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = row(&flags, "certificate");
        assert_eq!(exposed.status, Warn);
        sh(typed(&exposed));
        assert_eq!(row(&flags, "certificate").status, Good);
        fs::write(&cert, "none").unwrap();
        assert!(row(&flags, "certificate").found.starts_with("no PEM certificate in"));
    }

    #[test]
    fn errors_lose_the_remedy_that_the_row_has() {
        assert_eq!(first_clause("bad certificate: x is broken: y; export it again"), "x is broken: y");
        assert_eq!(first_clause("every user can read the key: `chmod o= x`"), "every user can read the key");
    }
}
