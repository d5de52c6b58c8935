//! Making the rings: what the kernel has, what is done without, and a clear word when nothing can be had.
//!
//! All rings are made by the main thread, disabled, before any worker starts. Everything that a host may
//! refuse is refused here; putting the rings over sockets ([`Rings::serve`]) cannot fail.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;

use io_uring::{IoUring, Probe, opcode};

use super::UringIo;
use super::error::{Host, UringError, release};
use super::ring::Ring;
use super::supply::{Supply, buffers_for};
use super::tx::TX_TRAINS;
use crate::net::socket::SocketIo;

/// Milliseconds for which the kernel's submission thread (`sqpoll`) looks for work before it sleeps: one tick
/// by default, so that it is awake when a broadcast is sent. Longer: an idle server burns a core. Shorter: a
/// system call to wake it comes with every broadcast.
const SQPOLL_IDLE_MS: u32 = 50;

/// Completions beside those of receive buffers and trains: cancellations and the wake-up.
const OTHER_COMPLETIONS: u32 = 64;

/// What rings to make.
#[derive(Clone, Debug)]
pub struct UringConfig {
    /// Rings, one for each worker.
    pub workers: NonZeroUsize,
    /// Most connections of one worker, by which its receive buffers are counted.
    pub connections: u32,
    /// Entries of each submission queue; the kernel rounds up to a power of two, and takes 32,768 at most.
    pub sq_depth: u32,
    /// Let a kernel thread for each ring take what is queued, without a system call. It burns a core while
    /// there is traffic.
    pub sqpoll: bool,
}

/// When the kernel does the work of arriving packets, by the flags of io_uring_setup(2). The first is the
/// best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskWork {
    /// When we ask for completions: `SINGLE_ISSUER`, `COOP_TASKRUN`, `DEFER_TASKRUN` (Linux 6.1).
    Deferred,
    /// At any system call: `SINGLE_ISSUER`, `COOP_TASKRUN` (6.0).
    SingleIssuer,
    /// Likewise: `COOP_TASKRUN` (5.19).
    Cooperative,
    /// At once, interrupting us.
    Interrupting,
}

impl TaskWork {
    const ALL: [Self; 4] = [Self::Deferred, Self::SingleIssuer, Self::Cooperative, Self::Interrupting];

    /// What it lacks of the best.
    fn missing(self) -> &'static str {
        match self {
            Self::Deferred => "nothing",
            Self::SingleIssuer => "DEFER_TASKRUN (6.1)",
            Self::Cooperative => "DEFER_TASKRUN (6.1) and SINGLE_ISSUER (6.0)",
            Self::Interrupting => "DEFER_TASKRUN (6.1), SINGLE_ISSUER (6.0) and COOP_TASKRUN (5.19)",
        }
    }
}

/// What to use at most. The default is everything; tests ask for less, to play an older kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) task_work: TaskWork,
    pub(super) multishot: bool,
    /// Receive buffers; `None`: by connections.
    pub(super) buffers: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { task_work: TaskWork::Deferred, multishot: true, buffers: None }
    }
}

/// Something that the kernel has not got. The backend works all the same.
#[derive(Debug)]
pub enum UringNote {
    /// Flags for when the kernel does its work.
    TaskWork {
        /// The kernel's release.
        release: String,
        /// The flags.
        missing: &'static str,
    },
    /// Multishot receives from provided buffer rings.
    SingleShot {
        /// The kernel's release.
        release: String,
    },
    /// `--sqpoll`.
    NoSqpoll(io::Error),
}

impl fmt::Display for UringNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TaskWork { release, missing } => {
                write!(f, "io_uring of Linux {release} has no {missing}: each packet costs more without")
            }
            Self::SingleShot { release } => write!(
                f,
                "io_uring of Linux {release} has no multishot receive (6.0): each packet is asked for anew, \
                 and --backend socket may be faster"
            ),
            Self::NoSqpoll(error) => write!(
                f,
                "--sqpoll is off ({error}): it takes CAP_SYS_NICE before Linux 5.13, and room for one more \
                 thread for each worker (ulimit -u)"
            ),
        }
    }
}

/// The rings of all workers, not enabled yet.
pub struct Rings {
    rings: Vec<(Ring, Supply)>,
    /// What is done without.
    pub notes: Vec<UringNote>,
}

/// Makes the rings of all workers.
///
/// # Errors
/// See [`UringError`]. Nothing is left behind.
pub fn open(config: &UringConfig) -> Result<Rings, UringError> {
    open_within(config, Limits::default())
}

/// [`open`], using no more than `limits`.
pub(super) fn open_within(config: &UringConfig, limits: Limits) -> Result<Rings, UringError> {
    let workers = config.workers.get();
    let mut notes = Vec::new();
    let mut rings = Vec::with_capacity(workers);
    for worker in 0..workers {
        // What the first ring is told not to have no other has: say it once.
        let notes = if worker == 0 { &mut notes } else { &mut Vec::new() };
        rings.push(one(config, limits, worker, notes)?);
    }
    Ok(Rings { rings, notes })
}

