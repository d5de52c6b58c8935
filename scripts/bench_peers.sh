#!/usr/bin/env bash
# xdp-server beside servers on other QUIC stacks, saturated over a virtual cable. See usage below.
#
#   core 0, namespace                             core 1
#   saturate --- xdppeers1 ============== xdppeers0 --- the server in turn, one worker
#
# Whose core does the kernel's receive work decides what is measured, and on veth it is by default the
# sender's. Here it is the receiver's own, for both ends, and the result says where it was:
#
#   native XDP      the server's NAPI, driven by a timer that stays on the core where it first ran: deferred
#                   interrupts (napi_defer_hard_irqs) that never come back, and gro_flush_timeout
#   sockets         the same, with GRO on, which makes veth use NAPI without XDP
#   generic XDP     RPS: without GRO there is no NAPI, and with it XDP would see merged packets
#   client's end    RPS
#
# Tried and lost: busy polling (in copy mode AF_XDP sockets on veth have no NAPI id, so that a busy-polling
# server drives nothing, and the timer does the work all the same); threaded NAPI (its thread and a polling
# worker on one core take turns of milliseconds, in which veth's ring of 256 overflows); RPS for sockets (in
# overload packets are received one by one only to be dropped).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib.sh

usage() {
    cat <<'USAGE'
Measures messages/s of xdp-server on each backend, and of two servers that do the same work on other QUIC
stacks (peer-quiche: quiche in an epoll loop; peer-quinn: quinn and tokio), one core each, in turns. The
client sends prepared packets faster than any of them takes them. Writes results.json and results.md, prints
the table.

usage: scripts/bench_peers.sh [OPTIONS]

  --connections LIST  numbers of clients                      [default: 1000,10000; 1000 with --backends]
  --rounds N          rounds over all servers; medians count  [default: 3]
  --seconds S         time to send at each rate               [default: 1.5]
  --servers LIST      of: xdp, xdp-generic, io_uring, socket, quiche, quinn
                                                              [default: all]
  --backends          xdp-server's backends only, and what each needs
  --most N            highest rate of the client, packets/s   [default: 900000]
  --loss PERCENT      loss that still counts as none; a virtual machine's core may be taken away for longer
                      than veth's ring of 256 packets lasts   [default: 0.1]
  --fanout N          also: N clients watch, one paints 1000 pixels/s
  --handshakes        also: full and resumed handshakes
  --out DIR           where results go                        [default: results/peers-DATE]
  --json              print results.json instead of the table

Installs what a bare Debian 12 lacks. Needs root, and asks sudo for it; two cores that do nothing else; and
about a minute for each server, number of clients and round. Leaves nothing behind but DIR.

Exit status: 0 measured; 1 something failed; 2 wrong usage; 3 Rust is missing.
USAGE
}

usage_error() {
    say "$*"
    say "for all options: $0 --help"
    exit 2
}

