#!/usr/bin/env bash
# A load test from the host's check to the verdict, on one command. See usage below, bench/ for its steps, and
# testbed.sh for the network of --testbed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib.sh
# shellcheck source=scripts/bench/clients.sh
source scripts/bench/clients.sh
# shellcheck source=scripts/bench/record.sh
source scripts/bench/record.sh

usage() {
    cat <<'USAGE'
Runs a load test and says what limited it: checks the host, starts the server, loads it, records, reports.

usage: scripts/bench.sh --out DIR --testbed [OPTIONS] [-- SERVER-OPTIONS]
       scripts/bench.sh --out DIR --iface IF --client HOST [--client HOST]... [--ssh] [OPTIONS] [-- SERVER-OPTIONS]

  --testbed        clients on this machine, in a network namespace, at the other end of a virtual cable; server and
                   clients get cores of their own where there are two or more
  --iface IF       serve on this NIC, to clients elsewhere
  --client HOST    a machine to load from, once for each; prints what to type there, and waits until it is done
  --ssh            runs that there instead: copies the load generator with scp, fetches the results, tidies up
  --out DIR        results folder; made if it is not there, and must be empty
  --tune           prepare the host first (tune_server.sh; on a NIC set_queues.sh and pin_irqs.sh, too), and put
                   everything back at the end

  --clients N      connections of each client machine                    [default: 1000; 15000 with --iface]
  --processes N    load generators on each client machine                [default: 1]
  --ramp S         seconds over which clients connect                    [default: 5; 60 with --iface]
  --warmup S       seconds before the measured window                    [default: 5; 60 with --iface]
  --duration S     seconds of the measured window                        [default: 30; 480 with --iface]
  --scenario NAME  of loadgen run                                        [default: paint]
  --backend NAME   xdp, io_uring or socket                               [default: xdp]
  --xdp-mode MODE  copy, generic, zerocopy or auto                       [default: copy; auto with --iface]
  --queues N       queues, and workers    [default: the server's cores but one, at least one; --iface: all queues]
  --poll POLL      auto, busy or adaptive                                [default: auto]
  --port PORT      UDP port                                              [default: 4433]
  --programs DIR   take xdp-server and loadgen from there, instead of building them

DIR then has: report.html and report.png, the report; verdict.json, the bottleneck; host.json, what is needed to repeat
the run; doctor.json, server.jsonl, monitor.csv, dmesg.txt, loadgen-*.json and timeline-*.jsonl, what it is made from.
Installs what a bare Debian 12 lacks (with apt-get). Needs root, and asks sudo for it. Ctrl-C ends the window early, and
still reports.

Exit status: 0 there is a report, whatever the verdict; 1 there is none; 2 wrong usage; 3 Rust is missing.
USAGE
}

usage_error() {
    say "$*"
    say "for all options: $0 --help"
    exit 2
}

out='' testbed='' iface='' ssh='' tune='' clients='' processes=1 ramp='' warmup='' duration='' scenario=paint
backend=xdp xdp_mode='' queues='' poll=auto port=4433 programs=''
hosts=()
given=("$@")
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --) shift; break ;;
        --testbed | --ssh | --tune) printf -v "${1#--}" yes; shift ;;
        --out | --iface | --client | --clients | --processes | --ramp | --warmup | --duration | --scenario | \
            --backend | --xdp-mode | --queues | --poll | --port | --programs)
            [[ $# -ge 2 ]] || usage_error "$1 needs a value"
            option=${1#--}
            if [[ $option == client ]]; then hosts+=("$2"); else printf -v "${option//-/_}" %s "$2"; fi
            shift 2
            ;;
        *) usage_error "unknown option: $1" ;;
    esac
done
server_options=("$@")
[[ -n $out ]] || usage_error "--out DIR is missing: where should the results go?"
if [[ -n $testbed ]]; then
    [[ -z $iface && ${#hosts[@]} -eq 0 && -z $ssh ]] || usage_error "--testbed goes without --iface, --client, --ssh"
    : "${clients:=1000}" "${ramp:=5}" "${warmup:=5}" "${duration:=30}" "${xdp_mode:=copy}"
else
    [[ -n $iface && ${#hosts[@]} -gt 0 ]] || usage_error "either --testbed, or --iface IF and --client HOST"
    : "${clients:=15000}" "${ramp:=60}" "${warmup:=60}" "${duration:=480}" "${xdp_mode:=auto}"
fi
for option in clients processes duration queues port; do
    [[ $option == queues && -z $queues || ${!option} =~ ^[1-9][0-9]*$ ]] ||
        usage_error "--$option ${!option}: a number from 1 on"
done
for option in ramp warmup; do
    [[ ${!option} =~ ^[0-9]+$ ]] || usage_error "--$option ${!option}: seconds, from 0 on"
done
[[ $port -le 65535 ]] || usage_error "--port $port: 1 to 65535"
[[ $backend == xdp || $backend == io_uring || $backend == socket ]] ||
    usage_error "--backend $backend: xdp, io_uring or socket"
for host in "${hosts[@]}"; do
    [[ $host != -* ]] || usage_error "--client $host: the name of a machine"
done
if [[ -d $out && -n $(ls -A "$out") ]]; then
    usage_error "--out $out: is not empty, and results of different runs must not mix; name another"
fi

if [[ $EUID -ne 0 ]]; then
    command -v sudo >/dev/null || die "needs root, and there is no sudo: run it as root"
    say "needs root: calling sudo"
    exec sudo --preserve-env=CARGO_TARGET_DIR,SSH_AUTH_SOCK scripts/bench.sh "${given[@]}"
fi

# Name of the virtual cable, unlike those of run.sh and test.sh, which may be up at the same time.
readonly BED=xdpbench
# Where the server serves its metrics to monitor.sh.
readonly METRICS=127.0.0.1:9464

client_pids=()
monitor_pid=
bed_is_up=
tuned=()
interrupted=
scratch=$(mktemp -d)

# Everything that was made or changed goes, whichever way this ends; the results stay.
tear_down() {
    local pid step
    for pid in "${client_pids[@]}" $monitor_pid; do
        kill -KILL "$pid" 2>/dev/null || true
    done
    stop_server || true
    if [[ -n $bed_is_up ]]; then
        scripts/testbed.sh down --name "$BED" >/dev/null ||
            say "the testbed is still there; type: scripts/testbed.sh down --name $BED"
    fi
    for ((step = ${#tuned[@]} - 1; step >= 0; step--)); do
        say "undoing: ${tuned[step]}"
        # shellcheck disable=SC2086 # Words, made of names that have no spaces.
        scripts/${tuned[step]/ apply/ undo} >>"$out/tune.log" 2>&1 || say "not all is undone: see $out/tune.log"
    done
    return_huge_pages
    rm -rf "$scratch"
    if [[ $owner != root && -d $out ]]; then
        chown -R "$owner" "$out"
    fi
}
trap tear_down EXIT
trap 'exit 143' TERM

as_owner mkdir -p "$out" || die "cannot make the results folder $out"
out=$(cd "$out" && pwd)
install_packages "${RUN_PACKAGES[@]}" curl python3-matplotlib
if [[ -z $programs ]]; then
    install_packages "${BUILD_PACKAGES[@]}"
    need_rust
    say "building (the first time takes some minutes)"
    as_owner cargo build --release --locked --quiet -p xdp-server -p loadgen
    programs=$(target_directory)/release
fi
for program in xdp-server loadgen; do
    [[ -x $programs/$program ]] || die "$programs has no program $program; leave --programs out to build it"
done

exec {run_lock}>"/run/$BED.lock"
flock -n "$run_lock" || die "another bench.sh is running; wait for its end"

# Which cores serve, and which load; on a NIC the clients are elsewhere, and the server knows best.
server_cpus='' client_cpus=''
if [[ -n $testbed ]]; then
    mapfile -t cpus < <(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' |
        awk -F- '{ for (cpu = $1; cpu <= (NF > 1 ? $2 : $1); cpu++) print cpu }')
    half=$(((${#cpus[@]} + 1) / 2))
    server_cpus=$(IFS=,; echo "${cpus[*]:0:half}")
    client_cpus=$(IFS=,; echo "${cpus[*]:half}")
    : "${client_cpus:=$server_cpus}"
    : "${queues:=$((half > 1 ? half - 1 : 1))}"
    say "making the testbed: a virtual cable with $queues queues; server on CPU $server_cpus, clients on $client_cpus"
    bed_is_up=yes
    scripts/testbed.sh up --name "$BED" --queues "$queues" >/dev/null
    iface=${BED}0
    address=$(server_address "$BED" v4)
else
    [[ -e /sys/class/net/$iface ]] || die "there is no interface $iface; there are: $(ls -x /sys/class/net)"
    if [[ -z $queues ]]; then
        rx_queues=("/sys/class/net/$iface/queues/rx-"*)
        queues=${#rx_queues[@]}
    fi
    address=$(ip -o addr show dev "$iface" scope global | awk 'NR == 1 { sub(/\/.*/, "", $4); print $4 }')
    [[ -n $address ]] || die "$iface has no address; to give it one: ip address add ADDRESS/PREFIX dev $iface"
    [[ $address != *:* ]] || address="[$address]"
fi
url="https://$address:$port"

# change SCRIPT ARGUMENT...: prepares the host with one of the scripts, to be undone at the end.
change() {
    local name=$1
    say "preparing the host: $*"
    tuned+=("$* --state-file $out/${name%.sh}.state")
    # shellcheck disable=SC2086 # As above.
    scripts/${tuned[-1]} >>"$out/tune.log" 2>&1 || say "not all could be set: see $out/tune.log"
}
if [[ -n $tune ]]; then
    change tune_server.sh apply --backend "$backend" --port "$port" --iface "$iface"
    if [[ -z $testbed ]]; then
        change set_queues.sh "$iface" "$queues" apply --port "$port"
        change pin_irqs.sh "$iface" apply --queues "$queues"
    fi
fi

all_clients=$((clients * processes * (${#hosts[@]} > 0 ? ${#hosts[@]} : 1)))
# Queues are dealt out by hash where they are not aligned: any worker may get far more than its share.
table=$((all_clients * 2 < 65536 ? all_clients * 2 : 65536))
reserve_huge_pages "$(server_memory "$queues" "$table")" || true

settings=(--queues "$queues" --backend "$backend" --poll "$poll" --listen "[::]:$port" --metrics "$METRICS"
    --max-connections-per-worker "$table")
if [[ $backend == xdp ]]; then
    settings+=(--iface "$iface" --xdp-mode "$xdp_mode")
fi
if [[ -n $server_cpus ]]; then
    settings+=(--cpus "$server_cpus")
fi
settings+=("${server_options[@]}")
check_host
server=("$programs/xdp-server" "${settings[@]}" --state "$scratch/state" --json)
started_s=$(cut -d' ' -f1 /proc/uptime)
start_server "$out/server" "${server[@]}" || exit 1
# What the server has open moves along with its name.
mv "$out/server.json" "$out/server.jsonl"
scripts/monitor.sh --pid "$server_pid" --metrics "http://$METRICS/metrics" --out "$out/monitor.csv" \
    2>"$out/monitor.log" &
monitor_pid=$!

learn_spread
# Ctrl-C reaches the load generators, too: they end their window, and this goes on to the report.
trap 'interrupted=yes' INT
if [[ -n $testbed ]]; then
    load_from_testbed
elif [[ -n $ssh ]]; then
    load_by_ssh
else
    wait_for_clients
fi
[[ -z $interrupted ]] || say "interrupted: reporting on what there is"

server_status=0
stop_server || server_status=$?
[[ $server_status -eq 0 ]] || say "xdp-server ended with status $server_status; see $out/server.log"
# It ends with the server that it watches.
wait_all "$monitor_pid"
monitor_pid=
record_kernel_log "$started_s"
record_host
report
