#!/usr/bin/env bash
# Memory of idle connections. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib.sh

usage() {
    cat <<'USAGE'
Measures what an idle connection costs: starts the release server with one worker on loopback, connects
clients that do nothing, waits (what handshakes took is given back after 10 s), lets them leave, and waits
until their memory is given back: a good-bye that is lost in the rush takes 15 s to time out, jemalloc keeps
freed memory for another 10 s. Resident memory is the process's VmRSS and its HugetlbPages, which VmRSS does
not count.

usage: scripts/bench_memory.sh [OPTIONS] [-- SERVER-OPTIONS]

  --clients N       connections                                              [default: 20000]
  --hold S          seconds that all of them stay                            [default: 20]
  --settle S        seconds from when they have left to the last look        [default: 30]
  --listen A:P      where to serve                                           [default: 127.0.0.1:4433]
  --max-kb N        fail if a connection costs more, in KB (1000 bytes)      [default: no limit]
  --max-left P      fail if more than P percent of what the clients' memory grew by, counted from
                    the start, is left at the end                            [default: no limit]

20,000 clients take about two minutes on a quiet machine with two cores, and 2 GB for their side. Needs no
root. The last line on standard output is a JSON object with the result; all else goes to standard error.

Exit status: 0 measured; 1 a limit was passed, or a client failed; 2 wrong usage; 3 Rust is missing.
USAGE
}

usage_error() {
    say "$*"
    say "for all options: $0 --help"
    exit 2
}

clients=20000
hold=20
settle=30
listen=127.0.0.1:4433
max_kb=
max_left=
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --) shift; break ;;
        --clients | --hold | --settle | --listen | --max-kb | --max-left)
            [[ $# -ge 2 ]] || usage_error "$1 needs a value"
            option=${1#--}
            printf -v "${option//-/_}" %s "$2"
            shift 2
            ;;
        *) usage_error "unknown option: $1" ;;
    esac
done
for option in clients hold settle max_kb max_left; do
    value=${!option}
    if [[ -z $value && $option == max_* ]]; then
        continue
    fi
    [[ $value =~ ^[1-9][0-9]*$ ]] || usage_error "--${option//_/-} $value: a number from 1 on"
done
[[ $clients -le 60000 ]] || usage_error "--clients $clients: at most 60000, what one worker's table takes"
[[ $listen =~ ^[^/]+:[1-9][0-9]*$ ]] || usage_error "--listen $listen: ADDR:PORT, such as 127.0.0.1:4433"

# Seconds that clients may take to connect, besides one for each 100 of them: two quiet cores take a tenth.
readonly CONNECT_LIMIT=30

loadgen_pid=
scratch=$(mktemp -d)

# Everything that was started goes, whichever way this ends.
tear_down() {
    if [[ -n $loadgen_pid ]]; then
        kill -KILL "$loadgen_pid" 2>/dev/null || true
    fi
    stop_server || true
    rm -rf "$scratch"
}
trap tear_down EXIT
trap 'say "interrupted: tearing down"; exit 130' INT
trap 'exit 143' TERM

command -v jq >/dev/null || die "needs jq: sudo apt-get install jq"
need_rust
say "building (the first time takes some minutes)"
as_owner cargo build --release --locked --quiet -p xdp-server -p loadgen
target=$(target_directory)/release

# Resident bytes of the server, huge pages included.
resident() {
    awk '$1 == "VmRSS:" || $1 == "HugetlbPages:" { kb += $2 } END { printf "%d\n", kb * 1024 }' \
        "/proc/$server_pid/status"
}

# The connections that the server has, as of its last second.
connected() {
    jq -s 'map(select(.event == "second")) | last | .connections // 0' "$scratch/tail.json"
}

# sample LABEL: resident memory and connections now, in $bytes and $count.
sample() {
    bytes=$(resident)
    # The last line may be half written.
    tail -n 3 "$scratch/server.json" | head -n 2 >"$scratch/tail.json"
    count=$(connected)
    say "$(printf '%-22s %6d connections  %8.1f MB resident' "$1" "$count" "$((bytes / 100000))e-1")"
}

# One worker, so that all connections are in one table.
start_server "$scratch/server" "$target/xdp-server" --listen "$listen" --workers 1 \
    --max-connections-per-worker "$((clients + 100))" --state "$scratch/state" --json "$@" || exit 1
sleep 3
sample "before"
before=$bytes

# A client paints once a day; handshakes are spread so that two cores can do both ends of them.
say "connecting $clients clients"
"$target/loadgen" --target "https://$listen" --clients "$clients" --watchers 0 \
    --min-pixel-wait 86400000 --max-pixel-wait 86400000 --max-conn-jitter "$((clients * 2))" \
    --connect-timeout 60 --json --quiet >"$scratch/loadgen.json" &
loadgen_pid=$!
until ((count >= clients)); do
    kill -0 "$loadgen_pid" 2>/dev/null || die "the load generator has ended; its words are above"
    ((SECONDS < CONNECT_LIMIT + clients / 100)) ||
        die "not all clients were connected in time: is the machine busy with other work?"
    sleep 2
    sample "clients connect"
done
for ((second = 0; second < hold; second += 5)); do
    sleep 5
    sample "clients are there"
done
peak=$count with=$bytes
kill -INT "$loadgen_pid"
loadgen_status=0
wait "$loadgen_pid" || loadgen_status=$?
loadgen_pid=
for ((second = 0; second < settle; second += 5)); do
    sleep 5
    sample "clients have left"
done
after=$bytes left=$count
server_status=0
stop_server || server_status=$?

jq -n -c --argjson clients "$clients" --argjson peak "$peak" --argjson before "$before" \
    --argjson with "$with" --argjson after "$after" --argjson left "$left" \
    --argjson loadgen_status "$loadgen_status" \
    --argjson server_status "$server_status" --arg max_kb "$max_kb" --arg max_left "$max_left" '
    {
        clients: $clients,
        connections: $peak,
        resident_before: $before,
        resident_with: $with,
        resident_after: $after,
        bytes_per_connection: (($with - $before) / ([$peak, 1] | max) | round),
        after_to_before: ($after / $before * 1000 | round / 1000)
    } |
    .problems = [
        (select($loadgen_status != 0) | "loadgen ended with status \($loadgen_status)"),
        (select($server_status != 0) | "xdp-server ended with status \($server_status)"),
        (select($peak < $clients) | "only \($peak) of \($clients) clients were connected at a time"),
        (select($left != 0) | "\($left) connections are left"),
        (select($max_kb != "" and .bytes_per_connection > ($max_kb | tonumber) * 1000)
            | "a connection takes \(.bytes_per_connection) bytes, more than \($max_kb) KB"),
        (select($max_left != "" and $after - $before > ($with - $before) * ($max_left | tonumber) / 100)
            | "more than \($max_left)% of the memory is not given back")
    ]' >"$scratch/result.json"
jq -r '"before \(.resident_before / 1e6 | round) MB, with \(.connections) idle connections " +
    "\(.resident_with / 1e6 | round) MB, after \(.resident_after / 1e6 | round) MB: " +
    "\(.bytes_per_connection / 100 | round / 10) KB a connection; " +
    "after/before \(.after_to_before)", (.problems[] | "FAILED: \(.)")' "$scratch/result.json" >&2
cat "$scratch/result.json"
jq -e '.problems == []' "$scratch/result.json" >/dev/null
