#!/usr/bin/env bash
# The main job, end to end, on one command. See usage below, and testbed.sh for the network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib.sh

usage() {
    cat <<'USAGE'
Builds the server and the load generator, and runs them against each other: the server on AF_XDP at one end
of a virtual cable, 1000 clients at the other. Proves at the end that what the clients see is the server's
canvas, to the byte.

usage: scripts/run.sh [OPTIONS] [-- SERVER-OPTIONS]

  --clients N         connections                                        [default: 1000]
  --duration S        seconds of painting                                [default: 10]
  --queues N          queues of the interface, and workers               [default: 2]
  --backend NAME      xdp, io_uring or socket                            [default: xdp]
  --xdp-mode MODE     copy (native XDP), generic, zerocopy or auto       [default: copy; auto with --iface]
  --poll POLL         auto, busy or adaptive                             [default: auto]
  --iface IF          serve on this NIC, until Ctrl-C, and say what to type on the clients' machines
  --listen ADDR:PORT  where to serve                                     [default: [::]:4433]

Installs what a bare Debian 12 lacks (with apt-get, as root). Adds huge pages for the time of the run. Leaves
nothing behind: no network, no XDP program, no huge pages. Needs root, and asks sudo for it.

The last line on standard output is a JSON object with the result; all else goes to standard error.

Exit status: 0 everything held; 1 something did not, or could not be set up; 2 wrong usage; 3 Rust is missing.
USAGE
}

usage_error() {
    say "$*"
    say "for all options: $0 --help"
    exit 2
}

