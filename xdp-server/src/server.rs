//! The server as a whole: from settings to running threads, and back to a clean host.
//!
//! Theory of operation ------------------- [`run`] is the life of the process. On the main thread, and with
//! no other, in this order: state and certificate, the host's facts, the plan (`host::topology`), memory,
//! queues, QUIC's settings, packet I/O for all workers (`backend`). Then all privileges are given up
//! (`host::privileges`), and threads are started, without any: one for each worker and, if it has a core of
//! its own, one for the master, each pinned. When all are ready the start is reported. From then on the main
//! thread only waits for signals and reports once a second.
//!
//! SIGTERM, Ctrl-C or `--duration` begin the drain; a second signal ends it at once. On the way out the XDP
//! program is detached before its sockets close, so that nothing is redirected to a socket that is gone.

mod backend;
mod dump;

use crate::cli::Settings;
use crate::host::cpus;
use crate::host::privileges::{self, PrivilegeError};
use crate::host::topology::{self, MasterPlacement, Poll, Topology};
use crate::host::{HostError, HostFacts};
use crate::link::{self, Phase, Shared, WorkerLink};
use crate::master::Master;
use crate::metrics::{self, MetricsError};
use crate::net::PacketIo;
use crate::quic::config::{QuicSettings, WorkerQuic};
use crate::report::{Reporter, Start, WorkerIo, served_queue};
use crate::session::SessionSettings;
use crate::state::{CertificateError, Identity, StateDir, StateError};
use crate::worker::{Ended, Worker, WorkerParts};
use backend::{Backend, BackendError};
use canvas::tiles::TileReader;
use canvas::{Canvas, Geometry, Palette};
use hugepages::{PageKind, Pages, Region, Report, Request};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// Time between two live lines.
const SECOND: Duration = Duration::from_secs(1);

/// Said where [`hot`](crate::quic::hot) could not learn all.
const UNLEARNED: &str = "which memory connections use could not all be learned, to be asked for ahead: with \
                         thousands of clients a message takes longer; on x86-64, allow process_vm_readv in the sandbox";

/// Why the server cannot run. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The state directory or a key in it.
    #[error(transparent)]
    State(#[from] StateError),
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The host's facts cannot be had.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The settings do not fit the host.
    #[error(transparent)]
    Plan(#[from] topology::PlanError),
    /// No packet I/O.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No metrics where they were asked for.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// No memory for the canvas.
    #[error(transparent)]
    Memory(#[from] hugepages::Error),
    /// No such user, or privileges that cannot be given up.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// QUIC's settings cannot be made.
    #[error("cannot set QUIC up: {0}")]
    Quic(String),
    /// A worker could not start.
    #[error("worker {worker} cannot start: {reason}")]
    Worker {
        /// Its index.
        worker: usize,
        /// What it said.
        reason: String,
    },
    /// The kernel refused something that every process needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A worker's packet I/O failed while it ran.
    #[error("worker {worker} cannot go on: {source}")]
    PacketIo {
        /// Its index.
        worker: usize,
        /// What the packet I/O said.
        source: io::Error,
    },
    /// A thread ended by a panic, which is a bug.
    #[error("{0} has panicked; its message is above: please report it")]
    Panicked(String),
}

/// Runs the server until it is told to stop.
///
/// # Errors
/// [`ServerError`]: it cannot start, or a thread failed.
pub fn run(settings: &Settings) -> Result<(), ServerError> {
    // First of all, so that a Ctrl-C during the start is not lost, and ends it cleanly.
    let signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|source| ServerError::System { what: "receive signals", source })?;
    let user = privileges::user(settings.user.as_deref(), &|variable| std::env::var_os(variable))?;
    let state = StateDir::open(settings.state.as_deref())?;
    let keys = state.keys()?;
    let facts = HostFacts::gather(settings.iface.as_deref())?;
    let topology = topology::plan(settings, &facts)?;
    let addresses = backend::reachable_addresses(settings);
    let now = OffsetDateTime::now_utc();
    let identity = Identity::obtain(settings.certificate.as_ref(), &state, &addresses, now)?;

    let mut notes = Vec::new();
    let metrics = metrics::Endpoint::open(settings.metrics, &mut notes)?;
    let mut server = Assembly::new(settings, &topology, &identity, &keys, metrics, &mut notes)?;
    let backend = backend::open(settings, &topology, &mut notes)?;
    let dump = settings.dump.as_ref().map(File::create).transpose();
    let dump = dump.map_err(|source| ServerError::System { what: "open the --dump file", source })?;

    notes.extend(privileges::give_up(user.as_ref(), || backend.works_without_bpf())?);
    // jemalloc's thread gives memory back while nobody allocates; without it an idle worker would keep what a
    // storm of connections used. Not started before: it would keep the privileges.
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        notes.push(format!(
            "memory of closed connections is given back late: jemalloc has no thread: {error}"
        ));
    }
    let signals = receive(signals)?;
    match backend {
        Backend::Xdp(xdp) => {
            let backend::Xdp { ios, io, short, mut steering } = *xdp;
            server.memory.extend(short);
            let running = server.start(ios, io, &addresses, dump, &mut notes)?;
            let (ios, result) = running.supervise(&signals, || steering.follow_addresses());
            drop(steering); // detaches the program, while its sockets still are there
            drop(ios);
            result
        }
        Backend::Uring(uring) => {
            let running = server.start(uring.ios, uring.io, &addresses, dump, &mut notes)?;
            running.supervise(&signals, || None).1
        }
        Backend::Socket(socket) => {
            let running = server.start(socket.ios, socket.io, &addresses, dump, &mut notes)?;
            running.supervise(&signals, || None).1
        }
    }
}

