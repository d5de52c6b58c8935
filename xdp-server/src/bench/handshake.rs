//! What a handshake costs the server: in a whole worker, in QUIC alone, and in BoringSSL without QUIC.
//!
//! All three complete handshakes with clients in memory, full ones and resumed ones, in turns. Only the
//! server's side is measured: for worker and QUIC all packets until neither side has any left, session
//! tickets and connection IDs included; for BoringSSL its calls until both sides are done. Its handshake is
//! TLS 1.3 with the same certificate and key exchange; the records that carry it instead of QUIC packets
//! cost two encryptions and a copy.

use super::clients::Clients;
use super::rig::{Floor, Identities, Rig};
use super::tls::Tls;
use super::{BenchError, Progress, Settings, each, median, must_equal};

/// Handshakes of a round: some 8 ms. Fewer are at the mercy of a single interruption of the caches.
const ROUND: u32 = 64;

/// What handshakes of one kind cost the server, in microseconds each; medians over the rounds.
#[derive(Clone, Debug, serde::Serialize)]
pub struct HandshakeCost {
    /// A session was resumed: no certificate, no signature.
    pub resumed: bool,
    /// The whole worker.
    pub worker_us: f64,
    /// QUIC alone.
    pub floor_us: f64,
    /// BoringSSL without QUIC.
    pub tls_us: f64,
    /// Worker to QUIC alone.
    pub ratio: f64,
    /// Worker to BoringSSL.
    pub tls_ratio: f64,
}

/// Measures full and resumed handshakes.
///
/// # Errors
/// Something cannot be set up, or a handshake fails or is not of the kind that it should be.
pub fn measure(
    identities: &Identities,
    settings: &Settings,
    progress: &Progress,
) -> Result<[HandshakeCost; 2], BenchError> {
    let rounds = settings.rounds;
    let all = 2 * ROUND * (rounds + 1);
    let mut rig = Rig::new(identities, all)?;
    let mut floor = Floor::new(identities, 0)?;
    let mut tls = Tls::new(identities)?;
    let mut clients = [Clients::new(7, None)?, Clients::new(8, None)?];
    let mut kind = |resumed: bool| {
        let mut figures = Vec::new();
        progress.stage(if resumed { "resumed handshakes" } else { "handshakes" });
        // The first round is not counted; from its end on there is a session to resume.
        for number in 0..=rounds {
            let quiet = Progress::default();
            let [worker_clients, floor_clients] = &mut clients;
            let count = worker_clients.len() as u32 + ROUND;
            worker_clients.connect(count, &mut rig, &quiet)?;
            floor_clients.connect(count, &mut floor, &quiet)?;
            let took = [worker_clients.take_served(), floor_clients.take_served()];
            let alone = tls.handshakes(ROUND, resumed && number > 0)?;
            if number > 0 {
                figures.push([took[0], took[1], alone].map(|took| each(took, ROUND as usize) / 1000.0));
            } else if resumed {
                worker_clients.resume()?;
                floor_clients.resume()?;
            }
            progress.step(number as usize, rounds as usize);
        }
        let of = |who: usize| median(figures.iter().map(|round| round[who]));
        Ok::<_, BenchError>(HandshakeCost {
            resumed,
            worker_us: of(0),
            floor_us: of(1),
            tls_us: of(2),
            ratio: median(figures.iter().map(|round| round[0] / round[1])),
            tls_ratio: median(figures.iter().map(|round| round[0] / round[2])),
        })
    };
    let costs = [kind(false)?, kind(true)?];
    for clients in &clients {
        must_equal("resumed handshakes", clients.resumed() as u64, u64::from(ROUND * rounds))?;
    }
    must_equal("handshakes that the worker counted", rig.stats().handshakes_completed, u64::from(all))?;
    Ok(costs)
}
