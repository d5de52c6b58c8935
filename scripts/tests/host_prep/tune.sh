# shellcheck shell=bash
# tune_server.sh and tune_client.sh on made-up hosts. Sourced by host_prep.sh.
# shellcheck disable=SC2154 # host_prep.sh sets scratch, host and output.

# A host of 256 GiB with the settings of a fresh Debian.
make_host() {
    put 1111 /proc/sys/fs/file-max
    put 1048576 /proc/sys/fs/nr_open
    put 212992 /proc/sys/net/core/{rmem,wmem}_{max,default}
    put 4096 /proc/sys/net/ipv4/udp_{rmem,wmem}_min
    put $'575799\t767734\t1151598' /proc/sys/net/ipv4/udp_mem
    put 1000 /proc/sys/net/core/netdev_max_backlog
    put 4096 /proc/sys/net/core/somaxconn
    put 131072 /proc/sys/net/core/optmem_max
    put $'32768\t60999' /proc/sys/net/ipv4/ip_local_port_range
    put '' /proc/sys/net/ipv4/ip_local_reserved_ports
    put 65530 /proc/sys/vm/max_map_count
    put 262144 /proc/sys/net/netfilter/nf_conntrack_max
    put 2 /proc/sys/kernel/randomize_va_space
    put 0 /proc/sys/net/core/rps_sock_flow_entries
    put 0 /sys/class/net/eth0/queues/rx-{0,1}/rps_flow_cnt
    put 0 /sys/class/net/eth0/{napi_defer_hard_irqs,gro_flush_timeout}
    put 'always [madvise] never' /sys/kernel/mm/transparent_hugepage/enabled
    put 'always defer [defer+madvise] madvise never' /sys/kernel/mm/transparent_hugepage/defrag
    put schedutil /sys/devices/system/cpu/cpufreq/policy{0,1}/scaling_governor
    put 'performance schedutil ' /sys/devices/system/cpu/cpufreq/policy{0,1}/scaling_available_governors
    put 'MemTotal:       268435456 kB' /proc/meminfo
    put 00000000-0000-4000-8000-000000000001 /proc/sys/kernel/random/boot_id
    mkdir -p "$host/etc/security/limits.d" "$host/var/lib"
    remember_host
}

server() {
    "$SCRIPTS/tune_server.sh" "$@" --root "$host"
}

client() {
    "$SCRIPTS/tune_client.sh" "$@" --root "$host"
}

wanted_values_of_the_server() {
    make_host
    expect 0 server apply --iface eth0
    holds "$host/proc/sys/fs/file-max" 4194304
    holds "$host/proc/sys/fs/nr_open" 4194304
    holds "$host/proc/sys/net/core/rmem_max" 134217728
    holds "$host/proc/sys/net/core/wmem_max" 134217728
    holds "$host/proc/sys/net/core/rmem_default" 67108864
    holds "$host/proc/sys/net/core/wmem_default" 67108864
    holds "$host/proc/sys/net/ipv4/udp_rmem_min" 65536
    holds "$host/proc/sys/net/ipv4/udp_wmem_min" 65536
    holds "$host/proc/sys/net/ipv4/udp_mem" "8388608 16777216 33554432"
    holds "$host/proc/sys/net/core/netdev_max_backlog" 300000
    holds "$host/proc/sys/net/core/somaxconn" 65535
    holds "$host/proc/sys/net/core/optmem_max" 2048000
    holds "$host/proc/sys/net/ipv4/ip_local_port_range" "1024 65535"
    holds "$host/proc/sys/net/ipv4/ip_local_reserved_ports" 4433
    holds "$host/proc/sys/vm/max_map_count" 16777216
    holds "$host/proc/sys/net/netfilter/nf_conntrack_max" 2097152
    holds "$host/sys/devices/system/cpu/cpufreq/policy1/scaling_governor" performance
    holds "$host/sys/class/net/eth0/napi_defer_hard_irqs" 2
    holds "$host/sys/class/net/eth0/gro_flush_timeout" 200000
    # Those that are for other backends, or take a flag.
    holds "$host/proc/sys/net/core/rps_sock_flow_entries" 0
    holds "$host/proc/sys/kernel/randomize_va_space" 2
    grep -q '^\* *- *memlock *unlimited$' "$host/etc/security/limits.d/xdp-server.conf"
    said '+ echo 134217728 >'
}
test_that "tune_server: values" wanted_values_of_the_server

wanted_values_of_the_client() {
    make_host
    expect 0 client apply
    holds "$host/proc/sys/fs/nr_open" 4194304
    holds "$host/proc/sys/net/core/rmem_max" 67108864
    holds "$host/proc/sys/net/ipv4/udp_mem" "4194304 8388608 16777216"
    holds "$host/proc/sys/net/ipv4/ip_local_port_range" "1024 65535"
    holds "$host/proc/sys/net/ipv4/ip_local_reserved_ports" ""
    grep -q '^\* *- *nofile *1048576$' "$host/etc/security/limits.d/xdp-server.conf"
    expect 0 client check
    expect 0 client undo
    host_is_unchanged
}
test_that "tune_client: values, and undo" wanted_values_of_the_client

