# shellcheck shell=bash
# Open files: how many the host, and one process, may have.
#
# fs.file-max is the host's sum, fs.nr_open the most that any process may raise its own limit (RLIMIT_NOFILE) to. The
# server has few files open whatever its load (its clients share a socket for each worker); load generators have one for
# each endpoint. Smaller: `Too many open files`. Larger costs nothing until files are opened.

# stage_files COUNT
stage_files() {
    setting /proc/sys/fs/file-max at_least "$1"
    setting /proc/sys/fs/nr_open at_least "$1"
}
