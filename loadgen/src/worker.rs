//! A process that carries a share of another's load (`--processes`): its end of the conversation.
//!
//! On standard input come an [`Order`], then the words `go` (all processes' clients are up, the window may
//! come) and `stop`; on standard output go [`crate::observer::Message`]s. When the input ends the parent is
//! gone, and so is this process.

use std::io::BufRead;
use std::pin::pin;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::cli::Settings;
use crate::host;
use crate::observer::{Observer, Start};
use crate::report::{EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE};
use crate::run::{Cues, Signal, blank, observed};

/// All clients are up.
pub const GO: &str = "go";
/// End the run.
pub const STOP: &str = "stop";

/// What a worker is to do: the first line on its standard input, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Its share of the load.
    pub settings: Settings,
    /// The CPUs to run on.
    pub cpus: Vec<usize>,
}

/// Carries out the order that comes on standard input. Returns the process's exit code; how the run went is
/// in the report that the parent got.
pub async fn work() -> u8 {
    let mut line = String::new();
    // Nothing runs yet that this could hold up.
    let order: Order = match std::io::stdin().read_line(&mut line).map(|_| serde_json::from_str(&line)) {
        Ok(Ok(order)) => order,
        _ => {
            eprintln!("loadgen: `worker` is for loadgen itself to call; use --processes");
            return EXIT_USAGE;
        }
    };
    // Without it the load is the same, but on whichever CPUs the kernel chooses.
    if let Err(error) = host::pin(&order.cpus) {
        eprintln!("loadgen: cannot keep to CPUs {:?}: {error}", order.cpus);
    }
    let (go, may_go) = oneshot::channel();
    let (stop, must_stop) = oneshot::channel();
    // A thread that may wait for ever: a runtime's own would keep the runtime from ending.
    std::thread::spawn(move || listen(go, stop));
    let heard = async |signal: oneshot::Receiver<()>| {
        if signal.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let (go, stop) = (pin!(heard(may_go)), pin!(heard(must_stop)));
    let start = Start::now();
    let mut report = blank(&order.settings, start);
    let cues = Cues { stop: Signal::new(stop), go: Signal::new(go) };
    observed(order.settings, start, cues, Observer::Parent, &mut report).await;
    EXIT_OK
}

/// Passes the parent's words on, until it has gone.
fn listen(go: oneshot::Sender<()>, stop: oneshot::Sender<()>) {
    let (mut go, mut stop) = (Some(go), Some(stop));
    for line in std::io::stdin().lock().lines() {
        let signal = match line.as_deref() {
            Ok(GO) => go.take(),
            Ok(STOP) => stop.take(),
            Ok(_) => None,
            Err(_) => break,
        };
        if let Some(signal) = signal {
            // The run may be over.
            let _ = signal.send(());
        }
    }
    std::process::exit(EXIT_INTERRUPTED.into());
}
