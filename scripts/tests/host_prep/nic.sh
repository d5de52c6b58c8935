# shellcheck shell=bash
# set_queues.sh and pin_irqs.sh on NICs that are not here. Sourced by host_prep.sh.
# shellcheck disable=SC2154 # host_prep.sh sets scratch, host and output.

# --- set_queues.sh ---

# A NIC with 4 channels, whose hash leaves the ports out, and whose table is the driver's own.
make_nic() {
    export NIC=$scratch/nic
    rm -rf "$NIC"
    mkdir -p "$NIC" "$host/sys/class/net/eth0" "$host/var/lib"
    echo 4 >"$NIC/channels"
    for _ in 0 1 2 3; do printf '%s\n' 0 1 2 3; done >"$NIC/table"
    echo sd | tee "$NIC/hash.udp4" >"$NIC/hash.udp6"
    echo off >"$NIC/ntuple"
    stand_in ethtool <"$SCRIPTS/tests/host_prep/ethtool"
    remember_nic
}

remember_nic() {
    rm -rf "$NIC.before"
    cp -a "$NIC" "$NIC.before"
}

nic_is_unchanged() {
    diff -r "$NIC.before" "$NIC"
}

set_queues() {
    "$SCRIPTS/set_queues.sh" eth0 "$@" --root "$host"
}

table_is() {
    [[ $(paste -sd' ' "$NIC/table") == "$1" ]]
}

fewer_queues() {
    make_nic
    expect 1 set_queues 2 check
    said 'eth0 has channels: combined 4 (of 8), wanted combined 2'
    said 'eth0 hashes udp4 by sd, wanted sdfn'
    nic_is_unchanged
    expect 0 set_queues 2 apply
    said 'spreads packets over queues 0 1 2 3; its table: 0 1 2 3'
    said 'all 2 queues are the workers'
    holds "$NIC/channels" 2
    table_is '0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1'
    holds "$NIC/hash.udp4" sdfn
    holds "$NIC/hash.udp6" sdfn
    expect 0 set_queues 2 check
    expect 0 set_queues 2 apply
    not_said '+ ethtool'
    expect 0 set_queues undo
    nic_is_unchanged
}
test_that "set_queues: fewer queues" fewer_queues

more_queues() {
    make_nic
    expect 0 set_queues 8 apply
    holds "$NIC/channels" 8
    table_is '0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7'
    expect 0 set_queues undo
    nic_is_unchanged
    expect 1 set_queues 9 apply --only channels
    said 'can have 8 channels at most'
    nic_is_unchanged
}
test_that "set_queues: more queues" more_queues

a_table_of_ones_own() {
    make_nic
    printf '%s\n' 2 3 2 3 2 3 2 3 2 3 2 3 2 3 2 3 >"$NIC/table"
    touch "$NIC/table_is_set"
    remember_nic
    expect 0 set_queues 8 apply
    table_is '0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7'
    expect 0 set_queues undo
    said '+ ethtool -X eth0 start 2 equal 2'
    nic_is_unchanged
    printf '%s\n' 0 0 0 0 0 0 0 0 1 1 1 1 2 2 2 3 >"$NIC/table"
    remember_nic
    expect 0 set_queues 2 apply
    expect 0 set_queues undo
    said '+ ethtool -X eth0 weight 8 4 3 1'
    nic_is_unchanged
}
test_that "set_queues: a table that was set by hand" a_table_of_ones_own

queues_of_their_own() {
    make_nic
    expect 0 set_queues 2 apply --channels 4 --port 4499
    holds "$NIC/channels" 4
    table_is '2 3 2 3 2 3 2 3 2 3 2 3 2 3 2 3'
    holds "$NIC/context" 2
    holds "$NIC/ntuple" on
    grep -q 'Dest port: 4499' "$NIC/rule.1024"
    grep -q 'Action: context 1' "$NIC/rule.1026"
    expect 0 set_queues 2 check --channels 4 --port 4499
    expect 0 set_queues undo
    nic_is_unchanged
}
test_that "set_queues: rules for the port" queues_of_their_own

one_queue_of_its_own() {
    make_nic
    expect 0 set_queues 1 apply --channels 4
    table_is '1 2 3 1 2 3 1 2 3 1 2 3 1 2 3 1'
    grep -q 'Action: action 0' "$NIC/rule.1024"
    [[ ! -e $NIC/context ]]
    expect 0 set_queues undo
    nic_is_unchanged
}
test_that "set_queues: a rule to one queue" one_queue_of_its_own

no_contexts() {
    make_nic
    touch "$NIC/no_contexts"
    remember_nic
    expect 1 set_queues 2 apply --channels 4
    said 'without RSS contexts'
    expect 0 set_queues undo
    nic_is_unchanged
}
test_that "set_queues: a driver without contexts" no_contexts

