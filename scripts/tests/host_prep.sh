#!/usr/bin/env bash
# Tests of the scripts that prepare a host. See usage below.
#
# Most of them run on a made-up host: a directory with the files of /proc, /sys and /etc that the scripts look at, given
# as --root. So drivers and machines that are not at hand are tested, and settings that do not exist. Programs that
# would act on this machine (ethtool, systemctl, iptables) are stood in for by scripts with a memory, first in PATH.
# What is in host_prep/machine.sh runs on this machine and its kernel, and leaves both as they were.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() {
    cat <<'USAGE'
Tests of tune_server.sh, tune_client.sh, pin_irqs.sh, set_queues.sh, hugepages.sh and xdp-server.service.

usage: sudo scripts/tests/host_prep.sh [NAME...]

Runs all tests, or those whose names contain one of NAMEs. Some change settings of this machine, for seconds, and
restore them. Needs root, nftables, ethtool, iproute2 and systemd-analyze. The last line counts: N passed, N failed.

Exit status: 0 nothing failed; 1 something did; 2 wrong usage.
USAGE
}

case ${1-} in
    -h | --help) usage; exit 0 ;;
    -*) printf 'unexpected: %s\n' "$1" >&2; usage >&2; exit 2 ;;
esac
if [[ $EUID -ne 0 ]]; then
    printf 'needs root; type: sudo %s\n' "$0" >&2
    exit 1
fi
for program in ethtool:ethtool ip:iproute2 nft:nftables systemd-analyze:systemd; do
    if ! command -v "${program%:*}" >/dev/null; then
        printf 'there is no %s here; type: sudo apt-get install %s\n' "${program%:*}" "${program#*:}" >&2
        exit 1
    fi
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The made-up host, and what the script that is tested says.
host=$scratch/host
output=$scratch/output
readonly SCRIPTS=$PWD/scripts
# Not that of the one who calls: what is tested must not depend on it.
unset TUNE_ROOT
passed=0
failed=0
names=("$@")

# test_that NAME FUNCTION: runs a test in a shell of its own, which ends at the first command that fails.
test_that() {
    local name=$1 status=0 wanted=${#names[@]} part log=$scratch/log
    for part in "${names[@]}"; do
        [[ $name != *"$part"* ]] || wanted=0
    done
    [[ $wanted -eq 0 ]] || return 0
    # Not as a condition: `set -e` would not hold in there.
    set +e
    (
        set -euo pipefail
        rm -rf "$host" "$output" "${scratch:?}/bin" "$scratch/few"
        trap 'printf "    failed at line %s of %s: %s\n" "$LINENO" "${BASH_SOURCE[0]##*/}" "$BASH_COMMAND"' ERR
        set -E
        "$2"
    ) >"$log" 2>&1
    status=$?
    set -e
    if [[ $status -eq 0 ]]; then
        passed=$((passed + 1))
        printf 'ok      %s\n' "$name"
    else
        failed=$((failed + 1))
        printf 'FAILED  %s\n' "$name"
        sed 's/^/        /' "$log"
        if [[ -e $scratch/output ]]; then
            printf '    what the script said last:\n'
            sed 's/^/        /' "$scratch/output"
        fi
    fi
}

# expect STATUS COMMAND...: runs a command, keeps what it says in $output, and fails unless its status is STATUS.
expect() {
    local wanted=$1 status=0
    shift
    "$@" >"$output" 2>&1 || status=$?
    if [[ $status -ne $wanted ]]; then
        printf '    status %s, not %s, of: %s\n' "$status" "$wanted" "$*"
        return 1
    fi
}

# said TEXT: whether the last command said this.
said() {
    if ! grep -qF -- "$1" "$output"; then
        printf '    it did not say: %s\n' "$1"
        return 1
    fi
}

# not_said TEXT
not_said() {
    if grep -F -- "$1" "$output"; then
        return 1
    fi
}

# holds FILE TEXT: whether a file has exactly this line.
holds() {
    if [[ $(<"$1") != "$2" ]]; then
        printf '    %s holds: %s\n    not: %s\n' "$1" "$(<"$1")" "$2"
        return 1
    fi
}

# put VALUE FILE...: makes files below the made-up host's root, each with this line.
put() {
    local file
    for file in "${@:2}"; do
        mkdir -p "$host$(dirname "$file")"
        printf '%s\n' "$1" >"$host$file"
    done
}

# Keeps a copy of the made-up host, for host_is_unchanged.
remember_host() {
    rm -rf "$host.before"
    cp -a "$host" "$host.before"
}

# Whether the host is, byte for byte, what it was. The folder of state files may have come.
host_is_unchanged() {
    diff -r --exclude=xdp-server "$host.before" "$host"
    [[ -z $(find "$host/var" -type f 2>/dev/null) ]]
}

# stand_in NAME: a program of this name, first in PATH; its text comes on standard input.
stand_in() {
    mkdir -p "$scratch/bin"
    cat >"$scratch/bin/$1"
    chmod +x "$scratch/bin/$1"
    PATH=$scratch/bin:$PATH
}

# Leaves only the programs that the scripts cannot do without, and stand-ins, in PATH.
hide_programs() {
    local program
    mkdir "$scratch/few"
    for program in awk basename bash cat cut dirname env flock getconf grep head ls mkdir mv paste readlink rm sed seq \
        sort sync tail tr wc; do
        ln -s "$(command -v "$program")" "$scratch/few/"
    done
    PATH=$scratch/bin:$scratch/few
}

for part in tune tools nic machine; do
    # shellcheck source=/dev/null
    source "$SCRIPTS/tests/host_prep/$part.sh"
done

printf '%s passed, %s failed\n' "$passed" "$failed"
[[ $failed -eq 0 && $passed -gt 0 ]]
