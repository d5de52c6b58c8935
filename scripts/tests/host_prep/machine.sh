# shellcheck shell=bash
# Tests on this machine: its kernel, a network namespace with a veth pair, nftables. Sourced by host_prep.sh. What they
# change of the machine itself they restore, whichever way they end.
# shellcheck disable=SC2154 # host_prep.sh sets scratch and output.

# Namespace and, with 0 and 1 appended, ends of the veth pair.
readonly BED=tpbedprep

remove_bed() {
    ip netns del "$BED" 2>/dev/null || true
    ip link del "${BED}0" 2>/dev/null || true
}

# make_bed QUEUES: the pair, both ends in the namespace
make_bed() {
    remove_bed
    trap remove_bed EXIT
    ip netns add "$BED"
    ip -n "$BED" link add "${BED}0" numrxqueues "$1" numtxqueues "$1" type veth \
        peer name "${BED}1" numrxqueues "$1" numtxqueues "$1"
}

in_bed() {
    ip netns exec "$BED" "$@"
}

# Every file that the settings of a stage are kept in. Those of the network are the namespace's that it is called in.
settings_of_this_machine() {
    local file
    for file in /proc/sys/fs/{file-max,nr_open} /proc/sys/net/core/{r,w}mem_{max,default} \
        /proc/sys/net/core/{netdev_max_backlog,somaxconn,optmem_max,rps_sock_flow_entries} \
        /proc/sys/net/ipv4/{udp_mem,udp_rmem_min,udp_wmem_min,ip_local_port_range,ip_local_reserved_ports} \
        /proc/sys/net/netfilter/nf_conntrack_max /proc/sys/vm/max_map_count /proc/sys/kernel/randomize_va_space \
        /sys/kernel/mm/transparent_hugepage/{enabled,defrag} /sys/devices/system/cpu/cpufreq/*/scaling_governor \
        "/sys/class/net/${BED}0"/{napi_defer_hard_irqs,gro_flush_timeout} \
        "/sys/class/net/${BED}0"/queues/rx-*/rps_flow_cnt /etc/security/limits.d/*; do
        printf '%s: %s\n' "$file" "$(od -An -c "$file" 2>/dev/null | tr -d '\n')"
    done
    ethtool -k "${BED}0" | grep rx-udp-gro-forwarding
}

# this_machine SCRIPT ARGUMENT...: apply changes this machine, and undo restores every byte.
this_machine() {
    local script=$SCRIPTS/$1 state=$scratch/machine.state huge=/sys/kernel/mm/transparent_hugepage/enabled found
    shift
    remove_bed
    found=$(sed 's/.*\[\(.*\)\].*/\1/' "$huge")
    # shellcheck disable=SC2064 # What it is now.
    trap "'$script' undo --state-file '$state' >/dev/null 2>&1 || true; remove_bed; echo $found >$huge" EXIT
    ip link add "${BED}0" numrxqueues 2 numtxqueues 2 type veth peer name "${BED}1"
    ethtool -K "${BED}0" rx-udp-gro-forwarding on
    echo never >"$huge"
    settings_of_this_machine >"$scratch/before"
    expect 0 "$script" apply --state-file "$state" --dry-run "$@"
    settings_of_this_machine | diff "$scratch/before" -
    expect 0 "$script" apply --state-file "$state" "$@"
    cp "$output" "$scratch/said_by_apply"
    settings_of_this_machine >"$scratch/after"
    expect 0 "$script" check --state-file "$state" "$@"
    expect 0 "$script" undo --state-file "$state"
    settings_of_this_machine | diff "$scratch/before" -
    [[ ! -e $state ]]
    if cmp -s "$scratch/before" "$scratch/after"; then
        echo 'nothing was changed: was this machine tuned before?'
        return 1
    fi
}

tune_server_here() {
    this_machine tune_server.sh --iface "${BED}0" --port 4999 --no-aslr
    grep -q '^thp *changed .*from never' "$scratch/said_by_apply"
    grep -q '^gro *changed' "$scratch/said_by_apply"
    grep -q '^napi *changed .*gro_flush_timeout: from 0' "$scratch/said_by_apply"
    grep -q 'rx-udp-gro-forwarding: off' "$scratch/after"
}
test_that "tune_server: this machine, as it was after undo" tune_server_here

tune_server_here_for_io_uring() {
    this_machine tune_server.sh --iface "${BED}0" --port 4999 --backend io_uring
    grep -q '^rfs *changed .*rx-1/rps_flow_cnt: from 0' "$scratch/said_by_apply"
}
test_that "tune_server: this machine, for io_uring" tune_server_here_for_io_uring