impl Rings {
    /// Puts each ring over a socket, in the order of workers. What the sockets have queued is lost.
    pub fn serve(self, sockets: Vec<SocketIo>) -> Vec<UringIo> {
        let parts = sockets.into_iter().map(SocketIo::into_parts);
        let pairs = self.rings.into_iter().zip(parts);
        pairs.map(|((ring, supply), (socket, local))| UringIo::new(ring, supply, socket, local)).collect()
    }
}

/// The ring of one worker, and how it gets its receive buffers.
fn one(
    config: &UringConfig,
    limits: Limits,
    worker: usize,
    notes: &mut Vec<UringNote>,
) -> Result<(Ring, Supply), UringError> {
    let buffers = limits.buffers.unwrap_or_else(|| buffers_for(config.connections));
    let ring = set_up(config, limits, buffers, notes)
        .map_err(|error| Host::read().explain(error, worker, config.workers.get(), config.sq_depth))?;
    let probe = require(&ring)?;
    // Multishot receives have no probe of their own; zero-copy send came with the same release, 6.0.
    let supply = if limits.multishot && probe.is_supported(opcode::SendZc::CODE) {
        Supply::register(&ring.submitter(), buffers).map_err(|source| {
            if source.raw_os_error() == Some(libc::ENOMEM) {
                UringError::NoMemory { workers: config.workers.get(), sq_depth: config.sq_depth }
            } else {
                UringError::System { call: "io_uring_register (buffer ring)", source }
            }
        })?
    } else {
        Supply::single_shot(buffers)
    };
    if matches!(supply, Supply::Posted(_)) {
        notes.push(UringNote::SingleShot { release: release() });
    }
    Ok((Ring::new(ring), supply))
}

/// io_uring_setup(2), with the best flags that the kernel knows.
fn set_up(
    config: &UringConfig,
    limits: Limits,
    buffers: u32,
    notes: &mut Vec<UringNote>,
) -> io::Result<IoUring> {
    // The kernel wants the completion queue to be the longer one. What all operations that can be under way
    // complete with must fit, or it goes a slower way.
    let completions = buffers + TX_TRAINS as u32 + OTHER_COMPLETIONS;
    let completions = completions.max(2 * config.sq_depth).next_power_of_two();
    if config.sqpoll {
        // The flags for task work are refused with it: that work is the kernel thread's then.
        let mut refused = None;
        for single_issuer in [true, false] {
            let mut builder = IoUring::builder();
            builder.setup_r_disabled().setup_cqsize(completions).setup_sqpoll(SQPOLL_IDLE_MS);
            if single_issuer {
                builder.setup_single_issuer();
            }
            match builder.build(config.sq_depth) {
                Ok(ring) => return Ok(ring),
                Err(error) => refused = Some(error),
            }
        }
        notes.extend(refused.map(UringNote::NoSqpoll));
    }
    let mut rungs = TaskWork::ALL.into_iter().skip_while(|rung| *rung != limits.task_work);
    loop {
        let Some(rung) = rungs.next() else { return Err(io::Error::from_raw_os_error(libc::EINVAL)) };
        let mut builder = IoUring::builder();
        builder.setup_r_disabled().setup_cqsize(completions);
        if rung != TaskWork::Interrupting {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if matches!(rung, TaskWork::Deferred | TaskWork::SingleIssuer) {
            builder.setup_single_issuer();
        }
        if rung == TaskWork::Deferred {
            builder.setup_defer_taskrun();
        }
        match builder.build(config.sq_depth) {
            Ok(ring) => {
                if rung != TaskWork::Deferred {
                    notes.push(UringNote::TaskWork { release: release(), missing: rung.missing() });
                }
                return Ok(ring);
            }
            // A flag that is not known.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Checks that `ring` has what this backend cannot do without.
fn require(ring: &IoUring) -> Result<Probe, UringError> {
    let too_old = |missing, needs| UringError::TooOld { release: release(), missing, needs };
    if !ring.params().is_feature_ext_arg() {
        return Err(too_old("wait with a timeout (IORING_FEAT_EXT_ARG)", "Linux 5.11"));
    }
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|source| UringError::System { call: "io_uring_register (probe)", source })?;
    for (code, name) in [
        (opcode::RecvMsg::CODE, "IORING_OP_RECVMSG"),
        (opcode::SendMsg::CODE, "IORING_OP_SENDMSG"),
        (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD"),
        (opcode::AsyncCancel::CODE, "IORING_OP_ASYNC_CANCEL"),
    ] {
        if !probe.is_supported(code) {
            return Err(too_old(name, "Linux 5.11"));
        }
    }
    Ok(probe)
}
