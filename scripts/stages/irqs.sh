# shellcheck shell=bash
# Interrupts of an interface's queues, each pinned to one CPU: the one on whose sibling the queue's worker runs.
#
# Interrupts are found by /proc/interrupts, and by the device's own list of them where the driver has PCI message
# interrupts (msi_irqs), since names vary: eth0-TxRx-3, i40e-eth0-TxRx-3, eth0-Tx-Rx-3, mlx5_comp3@pci:0000:81:00.0,
# virtio0-input.3; an interface that was renamed keeps its old name there. A number after one of the words for a queue
# is the queue; what has none (config, mgmnt, misc) is left alone. Interrupts of transmit queues go where those of the
# receive queue of that number go.

# pairs_of_interrupts: number and name of each line of /proc/interrupts. A shared interrupt has several names.
pairs_of_interrupts() {
    awk '
        NR == 1 { cpus = NF; next }
        $1 ~ /^[0-9]+:$/ {
            # Behind the counters: the chip, what it calls the interrupt, and names, all but the last ended by a comma.
            first = NF
            while (first > cpus + 4 && $(first - 1) ~ /,$/) { first-- }
            for (i = first; i <= NF; i++) {
                name = $i
                sub(/,$/, "", name)
                print substr($1, 1, length($1) - 1), name
            }
        }' "$TUNE_ROOT/proc/interrupts"
}

