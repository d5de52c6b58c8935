# shellcheck shell=bash
# What run.sh and test.sh have in common: the packages of a bare Debian, the Rust toolchain, huge pages.
# To be sourced, with `set -euo pipefail`, from the top of the clone. What functions say goes to stderr.
#
# Under sudo the compiler runs as the user who called it, with that user's toolchain, so that no file of
# root's is left in the clone or in the user's caches. Only what needs root runs as root.

# Status of a script that cannot start for want of Rust, which apt has not got in a version that will do.
readonly EXIT_NO_RUST=3

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    say "$*"
    exit 1
}

# shellcheck disable=SC2034 # These lists are for those who source this.
# What compiles the server: clang, llvm and libelf the XDP program; cmake, g++, libclang (for bindgen) and git
# (its crate applies patches with it) BoringSSL; m4, libpcap and gcc-multilib (32-bit headers that BPF programs
# include) libxdp.
readonly BUILD_PACKAGES=(
    ca-certificates clang cmake g++ gcc-multilib git libclang-dev libelf-dev libpcap-dev llvm m4 make pkg-config
    zlib1g-dev
)
# shellcheck disable=SC2034
# What sets up the network and reads reports.
readonly RUN_PACKAGES=(ethtool iproute2 jq)

# install_packages PACKAGE...: installs those that are missing.
install_packages() {
    local package missing=()
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here: these, or what your system calls them, must be there: $*"
        return
    fi
    for package in "$@"; do
        if [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
            missing+=("$package")
        fi
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    say "installing with apt-get: ${missing[*]}"
    local log
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    if ! apt-get update >"$log" 2>&1 ||
        ! apt-get install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
        cat "$log" >&2
        rm "$log"
        die "apt-get failed; its words are above. To go on by hand: sudo apt-get install ${missing[*]}"
    fi
    rm "$log"
}

owner=$(id -un)
if [[ $EUID -eq 0 && -n ${SUDO_USER-} && $SUDO_USER != root ]]; then
    owner=$SUDO_USER
    owner_home=$(getent passwd "$owner" | cut -d: -f6)
    export CARGO_HOME=$owner_home/.cargo RUSTUP_HOME=$owner_home/.rustup
fi

# Runs a command, such as the compiler, as the user to whom the clone belongs.
as_owner() {
    if [[ $owner == "$(id -un)" ]]; then
        "$@"
    else
        runuser -u "$owner" -- env HOME="$owner_home" "$@"
    fi
}

# Sees to it that cargo is there, and new enough.
need_rust() {
    # First, since a distribution may have an old one, and sudo forgets the path of who called it.
    export PATH=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH
    local needed found
    needed=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml)
    found=$(as_owner rustc --version 2>/dev/null | cut -d' ' -f2 || true)
    if [[ -n $found && $(printf '%s\n' "$needed" "$found" | sort -V | head -n 1) == "$needed" ]]; then
        return
    fi
    say "this takes Rust $needed or newer, and there is ${found:-none}. To install it, without root:"
    say "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    say "or, where rustup is there already: rustup update stable. Then run this again."
    exit "$EXIT_NO_RUST"
}

# Where cargo puts what it builds.
target_directory() {
    as_owner cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory
}

# Seconds that the server may take to start, and to end: it drains for 5 at most.
readonly START_TIMEOUT=20 STOP_TIMEOUT=10

# The server that start_server has started; empty when there is none.
server_pid=

# start_server PREFIX COMMAND...: starts the server (with --json) in the background, and waits until it
# serves. What it says goes to PREFIX.json and PREFIX.log. Fails when it does not start; the log says why.
start_server() {
    local prefix=$1 attempt
    shift
    "$@" >"$prefix.json" 2>"$prefix.log" &
    server_pid=$!
    for ((attempt = 0; attempt < START_TIMEOUT * 10; attempt++)); do
        if grep -qs '"event":"start"' "$prefix.json"; then
            return
        fi
        kill -0 "$server_pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$prefix.log" >&2
    say "the server did not start; what it said is above"
    return 1
}

# Ends the server, if it still runs. Returns its exit status.
stop_server() {
    local pid=$server_pid attempt
    server_pid=
    [[ -n $pid ]] || return 0
    kill -TERM "$pid" 2>/dev/null || true
    for ((attempt = 0; attempt < STOP_TIMEOUT * 10; attempt++)); do
        if ! kill -0 "$pid" 2>/dev/null; then
            wait "$pid"
            return
        fi
        sleep 0.1
    done
    say "the server does not end within $STOP_TIMEOUT s of SIGTERM: killing it"
    kill -KILL "$pid"
    wait "$pid"
}

# server_address BED FAMILY: the address, v4 or v6, of the server's end of a testbed.
server_address() {
    scripts/testbed.sh status --name "$1" |
        awk -v family="$2" '$1 == "server" { print family == "v4" ? $3 : $4 }'
}

# A field of /proc/meminfo, in its own unit (kB or pages).
meminfo() {
    awk -v field="$1:" '$1 == field { print $2 }' /proc/meminfo
}

# server_memory QUEUES CONNECTIONS: MiB that a server is to have in huge pages, with so many connections in each
# worker's table: each queue's UMEM, 16; the canvas, 4; each connection, 9 KiB. Less than the server takes shows as
# a warning at its start; more is memory kept for nothing.
server_memory() {
    echo "$(($1 * (16 + $2 * 9 / 1024 + 1) + 4))"
}

# How many huge pages reserve_huge_pages has added to the kernel's pool.
huge_pages_added=0

# change_huge_pages DIFFERENCE: adds to the pool, or takes away. The lock is the one that all who change the
# pool here take: changes that others make at the same time are neither lost nor undone.
change_huge_pages() {
    local before
    {
        flock "$lock"
        before=$(</proc/sys/vm/nr_hugepages)
        echo "$((before + $1))" >/proc/sys/vm/nr_hugepages
        huge_pages_added=$((huge_pages_added + $(</proc/sys/vm/nr_hugepages) - before))
    } {lock}</proc/sys/vm/nr_hugepages
    exec {lock}<&-
}

# reserve_huge_pages MIB: adds huge pages until so much memory in them is free, but never more than half of
# what memory is available. Says what it does; fails when there are too few in the end. return_huge_pages
# undoes it.
reserve_huge_pages() {
    local size needed free most
    size=$(meminfo Hugepagesize)
    if [[ -z $size ]]; then
        say "this kernel has no huge pages: going on without"
        return 1
    fi
    needed=$((($1 * 1024 + size - 1) / size))
    free=$(($(meminfo HugePages_Free) - $(meminfo HugePages_Rsvd)))
    most=$(($(meminfo MemAvailable) / 2 / size))
    if [[ $needed -gt $((free + most)) ]]; then
        say "$needed huge pages of $size kB do not fit the available memory: going on without"
        return 1
    fi
    if [[ $needed -gt $free ]]; then
        say "adding $((needed - free)) huge pages of $size kB until the end of this run (vm.nr_hugepages)"
        change_huge_pages "$((needed - free))"
    fi
    free=$(($(meminfo HugePages_Free) - $(meminfo HugePages_Rsvd)))
    if [[ $free -lt $needed ]]; then
        say "the kernel found memory for $free huge pages only, of $needed: going on with those"
        return 1
    fi
}

# Takes away what reserve_huge_pages has added.
return_huge_pages() {
    if [[ $huge_pages_added -gt 0 ]]; then
        change_huge_pages "$((-huge_pages_added))"
    fi
}
