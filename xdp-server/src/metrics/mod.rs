//! `--metrics`: all counters, for Prometheus and those who read its format, by HTTP.
//!
//! Theory of operation
//! -------------------
//! The listening socket is opened early, on the main thread ([`Endpoint::open`]): a port below 1024 needs the
//! rights of that time, and an address that is taken is known before anything else is set up. When the
//! workers run, one thread more, of no privileges and not pinned, answers requests ([`Endpoint::start`])
//! until the server ends. `exposition` makes the text, from the copies of the counters that workers publish
//! about once a millisecond for whoever reports ([`crate::stats`]): the packet path does nothing for it, and
//! never waits.
//!
//! `http` answers. What a scraper can take is bounded: so many connections, so long, so many bytes of a
//! request. One that stalls takes one of those connections until its time is over, and delays nobody else.

mod exposition;
mod http;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::cli::Metrics;
pub use exposition::Source;

/// Why metrics cannot be served where they were asked for.
#[derive(Debug, thiserror::Error)]
#[error("--metrics {address}: {source}: {}", remedy(*.address, .source))]
pub struct MetricsError {
    /// The address asked for.
    pub address: SocketAddr,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

fn remedy(address: SocketAddr, source: &io::Error) -> String {
    let other = SocketAddr::new(address.ip(), address.port().checked_add(1).unwrap_or(Metrics::USUAL.port()));
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            format!("`ss -tlnp` shows who has it; give another, such as --metrics {other}, or --metrics off")
        }
        io::ErrorKind::AddrNotAvailable => format!(
            "no interface here has that address, `ip -brief address` lists those that there are; give one of \
             them, or --metrics {}, or --metrics off",
            Metrics::USUAL
        ),
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 take root; give a higher one, such as --metrics {}, or --metrics off",
            SocketAddr::new(address.ip(), Metrics::USUAL.port())
        ),
        _ => "--metrics off does without".to_owned(),
    }
}

/// Where metrics will be served: a listening socket, and what answers on it.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    runtime: Runtime,
    address: SocketAddr,
}

impl Endpoint {
    /// Opens what `wanted` asks for. Where the usual address cannot be had there are no metrics, and `notes`
    /// get a sentence.
    ///
    /// # Errors
    /// [`MetricsError`]: an address was named, and cannot be had.
    pub fn open(wanted: Metrics, notes: &mut Vec<String>) -> Result<Option<Self>, MetricsError> {
        let open_at = |address| Self::open_at(address).map_err(|source| MetricsError { address, source });
        match wanted {
            Metrics::Off => Ok(None),
            Metrics::At(address) => open_at(address).map(Some),
            Metrics::Usual => Ok(open_at(Metrics::USUAL)
                .inspect_err(|error| notes.push(format!("no metrics: {error}")))
                .ok()),
        }
    }

    fn open_at(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { address: listener.local_addr()?, listener, runtime })
    }

    /// Where it listens: never port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has requests answered with what `source` has, by a thread that `spawn` makes.
    ///
    /// # Errors
    /// Those of `spawn`.
    pub fn start<E>(
        self,
        source: Source,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> Result<JoinHandle<()>, E>,
    ) -> Result<Serving, E> {
        let (end, ended) = oneshot::channel();
        let thread = spawn(Box::new(move || self.serve(source, ended)))?;
        Ok(Serving { end: Some(end), thread: Some(thread) })
    }

    /// Answers requests until `end` is dropped. Those that are still being answered are then given up.
    fn serve(self, source: Source, end: oneshot::Receiver<()>) {
        let Self { listener, runtime, .. } = self;
        runtime.block_on(async {
            // It fails only if the kernel has no memory for an epoll entry: then there are no metrics, and
            // the server is served.
            if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                tokio::select! {
                    () = http::serve(listener, source) => {}
                    _ = end => {}
                }
            }
        });
    }
}

/// The thread that answers requests. Dropping this ends it.
#[derive(Debug)]
pub struct Serving {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.end.take());
        // A panic was reported by the thread itself, and does not make the server's end a bad one.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_by_name_is_that_one_or_an_error_with_a_remedy() {
        let mut notes = Vec::new();
        let first = Endpoint::open(Metrics::At("127.0.0.1:0".parse().unwrap()), &mut notes).unwrap().unwrap();
        let taken = first.address();
        assert_ne!(taken.port(), 0);
        let text = Endpoint::open(Metrics::At(taken), &mut notes).unwrap_err().to_string();
        assert!(text.starts_with(&format!("--metrics {taken}: ")) && text.contains("in use"), "{text}");
        assert!(text.contains("such as --metrics 127.0.0.1:") && text.contains("--metrics off"), "{text}");
        // An address of the range set aside for documentation (RFC 5737).
        let foreign = Metrics::At("192.0.2.1:9464".parse().unwrap());
        let text = Endpoint::open(foreign, &mut notes).unwrap_err().to_string();
        assert!(text.contains("ip -brief address"), "{text}");
        assert!(Endpoint::open(Metrics::Off, &mut notes).unwrap().is_none());
        assert_eq!(notes, [""; 0]);
    }

    #[test]
    fn the_usual_address_is_taken_or_noted() {
        // Other servers of this machine may have it: then this is the second case at once.
        let mut notes = Vec::new();
        let first = Endpoint::open(Metrics::Usual, &mut notes).unwrap();
        assert_eq!(first.is_none(), !notes.is_empty());
        assert!(Endpoint::open(Metrics::Usual, &mut notes).unwrap().is_none());
        let note = notes.last().unwrap();
        assert!(
            note.starts_with("no metrics: --metrics 127.0.0.1:9464") && note.contains("ss -tlnp"),
            "{note}"
        );
    }
}
