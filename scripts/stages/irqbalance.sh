# shellcheck shell=bash
# Stops irqbalance, which moves the NIC's interrupts between CPUs every ten seconds, and so undoes what pin_irqs.sh
# does. It starts again at the next boot: to keep it from that, `systemctl disable irqbalance`.

# irqbalance_pid: its process, or nothing
irqbalance_pid() {
    local comm
    for comm in "$TUNE_ROOT"/proc/[0-9]*/comm; do
        # A process may end meanwhile.
        if [[ $(cat "$comm" 2>/dev/null) == irqbalance ]]; then
            comm=${comm%/comm}
            echo "${comm##*/}"
            return
        fi
    done
}

systemd_runs() {
    [[ -d $TUNE_ROOT/run/systemd/system ]]
}

stage_irqbalance() {
    local pid complaint=''
    pid=$(irqbalance_pid)
    if [[ -z $pid ]]; then
        report ok "irqbalance does not run"
    elif ! applying; then
        report differs "irqbalance runs, as process $pid"
    elif ! systemd_runs || ! systemctl is-active --quiet irqbalance; then
        report failed "irqbalance runs as process $pid, and not as a service of systemd; to stop it: kill $pid"
    else
        record undo_irqbalance irqbalance
        if run systemctl stop irqbalance; then
            report changed "irqbalance stopped"
        else
            unrecord
            report failed "systemctl: $complaint"
        fi
    fi
}

undo_irqbalance() {
    local complaint=''
    if [[ -n $(irqbalance_pid) ]]; then
        report ok "$1 runs already"
    elif run systemctl start "$1"; then
        report restored "$1 started"
    else
        report failed "systemctl: $complaint"
        return 1
    fi
}
