# shellcheck shell=bash
# The scripts on made-up hosts, with stand-ins for the programs that they call: systemctl, iptables, the server itself.
# Sourced by host_prep.sh, after tune.sh, whose host it uses.
# shellcheck disable=SC2154 # host_prep.sh sets scratch, host and output.

# systemctl for one service, irqbalance, which is process 77 of the made-up host.
stand_in_for_systemctl() {
    mkdir -p "$host/run/systemd/system"
    stand_in systemctl <<SCRIPT
#!/bin/sh
echo "\$*" >>'$scratch/systemctl.log'
case \$1 in
    is-active) test -e '$host/proc/77' ;;
    stop) rm -r '$host/proc/77' ;;
    start) mkdir '$host/proc/77' && echo irqbalance >'$host/proc/77/comm' ;;
esac
SCRIPT
}

irqbalance_is_stopped() {
    make_host
    put irqbalance /proc/77/comm
    put bash /proc/78/comm
    stand_in_for_systemctl
    remember_host
    expect 1 server check --only irqbalance
    said 'irqbalance runs, as process 77'
    expect 0 server apply --only irqbalance
    said '+ systemctl stop irqbalance'
    [[ ! -e $host/proc/77 ]]
    expect 0 server apply --only irqbalance
    expect 0 server undo
    said '+ systemctl start irqbalance'
    host_is_unchanged
}
test_that "tune_server: irqbalance" irqbalance_is_stopped

irqbalance_did_not_run() {
    make_host
    stand_in_for_systemctl
    rm -f "$scratch/systemctl.log"
    expect 0 server apply --only irqbalance
    expect 0 server undo
    [[ ! -e $scratch/systemctl.log && ! -e $host/proc/77 ]]
}
test_that "tune_server: irqbalance that does not run" irqbalance_did_not_run

irqbalance_without_systemd() {
    make_host
    put irqbalance /proc/77/comm
    expect 1 server apply --only irqbalance
    said 'to stop it: kill 77'
}
test_that "tune_server: irqbalance without systemd" irqbalance_without_systemd

# iptables and ip6tables that remember their rules, each in a file.
stand_in_for_iptables() {
    local tool
    for tool in iptables ip6tables; do
        stand_in "$tool" <<SCRIPT
#!/bin/bash
rules='$scratch/$tool.rules'
touch "\$rules"
[[ "\$1 \$2 \$3" == '-w -t raw' ]] || exit 9
rule="\${*:5}"
case \$4 in
    -C) grep -qxF -- "\$rule" "\$rules" ;;
    -A) echo "\$rule" >>"\$rules" ;;
    -D) grep -vxF -- "\$rule" "\$rules" >"\$rules.new"; mv "\$rules.new" "\$rules" ;;
esac
SCRIPT
    done
    hide_programs
}

notrack_with_iptables() {
    make_host
    put 12 /proc/sys/net/netfilter/nf_conntrack_count
    stand_in_for_iptables
    echo 'OUTPUT -p udp --sport 53 -j CT --notrack' >"$scratch/iptables.rules"
    expect 1 server check --only notrack
    said 'iptables lacks: PREROUTING -p udp --dport 4433'
    expect 0 server apply --only notrack
    expect 0 server apply --only notrack
    [[ $(wc -l <"$scratch/iptables.rules") -eq 3 && $(wc -l <"$scratch/ip6tables.rules") -eq 2 ]]
    grep -qxF -- 'PREROUTING -p udp --dport 4433 -j CT --notrack' "$scratch/ip6tables.rules"
    grep -qxF -- 'OUTPUT -p udp --sport 4433 -j CT --notrack' "$scratch/ip6tables.rules"
    expect 0 server check --only notrack
    expect 0 server undo
    holds "$scratch/iptables.rules" 'OUTPUT -p udp --sport 53 -j CT --notrack'
    holds "$scratch/ip6tables.rules" ''
    expect 0 client apply --only notrack --port 99
    grep -qxF -- 'PREROUTING -p udp --sport 99 -j CT --notrack' "$scratch/iptables.rules"
    grep -qxF -- 'OUTPUT -p udp --dport 99 -j CT --notrack' "$scratch/iptables.rules"
}
test_that "tune_server: no tracking, by iptables" notrack_with_iptables

notrack_without_tools() {
    make_host
    hide_programs
    put 0 /proc/sys/net/netfilter/nf_conntrack_count
    expect 0 server apply --only notrack
    said 'neither nft nor iptables'
    put 12 /proc/sys/net/netfilter/nf_conntrack_count
    expect 1 server apply --only notrack
    said 'sudo apt-get install nftables'
}
test_that "tune_server: no tracking, without tools" notrack_without_tools

hugepages() {
    "$SCRIPTS/hugepages.sh" "$@" --root "$host"
}

huge_pages() {
    make_host
    put 10 /sys/kernel/mm/hugepages/hugepages-2048kB/{nr,free}_hugepages
    put 10 /sys/devices/system/node/node1/hugepages/hugepages-2048kB/{nr,free}_hugepages
    put 0 /proc/sys/vm/compact_memory
    remember_host
    expect 1 hugepages check --pages 64
    expect 0 hugepages apply --pages 64
    holds "$host/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages" 64
    holds "$host/proc/sys/vm/compact_memory" 1
    put 0 /proc/sys/vm/compact_memory
    expect 0 hugepages apply --pages 32
    said 'already more than 32'
    expect 0 hugepages apply --pages 20 --node 1
    holds "$host/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages" 20
    expect 0 hugepages undo
    put 0 /proc/sys/vm/compact_memory
    host_is_unchanged
    put 'MemAvailable:      81920 kB' /proc/meminfo
    expect 1 hugepages apply --pages 41
    said '62 MiB more are wanted, and 80 MiB are available'
    expect 0 hugepages apply --pages 40 --dry-run
    expect 0 hugepages apply --pages 20 --node 7
    said 'no huge pages of 2048 kB here'
}
test_that "hugepages: so many, on a node, and undo" huge_pages

huge_pages_by_the_doctor() {
    make_host
    put 10 /sys/kernel/mm/hugepages/hugepages-2048kB/{nr,free}_hugepages
    stand_in xdp-server <<SCRIPT
#!/bin/sh
echo "\$*" >'$scratch/doctor.arguments'
echo '{"rows":[],"huge_pages":{"page_bytes":2097152,"needed":300,"free":4,"total":10,"nr_hugepages":306}}'
exit 1
SCRIPT
    expect 0 hugepages apply --iface eth0 --queues 4 --server xdp-server
    holds "$scratch/doctor.arguments" 'doctor --json --iface eth0 --queues 4'
    holds "$host/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages" 306
    expect 0 hugepages undo
    stand_in xdp-server <<<'#!/bin/false'
    expect 1 hugepages apply --server xdp-server
    said 'give --pages N'
    expect 1 hugepages apply --server /nonexistent
    said 'give --server FILE, or --pages N'
}
test_that "hugepages: the doctor's figure" huge_pages_by_the_doctor
