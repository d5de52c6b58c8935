//! The measured window: which of a run's events count.
//!
//! An action belongs to the window in which it was *due*, wherever its answer comes: a paint that was due in
//! the last millisecond and comes back while all is drained counts, one of the warm-up that comes back in
//! the window does not. So the edges of the window need no stop: the coordinator writes down two instants,
//! and clients compare.

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

    /// Whether an action that was due at `due` counts.
    pub fn contains(&self, due: Instant) -> bool {
        self.start.get().is_some_and(|start| due >= *start) && self.end.get().is_none_or(|end| due < *end)
    }
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
        assert!(!window.contains(at(0)));
        window.open(at(2));
        window.open(at(9));
        assert_eq!([1, 2, 1000].map(|s| window.contains(at(s))), [false, true, true]);
        window.close(at(3));
        assert_eq!([1, 2, 3].map(|s| window.contains(at(s))), [false, true, false]);
    }
}