/// A channel that gets a message for each of `signals`, those that have come already included.
fn receive(mut signals: Signals) -> Result<Receiver<()>, ServerError> {
    let (to, from) = mpsc::channel();
    spawn("signals", move || signals.forever().take_while(|_| to.send(()).is_ok()).for_each(drop))?;
    Ok(from)
}

/// Everything that the threads are made of, but for the packet I/O.
struct Assembly<'a> {
    settings: &'a Settings,
    topology: &'a Topology,
    identity: &'a Identity,
    master: Master,
    links: Vec<WorkerLink>,
    tiles: TileReader,
    palette: Palette,
    /// One for each worker. Made here, since the private key may be readable only before privileges are given
    /// up.
    quic: Vec<WorkerQuic>,
    keys: crate::state::Keys,
    metrics: Option<metrics::Endpoint>,
    memory: Vec<Report>,
}

impl<'a> Assembly<'a> {
    fn new(
        settings: &'a Settings,
        topology: &'a Topology,
        identity: &'a Identity,
        keys: &crate::state::Keys,
        metrics: Option<metrics::Endpoint>,
        notes: &mut Vec<String>,
    ) -> Result<Self, ServerError> {
        let geometry = Geometry::new(settings.width.into(), settings.height.into())
            .expect("the command line takes sides of at least 1 pixel only");
        let region = Region::map(&Request {
            what: "canvas tiles",
            len: canvas::tiles::bytes_needed(geometry),
            pages: pages(settings),
            numa_node: topology.workers[0].node,
            prefault: true,
        })?;
        let memory = vec![region.report().clone()];
        let (writer, tiles) = canvas::tiles::create(geometry, region)
            .expect("the region has the size that the tiles asked for");
        let palette = Palette::default();
        let tick_ms = settings.tick.as_millis() as u16;
        let canvas = Canvas::new(writer, palette.clone(), tick_ms);
        let (links, ports) = link::connect(topology.workers.len(), settings.paint_queue)
            .map_err(|source| ServerError::System { what: "make an eventfd for each worker", source })?;
        let shared = links[0].shared.clone();
        let master = Master::new(canvas, ports, shared, settings.master_drain, settings.tick);
        let quic = QuicSettings {
            cert: identity.cert_pem_path.clone(),
            key: identity.key_pem_path.clone(),
            idle_timeout: settings.idle_timeout,
            ticket_key: keys.ticket,
        };
        let quic = topology.workers.iter().map(|_| quic.build()).collect::<Result<_, _>>();
        let quic: Vec<WorkerQuic> = quic.map_err(ServerError::Quic)?;
        if quic.iter().any(|worker| worker.plans.fall_short()) {
            notes.push(UNLEARNED.into());
        }
        if let Err(error) = raise_file_limit() {
            notes.push(format!("the limit of open files stays as it is: {error}"));
        }
        let keys = keys.clone();
        Ok(Self { settings, topology, identity, master, links, tiles, palette, quic, keys, metrics, memory })
    }