readonly ALL_SERVERS=xdp,xdp-generic,io_uring,socket,quiche,quinn
connections=
rounds=3
seconds=1.5
servers=$ALL_SERVERS
backends=
most=900000
loss=0.1
fanout=
handshakes=
out=
json=
given=("$@")
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --backends) backends=yes; shift ;;
        --handshakes) handshakes=yes; shift ;;
        --json) json=yes; shift ;;
        --connections | --rounds | --seconds | --servers | --most | --loss | --fanout | --out)
            [[ $# -ge 2 ]] || usage_error "$1 needs a value"
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        *) usage_error "unknown option: $1" ;;
    esac
done
if [[ -n $backends ]]; then
    [[ $servers == "$ALL_SERVERS" ]] || usage_error "--backends and --servers exclude each other"
    servers=xdp,xdp-generic,io_uring,socket
    connections=${connections:-1000}
fi
connections=${connections:-1000,10000}
[[ $connections =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] ||
    usage_error "--connections $connections: such as 1000,10000"
[[ $rounds =~ ^[1-9][0-9]*$ ]] || usage_error "--rounds $rounds: a number from 1 on"
[[ $most =~ ^[1-9][0-9]*$ ]] || usage_error "--most $most: packets a second"
[[ -z $fanout || $fanout =~ ^[1-9][0-9]*$ ]] ||
    usage_error "--fanout $fanout: a number from 1 on"
for option in seconds loss; do
    [[ ${!option} =~ ^[0-9]+([.][0-9]+)?$ ]] || usage_error "--$option ${!option}: a number"
done
IFS=, read -ra server_list <<<"$servers"
IFS=, read -ra connection_list <<<"$connections"
for server in "${server_list[@]}"; do
    [[ ,$ALL_SERVERS, == *,"$server",* ]] || usage_error "--servers $server: of $ALL_SERVERS"
done
out=${out:-results/peers-$(date -u +%Y%m%d-%H%M%S)}

if [[ $EUID -ne 0 ]]; then
    command -v sudo >/dev/null || die "needs root, and there is no sudo: run it as root"
    say "needs root: calling sudo"
    exec sudo --preserve-env=CARGO_TARGET_DIR scripts/bench_peers.sh "${given[@]}"
fi
[[ $(nproc) -ge 2 ]] || die "needs two cores: one for the server, one for the client"

# Its own virtual cable, so that those of run.sh and of people may be up at the same time.
readonly BED=xdppeers PORT=4433 CLIENT_CORE=0 SERVER_CORE=1

# Microseconds between two turns of the server's NAPI. At 600,000 packets/s it finds 120 of the 256 that
# veth's ring holds. Longer loses bursts; shorter spends the core on interrupts (5,000/s are about 1% of it)
# and, in overload, on receiving what it then has to drop.
readonly NAPI_US=200

# Bytes of the sockets' buffers, the same for all servers: 8 MiB, which the kernel doubles, are some 20,000
# small packets. Larger ones only lengthen the backlog that is worked off after each blast.
readonly BUFFER=8388608

client_pid=
bed_is_up=
scratch=$(mktemp -d)

tear_down() {
    if [[ -n $client_pid ]]; then
        kill -KILL "$client_pid" 2>/dev/null || true
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

exec {run_lock}>"/run/$BED.lock"
flock -n "$run_lock" || die "another bench_peers.sh is running; wait for its end"
# Standard output is for the result alone.
exec {result_output}>&1 1>&2

install_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" iputils-ping
need_rust
say "building (the first time takes some minutes)"
as_owner cargo build --release --locked --quiet -p xdp-server -p peers
target=$(target_directory)/release
mkdir -p "$out/raw"

# device SETTING VALUE: a setting of the server's end, which is ours.
device() {
    echo "$2" >"/sys/class/net/${BED}0/$1"
}

# received CORE: how often this core has done the kernel's receive work.
received() {
    awk -v column="$((2 + $1))" '$1 == "NET_RX:" { print $column }' /proc/softirqs
}

# Starts the timer that drives the NAPI of the server's end on the server's core, and sees to it that it is
# there: the first packet decides, and it may be somebody else's.
drive_napi() {
    local attempt before
    for ((attempt = 0; attempt < 20; attempt++)); do
        device napi_defer_hard_irqs 0
        device gro_flush_timeout 0
        sleep 0.02
        device gro_flush_timeout "$((NAPI_US * 1000))"
        # As often as the kernel can count: for ever.
        device napi_defer_hard_irqs 2147483647
        taskset -c "$SERVER_CORE" ip netns exec "$BED" ping -q -c 1 -W 1 "$address" >/dev/null || continue
        before=$(received "$SERVER_CORE")
        sleep 0.1
        if [[ $(($(received "$SERVER_CORE") - before)) -gt $((100000 / NAPI_US / 2)) ]]; then
            return
        fi
    done
    die "the NAPI of ${BED}0 does not run on core $SERVER_CORE"
}

# serve SERVER CONNECTIONS POLL: starts it, with the kernel's receive work on its core. POLL is xdp-server's:
# busy, or adaptive where it is the core's idle time that tells the cost.
serve() {
    local server=$1 table=$(($2 + 100)) command napi=timer gro=on
    command=("$target/xdp-server" --listen "$address:$PORT" --cpus "$SERVER_CORE" --queues 1 --json
        --state "$scratch/state" --max-connections-per-worker "$table" --poll "$3"
        --socket-recv-buffer "$BUFFER" --socket-send-buffer "$BUFFER")
    case $server in
        xdp) command+=(--backend xdp --xdp-mode copy --iface "${BED}0"); gro=off ;;
        xdp-generic) command+=(--backend xdp --xdp-mode generic --iface "${BED}0"); gro=off napi=rps ;;
        io_uring | socket) command+=(--backend "$server") ;;
        *) command=("$target/peer-$server" --listen "$address:$PORT" --cpu "$SERVER_CORE"
            --socket-buffer "$BUFFER") ;;
    esac
    device queues/rx-0/rps_cpus 0
    ethtool -K "${BED}0" gro "$gro"
    start_server "$scratch/server" "${command[@]}" || exit 1
    if [[ $napi == timer ]]; then
        drive_napi
    else
        device queues/rx-0/rps_cpus "$((1 << SERVER_CORE))"
    fi
}