apply_then_undo() {
    make_host
    expect 1 server check --iface eth0
    host_is_unchanged
    expect 0 server apply --iface eth0 --no-aslr
    said 'trades security'
    holds "$host/proc/sys/kernel/randomize_va_space" 0
    expect 0 server check --iface eth0 --no-aslr
    not_said differs
    expect 0 server status
    said 'net.core.rmem_max: was 212992, is 134217728'
    expect 0 server undo
    host_is_unchanged
    expect 1 server check --iface eth0
}
test_that "tune_server: undo restores every byte" apply_then_undo

apply_then_undo_for_sockets() {
    make_host
    expect 0 server apply --iface eth0 --backend socket
    holds "$host/proc/sys/net/core/rps_sock_flow_entries" 65536
    holds "$host/sys/class/net/eth0/queues/rx-1/rps_flow_cnt" 4096
    holds "$host/sys/class/net/eth0/gro_flush_timeout" 0
    expect 0 server undo
    host_is_unchanged
}
test_that "tune_server: RFS on the socket backends" apply_then_undo_for_sockets

# Values as no kernel writes them: without a newline, with backslashes, empty.
undo_restores_odd_bytes() {
    make_host
    printf '212992' >"$host/proc/sys/net/core/rmem_max"
    printf '' >"$host/proc/sys/net/core/wmem_max"
    printf ' 1\\t\t2\n\n' >"$host/proc/sys/vm/max_map_count"
    remember_host
    expect 0 server apply
    holds "$host/proc/sys/net/core/wmem_max" 134217728
    expect 0 server undo
    host_is_unchanged
}
test_that "tune_server: undo restores odd bytes" undo_restores_odd_bytes

some_settings_do_not_exist() {
    make_host
    rm -r "$host"/proc/sys/net/{netfilter,core/optmem_max} "$host"/sys/{kernel,devices} "${host:?}/etc"
    rm "$host"/sys/class/net/eth0/napi_defer_hard_irqs
    remember_host
    expect 0 server apply --iface eth0
    said 'net.core.optmem_max: there is none here'
    said 'connection tracking is not loaded'
    said "the kernel does not control the CPUs' frequency"
    said 'napi_defer_hard_irqs: there is none here'
    expect 0 server check --iface eth0
    expect 0 server undo
    host_is_unchanged
}
test_that "tune_server: settings that do not exist" some_settings_do_not_exist

apply_twice() {
    make_host
    expect 0 server apply
    # Somebody else changes a setting in between.
    put 5000 /proc/sys/net/core/rmem_max
    expect 0 server apply
    holds "$host/proc/sys/net/core/rmem_max" 134217728
    expect 0 server apply
    not_said changed
    expect 0 server undo
    host_is_unchanged
}
test_that "tune_server: apply twice keeps the first values" apply_twice

server_and_client_on_one_host() {
    make_host
    expect 0 client apply
    expect 0 server apply
    said 'limits     ok'
    expect 0 client check
    expect 0 server undo
    expect 0 client undo
    host_is_unchanged
}
test_that "tune_server and tune_client on one host" server_and_client_on_one_host

undo_without_apply() {
    make_host
    expect 0 server undo
    said 'nothing to undo'
    host_is_unchanged
}
test_that "tune_server: undo without apply" undo_without_apply

dry_run() {
    make_host
    expect 0 server apply --dry-run --iface eth0 --no-aslr
    said '+ echo 134217728 >'
    [[ $(grep -c ' would ' "$output") -eq 22 ]]
    host_is_unchanged
    expect 0 server apply
    cp -a "$host" "$scratch/applied"
    expect 0 server undo --dry-run
    said '+ echo 212992 >'
    diff -r "$scratch/applied" "$host"
}
test_that "tune_server: a dry run changes nothing" dry_run

# The script is stopped by SIGKILL with a setting recorded and not written yet: that setting is a pipe that nobody
# reads.
interrupted_apply() {
    local pid setting=$host/proc/sys/vm/max_map_count state
    make_host
    state=$host/var/lib/xdp-server/tune/tune_server.state
    rm "$setting"
    mkfifo "$setting"
    "$SCRIPTS/tune_server.sh" apply --root "$host" >"$output" 2>&1 &
    pid=$!
    echo 65530 >"$setting"
    for _ in {1..100}; do
        grep -q max_map_count "$state" && break
        sleep 0.05
    done
    sleep 0.1
    kill -KILL "$pid"
    wait "$pid" || true
    # What blocks is a child; it ends with the pipe.
    timeout 1 cat "$setting" >/dev/null || true
    rm "$setting"
    echo 65530 >"$setting"
    # Nor does what was being written when the power failed do harm.
    printf 'half a li' >"$state.new"
    holds "$host/proc/sys/net/core/rmem_max" 134217728
    expect 0 server undo
    said 'vm.max_map_count is 65530 already'
    host_is_unchanged
}
test_that "tune_server: an interrupted apply is undone" interrupted_apply