    /// Starts all threads on `ios`, and reports the start when they are ready.
    fn start<I: PacketIo + Send + 'static>(
        self,
        ios: Vec<I>,
        mut described: Vec<WorkerIo>,
        addresses: &[IpAddr],
        dump: Option<File>,
        notes: &mut Vec<String>,
    ) -> Result<Running<I>, ServerError> {
        let Self { settings, topology, identity, master, links, tiles, palette, quic, keys, metrics, memory } =
            self;
        let shared = links[0].shared.clone();
        let sleepy = topology.poll == Poll::Adaptive;
        let mut running = Running {
            shared: shared.clone(),
            workers: Vec::new(),
            master: None,
            metrics: None,
            reporter: Reporter::new(settings),
            duration: settings.duration,
            dump,
            tiles: tiles.clone(),
        };
        let mut stage = match topology.master {
            MasterPlacement::StageOfWorker0 => Some(master),
            MasterPlacement::OwnCore(cpu) => {
                running.master = Some(spawn("master", move || {
                    pin(cpu);
                    master.run(sleepy);
                })?);
                None
            }
        };
        let (ready, readiness) = mpsc::channel();
        for (((io, link), quic), placement) in ios.into_iter().zip(links).zip(quic).zip(&topology.workers) {
            let parts = WorkerParts {
                link,
                tiles: tiles.clone(),
                palette: palette.clone(),
                quic,
                session: SessionSettings {
                    tick_ms: settings.tick.as_millis() as u16,
                    client_kbit: settings.client_kbit,
                    client_pixels: settings.client_pixels,
                    token: settings.token.as_ref().map(|token| token.as_bytes().to_vec()),
                },
                max_connections: settings.max_connections_per_worker,
                connection_id_key: keys.connection_id,
                reset_key: keys.reset,
                pages: pages(settings),
                numa_node: placement.node,
            };
            let (cpu, stage, ready) = (placement.cpu, stage.take(), ready.clone());
            let name = format!("worker-{}", placement.index);
            running.workers.push(spawn(&name, move || worker(io, parts, cpu, stage, sleepy, &ready))?);
        }
        drop(ready);

        let mut reports = memory;
        for _ in 0..running.workers.len() {
            match readiness.recv() {
                Ok((worker, Ok(report))) => {
                    described[worker].memory += &format!(", connections on {} pages", report.kind);
                    reports.push(report);
                }
                Ok((worker, Err(reason))) => {
                    let (_ios, _consequence) = running.stop();
                    return Err(ServerError::Worker { worker, reason });
                }
                Err(_) => {
                    let (_ios, result) = running.stop();
                    return Err(result.err().unwrap_or_else(|| ServerError::Panicked("a worker".into())));
                }
            }
        }
        // A line for each page size and node.
        notes.extend(hugepages::advise(&reports).iter().flat_map(|advice| advice.lines().map(str::to_owned)));
        let at = metrics.as_ref().map(metrics::Endpoint::address);
        let start = Start { settings, topology, io: &described, addresses, metrics: at, identity, notes };
        if let Some(endpoint) = metrics {
            let queues = topology.workers.iter().zip(&described);
            let queues = queues.map(|(worker, io)| served_queue(worker, io)).collect();
            let common = start.common();
            let source = metrics::Source::new(shared, queues, common.backend, common.mode);
            running.metrics = Some(endpoint.start(source, |life| spawn("metrics", life))?);
        }
        running.reporter.start(&start, OffsetDateTime::now_utc());
        Ok(running)
    }
}

/// What a worker tells when it is ready: its index, and the memory of its connection table or why it cannot
/// start.
type Ready = (usize, Result<Report, String>);

/// The life of a worker's thread. Returns the packet I/O, to be closed when all workers are done.
fn worker<I: PacketIo>(
    io: I,
    parts: WorkerParts,
    cpu: usize,
    stage: Option<Master>,
    sleepy: bool,
    ready: &Sender<Ready>,
) -> Option<Ended<I>> {
    pin(cpu);
    let index = parts.link.index;
    // Connections' state is made here: it stays on this thread, in this core's memory.
    let worker = match Worker::new(io, parts) {
        Ok(worker) => worker,
        Err(reason) => {
            let _ = ready.send((index, Err(reason)));
            return None;
        }
    };
    let _ = ready.send((index, Ok(worker.memory())));
    match stage {
        None => Some(worker.run(sleepy)),
        Some(mut master) => {
            let ended = worker.run_with_master(sleepy, &mut master);
            master.finish();
            Some(ended)
        }
    }
}

/// The running server, as the main thread sees it.
struct Running<I> {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Option<Ended<I>>>>,
    master: Option<JoinHandle<()>>,
    /// Lives as long as this, so that the drain can be watched, too.
    metrics: Option<metrics::Serving>,
    reporter: Reporter,
    duration: Option<Duration>,
    dump: Option<File>,
    tiles: TileReader,
}