dry_run_of_queues() {
    make_nic
    expect 0 set_queues 2 apply --channels 8 --dry-run
    said '+ ethtool -L eth0 combined 8'
    said '+ ethtool -X eth0 context new start 0 equal 2'
    nic_is_unchanged
}
test_that "set_queues: a dry run changes nothing" dry_run_of_queues

an_interface_that_goes() {
    make_nic
    expect 0 set_queues 2 apply
    rm -r "$host/sys/class/net/eth0"
    expect 0 set_queues undo
    said 'eth0 is gone, nothing to restore'
    expect 2 set_queues 2 apply
    said 'there is no interface eth0'
}
test_that "set_queues: an interface that is gone" an_interface_that_goes

# --- pin_irqs.sh ---

# make_cpus COUNT THREADS: CPUs in the numbering of x86: first a thread of each core, then the others.
make_cpus() {
    local cpu cores=$(($1 / $2))
    put "0-$(($1 - 1))" /sys/devices/system/cpu/online
    for ((cpu = 0; cpu < $1; cpu++)); do
        local siblings=$((cpu % cores))
        [[ $2 -eq 1 ]] || siblings+=,$((cpu % cores + cores))
        put "$siblings" "/sys/devices/system/cpu/cpu$cpu/topology/thread_siblings_list"
    done
}

# make_interface NAME DEVICE QUEUES: DEVICE is below /sys/devices
make_interface() {
    local queue
    mkdir -p "$host/sys/class/net/$1/queues" "$host/sys/devices/$2"
    ln -sfn "../../../devices/$2" "$host/sys/class/net/$1/device"
    for ((queue = 0; queue < $3; queue++)); do mkdir "$host/sys/class/net/$1/queues/rx-$queue"; done
}

# Makes /proc/interrupts of lines `NUMBER NAME` on standard input, and /proc/irq. $1 is the number of CPUs.
make_interrupts() {
    local number name cpu
    {
        for ((cpu = 0; cpu < $1; cpu++)); do printf '       CPU%d' "$cpu"; done
        echo
        while read -r number name; do
            printf '%4d:' "$number"
            for ((cpu = 0; cpu < $1; cpu++)); do printf ' %10d' "$((number * 7 + cpu))"; done
            printf '  IR-PCI-MSIX-0000:81:00.0  %d-edge      %s\n' "$number" "$name"
            put "0-$(($1 - 1))" "/proc/irq/$number/smp_affinity_list"
        done
        printf ' NMI: %10d   Non-maskable interrupts\n' 0
    } >"$scratch/interrupts"
    mv "$scratch/interrupts" "$host/proc/interrupts"
    mkdir -p "$host/var/lib"
    remember_host
}

pin_irqs() {
    "$SCRIPTS/pin_irqs.sh" "$@" --root "$host"
}

# pinned NUMBER:CPU...: whether these interrupts are on these CPUs, and all others where they were.
pinned() {
    local pair file
    for file in "$host"/proc/irq/*/smp_affinity_list; do
        local wanted number=${file%/*}
        number=${number##*/}
        wanted=$(<"$host.before/proc/irq/$number/smp_affinity_list")
        for pair; do
            [[ ${pair%:*} != "$number" ]] || wanted=${pair#*:}
        done
        holds "$file" "$wanted"
    done
}

