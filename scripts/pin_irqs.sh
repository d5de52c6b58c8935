#!/usr/bin/env bash
# Interrupts of the server's interface, each to the CPU beside its queue's worker. See usage below, stages/irqs.sh for
# how interrupts and CPUs are chosen, and stages.sh for how it works.
set -euo pipefail
# shellcheck source=scripts/stages.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/stages.sh"

usage() {
    cat <<'USAGE'
Pins the interrupts of an interface's queues: those of queue i to the SMT sibling of worker i's CPU, so that they do not
interrupt the worker and yet share its caches. Without SMT, to CPUs that are idle, or else to the worker's own. The
master's CPU gets none.

usage: scripts/pin_irqs.sh IFACE [LIST] [check|apply|undo|status] [OPTIONS]

  LIST    CPUs such as 48-94 or 2,4,6: queue i's interrupts go to the ith of them, beginning anew when it is over

  apply   pin what differs; record what it was, and show the table and each command             [the default]
  check   compare only; exit status 1 if anything differs
  undo    restore what is recorded, last change first
  status  show what is recorded

  --cpus LIST     the server's --cpus: the master runs on the first, worker i on the (i+1)th after it
                  [default: all that are online, those of the interface's NUMA node first, as the server has it]
  --queues N      the server's --queues: how many workers  [default: as many as receive queues, and CPUs but one]
  --dry-run       show what would be run, and run nothing
  --state-file F  where to record        [default: /var/lib/xdp-server/tune/pin_irqs.IFACE.state]
  --root DIR      look for /proc, /sys and /var below DIR; also: TUNE_ROOT

Refuses to pin while irqbalance runs, which would undo it within seconds.

Exit status: 0 done, or nothing differs; 1 something differs, or could not be done; 2 wrong usage.
USAGE
}

cpus=
queues=
words=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --cpus | --queues)
            need_value "$@"
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        *)
            if take_common "$@"; then
                shift "$taken"
            elif [[ $1 != -* && ${#words[@]} -lt 2 ]]; then
                words+=("$1")
                shift
            else
                usage_error "unexpected: $1"
            fi
            ;;
    esac
done
iface=${words[0]-}
targets=${words[1]-}
[[ $iface =~ ^[^/[:space:]]+$ ]] || usage_error "which interface? There are: $(ls -x "$TUNE_ROOT/sys/class/net")"
for list in "$cpus" "$targets"; do
    [[ $list =~ ^([0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)?$ ]] || usage_error "$list: not a list of CPUs such as 1-3,8"
done
[[ $queues =~ ^([1-9][0-9]{0,3})?$ ]] || usage_error "--queues $queues: a number from 1 on"
if [[ $action != undo && $action != status ]]; then
    [[ -e $TUNE_ROOT/sys/class/net/$iface ]] ||
        usage_error "there is no interface $iface; there are: $(ls -x "$TUNE_ROOT/sys/class/net")"
fi
# shellcheck disable=SC2034 # stages.sh reads these two.
state_name=pin_irqs.$iface undo_arguments=$iface

plan() {
    if [[ -n $listing ]]; then
        known=(irqs)
        return
    fi
    load_stage irqbalance
    load_stage irqs
    local pid workers
    pid=$(irqbalance_pid)
    if [[ -n $pid ]]; then
        stage=irqs
        report "$(applying && echo failed || echo differs)" "irqbalance runs (process $pid), and would move the" \
            "interrupts again; stop it: sudo scripts/tune_server.sh apply --only irqbalance"
        applying && return
    fi
    [[ -n $cpus ]] || cpus=$(server_cpus "$iface" | tr ' ' ,)
    workers=${queues:-$(default_workers)}
    stage irqs "$iface" "$workers" "$cpus" "$targets"
}

# As many workers as the server makes: one for each receive queue, but for one CPU, which the master has.
default_workers() {
    local directories=("$TUNE_ROOT/sys/class/net/$iface"/queues/rx-*) spare
    spare=$(($(expand "$cpus" | wc -w) - 1))
    [[ $spare -ge 1 ]] || spare=1
    echo "$((spare < ${#directories[@]} ? spare : ${#directories[@]}))"
}

perform plan
