//! How a CPU spent its time, from /proc/stat.
//!
//! With one CPU for the server and one for the client, this tells the server's whole cost, that of the kernel
//! on its behalf included, and whether the kernel did each side's receive work where it belongs. The kernel
//! counts in ticks of 10 ms: over a second it is right to about 1%.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Time of a CPU since the start of the system, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreTime {
    /// Programs.
    pub user: u64,
    /// System calls and kernel threads.
    pub system: u64,
    /// Interrupts, and the receive work that follows them.
    pub softirq: u64,
    /// Nothing.
    pub idle: u64,
}

impl CoreTime {
    /// The time of CPU `cpu` until now.
    ///
    /// # Errors
    /// There is no such CPU.
    pub fn of(cpu: usize) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&stat, cpu).with_context(|| format!("/proc/stat has no CPU {cpu}"))
    }

    fn parse(stat: &str, cpu: usize) -> Option<Self> {
        let name = format!("cpu{cpu}");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name)?.strip_prefix(' '))?;
        let ticks: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, ..] = ticks[..] else { return None };
        Some(Self { user: user + nice, system, softirq: irq + softirq, idle: idle + iowait })
    }

    /// Shares of the time since `before`, 0 to 1 each.
    pub fn since(&self, before: &Self) -> Shares {
        let spent = [
            self.user - before.user,
            self.system - before.system,
            self.softirq - before.softirq,
            self.idle - before.idle,
        ];
        let whole = spent.iter().sum::<u64>().max(1) as f64;
        let [user, system, softirq, idle] = spent.map(|ticks| ticks as f64 / whole);
        Shares { user, system, softirq, idle }
    }
}

/// Shares of a CPU's time, 0 to 1 each; see [`CoreTime`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Shares {
    user: f64,
    system: f64,
    softirq: f64,
    idle: f64,
}

impl Shares {
    /// For machines.
    pub fn json(&self) -> Value {
        let Self { user, system, softirq, idle } = self;
        json!({ "user": user, "system": system, "softirq": softirq, "busy": 1.0 - idle })
    }
}

/// CPUs to look at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cores {
    /// The server's, where it is on this machine.
    pub server: Option<usize>,
    /// Ours.
    pub client: Option<usize>,
}

/// The CPUs' times at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    cores: Cores,
    times: [Option<CoreTime>; 2],
}

/// How the CPUs spent a while.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// The server's, if it is known.
    pub server: Option<Shares>,
    /// Ours, if it is known.
    pub client: Option<Shares>,
}

impl Cores {
    /// Begins to watch.
    ///
    /// # Errors
    /// There is no such CPU.
    pub fn watch(self) -> Result<Watch> {
        let time = |cpu: Option<usize>| cpu.map(CoreTime::of).transpose();
        Ok(Watch { cores: self, times: [time(self.server)?, time(self.client)?] })
    }
}

impl Watch {
    /// What was spent since.
    ///
    /// # Errors
    /// A CPU has gone.
    pub fn until_now(&self) -> Result<Spent> {
        let now = self.cores.watch()?.times;
        let shares = |index: usize| Some(now[index]?.since(&self.times[index]?));
        Ok(Spent { server: shares(0), client: shares(1) })
    }
}

impl Spent {
    /// Adds `server_core` and `client_core` to a report, null where they are not known.
    pub fn add_to(&self, report: &mut Value) {
        report["server_core"] = self.server.as_ref().map(Shares::json).into();
        report["client_core"] = self.client.as_ref().map(Shares::json).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_right_core() {
        let before =
            "cpu  1 1 1 1 1 1 1 1 0 0\ncpu1 100 0 100 1000 0 0 10 0 0 0\ncpu10 9 9 9 9 9 9 9 9 9 9\n";
        let after = "cpu1 140 10 120 1010 10 5 15 0 0 0\n";
        let [before, after] = [before, after].map(|stat| CoreTime::parse(stat, 1).unwrap());
        let shares = after.since(&before);
        assert_eq!((shares.user, shares.system, shares.softirq, shares.idle), (0.5, 0.2, 0.1, 0.2));
        assert_eq!(CoreTime::parse("cpu1 1 1", 1), None);
        assert_eq!(CoreTime::parse("cpu10 1 1 1 1 1 1 1", 1), None);
    }
}
