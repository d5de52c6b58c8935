//! The measured window: which of a run's events count.
//!
//! An action belongs to the window in which it was *due*, wherever its answer comes: a paint that was due in
//! the last millisecond and comes back while all is drained counts, one of the warm-up that comes back in
//! the window does not. So the edges of the window need no stop: the coordinator writes down two instants,
//! and clients compare, once for each action: what was due at an edge may happen before the edge is written down,
//! and its answer come after that.

use std::sync::OnceLock;

use tokio::time::Instant;

/// Start and end of the measured window, each set once.
#[derive(Debug, Default)]
pub struct Window {
    start: OnceLock<Instant>,
    end: OnceLock<Instant>,
}

impl Window {
    /// The window starts; later calls change nothing.
    pub fn open(&self, now: Instant) {
        self.start.get_or_init(|| now);
    }

    /// The window ends, if it has started; later calls change nothing.
    pub fn close(&self, now: Instant) {
        if self.start.get().is_some() {
            self.end.get_or_init(|| now);
        }
    }

    /// An action that was due at `at`, as far as is known now.
    pub fn due(&self, at: Instant) -> Due {
        let begun = self.start.get().is_some_and(|start| at >= *start);
        Due { at, counts: begun && self.end.get().is_none_or(|end| at < *end) }
    }
}

/// When an action was due, and whether that was in the window: what holds for its answer, too.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// When.
    pub at: Instant,
    /// It is measured.
    pub counts: bool,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_is_due_between_the_edges_counts() {
        let (window, start) = (Window::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        window.close(at(1));
        assert!(!window.due(at(0)).counts);
        window.open(at(2));
        window.open(at(9));
        assert_eq!([1, 2, 1000].map(|s| window.due(at(s)).counts), [false, true, true]);
        window.close(at(3));
        assert_eq!([1, 2, 3].map(|s| window.due(at(s)).counts), [false, true, false]);
    }
}
