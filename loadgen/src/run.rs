//! The coordinator: starts the threads, says when to paint and when to be quiet, verifies, and makes the
//! report.
//!
//! It runs on the caller's runtime and carries no load itself. Whatever ends a run early (Ctrl-C, a server
//! that died, no server at all), the report is made of what there is.

use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use canvas::codec::control::ServerStats;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::cli::Settings;
use crate::endpoint::Configs;
use crate::loss::Loss;
use crate::probe::Probe;
use crate::progress::Progress;
use crate::report::{Percentiles, Report};
use crate::shared::{Phase, Shared, Signals};
use crate::threads::{CLOSE_TIMEOUT, Threads};
use crate::verify;

/// How long acknowledgements and diffs of the last paints may take, where they are not verified. Paints that
/// come back later count as unconfirmed.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long the last paints may take to arrive before the server is asked how many it applied: a queue's
/// worth. With less the counts differ by what was on its way.
const LAST_PAINTS: Duration = Duration::from_millis(200);
/// How often the coordinator looks whether a stage is over. Finer ends stages sooner, and wakes it for
/// nothing.
const POLL: Duration = Duration::from_millis(20);

/// Runs what `settings` ask for until its end, or until `stop` is ready. Call it on a tokio runtime; the
/// load runs on threads of its own. The report says how it went, also if it did not go at all.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) -> Report {
    let mut report = Report {
        id: settings.id.clone(),
        target: settings.target.to_string(),
        clients: settings.clients as u64,
        watchers: settings.watchers as u64,
        verified: settings.verify.then_some(false),
        ..Report::default()
    };
    let mut stop = Stop { signal: std::pin::pin!(stop), came: false };
    if let Err(failure) = drive(settings, &mut stop, &mut report).await {
        if report.verified == Some(false) && report.verify_error.is_none() {
            report.verify_error = Some("the run failed before it could be verified".to_owned());
        }
        (report.error, report.unreachable) = match failure {
            Failure::Unreachable(error) => (Some(error), true),
            Failure::Other(error) => (Some(error), false),
        };
    }
    report
}

/// Why a run failed, verification apart.
enum Failure {
    /// Nobody connected.
    Unreachable(String),
    /// Anything else.
    Other(String),
}

/// The signal to stop, which may be waited for again after it came.
struct Stop<'a, F> {
    signal: Pin<&'a mut F>,
    came: bool,
}

impl<F: Future<Output = ()>> Stop<'_, F> {
    async fn wait(&mut self) {
        if !self.came {
            self.signal.as_mut().await;
            self.came = true;
        }
    }
}

async fn drive(
    mut settings: Settings,
    stop: &mut Stop<'_, impl Future<Output = ()>>,
    report: &mut Report,
) -> Result<(), Failure> {
    raise_file_limit();
    let progress = Progress::new(&settings.id, settings.quiet);
    let configs = Configs::new(settings.cert_sha256);
    let (probe, before) = tokio::select! {
        found = find_server(&settings, &configs) => found.map_err(Failure::Unreachable)?,
        () = stop.wait() => return Err(Failure::Other("stopped before the server answered".to_owned())),
    };
    let (server, shape) = (probe.server(), probe.shape().clone());
    let sockets = aligned(&mut settings, server, report, &progress)?;
    progress.say(&format!(
        "{} clients, {} of them watchers, to {server} from {} sockets on {} threads; canvas of {} x {}",
        settings.clients,
        settings.watchers,
        settings.endpoints,
        settings.threads,
        shape.geometry.width(),
        shape.geometry.height()
    ));
    let (shared, signals) = Shared::new(settings, server, configs, shape);
    let shared = Arc::new(shared);
    let threads = Threads::start(&shared, sockets).map_err(Failure::Other)?;
    let mut run =
        Run { shared, signals, threads, probe, progress, ramp: Duration::ZERO, load: Duration::ZERO };

    let load = run.load(stop, report).await;
    // Fails only if all clients have ended already.
    let _ = run.signals.phase.send(Phase::Quiet);
    match (&load, run.shared.settings.verify) {
        // With nobody left there is nothing to compare and nothing to wait for.
        (Err(_), _) => report.verify_error = run.shared.fault().filter(|_| report.verified.is_some()),
        (Ok(()), false) => run.last_answers().await,
        (Ok(()), true) => {
            match verify::verify(&run.shared, &mut run.signals, &mut run.probe, &before, &run.progress).await
            {
                Ok(proven) => (report.verified, report.pixels_proven) = (Some(true), proven),
                Err(error) => report.verify_error = Some(error),
            }
        }
    }
    let after = run.probe.figures().await;
    run.finish(report, &before, after.as_ref().ok()).await;
    load?;
    after.map_err(|loss| Failure::Other(format!("the server does not answer any more: {loss}")))?;
    run.tolerated(report).map_err(Failure::Other)
}

