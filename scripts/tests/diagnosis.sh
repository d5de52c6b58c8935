#!/usr/bin/env bash
# Tests of the diagnosis, end to end. See usage below.
#
# Each test makes the real server and the real load generator run into one limit, and asks `loadgen report` for its
# name. Loads are small and the provocations coarse (a server that is stopped, a buffer of 64 KiB), so that a machine
# that does something else meanwhile changes nothing; but it may make the load generator late, which it then says. So
# beside the expected finding "client_limited" may stand, and nothing else. What cannot be provoked without changing the host for
# everybody (a full connection tracking table) or a bug (a leak) is tested with made files, in loadgen's own tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/lib.sh

usage() {
    cat <<'USAGE'
Tests that `loadgen report` names the limit that a run was made to run into.

usage: sudo scripts/tests/diagnosis.sh [--programs DIR]

  --programs DIR   take xdp-server and loadgen from there         [default: the debug build, made if need be]

Needs root, for network namespaces and XDP. Takes about 25 s. The last line counts: N passed, N failed.

Exit status: 0 nothing failed; 1 something did; 2 wrong usage.
USAGE
}

programs=
case ${1-} in
    -h | --help) usage; exit 0 ;;
    --programs) programs=${2-}; [[ -n $programs ]] || { say "--programs needs a folder"; exit 2; } ;;
    '') ;;
    *) say "unexpected: $1; for help: $0 --help"; exit 2 ;;
esac
[[ $EUID -eq 0 ]] || die "needs root, for network namespaces and XDP; type: sudo $0"
if [[ -z $programs ]]; then
    need_rust
    as_owner cargo build --locked --quiet -p xdp-server -p loadgen
    programs=$(target_directory)/debug
fi

# A namespace for servers on loopback, and a testbed for AF_XDP; unlike all others.
readonly SPACE=xdpdiag BED=xdpdiagbed
# Seconds of warm-up and window: the server's seconds that are wholly in the window are judged, two at least.
readonly WARMUP=1 WINDOW=5
scratch=$(mktemp -d)
passed=0
failed=0

