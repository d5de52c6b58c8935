#!/usr/bin/env bash
# All that is checked, in one command. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib.sh

usage() {
    cat <<'USAGE'
Runs every check and every test of this repository.

usage: sudo scripts/test.sh

  1. formatting, clippy, shellcheck
  2. cargo test: units, properties, the XDP program, servers over a simulated network and in namespaces
  3. limits that the real programs run into, and what `loadgen report` calls them
  4. a client in Python, written from canvas/PROTOCOL.md alone, against the server on sockets and on AF_XDP
  5. the main job, scripts/run.sh, for a few seconds

Needs root: the tests make network namespaces, attach XDP programs and add huge pages; nothing is skipped, and
nothing is left behind. Installs what a bare Debian 12 lacks (with apt-get). From a fresh clone it takes about
20 minutes on two cores, most of them for compiling.

The last line says how many tests and checks passed, and how many failed.

Exit status: 0 nothing failed; 1 something did, or could not be set up; 2 wrong usage; 3 Rust is missing.
USAGE
}

case ${1-} in
    '') ;;
    -h | --help) usage; exit 0 ;;
    *) say "unexpected: $1; for help: $0 --help"; exit 2 ;;
esac
[[ $EUID -eq 0 ]] || die "needs root, for network namespaces and XDP; type: sudo $0"

readonly TEST_PACKAGES=(iputils-ping nftables python3 python3-venv shellcheck systemd)
# Name of the network for the client in Python, unlike all others.
readonly BED=xdptest
# UDP port of the servers for it: not the default one, where a real server may run.
readonly PORT=4499

passed=0
failed=0
results=()
scratch=$(mktemp -d)

tear_down() {
    stop_server || true
    scripts/testbed.sh down --name "$BED" >/dev/null || true
    rm -rf "$scratch"
}
trap tear_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# count NAME PASSED FAILED: notes the outcome of one step.
count() {
    passed=$((passed + $2))
    failed=$((failed + $3))
    local word=ok
    [[ $3 -eq 0 ]] || word=FAILED
    results+=("$(printf '%-6s  %4d passed  %4d failed  %s' "$word" "$2" "$3" "$1")")
}

# check NAME COMMAND...: a step that passes or fails as a whole.
check() {
    local name=$1
    shift
    say "$name"
    if "$@"; then
        count "$name" 1 0
    else
        count "$name" 0 1
    fi
}

# Runs cargo's tests and counts them from what they print.
cargo_tests() {
    local log=$scratch/cargo.log status=0 counts
    say "compiling the tests"
    if ! as_owner cargo test --workspace --locked --no-run; then
        count "cargo test (does not compile)" 0 1
        return
    fi
    say "cargo test"
    cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log" || status=$?
    # A test that is left out counts as failed: here, everything that a test may need is there.
    read -r -a counts < <(awk '
        /^test result: / { passed += $4; failed += $6; ignored += $8 }
        END { print passed + 0, failed + 0, ignored + 0 }' "$log")
    if [[ $status -ne 0 && ${counts[1]} -eq 0 ]]; then
        counts[1]=1
    fi
    count "cargo test (${counts[2]} left out)" "${counts[0]}" "$((counts[1] + counts[2]))"
}

# count_of NAME COMMAND...: tests that count themselves; taken from their last line.
count_of() {
    local name=$1 log=$scratch/tests.log status=0 counts
    say "$name"
    "${@:2}" 2>&1 | tee "$log" || status=$?
    read -r -a counts < <(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed.*/\1 \2/p' "$log" | tail -n 1; echo 0 0)
    if [[ $status -ne 0 && ${counts[1]} -eq 0 ]]; then
        counts[1]=1
    fi
    count "$name" "${counts[0]}" "${counts[1]}"
}

# client_in_python NAME HOST IN_BED SERVER-OPTION...: the tests of the Python client against a fresh server.
# IN_BED is the command that runs them where they can reach it, or nothing.
client_in_python() {
    local name="client in Python, $1" host=$2 in_bed=() junit=$scratch/junit.xml
    [[ -z $3 ]] || read -r -a in_bed <<<"$3"
    shift 3
    say "$name"
    if ! start_server "$scratch/server" "$target/debug/xdp-server" --listen "[::]:$PORT" \
        --state "$scratch/state" --json --quiet "$@"; then
        stop_server || true
        count "$name (no server)" 0 1
        return
    fi
    rm -f "$junit"
    CANVAS_HOST=$host CANVAS_PORT=$PORT CANVAS_PID=$server_pid PYTHONDONTWRITEBYTECODE=1 \
        "${in_bed[@]}" "$venv/bin/pytest" -q -p no:cacheprovider --junitxml="$junit" \
        xdp-server/tests/aioquic || true
    # The last of these tests has ended the server; that it was a clean end is the server's status.
    check "server of the $name" stop_server
    local total bad
    total=$(sum_of tests "$junit")
    bad=$(($(sum_of failures "$junit") + $(sum_of errors "$junit") + $(sum_of skipped "$junit")))
    if [[ $total -eq 0 ]]; then
        count "$name (no test ran)" 0 1
    else
        count "$name" "$((total - bad))" "$bad"
    fi
}

# sum_of ATTRIBUTE FILE: the number that JUnit's XML has in this attribute of its test suite; 0 without file.
sum_of() {
    grep -o "<testsuite .*" "$2" 2>/dev/null | sed -n "1s/[^>]* $1=\"\([0-9]*\)\".*/\1/p" | grep . || echo 0
}

python_environment() {
    as_owner python3 -m venv "$venv" &&
        as_owner "$venv/bin/pip" install --quiet --requirement xdp-server/tests/aioquic/requirements.txt
}

rust_components() {
    if ! { as_owner cargo fmt --version && as_owner cargo clippy --version; } >/dev/null 2>&1; then
        as_owner rustup component add rustfmt clippy
    fi
}

install_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
need_rust
rust_components
target=$(target_directory)
venv=$target/aioquic-venv

check formatting as_owner cargo fmt --all --check
# Programs, and with them what they source.
mapfile -t shell_programs < <(grep -rl '^#!/usr/bin/env bash' scripts .ci)
check shellcheck shellcheck --external-sources "${shell_programs[@]}"
check clippy as_owner cargo clippy --workspace --all-targets --locked -- -D warnings
cargo_tests
count_of "host preparation" scripts/tests/host_prep.sh
count_of diagnosis scripts/tests/diagnosis.sh --programs "$target/debug"
check "Python environment" python_environment
client_in_python "sockets" 127.0.0.1 '' --backend socket --queues 2
check testbed scripts/testbed.sh up --name "$BED" --queues 2
client_in_python "AF_XDP" "$(server_address "$BED" v6)" "ip netns exec $BED" \
    --backend xdp --xdp-mode copy --iface "${BED}0" --queues 2
check "main job" scripts/run.sh --clients 200 --duration 3

printf '%s\n' '' "${results[@]}" "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
