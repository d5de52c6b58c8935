//! System calls that fail on one thread, as they do in a container or on a kernel without them.

use std::io;
use std::mem;
use std::thread;

/// Runs `test` on a thread of its own, where the system call `number` fails with `errno`: always, or if the
/// lower half of its first argument is `argument`.
pub(in crate::net) fn without_call<T: Send + 'static>(
    number: libc::c_long,
    argument: Option<u32>,
    errno: i32,
    test: impl FnOnce() -> T + Send + 'static,
) -> T {
    let thread = thread::spawn(move || {
        forbid(number, argument, errno);
        test()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn forbid(number: libc::c_long, argument: Option<u32>, errno: i32) {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // A comparison that does not hold skips as many instructions as its second number says.
    let code = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut filter = vec![
        code(LOAD, 0, mem::offset_of!(libc::seccomp_data, nr) as u32),
        code(IF_EQUAL, if argument.is_some() { 3 } else { 1 }, number as u32),
    ];
    if let Some(argument) = argument {
        // On a little-endian machine.
        filter.push(code(LOAD, 0, mem::offset_of!(libc::seccomp_data, args) as u32));
        filter.push(code(IF_EQUAL, 1, argument));
    }
    filter.push(code(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno as u32));
    filter.push(code(RETURN, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program points at `len` instructions, which the kernel checks and copies.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