/// Sockets for the server's queues, if asked for.
fn aligned(
    settings: &mut Settings,
    server: SocketAddr,
    report: &mut Report,
    progress: &Progress,
) -> Result<Option<Vec<UdpSocket>>, Failure> {
    let Some(alignment) = &settings.align else { return Ok(None) };
    let plan = alignment.plan(server, settings.endpoints, settings.threads);
    let plan = plan.map_err(|error| Failure::Other(error.to_string()))?;
    let queues = plan.shares(settings.clients);
    settings.endpoints = plan.endpoints();
    progress.say(&match &queues[..] {
        [only] => format!("{} source ports that lead to queue {}", only.ports, only.queue),
        all => format!("{} source ports for each of {} queues", plan.endpoints() / all.len(), all.len()),
    });
    report.queues = Some(queues);
    Ok(Some(plan.into_sockets()))
}

/// A probe of the first of the target's addresses that answers, and the server's figures.
async fn find_server(settings: &Settings, configs: &Configs) -> Result<(Probe, ServerStats), String> {
    let target = &settings.target;
    let addresses = target.resolve().await.map_err(|error| format!("cannot find {target}: {error}"))?;
    let (mut causes, mut silent) = (Vec::new(), false);
    for server in addresses {
        let answer = async {
            let (name, timeout) = (target.server_name(), settings.connect_timeout);
            let mut probe = Probe::connect(configs.clone(), server, name, timeout).await?;
            let figures = probe.figures().await?;
            Ok::<_, Loss>((probe, figures))
        };
        match answer.await {
            Ok(found) => return Ok(found),
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
    Err(format!("cannot reach {target} ({}){hint}", causes.join(", ")))
}

/// A run whose threads have started.
struct Run {
    shared: Arc<Shared>,
    signals: Signals,
    threads: Threads,
    probe: Probe,
    progress: Progress,
    ramp: Duration,
    load: Duration,
}

impl Run {
    /// The ramp, then the load, for as long as asked.
    async fn load(
        &mut self,
        stop: &mut Stop<'_, impl Future<Output = ()>>,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        let mut shown = start;
        let mut stage = "connecting";
        let mut load_start = None;
        let mut pixels_before = 0;
        let result = loop {
            let now = Instant::now();
            let (_, live, _) = self.shared.stats.connections();
            if load_start.is_none() && self.shared.ramping() == 0 {
                (self.ramp, stage, load_start) = (now - start, "painting", Some(now));
                pixels_before = self.pixels_sent();
            }
            if let Some(load_start) = load_start {
                if live == 0 {
                    break Err(self.nobody_left());
                }
                if self.shared.settings.duration.is_some_and(|duration| now - load_start >= duration) {
                    break Ok(());
                }
            }
            if let Some(error) = self.threads.ended() {
                break Err(Failure::Other(error));
            }
            if now - shown >= Duration::from_secs(1) {
                self.progress.second(stage, &self.shared.stats, (now - shown).as_secs_f64());
                shown = now;
            }
            tokio::select! {
                () = sleep_until(now + POLL) => {}
                () = stop.wait() => break Ok(()),
            }
        };
        let end = Instant::now();
        match load_start {
            Some(load_start) => {
                self.load = end - load_start;
                let pixels = self.pixels_sent() - pixels_before;
                report.pixels_per_s = pixels as f64 / self.load.as_secs_f64().max(f64::MIN_POSITIVE);
            }
            None => self.ramp = end - start,
        }
        result
    }

    fn pixels_sent(&self) -> u64 {
        let totals = self.shared.stats.totals();
        totals.pixels_sent_datagram + totals.pixels_sent_frame
    }

    fn nobody_left(&self) -> Failure {
        let causes = self.causes();
        match self.shared.stats.connections().0 {
            0 => Failure::Unreachable(format!("no client connected: {causes}")),
            _ => {
                Failure::Other(format!("every connection was lost, the server ended or is cut off: {causes}"))
            }
        }
    }

    /// Why connections failed, in a line.
    fn causes(&self) -> String {
        let failures = self.shared.stats.failures();
        failures.iter().map(|(cause, count)| format!("{count} x {cause}")).collect::<Vec<_>>().join(", ")
    }

    /// Waits a little for what the last paints bring back.
    async fn last_answers(&self) {
        sleep(LAST_PAINTS).await;
        let deadline = Instant::now() + LAST_ANSWERS;
        loop {
            let totals = self.shared.stats.totals();
            let all = totals.frames_settled >= totals.frames_sent
                && totals.confirmed + totals.unconfirmed >= totals.timed;
            if all || Instant::now() >= deadline {
                return;
            }
            sleep(POLL).await;
        }
    }

    /// Closes all connections and fills in the report.
    async fn finish(&mut self, report: &mut Report, before: &ServerStats, after: Option<&ServerStats>) {
        let _ = self.signals.phase.send(Phase::Close);
        // The threads bound their own wait; the second more is for what they do besides.
        let deadline = Instant::now() + CLOSE_TIMEOUT + Duration::from_secs(1);
        let _ = timeout(CLOSE_TIMEOUT, self.probe.finish()).await;
        while !self.threads.all_ended() && Instant::now() < deadline {
            sleep(POLL).await;
        }
        let stats = &self.shared.stats;
        let totals = stats.totals();
        (report.connections, _, report.connections_peak) = stats.connections();
        report.failures_by_cause = stats.failures().clone();
        report.failed = report.failures_by_cause.values().sum();
        report.pixels_sent = self.pixels_sent();
        report.pixels_sent_datagram = totals.pixels_sent_datagram;
        report.pixels_sent_frame = totals.pixels_sent_frame;
        report.pixels_unsent = totals.pixels_unsent;
        report.pixels_acked = totals.pixels_acked;
        report.pixels_rejected = totals.pixels_rejected;
        // Less than before: it is another server than the one asked first.
        report.pixels_applied = after.and_then(|after| after.applied.checked_sub(before.applied));
        report.diff_datagrams = totals.diff_datagrams;
        report.records_applied = totals.records_applied;
        report.gaps = totals.gaps;
        report.repairs = totals.repairs;
        report.unconfirmed = totals.unconfirmed;
        report.rebinds = totals.rebinds;
        report.latency_ms = Percentiles::from(&stats.times(|thread| &thread.latency));
        report.handshake_ms = Percentiles::from(&stats.times(|thread| &thread.handshake));
        report.ping_ms = Percentiles::from(&stats.times(|thread| &thread.ping));
        report.ramp_s = self.ramp.as_secs_f64();
        report.duration_s = self.load.as_secs_f64();
    }

    /// Whether few enough connections failed.
    fn tolerated(&self, report: &Report) -> Result<(), String> {
        let settings = &self.shared.settings;
        if report.failed as f64 > settings.max_failed * settings.clients as f64 {
            return Err(format!(
                "{} of {} connections failed, --max-failed tolerates {} %: {}",
                report.failed,
                settings.clients,
                settings.max_failed * 100.0,
                self.causes()
            ));
        }
        Ok(())
    }
}

/// Raises the soft limit on open files to the hard one: there are as many sockets as asked for, and shells
/// are stingy.
fn raise_file_limit() {
    // Best effort: if it does not suffice, opening sockets fails, and says so.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
