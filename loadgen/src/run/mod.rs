//! The coordinator: starts the threads, leads the run through its stages, verifies, and makes the report.
//!
//! It runs on the caller's runtime and carries no load itself. Whatever ends a run early (Ctrl-C, a server
//! that died, no server at all, a full disk), the report is made of what there is.

mod figures;
mod stages;

use std::future::ready;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use canvas::codec::control::ServerStats;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::cli::Settings;
use crate::endpoint::{self, Configs, Sockets};
use crate::host;
use crate::loss::Loss;
use crate::observer::{Observer, Start};
use crate::probe::Probe;
use crate::processes;
use crate::report::{Failure, Loop, Report};
use crate::shared::{Phase, Shared};
use crate::threads::Threads;
use crate::verify;
use stages::{Run, Timetable};

/// How long acknowledgements and diffs of the last paints may take, where they are not verified. Paints that
/// come back later count as unconfirmed.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long the last paints may take to arrive before the server is asked how many it applied: a queue's
/// worth. With less the counts differ by what was on its way.
const LAST_PAINTS: Duration = Duration::from_millis(200);
/// How often the coordinator looks whether a stage is over. Finer ends stages sooner, and wakes it for
/// nothing.
const POLL: Duration = Duration::from_millis(20);

/// A failure, and what to say of it.
type Failed = (Failure, String);

/// A signal that may be waited for again after it came.
pub(crate) struct Signal<'a> {
    signal: Pin<&'a mut (dyn Future<Output = ()> + Send)>,
    pub(crate) came: bool,
}

impl<'a> Signal<'a> {
    /// Of the future that is ready when the signal comes.
    pub(crate) fn new(signal: Pin<&'a mut (dyn Future<Output = ()> + Send)>) -> Self {
        Self { signal, came: false }
    }

    /// Waits for it; at once if it came before.
    pub(crate) async fn wait(&mut self) {
        if !self.came {
            self.signal.as_mut().await;
            self.came = true;
        }
    }
}

/// What ends a stage of a run from outside.
pub(crate) struct Cues<'a> {
    /// The run is to end.
    pub(crate) stop: Signal<'a>,
    /// The clients of all processes have come up.
    pub(crate) go: Signal<'a>,
}

/// Runs what `settings` ask for until its end, or until `stop` is ready. Call it on a tokio runtime; the
/// load runs on threads of its own. The report says how it went, also if it did not go at all; with
/// `settings.out` it and the timeline are files, too.
pub async fn run(settings: Settings, stop: impl Future<Output = ()> + Send) -> Report {
    if settings.processes > 1 {
        return processes::run(settings, stop).await;
    }
    let start = Start::now();
    let mut report = blank(&settings, start);
    match Observer::person(&settings, start) {
        Ok(observer) => {
            let (stop, go) = (pin!(stop), pin!(ready(())));
            let cues = Cues { stop: Signal::new(stop), go: Signal::new(go) };
            observed(settings, start, cues, observer, &mut report).await;
        }
        Err(error) => report.fail(Failure::Unwritten, error.to_string()),
    }
    report
}

/// The report of a run of which nothing is known yet.
pub(crate) fn blank(settings: &Settings, start: Start) -> Report {
    Report {
        id: settings.id.clone(),
        target: settings.target.to_string(),
        scenario: settings.scenario,
        load_loop: if settings.closed_loop { Loop::Closed } else { Loop::Open },
        processes: 1,
        started_unix_ms: start.unix_ms,
        partial: true,
        clients: settings.clients as u64,
        watchers: settings.watchers as u64,
        verified: settings.verify.then_some(false),
        ..Report::default()
    }
}

/// A run that `observer` hears of, its report included.
pub(crate) async fn observed(
    settings: Settings,
    start: Start,
    mut cues: Cues<'_>,
    mut observer: Observer,
    report: &mut Report,
) {
    if let Err((failure, error)) = drive(settings, start, &mut cues, &mut observer, report).await {
        if report.verified == Some(false) && report.verify_error.is_none() {
            report.verify_error = Some("the run failed before it could be verified".to_owned());
        }
        report.fail(failure, error);
    }
    report.interrupted = cues.stop.came;
    if let Err(error) = observer.finish(report) {
        report.fail(Failure::Unwritten, error.to_string());
    }
}