# ask NAME ARGUMENTS...: runs the client against the server; its report goes to OUT/raw/NAME.json.
ask() {
    local name=$1 status=0
    shift
    ip netns exec "$BED" "$target/saturate" --target "$address:$PORT" --cpu "$CLIENT_CORE" \
        --server-cpu "$SERVER_CORE" --json "$@" >"$scratch/client.json" 2>"$scratch/client.log" &
    client_pid=$!
    # In the background, so that Ctrl-C is acted upon at once.
    wait "$client_pid" || status=$?
    client_pid=
    if [[ $status -ne 0 ]]; then
        cat "$scratch/client.log"
        die "$name: the client ended with status $status; what it said is above"
    fi
    jq -c . "$scratch/client.json" >"$out/raw/$name.json"
}

bed_is_up=yes
scripts/testbed.sh up --name "$BED" --queues 1 >/dev/null
address=$(server_address "$BED" v4)
ip netns exec "$BED" sh -c "echo $((1 << CLIENT_CORE)) >/sys/class/net/${BED}1/queues/rx-0/rps_cpus"
# Each queue's UMEM, the canvas, and 9 KiB a connection.
largest=$(printf '%s\n' "${connection_list[@]}" | sort -n | tail -n 1)
reserve_huge_pages "$((16 + 4 + (largest + 200) * 9 / 1024 + 2))" || true

runs=$((rounds * ${#connection_list[@]} * ${#server_list[@]}))
run=0
for ((round = 1; round <= rounds; round++)); do
    for count in "${connection_list[@]}"; do
        for server in "${server_list[@]}"; do
            run=$((run + 1))
            serve "$server" "$count" busy
            ask "saturate.$round.$count.$server" --connections "$count" --search --rate 60000 --most "$most" \
                --seconds "$seconds" --loss "$loss"
            stop_server || die "$server did not end well: $(tail -n 3 "$scratch/server.log")"
            say "run $run of $runs: $server, $count clients, round $round:" "$(jq -r '
                "\(.most.messages_per_s) messages/s at most, \(.overload.messages_per_s) in overload, "
                + "\(.lossless.packets_per_s // 0) without loss"' \
                "$out/raw/saturate.$round.$count.$server.json")"
        done
    done
    for server in "${server_list[@]}"; do
        if [[ -n $fanout ]]; then
            serve "$server" "$((fanout + 1))" adaptive
            ask "fanout.$round.$fanout.$server" --watch "$fanout" --seconds 5
            stop_server || die "$server did not end well"
            say "fan-out of $server, round $round done"
        fi
        if [[ -n $handshakes ]]; then
            for kind in full resumed; do
                resume=()
                [[ $kind == full ]] || resume=(--resume)
                serve "$server" 20000 adaptive
                ask "handshakes-$kind.$round.0.$server" --handshakes --seconds 3 "${resume[@]}"
                stop_server || die "$server did not end well"
            done
            say "handshakes of $server, round $round done"
        fi
    done
done

version_of() {
    awk -v name="\"$1\"" '$1 == "name" && $3 == name { getline; gsub(/"/, "", $3); print $3; exit }' \
        Cargo.lock
}

settings=$(jq -n --arg date "$(date -u +%FT%TZ)" \
    --arg cpu "$(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo)" --arg cores "$(nproc)" \
    --arg kernel "$(uname -r)" \
    --arg commit "$(as_owner git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
    --arg quiche "$(version_of quiche)" --arg quinn "$(version_of quinn)" \
    --arg rustls "$(version_of rustls)" \
    --arg command "scripts/bench_peers.sh ${given[*]-}" --argjson rounds "$rounds" \
    --argjson seconds "$seconds" --argjson loss "$loss" --argjson buffer "$BUFFER" \
    --argjson napi "$NAPI_US" '{
        date: $date, command: $command,
        cpu: $cpu, cores: ($cores | tonumber), kernel: $kernel, commit: $commit,
        versions: { quiche: $quiche, quinn: $quinn, rustls: $rustls },
        rounds: $rounds, seconds_per_rate: $seconds, loss_percent: $loss, socket_buffer_bytes: $buffer,
        napi_timer_us: $napi
    }')
jq -n --slurpfile raw <(
    for file in "$out"/raw/*.json; do
        jq -c --arg name "$(basename "$file" .json)" '($name / ".") as [$what, $round, $count, $server]
            | { what: $what, round: ($round | tonumber), count: ($count | tonumber),
                server: $server, report: . }' "$file"
    done
) --argjson settings "$settings" --arg servers "$servers" -f scripts/bench_peers.jq >"$out/results.json"
jq -r --arg backends "$backends" -f scripts/bench_peers_table.jq "$out/results.json" >"$out/results.md"
say "written: $out/results.json, $out/results.md"
if [[ -n $json ]]; then
    cat "$out/results.json" >&"$result_output"
else
    cat "$out/results.md" >&"$result_output"
fi