tune_client_here() {
    this_machine tune_client.sh --port 4999
}
test_that "tune_client: this machine, as it was after undo" tune_client_here

# In a network namespace, as in a container, some settings are the host's and cannot be changed.
in_a_namespace() {
    make_bed 2
    local state=$scratch/machine.state
    in_bed cat /proc/sys/net/ipv4/ip_local_port_range >"$scratch/before"
    expect 1 in_bed "$SCRIPTS/tune_server.sh" apply --state-file "$state" --only ports,conntrack,queues
    said 'net.netfilter.nf_conntrack_max: found'
    said 'it takes root of the host'
    in_bed grep -q $'^1024\t65535$' /proc/sys/net/ipv4/ip_local_port_range
    expect 0 in_bed "$SCRIPTS/tune_server.sh" undo --state-file "$state"
    in_bed cmp "$scratch/before" /proc/sys/net/ipv4/ip_local_port_range
}
test_that "tune_server: in a namespace" in_a_namespace

# chain_has TABLE CHAIN TEXT: whether nft shows this in a chain of the bed
chain_has() {
    [[ $(in_bed nft list chain inet "$1" "$2") == *"$3"* ]]
}

notrack_here() {
    make_bed 2
    local state=$scratch/machine.state
    local tune=(in_bed "$SCRIPTS/tune_server.sh" --state-file "$state" --only notrack)
    in_bed nft add table inet others
    in_bed nft list ruleset >"$scratch/before"
    expect 1 "${tune[@]}" check
    expect 0 "${tune[@]}" apply
    said "+ nft 'add table inet xdp_server_tune"
    expect 0 "${tune[@]}" check
    chain_has xdp_server_tune prerouting 'udp dport 4433 notrack'
    chain_has xdp_server_tune prerouting 'hook prerouting priority raw'
    chain_has xdp_server_tune output 'udp sport 4433 notrack'
    # Another port replaces it.
    expect 1 "${tune[@]}" check --port 4434
    expect 0 "${tune[@]}" apply --port 4434
    in_bed nft list ruleset >"$scratch/after"
    grep -q 'udp dport 4434 notrack' "$scratch/after"
    [[ $(grep -c notrack "$scratch/after") -eq 2 ]]
    expect 0 "${tune[@]}" undo
    in_bed nft list ruleset | diff "$scratch/before" -
    expect 0 in_bed "$SCRIPTS/tune_client.sh" apply --state-file "$state" --only notrack
    chain_has xdp_client_tune prerouting 'udp sport 4433 notrack'
    chain_has xdp_client_tune output 'udp dport 4433 notrack'
    # Interrupted between record and change, or cleaned up by somebody else.
    in_bed nft delete table inet xdp_client_tune
    expect 0 in_bed "$SCRIPTS/tune_client.sh" undo --state-file "$state"
    said 'gone already'
}
test_that "tune_server: no tracking, by nftables" notrack_here

# packets_for_nobody: how many packets of UDP have found no socket in the bed
packets_for_nobody() {
    in_bed cat /proc/net/snmp | awk '/^Udp: [0-9]/ { print $3 }'
}

# send_to_the_port: a packet to port 4433 of the bed, from its far end; ends when it has arrived and found nobody.
send_to_the_port() {
    local before
    before=$(packets_for_nobody)
    for _ in {1..100}; do
        ip netns exec "${BED}far" bash -c 'echo x >/dev/udp/10.98.77.1/4433' || true
        [[ $(packets_for_nobody) -eq $before ]] || return 0
        sleep 0.05
    done
    return 1
}

# That the exemption does what it is for: where a firewall tracks, packets of the port leave no entry.
notrack_is_effective() {
    make_bed 1
    local state=$scratch/machine.state count=/proc/sys/net/netfilter/nf_conntrack_count
    trap 'ip netns del "${BED}far"; remove_bed' EXIT
    ip netns add "${BED}far"
    ip -n "$BED" link set "${BED}1" netns "${BED}far"
    ip -n "$BED" addr add 10.98.77.1/24 dev "${BED}0"
    ip -n "${BED}far" addr add 10.98.77.2/24 dev "${BED}1"
    ip -n "$BED" link set "${BED}0" up
    ip -n "${BED}far" link set "${BED}1" up
    in_bed nft 'table inet others {
        chain input { type filter hook input priority 0; meta l4proto udp ct state new; }
    }'
    expect 0 in_bed "$SCRIPTS/tune_server.sh" apply --state-file "$state" --only notrack
    send_to_the_port
    [[ $(in_bed cat "$count") -eq 0 ]]
    expect 0 in_bed "$SCRIPTS/tune_server.sh" undo --state-file "$state"
    send_to_the_port
    [[ $(in_bed cat "$count") -eq 1 ]]
}
test_that "tune_server: no tracking, and no entries" notrack_is_effective

