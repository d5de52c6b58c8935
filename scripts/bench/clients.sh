# shellcheck shell=bash
# bench.sh's load: what the clients' machines run, here, by ssh, or by hand. To be sourced by it; uses its settings.

# Seconds that clients may take to connect, verify nothing and end, beyond the times that they were given.
readonly CLIENT_GRACE_S=60

# Notes how the server's interface spreads packets over its queues, for clients to choose their ports by.
learn_spread() {
    aligned=
    [[ $queues -gt 1 ]] || return 0
    if "$programs/xdp-server" rss --json --iface "$iface" >"$out/rss.json" 2>"$out/rss.log"; then
        aligned=yes
    else
        say "connections fall on queues as chance has it: $(head -n 1 "$out/rss.log")"
        rm "$out/rss.json"
    fi
}

# load_command ID FOLDER RSS: the arguments of loadgen for one machine, in the array `load`. RSS is where rss.json is.
load_command() {
    load=(run "$scenario" --target "$url" --id "$1" --clients "$((clients * processes))" --processes "$processes"
        --max-conn-jitter "$((ramp * 1000))" --warmup "$warmup" --duration "$duration" --out "$2")
    if [[ -n $aligned ]]; then
        load+=(--align-queues --rss-config "$3")
    fi
}

# wait_all PID...: waits for processes, also when a signal comes in between. Returns the last status that is not 0.
wait_all() {
    local pid status result=0
    for pid in "$@"; do
        while true; do
            status=0
            wait "$pid" || status=$?
            # A trap that ran ends the wait, not the process.
            [[ $status -gt 128 ]] && kill -0 "$pid" 2>/dev/null || break
        done
        [[ $status -eq 0 ]] || result=$status
    done
    return "$result"
}

# The clients of --testbed: at the far end of the cable, on cores of their own.
load_from_testbed() {
    load_command testbed "$out" "$out/rss.json"
    say "loading: $((clients * processes)) clients connect within $ramp s, warm up for $warmup s, and are" \
        "measured for $duration s"
    ip netns exec "$BED" taskset -c "$client_cpus" "$programs/loadgen" "${load[@]}" >"$out/client-testbed.log" &
    client_pids=($!)
    wait_all "${client_pids[@]}" || say "the load generator ended with status $?; see $out/client-testbed.log"
    client_pids=()
}

# The clients' machines, by ssh. Each has a folder of its own, which goes at the end.
load_by_ssh() {
    local host id folder i=0 folders=()
    for host in "${hosts[@]}"; do
        id=client-$((++i))
        folder=$(ssh "$host" mktemp -d) || die "cannot reach $host by ssh; try: ssh $host true"
        folders+=("$folder")
        scp -q "$programs/loadgen" "$host:$folder/loadgen" || die "cannot copy the load generator to $host:$folder"
        [[ -z $aligned ]] || scp -q "$out/rss.json" "$host:$folder/" || die "cannot copy rss.json to $host:$folder"
        load_command "$id" "$folder/results" "$folder/rss.json"
        say "on $host: loadgen ${load[*]}"
        # shellcheck disable=SC2029 # What is to be expanded here, is.
        timeout "$((ramp + warmup + duration + CLIENT_GRACE_S))" \
            ssh "$host" "ulimit -n 1048576 2>/dev/null; cd $folder && ./loadgen ${load[*]@Q}" \
            >"$out/$id.log" 2>&1 &
        client_pids+=($!)
    done
    wait_all "${client_pids[@]}" || say "a load generator ended with status $?; see $out/client-*.log"
    client_pids=()
    for ((i = 0; i < ${#hosts[@]}; i++)); do
        scp -q "${hosts[i]}:${folders[i]}/results/*" "$out/" || say "there are no results on ${hosts[i]}"
        # shellcheck disable=SC2029 # As above.
        ssh "${hosts[i]}" "rm -rf ${folders[i]@Q}" || say "${folders[i]} is left behind on ${hosts[i]}"
    done
}

# The clients' machines, by hand.
wait_for_clients() {
    local host i=0
    say "the server runs. Type on each client machine, in a clone of this repository, all at about the same time:"
    [[ -z $aligned ]] || say "(with a copy of $out/rss.json there)"
    for host in "${hosts[@]}"; do
        load_command "client-$((++i))" results rss.json
        say "  $host:  sudo scripts/tune_client.sh apply && cargo run --release -p loadgen -- ${load[*]}"
    done
    say "and when they are done, here, in another terminal:"
    for host in "${hosts[@]}"; do
        say "  scp '$host:xdp-server/results/*' $out/"
    done
    say "then press Enter here (or Ctrl-C)"
    # Without a terminal to press Enter on, Ctrl-C or SIGINT is the way.
    if ! read -r; then
        while [[ -z $interrupted ]] && kill -0 "$server_pid" 2>/dev/null; do
            sleep 1 || true
        done
    fi
    interrupted=
}