tear_down() {
    local pids
    mapfile -t pids < <(cat "$scratch"/*/pids 2>/dev/null)
    [[ ${#pids[@]} -eq 0 ]] || kill -KILL "${pids[@]}" 2>/dev/null || true
    ip netns del "$SPACE" 2>/dev/null || true
    scripts/testbed.sh down --name "$BED" >/dev/null || true
    rm -rf "$scratch"
}
trap tear_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start NAME METRICS_PORT COMMAND...: starts a server, and what watches it, in a folder of its own.
start() {
    local folder=$scratch/$1 metrics=127.0.0.1:$2
    mkdir "$folder"
    start_server "$folder/server" "${@:3}" --metrics "$metrics" --state "$folder/state" --json
    mv "$folder/server.json" "$folder/server.jsonl"
    echo "$server_pid" >>"$folder/pids"
    "${watch_in[@]}" scripts/monitor.sh --pid "$server_pid" --metrics "http://$metrics/metrics" \
        --out "$folder/monitor.csv" 2>"$folder/monitor.log" &
}

# load NAME URL OPTION...: loads it, and ends it. Its status does not count: clients may be meant to fail.
load() {
    local folder=$scratch/$1
    "${load_in[@]}" "$programs/loadgen" run paint --target "$2" --id test --out "$folder" --warmup "$WARMUP" \
        --duration "$WINDOW" --max-conn-jitter 500 --quiet "${@:3}" >"$folder/client.log" 2>&1 || true
    stop_server >/dev/null 2>&1 || true
}

# hold NAME SECONDS: the server is stopped for so long within the window, as by a debugger. Not at its start: the
# server's figures are a second apart, so that what happens in the first second may count as from before.
hold() {
    local pid
    pid=$(head -n 1 "$scratch/$1/pids")
    until grep -qs '"phase":"window"' "$scratch/$1/timeline-test.jsonl"; do
        kill -0 "$pid" || return
        sleep 0.2
    done
    sleep 1.5
    kill -STOP "$pid"
    sleep "$2"
    kill -CONT "$pid"
}

# Each of the following is one run into one limit; its name is that of the finding.

healthy() {
    start healthy 9471 "${serve_in[@]}" --backend socket -w 1 --listen 127.0.0.1:4471
    load healthy https://127.0.0.1:4471 --clients 20 --min-pixel-wait 100 --max-pixel-wait 300
}

connection_cap() {
    start connection_cap 9472 "${serve_in[@]}" --backend socket -w 1 --listen 127.0.0.1:4472 \
        --max-connections-per-worker 10
    load connection_cap https://127.0.0.1:4472 --clients 30 --min-pixel-wait 100 --max-pixel-wait 300
}

receive_buffer_overflow() {
    start receive_buffer_overflow 9473 "${serve_in[@]}" --backend socket -w 1 --listen 127.0.0.1:4473 \
        --socket-recv-buffer 64KiB
    hold receive_buffer_overflow 1 &
    load receive_buffer_overflow https://127.0.0.1:4473 --clients 50
    wait "$!" || true
}

submission_queue_full() {
    start submission_queue_full 9474 "${serve_in[@]}" --backend io_uring -w 1 --listen 127.0.0.1:4474 \
        --io-uring-sq-depth 16 --sqpoll
    # The kernel's thread takes from the queue when it gets to it; a tick has to go to all these at once.
    load submission_queue_full https://127.0.0.1:4474 --clients 50 --viewers 49
}

one_core_busy() {
    start one_core_busy 9475 "${serve_in[@]}" --backend socket -w 3 --steering off --listen 127.0.0.1:4475
    load one_core_busy https://127.0.0.1:4475 --clients 20 --num-endpoints 1 --threads 1
}

fill_ring_empty() {
    local serve_in=("$programs/xdp-server") load_in=(ip netns exec "$BED") watch_in=()
    start fill_ring_empty 9476 "${serve_in[@]}" --backend xdp --xdp-mode copy --iface "${BED}0" --queues 1 \
        --listen '[::]:4476'
    hold fill_ring_empty 2 &
    load fill_ring_empty "https://$(server_address "$BED" v4):4476" --clients 200
    wait "$!" || true
}

client_limited() {
    start client_limited 9477 "${serve_in[@]}" --backend socket -w 1 --listen 127.0.0.1:4477
    # A third of a million pixels a second from one thread.
    load client_limited https://127.0.0.1:4477 --clients 500 --threads 1 --min-pixel-wait 1 --max-pixel-wait 2
}

# judge NAME [OTHER]...: whether the report names it, and beside it only what may be.
judge() {
    local name=$1 folder=$scratch/$1 allowed
    allowed=$(jq -n -c '$ARGS.positional' --args "$@" client_limited)
    if "$programs/loadgen" report "$folder" >"$folder/report.txt" 2>&1 &&
        jq -e --arg name "$name" --argjson allowed "$allowed" '
            [.findings[] | select(.severity != "note") | .id] as $found |
            (if $name == "healthy" then .verdict == "healthy" or $found == ["client_limited"]
             else $found | index($name) != null end)
            and ($found - $allowed == [])' "$folder/verdict.json" >/dev/null; then
        passed=$((passed + 1))
        say "ok      $name"
    else
        failed=$((failed + 1))
        say "FAILED  $name"
        sed 's/^/        /' "$folder/report.txt" "$folder/client.log" "$folder/server.log" >&2 || true
    fi
}

ip netns add "$SPACE"
ip -n "$SPACE" link set dev lo up
scripts/testbed.sh up --name "$BED" --queues 1 >/dev/null
load_in=(ip netns exec "$SPACE")
watch_in=("${load_in[@]}")
serve_in=("${load_in[@]}" "$programs/xdp-server")

say "running into limits"
together=(healthy connection_cap receive_buffer_overflow submission_queue_full one_core_busy fill_ring_empty)
for name in "${together[@]}"; do
    "$name" &
done
wait
client_limited

judge healthy
# Clients that were refused are failed clients, and a run with failed clients has failed.
judge connection_cap connections_failed run_failed
# A server that loses most of what clients send loses some clients, too.
judge receive_buffer_overflow connections_failed run_failed
# Nothing is sent while the queue is full, and what comes in meanwhile waits.
judge submission_queue_full server_cpu receive_buffer_overflow connections_failed run_failed
judge one_core_busy
judge fill_ring_empty
# What so much load does to the server is its own affair.
judge client_limited server_cpu receive_buffer_overflow paint_queue_full connections_failed run_failed

printf '%s passed, %s failed\n' "$passed" "$failed"
[[ $failed -eq 0 ]]
