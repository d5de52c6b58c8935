# shellcheck shell=bash
# bench.sh's records: the host before, the kernel's log and the host after, and the report. To be sourced by it.

# The server's own check of this host. What cannot work ends the run; what could be better is said, and recorded.
check_host() {
    local status=0
    "$programs/xdp-server" doctor --json "${settings[@]}" >"$out/doctor.json" 2>"$out/doctor.log" || status=$?
    case $status in
        0) say "doctor: all is well" ;;
        1) say "doctor: there are warnings; to see them: xdp-server doctor ${settings[*]}" ;;
        *)
            "$programs/xdp-server" doctor "${settings[@]}" >&2 || true
            die "the server cannot run with these settings; see the table above"
            ;;
    esac
}

# record_kernel_log SECONDS: what the kernel has said since it was so long up.
record_kernel_log() {
    if ! dmesg >"$scratch/dmesg" 2>&1; then
        say "no kernel log, and so nothing of it in the report: $(head -n 1 "$scratch/dmesg")"
        return
    fi
    awk -F'[][]' -v since="$1" '$2 + 0 >= since + 0' "$scratch/dmesg" >"$out/dmesg.txt"
}

# All that is needed to repeat this run.
record_host() {
    local driver revision
    driver=$(ethtool -i "$iface" 2>/dev/null | sed -n 's/^driver: //p')
    revision=$(as_owner git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)
    jq -n --arg time "$(date -u +%Y-%m-%dT%H:%M:%SZ)" --arg kernel "$(uname -srm)" \
        --arg cpu "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)" \
        --argjson cores "$(nproc --all)" --argjson memory_mib "$(($(meminfo MemTotal) / 1024))" \
        --arg nic "$iface" --arg driver "$driver" --argjson queues "$queues" \
        --arg server_cpus "$server_cpus" --arg client_cpus "$client_cpus" \
        --arg server_version "$("$programs/xdp-server" --version)" \
        --arg loadgen_version "$("$programs/loadgen" --version)" --arg git_revision "$revision" \
        --arg bench "scripts/bench.sh ${given[*]@Q}" --arg server "${server[*]@Q}" \
        --arg loadgen "loadgen ${load[*]@Q}" \
        --argjson clients_on "$(jq -n -c '$ARGS.positional' --args "${hosts[@]}")" '
        {time: $time, kernel: $kernel, cpu: $cpu, cores: $cores, memory_mib: $memory_mib,
         nic: $nic, driver: $driver, queues: $queues,
         server_cpus: $server_cpus, client_cpus: $client_cpus, clients_on: $clients_on,
         versions: {"xdp-server": $server_version, loadgen: $loadgen_version}, git_revision: $git_revision,
         command_lines: {bench: $bench, server: $server, loadgen: $loadgen}}' >"$out/host.json"
}

# A Python that has matplotlib: that of the distribution has it when another one comes first in PATH.
python_with_matplotlib() {
    local python
    for python in python3 /usr/bin/python3; do
        if "$python" -c 'import matplotlib' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    return 1
}

# The report on standard output, and as HTML and PNG in the folder.
report() {
    local python
    "$programs/loadgen" report "$out" || die "no report could be made of $out"
    if python=$(python_with_matplotlib); then
        "$python" scripts/visualize_load.py "$out" || die "no picture could be made; the report is in $out/report.html"
    else
        say "no report.png: there is no matplotlib; type: sudo apt-get install python3-matplotlib"
    fi
}
