//! The backend on this kernel, and on what older ones leave of it; then what only rings can get wrong.

mod host;
mod rings;

use std::num::NonZeroUsize;

use super::open::{Limits, TaskWork, open_within};
use super::*;
use crate::net::datagram_tests::{Backend, datagram_suite, train_suite};
use crate::net::socket::{SocketIo, enable_offloads};

fn config(workers: usize) -> UringConfig {
    let workers = NonZeroUsize::new(workers).unwrap();
    UringConfig { workers, connections: 1000, sq_depth: 256, sqpoll: false }
}

/// Rings over `sockets`.
fn over(sockets: Vec<SocketIo>, config: impl Fn(usize) -> UringConfig, limits: Limits) -> Vec<UringIo> {
    let mut sockets = sockets;
    assert!(enable_offloads(&mut sockets).is_empty());
    open_within(&config(sockets.len()), limits).unwrap().serve(sockets)
}

macro_rules! backend {
    ($(#[$doc:meta])* $module:ident: $config:expr, $limits:expr $(, $later:literal)?) => {
        $(#[$doc])*
        mod $module {
            use super::*;

            struct Rings;

            impl Backend for Rings {
                type Io = UringIo;
                $(const SENDS_LATER: bool = $later;)?

                fn over(sockets: Vec<SocketIo>) -> Vec<UringIo> {
                    super::over(sockets, $config, $limits)
                }
            }

            datagram_suite!(Rings);
            train_suite!(Rings);
        }
    };
}

backend! {
    /// Everything that this kernel has.
    best: config, Limits::default()
}
backend! {
    /// Linux 6.0.
    not_deferred: config, Limits { task_work: TaskWork::SingleIssuer, ..Default::default() }
}
backend! {
    /// Linux 5.11.
    single_shot: config, Limits { task_work: TaskWork::Interrupting, multishot: false, buffers: None }
}
backend! {
    /// A kernel thread submits.
    sqpoll: |workers| UringConfig { sqpoll: true, ..config(workers) }, Limits::default(), true
}
backend! {
    /// Never enough room: two buffers, four entries.
    cramped: |workers| UringConfig { sq_depth: 4, ..config(workers) },
    Limits { buffers: Some(2), ..Default::default() }
}