set_queues_on_veth() {
    make_bed 4
    local state=$scratch/machine.state
    in_bed ethtool -l "${BED}0" >"$scratch/before"
    expect 1 in_bed "$SCRIPTS/set_queues.sh" "${BED}0" 2 check --state-file "$state"
    expect 0 in_bed "$SCRIPTS/set_queues.sh" "${BED}0" 2 apply --state-file "$state"
    said "${BED}0 has channels: rx 2 tx 2, from rx 4 tx 4"
    said 'its driver has no RSS table that can be set'
    [[ $(in_bed ls "/sys/class/net/${BED}0/queues" | grep -c rx-) -eq 2 ]]
    expect 0 in_bed "$SCRIPTS/set_queues.sh" "${BED}0" 2 check --state-file "$state"
    expect 1 in_bed "$SCRIPTS/set_queues.sh" "${BED}0" 5 apply --state-file "$state"
    said 'can have 4 channels at most'
    expect 0 in_bed "$SCRIPTS/set_queues.sh" "${BED}0" undo --state-file "$state"
    in_bed ethtool -l "${BED}0" | diff "$scratch/before" -
}
test_that "set_queues: veth" set_queues_on_veth

# An interrupt of this machine, if it has a NIC with some; they go to its last CPU and back.
pin_irqs_here() {
    local state=$scratch/machine.state iface last
    last=$(sed 's/.*[-,]//' /sys/devices/system/cpu/online)
    for iface in /sys/class/net/*; do
        iface=${iface##*/}
        expect 0 "$SCRIPTS/pin_irqs.sh" "$iface" "$last" apply --dry-run --state-file "$state"
        if grep -q '^+' "$output"; then
            # shellcheck disable=SC2064 # What it is now.
            trap "'$SCRIPTS/pin_irqs.sh' '$iface' undo --state-file '$state' >/dev/null" EXIT
            break
        fi
    done
    cat /proc/irq/*/smp_affinity_list >"$scratch/before"
    expect 0 "$SCRIPTS/pin_irqs.sh" "$iface" "$last" apply --state-file "$state"
    expect 0 "$SCRIPTS/pin_irqs.sh" "$iface" "$last" check --state-file "$state"
    expect 0 "$SCRIPTS/pin_irqs.sh" "$iface" undo --state-file "$state"
    cat /proc/irq/*/smp_affinity_list | cmp "$scratch/before" -
}
test_that "pin_irqs: this machine" pin_irqs_here

huge_pages_here() {
    local state=$scratch/machine.state pool=/proc/sys/vm/nr_hugepages before
    before=$(<"$pool")
    # shellcheck disable=SC2064 # What it is now.
    trap "'$SCRIPTS/hugepages.sh' undo --state-file '$state' >/dev/null" EXIT
    expect 0 "$SCRIPTS/hugepages.sh" apply --pages "$((before + 2))" --state-file "$state"
    said '+ echo 1 >/proc/sys/vm/compact_memory'
    holds "$pool" "$((before + 2))"
    expect 0 "$SCRIPTS/hugepages.sh" undo --state-file "$state"
    holds "$pool" "$before"
}
test_that "hugepages: this machine" huge_pages_here

ordinary_user() {
    local readable=$scratch/readable
    # The clone may be where that user cannot look.
    mkdir "$readable"
    cp -r "$SCRIPTS" "$readable/"
    chmod -R a+rX "$scratch"
    expect 1 setpriv --reuid 65534 --clear-groups "$readable/scripts/tune_server.sh" apply
    said 'needs root; type: sudo'
    expect 0 setpriv --reuid 65534 --clear-groups "$readable/scripts/tune_server.sh" apply --dry-run
    expect 0 setpriv --reuid 65534 --clear-groups "$readable/scripts/tune_server.sh" status
}
test_that "an ordinary user" ordinary_user

service() {
    # The binary need not be installed for the unit to be judged.
    sed 's|^ExecStart=.*|ExecStart=/bin/true|' "$SCRIPTS/xdp-server.service" >"$scratch/xdp-server.service"
    expect 0 systemd-analyze verify "$scratch/xdp-server.service"
    # What it does not know it only warns of.
    [[ ! -s $output ]]
    systemd-analyze security --offline=true "$scratch/xdp-server.service" >"$scratch/security"
    local exposure
    exposure=$(sed -n 's/.*Overall exposure level.*: \([0-9]*\)\.\([0-9]\).*/\1\2/p' "$scratch/security")
    # 2.3 of 10, the less the better. What is left is what the server is: a program with its host's network.
    [[ $exposure -le 23 ]]
}
test_that "xdp-server.service" service
