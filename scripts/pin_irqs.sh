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
parse_arguments 2 'cpus queues' '' "$@"
iface=${words[0]-}
targets=${words[1]-}
need_interface "$iface"
for list in "$cpus" "$targets"; do
    [[ $list =~ ^([0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)?$ ]] || usage_error "$list: not a list of CPUs such as 1-3,8"
done
[[ $queues =~ ^([1-9][0-9]{0,3})?$ ]] || usage_error "--queues $queues: a number from 1 on"
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