# interrupts_of IFACE: number and name of each interrupt of the interface's device
interrupts_of() {
    local device virtio='' pci number name own=() named=()
    device=$(readlink -f "$TUNE_ROOT/sys/class/net/$1/device" || true)
    if [[ ${device##*/} == virtio* ]]; then
        # The interrupts belong to the PCI device that it sits on, and are named by it.
        virtio=${device##*/}
        device=${device%/*}
    fi
    pci=${device##*/}
    while read -r number name; do
        if [[ $name =~ (^|[^A-Za-z0-9_.])"$1"([^A-Za-z0-9_.]|$) ]]; then
            named+=("$number $name")
        elif [[ -n $device && -e $device/msi_irqs/$number ]] ||
            [[ -n $virtio && $name == "$virtio"-* ]] || [[ -n $pci && $name == *"@pci:$pci" ]]; then
            own+=("$number $name")
        fi
    done < <(pairs_of_interrupts)
    # Several interfaces may share a device; then their names tell.
    if [[ ${#named[@]} -gt 0 ]]; then
        printf '%s\n' "${named[@]}"
    elif [[ ${#own[@]} -gt 0 ]]; then
        printf '%s\n' "${own[@]}"
    fi
}

# queue_of IFACE NAME: the number of the queue that an interrupt of this name serves; 1 if it serves none
queue_of() {
    local name=${2%%@*}
    local words='txrx|tx-rx|rxtx|rx|tx|input|output|comp|fp|q'
    name=${name,,}
    if [[ $name =~ [-_]($words)[-_.]?([0-9]+)$ ]]; then
        echo "${BASH_REMATCH[2]}"
    elif [[ $name =~ ^"${1,,}"-([0-9]+)$ ]]; then
        echo "${BASH_REMATCH[1]}"
    else
        return 1
    fi
}

# queue_interrupts IFACE: `QUEUE NUMBER NAME` of each interrupt of a queue, by queue
queue_interrupts() {
    local number name queue
    while read -r number name; do
        if queue=$(queue_of "$1" "$name"); then
            echo "$queue $number $name"
        fi
    done < <(interrupts_of "$1") | sort -n -k1,1 -k2,2
}

# expand LIST: the numbers of a list such as 0-3,8, in its order
expand() {
    local part
    for part in ${1//,/ }; do
        if [[ $part == *-* ]]; then
            seq -s' ' "${part%-*}" "${part#*-}"
        else
            echo "$part"
        fi
    done | paste -sd' '
}

# server_cpus IFACE: the CPUs that the server gives out when none are named: all that are online, those of the
# interface's NUMA node first
server_cpus() {
    local all near='' node cpu first=() far=()
    read -r -a all <<<"$(expand "$(<"$TUNE_ROOT/sys/devices/system/cpu/online")")"
    node=$(cat "$TUNE_ROOT/sys/class/net/$1/device/numa_node" "$TUNE_ROOT/sys/class/net/$1/device/../numa_node" \
        2>/dev/null | head -n 1 || true)
    if [[ $node =~ ^[0-9]+$ ]]; then
        near=" $(expand "$(cat "$TUNE_ROOT/sys/devices/system/node/node$node/cpulist" 2>/dev/null || true)") "
    fi
    for cpu in "${all[@]}"; do
        if [[ $near == *" $cpu "* ]]; then first+=("$cpu"); else far+=("$cpu"); fi
    done
    echo "${first[@]}" "${far[@]}"
}

# siblings_of CPU: the threads of this CPU's core
siblings_of() {
    expand "$(cat "$TUNE_ROOT/sys/devices/system/cpu/cpu$1/topology/thread_siblings_list" 2>/dev/null || true)"
}

# targets_by_worker WORKERS CPU...: for each worker the CPU for its queue's interrupts and, behind a colon, why. The
# master has the first CPU and worker i the (i+1)th after; where there are too few, the master shares worker 0's.
#
# Interrupts go to the sibling, unless a thread of the server runs there: then to a CPU without one, and where there is
# none to the worker's own. There workers do not poll busily, and a packet is best met where it is going to be read.
targets_by_worker() {
    local workers=$1 cpus=("${@:2}") masters=1 i cpu target taken sibling idle=()
    [[ ${#cpus[@]} -gt $workers ]] || masters=0
    taken=" ${cpus[*]:0:workers+masters} "
    for cpu in "${cpus[@]}" $(expand "$(<"$TUNE_ROOT/sys/devices/system/cpu/online")"); do
        [[ $taken == *" $cpu "* || " ${idle[*]} " == *" $cpu "* ]] || idle+=("$cpu")
    done
    for ((i = 0; i < workers; i++)); do
        cpu=${cpus[(i + masters) % ${#cpus[@]}]}
        target="$cpu:that of worker $i, since none is idle"
        if [[ ${#idle[@]} -gt 0 ]]; then
            target="${idle[i % ${#idle[@]}]}:idle, for worker $i on CPU $cpu"
        fi
        for sibling in $(siblings_of "$cpu"); do
            [[ $taken == *" $sibling "* ]] || target="$sibling:sibling of worker $i's CPU $cpu"
        done
        echo "$target"
    done
}

# stage_irqs IFACE WORKERS SERVER_CPUS TARGETS: lists of CPUs; with TARGETS queue i's go to the ith of them, otherwise
# WORKERS and SERVER_CPUS say where workers run
stage_irqs() {
    local queue number name cpu lines=() targets=()
    mapfile -t lines < <(queue_interrupts "$1")
    if [[ ${#lines[@]} -eq 0 ]]; then
        report skipped "$1 has no interrupts of queues in /proc/interrupts (a virtual interface has none)"
        return
    fi
    if [[ -n $4 ]]; then
        for cpu in $(expand "$4"); do targets+=("$cpu:as given"); done
    else
        # shellcheck disable=SC2046 # A list of words.
        mapfile -t targets < <(targets_by_worker "$2" $(expand "$3"))
    fi
    printf 'queue  IRQ   CPU   why\n'
    for name in "${lines[@]}"; do
        read -r queue number name <<<"$name"
        cpu=${targets[queue % ${#targets[@]}]}
        printf '%5d  %-4d  %-4d  %s (%s)\n' "$queue" "$number" "${cpu%%:*}" "${cpu#*:}" "$name"
    done
    for name in "${lines[@]}"; do
        read -r queue number name <<<"$name"
        cpu=${targets[queue % ${#targets[@]}]}
        setting "/proc/irq/$number/smp_affinity_list" is "${cpu%%:*}"
    done
}
