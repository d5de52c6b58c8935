//! Keeps libbpf from writing to stderr.
//!
//! libbpf has one print callback for the process. Ours drops every message, except on a thread that is in
//! [`capture`]: there warnings are kept, since only they say why the verifier or the kernel refused a
//! program. Nothing is shared between threads.

use std::cell::RefCell;

use libbpf_rs::PrintLevel;

thread_local! {
    /// The warnings of the [`capture`] that runs on this thread, if one does.
    static WARNINGS: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn keep(_level: PrintLevel, message: String) {
    WARNINGS.with_borrow_mut(|warnings| {
        if let Some(warnings) = warnings {
            warnings.push_str(&message);
        }
    });
}

/// Runs `action`, and returns its result and what libbpf warned of meanwhile, line by line; mostly nothing.
/// From the first call on, libbpf prints nothing in this process.
pub(crate) fn capture<T>(action: impl FnOnce() -> T) -> (T, String) {
    libbpf_rs::set_print(Some((PrintLevel::Warn, keep)));
    WARNINGS.set(Some(String::new()));
    let result = action();
    (result, WARNINGS.take().unwrap_or_default())
}