larger_values_stay() {
    make_host
    put 9223372036854775807 /proc/sys/fs/file-max
    put 999999999 /proc/sys/net/core/rmem_max
    put $'9999999\t9999999\t9999999' /proc/sys/net/ipv4/udp_mem
    put '1000 65535' /proc/sys/net/ipv4/ip_local_port_range
    put '80,4000-5000' /proc/sys/net/ipv4/ip_local_reserved_ports
    put 'always' /sys/kernel/mm/transparent_hugepage/enabled
    put '[always] madvise never' /sys/kernel/mm/transparent_hugepage/enabled
    expect 0 server apply
    said 'fs.file-max = 9223372036854775807 (already more than 4194304)'
    said 'net.core.rmem_max = 999999999 (already more than 134217728)'
    said 'net.ipv4.ip_local_port_range = 1000 65535 (already wider than 1024 65535)'
    said 'net.ipv4.ip_local_reserved_ports = 80,4000-5000'
    said 'transparent_hugepage/enabled = always'
    holds "$host/proc/sys/net/ipv4/udp_mem" '9999999 16777216 33554432'
}
test_that "tune_server: larger values stay" larger_values_stay

udp_mem_is_scaled() {
    make_host
    local pages=$((2 * 1024 * 1024 * 1024 / $(getconf PAGESIZE)))
    put 'MemTotal:       4194304 kB' /proc/meminfo
    put $'9\t9\t9' /proc/sys/net/ipv4/udp_mem
    expect 0 server apply --only udp
    holds "$host/proc/sys/net/ipv4/udp_mem" "$((pages / 4)) $((pages / 2)) $pages"
    said 'at most half of this host'
}
test_that "tune_server: udp_mem is scaled down" udp_mem_is_scaled

only_some_stages() {
    make_host
    expect 0 server apply --only maps,files
    expect 0 server check --only maps,files
    holds "$host/proc/sys/net/core/rmem_max" 212992
    expect 0 server undo --only maps
    holds "$host/proc/sys/vm/max_map_count" 65530
    holds "$host/proc/sys/fs/nr_open" 4194304
    expect 0 server undo
    host_is_unchanged
    expect 2 server apply --only maps,nonsense
    said 'nonsense'
}
test_that "tune_server: --only" only_some_stages

wrong_usage() {
    make_host
    local arguments
    for arguments in '--port 0' '--port 65536' '--port' '--backend dpdk' 'apply undo' 'nonsense' '--iface nonsense'; do
        # shellcheck disable=SC2086 # Several words.
        expect 2 server $arguments
    done
    expect 2 "$SCRIPTS/tune_server.sh" check --root /nonexistent
    host_is_unchanged
    local script
    for script in tune_server tune_client pin_irqs set_queues hugepages; do
        expect 0 "$SCRIPTS/$script.sh" --help
        said "usage: scripts/$script.sh"
    done
}
test_that "wrong usage" wrong_usage

after_a_reboot() {
    make_host
    expect 0 server apply
    put 00000000-0000-4000-8000-000000000002 /proc/sys/kernel/random/boot_id
    put 777 /proc/sys/net/core/rmem_max
    expect 0 server undo
    said 'has rebooted'
    holds "$host/proc/sys/net/core/rmem_max" 777
    [[ ! -e $host/etc/security/limits.d/xdp-server.conf && ! -e $host/var/lib/xdp-server/tune/tune_server.state ]]
}
test_that "tune_server: after a reboot only files are undone" after_a_reboot

a_file_of_somebody_else() {
    make_host
    put '* - nofile 5' /etc/security/limits.d/xdp-server.conf
    remember_host
    expect 1 server apply --only limits
    said 'move it away'
    host_is_unchanged
}
test_that "tune_server: limits of somebody else stay" a_file_of_somebody_else

what_cannot_be_written() {
    make_host
    # shellcheck disable=SC2016 # For that shell.
    expect 1 unshare --mount bash -c '
        mount --bind "$1/proc" "$1/proc" && mount -o remount,bind,ro "$1/proc"
        exec "$2/tune_server.sh" apply --root "$1"' - "$host" "$SCRIPTS"
    said 'start the container with --privileged'
    said 'changed'
    expect 0 server undo
    host_is_unchanged
}
test_that "tune_server: a read-only /proc" what_cannot_be_written

one_at_a_time() {
    make_host
    mkdir -p "$host/var/lib/xdp-server/tune"
    exec {lock}<"$host/var/lib/xdp-server/tune"
    flock "$lock"
    expect 1 server apply
    said 'another script changes settings'
    diff -r --exclude=xdp-server "$host.before" "$host"
}
test_that "two scripts at the same time" one_at_a_time

no_governor_performance() {
    make_host
    put 'powersave ' /sys/devices/system/cpu/cpufreq/policy1/scaling_available_governors
    expect 0 server apply --only governor
    said 'policy1 has no governor performance'
    holds "$host/sys/devices/system/cpu/cpufreq/policy0/scaling_governor" performance
    holds "$host/sys/devices/system/cpu/cpufreq/policy1/scaling_governor" schedutil
}
test_that "tune_server: a CPU without the governor" no_governor_performance