# Drivers, by what they call their interrupts. $1 is the name of a queue's interrupt, with N for the queue; others may
# follow. Eight CPUs on four cores; three workers on CPUs 1 to 3, and their siblings are 5 to 7.
names_of_a_driver() {
    make_cpus 8 2
    make_interface eth0 pci0000:80/0000:81:00.0 3
    make_interface eth01 pci0000:80/0000:82:00.0 3
    local number=40 queue name
    {
        echo '30 xhci_hcd'
        for name in "${@:2}"; do echo "$((number++)) $name"; done
        for queue in 0 1 2; do echo "$((50 + queue)) ${1//N/$queue}"; done
        # Another interface of the same driver, whose name begins as this one does.
        name=${1//eth0/eth01}
        name=${name//81:00/82:00}
        for queue in 0 1 2; do echo "$((60 + queue)) ${name//N/$queue}"; done
    } | make_interrupts 8
    expect 0 pin_irqs eth0 apply
    pinned 50:5 51:6 52:7
    said "sibling of worker 2's CPU 3"
    expect 0 pin_irqs eth0 check
    expect 0 pin_irqs eth0 undo
    host_is_unchanged
}
ixgbe() { names_of_a_driver eth0-TxRx-N eth0; }
test_that "pin_irqs: ixgbe, igb, bnxt" ixgbe
i40e() { names_of_a_driver i40e-eth0-TxRx-N i40e-0000:81:00.0:misc i40e-0000:81:00.0:fdir-TxRx-0; }
test_that "pin_irqs: i40e, iavf" i40e
ice() { names_of_a_driver ice-eth0-TxRx-N ice-0000:81:00.0:misc ice-eth0-ctrl; }
test_that "pin_irqs: ice" ice
ena() { names_of_a_driver eth0-Tx-Rx-N ena-mgmnt@pci:0000:81:00.0; }
test_that "pin_irqs: ena" ena
mlx5() { names_of_a_driver mlx5_compN@pci:0000:81:00.0 mlx5_async0@pci:0000:81:00.0; }
test_that "pin_irqs: mlx5" mlx5
sfc() { names_of_a_driver eth0-N; }
test_that "pin_irqs: sfc" sfc

# Receive and transmit have interrupts of their own, on a device below the interface's.
virtio() {
    make_cpus 8 2
    make_interface eth0 pci0000:00/0000:00:03.0/virtio2 2
    printf '%s\n' '20 virtio2-config' '21 virtio2-input.0' '22 virtio2-output.0' '23 virtio2-input.1' \
        '24 virtio2-output.1' '25 virtio21-input.0' '26 virtio1-req.0' | make_interrupts 8
    expect 0 pin_irqs eth0 apply
    pinned 21:5 22:5 23:6 24:6
    expect 0 pin_irqs eth0 undo
    host_is_unchanged
}
test_that "pin_irqs: virtio" virtio

# An interface that was renamed after its driver had named its interrupts; the device's list of them tells.
renamed_interface() {
    make_cpus 8 2
    make_interface ens1 pci0000:80/0000:81:00.0 2
    put msix "/sys/devices/pci0000:80/0000:81:00.0/msi_irqs/"{40,50,51}
    printf '%s\n' '40 eth0' '50 eth0-TxRx-0' '51 eth0-TxRx-1' '60 eth1-TxRx-0' | make_interrupts 8
    expect 0 pin_irqs ens1 apply
    pinned 50:5 51:6
}
test_that "pin_irqs: a renamed interface" renamed_interface

shared_interrupt() {
    make_cpus 4 1
    make_interface eth0 pci0000:80/0000:81:00.0 1
    printf '%s\n' '16 ehci_hcd:usb1, eth0-TxRx-0, snd_hda_intel' '17 ahci' | make_interrupts 4
    expect 0 pin_irqs eth0 apply
    pinned 16:2
    said 'idle, for worker 0 on CPU 1'
}
test_that "pin_irqs: a shared interrupt, no siblings" shared_interrupt

given_cpus() {
    make_cpus 8 2
    make_interface eth0 pci0000:80/0000:81:00.0 4
    printf '%s\n' '50 eth0-TxRx-0' '51 eth0-TxRx-1' '52 eth0-TxRx-2' '53 eth0-TxRx-3' | make_interrupts 8
    expect 0 pin_irqs eth0 6-7,2
    pinned 50:6 51:7 52:2 53:6
    expect 0 pin_irqs eth0 undo
    # The server's own list: master on 3, workers on 2 and 1.
    expect 0 pin_irqs eth0 --cpus 3,2,1 --queues 2
    pinned 50:6 51:5 52:6 53:5
    expect 0 pin_irqs eth0 undo
    # More workers than cores: siblings are taken, and there is no idle CPU.
    expect 0 pin_irqs eth0 --cpus 0-7 --queues 7
    said 'that of worker 3, since none is idle'
    pinned 50:1 51:2 52:3 53:4
    expect 0 pin_irqs eth0 undo
    host_is_unchanged
    expect 2 pin_irqs eth0 6-x
    expect 2 pin_irqs eth9
    expect 2 pin_irqs
}
test_that "pin_irqs: CPUs as given" given_cpus

far_node() {
    make_cpus 8 1
    make_interface eth0 pci0000:80/0000:81:00.0 2
    put 1 /sys/devices/pci0000:80/0000:81:00.0/numa_node
    put 0-3 /sys/devices/system/node/node0/cpulist
    put 4-7 /sys/devices/system/node/node1/cpulist
    printf '%s\n' '50 eth0-TxRx-0' '51 eth0-TxRx-1' | make_interrupts 8
    expect 0 pin_irqs eth0
    said 'idle, for worker 0 on CPU 5'
    pinned 50:7 51:0
}
test_that "pin_irqs: the interface's NUMA node first" far_node

with_irqbalance() {
    make_cpus 4 2
    make_interface eth0 pci0000:80/0000:81:00.0 1
    put irqbalance /proc/4711/comm
    echo '50 eth0-TxRx-0' | make_interrupts 4
    expect 1 pin_irqs eth0 apply
    said 'irqbalance runs (process 4711)'
    said 'tune_server.sh apply --only irqbalance'
    host_is_unchanged
    expect 1 pin_irqs eth0 check
}
test_that "pin_irqs: not while irqbalance runs" with_irqbalance

without_interrupts() {
    make_cpus 4 2
    make_interface veth0 virtual/net/veth0 2
    echo '50 eth0-TxRx-0' | make_interrupts 4
    expect 0 pin_irqs veth0 apply
    said 'no interrupts of queues'
    host_is_unchanged
}
test_that "pin_irqs: an interface without interrupts" without_interrupts