impl<I> Running<I> {
    /// Reports once a second until a signal or the end of `--duration`, then drains. `each_second` may have
    /// something to say, too. Returns the packet I/O of all workers, still open.
    fn supervise(
        mut self,
        signals: &Receiver<()>,
        mut each_second: impl FnMut() -> Option<String>,
    ) -> (Vec<I>, Result<(), ServerError>) {
        let started = Instant::now();
        let (mut last, mut next) = (started, started + SECOND);
        loop {
            let now = Instant::now();
            let end = self.duration.map(|duration| started + duration);
            if end.is_some_and(|end| now >= end) || self.workers.iter().any(JoinHandle::is_finished) {
                break;
            }
            if now >= next {
                if let Some(sentence) = each_second() {
                    self.reporter.note(&sentence, OffsetDateTime::now_utc());
                }
                let (workers, master) = self.snapshot();
                self.reporter.second(&workers, &master, now - last, OffsetDateTime::now_utc());
                (last, next) = (now, (next + SECOND).max(now));
            }
            let until = end.map_or(next, |end| end.min(next));
            match signals.recv_timeout(until.saturating_duration_since(now)) {
                Ok(()) => break,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(SECOND / 10),
            }
        }
        self.shared.advance(Phase::Drain);
        let told = self.shared.totals().connections;
        if told > 0 {
            let note = format!("draining: telling {told} clients, at most 5 s (Ctrl-C again to leave now)");
            self.reporter.note(&note, OffsetDateTime::now_utc());
        }
        // The worker that carries the master lingers for the others: it is not waited for here.
        let carried = usize::from(self.master.is_none());
        while self.workers.iter().skip(carried).any(|worker| !worker.is_finished())
            || !self.drained_first(carried)
        {
            if signals.recv_timeout(SECOND / 100).is_ok() {
                break;
            }
        }
        let (ios, mut result) = self.stop();
        let (workers, master) = self.snapshot();
        self.reporter.summary(&workers, &master, started.elapsed(), OffsetDateTime::now_utc());
        if let Some(file) = self.dump.take() {
            result = result.and(dump::write(&self.tiles, file));
        }
        (ios, result)
    }

    /// True when the worker that carries the master, if one does, has told its clients.
    fn drained_first(&self, carried: usize) -> bool {
        carried == 0 || self.workers[0].is_finished() || self.shared.workers[0].snapshot().drained != 0
    }

    /// Ends all threads. Returns the packet I/O of the workers, still open, and the first failure of a
    /// thread.
    fn stop(&mut self) -> (Vec<I>, Result<(), ServerError>) {
        self.shared.advance(Phase::Stop);
        let (mut ios, mut result) = (Vec::new(), Ok(()));
        for (worker, thread) in self.workers.drain(..).enumerate() {
            let ended = match thread.join() {
                Ok(Some(Ended { io, result })) => {
                    ios.push(io);
                    result.map_err(|source| ServerError::PacketIo { worker, source })
                }
                Ok(None) => Ok(()),
                Err(_) => Err(ServerError::Panicked(format!("worker {worker}"))),
            };
            result = result.and(ended);
        }
        if let Some(master) = self.master.take() {
            result = result.and(master.join().map_err(|_| ServerError::Panicked("the master".into())));
        }
        (ios, result)
    }

    fn snapshot(&self) -> (Vec<crate::stats::WorkerStats>, crate::stats::MasterStats) {
        (self.shared.workers.iter().map(|cell| cell.snapshot()).collect(), self.shared.master_stats())
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    life: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, ServerError> {
    let system = |source| ServerError::System { what: "start a thread", source };
    let without_privileges = move || {
        // The main thread has CAP_BPF at most, and has just given up the others: nothing refuses this.
        let _ = privileges::renounce();
        life()
    };
    thread::Builder::new().name(name.into()).spawn(without_privileges).map_err(system)
}

/// Pins this thread. The topology has checked that the core is ours, so a failure means that it was taken
/// away since; the kernel then places the thread, and the server is slower, not wrong.
fn pin(cpu: usize) {
    let _ = cpus::pin(cpu);
}

/// The pages that the connections and the canvas are asked for on.
pub(crate) fn pages(settings: &Settings) -> Pages {
    use crate::cli::HugePages;
    match settings.huge_pages {
        HugePages::Auto => Pages::Auto,
        HugePages::OneGib => Pages::AtMost(PageKind::Huge1G),
        HugePages::TwoMib => Pages::AtMost(PageKind::Huge2M),
        HugePages::Transparent => Pages::AtMost(PageKind::Transparent),
        HugePages::Plain => Pages::Exactly(PageKind::Plain),
    }
}

/// Allows as many open files as the host lets us without asking: a worker has about six.
fn raise_file_limit() -> nix::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}