clients=1000
duration=10
queues=2
backend=xdp
xdp_mode=
poll=auto
iface=
listen='[::]:4433'
given=("$@")
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --) shift; break ;;
        --clients | --duration | --queues | --backend | --xdp-mode | --poll | --iface | --listen)
            [[ $# -ge 2 ]] || usage_error "$1 needs a value"
            option=${1#--}
            printf -v "${option//-/_}" %s "$2"
            shift 2
            ;;
        *) usage_error "unknown option: $1" ;;
    esac
done
for option in clients duration queues; do
    [[ ${!option} =~ ^[1-9][0-9]*$ ]] || usage_error "--$option ${!option}: a number from 1 on"
done
[[ $backend == xdp || $backend == io_uring || $backend == socket ]] ||
    usage_error "--backend $backend: xdp, io_uring or socket"
port=${listen##*:}
[[ $listen == *:* && $port =~ ^[1-9][0-9]*$ ]] || usage_error "--listen $listen: ADDR:PORT, such as [::]:4433"

if [[ $EUID -ne 0 ]]; then
    command -v sudo >/dev/null || die "needs root, and there is no sudo: run it as root"
    say "needs root: calling sudo"
    exec sudo --preserve-env=CARGO_TARGET_DIR scripts/run.sh "${given[@]}"
fi

# A virtual cable of this name, so that testbed.sh's own one, xdpbed, may be up at the same time.
readonly BED=xdprun

loadgen_pid=
bed_is_up=
scratch=$(mktemp -d)

# Everything that was made goes, whichever way this ends.
tear_down() {
    if [[ -n $loadgen_pid ]]; then
        kill -KILL "$loadgen_pid" 2>/dev/null || true
    fi
    stop_server || true
    if [[ -n $bed_is_up ]]; then
        scripts/testbed.sh down --name "$BED" >/dev/null ||
            say "the testbed is still there; type: scripts/testbed.sh down --name $BED"
        bed_is_up=
    fi
    return_huge_pages
    rm -rf "$scratch"
}
trap tear_down EXIT
trap 'say "interrupted: tearing down"; exit 130' INT
trap 'exit 143' TERM

install_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}"
need_rust
say "building (the first time takes some minutes)"
as_owner cargo build --release --locked --quiet -p xdp-server -p loadgen
target=$(target_directory)/release

# On a real NIC: the server in the foreground, the clients elsewhere.
serve_on_nic() {
    [[ -e /sys/class/net/$iface ]] || die "there is no interface $iface; there are: $(ls -x /sys/class/net)"
    reserve_huge_pages "$(server_memory "$queues" 65536)" || true
    local address
    address=$(ip -o addr show dev "$iface" scope global | awk 'NR == 1 { sub(/\/.*/, "", $4); print $4 }')
    [[ -n $address ]] || die "$iface has no address; to give it one: ip address add ADDRESS/PREFIX dev $iface"
    [[ $address != *:* ]] || address="[$address]"
    say "on each client machine, in a clone of this repository, with an --id of its own:"
    say "    cargo run --release -p loadgen -- --target https://$address:$port --id client-1" \
        "--clients $clients --duration $duration"
    say "add --verify where only one load generator runs. Ctrl-C here ends the server."
    # Not `exec`: the huge pages are to be returned.
    local status=0
    "$target/xdp-server" --iface "$iface" --queues "$queues" --backend "$backend" \
        --xdp-mode "${xdp_mode:-auto}" --poll "$poll" --listen "$listen" "$@" || status=$?
    exit "$status"
}
if [[ -n $iface ]]; then
    serve_on_nic "$@"
fi

exec {run_lock}>"/run/$BED.lock"
flock -n "$run_lock" || die "another run.sh is running; wait for its end"
# Standard output is for the result alone.
exec {result_output}>&1 1>&2

xdp_mode=${xdp_mode:-copy}
say "making the testbed: a virtual cable with $queues queues, its far end in network namespace $BED"
bed_is_up=yes
scripts/testbed.sh up --name "$BED" --queues "$queues" >/dev/null
address=$(server_address "$BED" v4)

# Queues are dealt out by hash: any worker may get far more than its share of the clients.
table=$((clients * 2 < 65536 ? clients * 2 : 65536))
huge_pages=no
if reserve_huge_pages "$(server_memory "$queues" "$table")"; then
    huge_pages=yes
fi

server=("$target/xdp-server" --queues "$queues" --backend "$backend" --poll "$poll" --listen "$listen"
    --max-connections-per-worker "$table" --state "$scratch/state" --json)
if [[ $backend == xdp ]]; then
    server+=(--iface "${BED}0" --xdp-mode "$xdp_mode")
fi
start_server "$scratch/server" "${server[@]}" "$@" || exit 1
cat "$scratch/server.log"

say "running $clients clients for $duration s, then verifying"
ip netns exec "$BED" "$target/loadgen" --target "https://$address:$port" --clients "$clients" \
    --duration "$duration" --verify --json >"$scratch/loadgen.json" &
loadgen_pid=$!
loadgen_status=0
# In the background, so that Ctrl-C is acted upon at once.
wait "$loadgen_pid" || loadgen_status=$?
loadgen_pid=

server_status=0
stop_server || server_status=$?
tail -n 2 "$scratch/server.log"
left_behind=$(ip -j -d link show dev "${BED}0" | jq -c '.[0].xdp // empty')

for event in start summary; do
    jq -c --arg event "$event" 'select(.event == $event)' "$scratch/server.json" >"$scratch/$event.json"
done
[[ -s $scratch/summary.json ]] ||
    die "the server ended with status $server_status and without a summary"
tail -n 1 "$scratch/loadgen.json" | jq -e . >/dev/null ||
    die "the load generator ended with status $loadgen_status and without a report"
# Generic XDP on veth delivers everything on queue 0: there all queues cannot be expected to be used.
jq -n -c --slurpfile start "$scratch/start.json" --slurpfile summary "$scratch/summary.json" \
    --slurpfile loadgen "$scratch/loadgen.json" --arg backend "$backend" --arg xdp_mode "$xdp_mode" \
    --arg huge_pages "$huge_pages" --arg left_behind "$left_behind" \
    --argjson server_status "$server_status" --argjson loadgen_status "$loadgen_status" '
    $start[0] as $start | $summary[0] as $server | $loadgen[0] as $clients |
    ($start.workers | all(.memory | test("(KiB|THP) pages") | not)) as $on_huge_pages |
    {
        backend: $server.backend,
        xdp_mode: $server.xdp_mode,
        queues: $server.queues,
        huge_pages: $on_huge_pages,
        rx_packets_per_queue: $server.rx_packets_per_queue,
        connections: $clients.connections,
        failed: $clients.failed,
        pixels_sent: $clients.pixels_sent_run,
        pixels_applied: $server.pixels_applied,
        pixels_per_s: $clients.pixels_per_s,
        diff_datagrams: $clients.diff_datagrams,
        latency_ms: $clients.latency_ms,
        handshake_ms: $clients.handshake_ms,
        verified: $clients.verified
    } |
    .problems = [
        (select($loadgen_status != 0) | "loadgen ended with status \($loadgen_status)"
            + " (\($clients.error // $clients.verify_error // "no reason given"))"),
        (select($server_status != 0) | "xdp-server ended with status \($server_status)"),
        (select(.backend != $backend) | "the backend is \(.backend), not \($backend)"),
        (select($backend == "xdp" and $xdp_mode != "auto" and .xdp_mode != $xdp_mode)
            | "the XDP mode is \(.xdp_mode), not \($xdp_mode)"),
        (select($huge_pages == "yes" and ($on_huge_pages | not))
            | "there were huge pages, but the server did not use them"),
        (select(.xdp_mode != "generic" and any(.rx_packets_per_queue[]; . == 0))
            | "not all queues were used: \(.rx_packets_per_queue)"),
        (select(.failed != 0) | "\(.failed) clients failed"),
        (select(.verified != true) | "not verified: \($clients.verify_error // "no reason given")"),
        (select($clients.pixels_applied != $server.pixels_applied)
            | "STATS counted \($clients.pixels_applied) pixels, the summary \($server.pixels_applied)"),
        (select($left_behind != "") | "an XDP program was left behind: \($left_behind)")
    ]' >"$scratch/result.json"
result=$(<"$scratch/result.json")
jq -r '.problems[] | "FAILED: \(.)"' <<<"$result"
tear_down
trap - EXIT
printf '%s\n' "$result" >&"$result_output"
jq -e '.problems == []' <<<"$result" >/dev/null