async fn drive(
    settings: Settings,
    start: Start,
    cues: &mut Cues<'_>,
    observer: &mut Observer,
    report: &mut Report,
) -> Result<(), Failed> {
    raise_file_limit();
    let configs = Configs::new(settings.cert_sha256);
    let (probe, before) = tokio::select! {
        found = find_server(&settings, &configs) => found?,
        () = cues.stop.wait() => {
            return Err((Failure::Other, "stopped before the server answered".to_owned()));
        }
    };
    let (server, shape) = (probe.server(), probe.shape().clone());
    let rss_before = host::resident_bytes();
    let other = |error| (Failure::Other, error);
    let opened = sockets(&settings, server, observer, report).map_err(other)?;
    observer.say(&format!(
        "{}: {} clients, {} of them watchers, to {server} from {} sockets on {} threads; canvas of {} x {}",
        settings.scenario.name(),
        settings.clients,
        settings.watchers,
        opened.sockets.len(),
        settings.threads,
        shape.geometry.width(),
        shape.geometry.height()
    ));
    let (shared, signals) = Shared::new(settings, server, configs, shape);
    let shared = Arc::new(shared);
    let threads = Threads::start(&shared, opened.sockets).map_err(other)?;
    let table = Timetable::new(start);
    let used_lately = shared.footprint.cpu();
    let mut run = Run { shared, signals, threads, probe, table, rss_before, used_before: None, used_lately };

    let load = run.load(cues, observer, report).await;
    let used = run.end_window();
    report.client = run.cost(&used, opened.ports_missing);
    // Fails only if all clients have ended already.
    let _ = run.signals.phase.send(Phase::Quiet);
    // Before the wait for the last answers, and after it.
    run.drain_second(observer, report);
    match (&load, run.shared.settings.verify) {
        // With nobody left there is nothing to compare and nothing to wait for.
        (Err(_), _) => report.verify_error = run.shared.fault().filter(|_| report.verified.is_some()),
        (Ok(()), false) => run.last_answers().await,
        (Ok(()), true) => {
            match verify::verify(&run.shared, &mut run.signals, &mut run.probe, &before, observer).await {
                Ok(proven) => (report.verified, report.pixels_proven) = (Some(true), proven),
                Err(error) => report.verify_error = Some(error),
            }
        }
    }
    run.drain_second(observer, report);
    let after = run.probe.figures().await;
    run.finish(report, &before, after.as_ref().ok()).await;
    load?;
    after.map_err(|loss| (Failure::ServerDied, format!("the server does not answer any more: {loss}")))?;
    report.tolerates(run.shared.settings.max_failed).map_err(other)
}

/// The clients' sockets: for the server's queues, if asked for, or else on any ports.
fn sockets(
    settings: &Settings,
    server: SocketAddr,
    observer: &Observer,
    report: &mut Report,
) -> Result<Sockets, String> {
    let Some(alignment) = &settings.align else {
        return endpoint::bind_all(server, settings.endpoints, settings.threads);
    };
    let plan = alignment.plan(server, settings.endpoints, settings.threads);
    let plan = plan.map_err(|error| error.to_string())?;
    let queues = plan.shares(settings.clients);
    observer.say(&match &queues[..] {
        [only] => format!("{} source ports that lead to queue {}", only.ports, only.queue),
        all => format!("{} source ports for each of {} queues", plan.endpoints() / all.len(), all.len()),
    });
    report.queues = Some(queues);
    Ok(Sockets { sockets: plan.into_sockets(), ports_missing: 0 })
}

/// A probe of the first of the target's addresses that answers, and the server's figures.
async fn find_server(settings: &Settings, configs: &Configs) -> Result<(Probe, ServerStats), Failed> {
    let target = &settings.target;
    let unreachable = |error| (Failure::Unreachable, error);
    let addresses =
        target.resolve().await.map_err(|error| unreachable(format!("cannot find {target}: {error}")))?;
    let (mut causes, mut silent) = (Vec::new(), false);
    for server in addresses {
        let answer = async {
            let (name, timeout) = (target.server_name(), settings.connect_timeout);
            let mut probe = Probe::connect(configs.clone(), server, name, &settings.token, timeout).await?;
            let figures = probe.figures().await?;
            Ok::<_, Loss>((probe, figures))
        };
        match answer.await {
            Ok(found) => return Ok(found),
            Err(loss) if loss.is_unauthorized() => {
                let how = if settings.token.is_empty() { "wants a token; give it" } else { "refused it" };
                return Err((
                    Failure::TokenRefused,
                    format!("{target} {how}: --token TOKEN, or LOADGEN_TOKEN in the environment"),
                ));
            }
            Err(loss) => {
                silent |= loss == Loss::CONNECT_TIMEOUT;
                causes.push(format!("{server}: {loss}"));
            }
        }
    }
    let hint = match configs.refused_certificate() {
        Some(hash) => format!(
            "; its certificate's SHA-256 is {}, not the one of --cert-sha256",
            hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        ),
        None if silent => "; does the server run, and does UDP get through to its port?".to_owned(),
        None => String::new(),
    };
    Err(unreachable(format!("cannot reach {target} ({}){hint}", causes.join(", "))))
}

/// Raises the soft limit on open files to the hard one: there are as many sockets as asked for, and shells
/// are stingy.
fn raise_file_limit() {
    // Best effort: if it does not suffice, opening sockets fails, and says so.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
