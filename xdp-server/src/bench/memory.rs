//! What an idle connection costs in memory.
//!
//! Clients live on a thread of their own, whose memory jemalloc keeps apart from ours, and are dropped before
//! the process is looked at: what was added by then is the connections of the worker and nothing else.

use super::clients::{Clients, Server};
use super::frames::Frames;
use super::rig::{Identities, Rig};
use super::{BenchError, Progress};
use std::sync::mpsc::{Receiver, Sender, channel};
use tikv_jemalloc_ctl::{arenas, raw};

/// Memory of an idle connection with one number of them, in bytes each.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MemoryCost {
    /// Connections.
    pub connections: u32,
    /// Resident memory that they added to the process, once the allocator has returned what is free.
    pub resident: f64,
    /// Of that: the connection table, as far as it has grown. It grows by chunks of 2 MiB at least.
    pub table: f64,
}

/// Measures with `connections` connections, of clients that said HELLO and are silent.
///
/// # Errors
/// The rig cannot be set up, or the process cannot look at its memory.
pub fn measure(
    identities: &Identities,
    connections: u32,
    progress: &Progress,
) -> Result<MemoryCost, BenchError> {
    progress.stage(&format!("memory of {connections} connections"));
    let mut rig = Rig::new(identities, connections)?;
    let before = (resident()?, rig.table_bytes());
    let (to_server, from_clients) = channel();
    let (to_clients, from_server) = channel();
    let client_thread = std::thread::spawn(move || {
        let mut clients = Clients::new(4, Some(0))?;
        let mut server =
            Remote { to: to_server, from: from_server, frames: Frames::default(), replies: vec![] };
        clients.connect(connections, &mut server, &Progress::default())
    });
    let mut replies = Vec::new();
    // Until the clients hang up.
    for mut frames in from_clients {
        rig.load(&mut frames);
        rig.serve();
        rig.collect(&mut frames, &mut replies);
        // Clients that have gone want no answer.
        let _ = to_clients.send((frames, std::mem::take(&mut replies)));
        progress.step(rig.connections() as usize, connections as usize);
    }
    client_thread.join().map_err(|_| BenchError::new("the clients panicked"))??;
    let after = (resident()?, rig.table_bytes());
    let per = |before: usize, after: usize| (after as f64 - before as f64) / f64::from(connections);
    Ok(MemoryCost { connections, resident: per(before.0, after.0), table: per(before.1, after.1) })
}

/// Packets to clients, as [`Server::collect`] returns them.
type Replies = Vec<(u32, Vec<u8>)>;

/// The server, seen from another thread.
struct Remote {
    to: Sender<Frames>,
    from: Receiver<(Frames, Replies)>,
    frames: Frames,
    replies: Replies,
}

impl Server for Remote {
    fn load(&mut self, frames: &mut Frames) {
        std::mem::swap(&mut self.frames, frames);
    }

    fn serve(&mut self) {
        // A server that has gone shows as clients that do not get connected.
        if self.to.send(std::mem::take(&mut self.frames)).is_ok()
            && let Ok((frames, replies)) = self.from.recv()
        {
            (self.frames, self.replies) = (frames, replies);
        }
    }

    fn collect(&mut self, frames: &mut Frames, replies: &mut Replies) {
        std::mem::swap(&mut self.frames, frames);
        replies.append(&mut self.replies);
    }
}

/// Resident memory of the process in bytes, after jemalloc returned what is free.
fn resident() -> Result<usize, BenchError> {
    let why = |e| BenchError(format!("jemalloc cannot return memory: {e}"));
    for arena in 0..arenas::narenas::read().map_err(why)? {
        // How long the arena keeps what is free. Setting it to 0 empties the arena at once. Arenas that were
        // never used refuse.
        let keep = format!("arena.{arena}.dirty_decay_ms\0");
        // SAFETY: the name ends with a zero, and this control's value is an `ssize_t`.
        let usual = unsafe { raw::update::<isize>(keep.as_bytes(), 0) };
        if let Ok(usual) = usual {
            // SAFETY: as above.
            unsafe { raw::write(keep.as_bytes(), usual) }.map_err(why)?;
        }
    }
    let file = "/proc/self/statm";
    let text = std::fs::read_to_string(file).map_err(|e| BenchError(format!("{file}: {e}")))?;
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    let pages = pages.ok_or_else(|| BenchError(format!("{file} has no second number: {text}")))?;
    Ok(pages * hugepages::PageKind::Plain.size())
}
