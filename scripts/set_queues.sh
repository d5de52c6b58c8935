#!/usr/bin/env bash
# Queues of the server's interface: one for each worker, and the clients spread over them. See usage below, and
# stages.sh for how it works.
set -euo pipefail
# shellcheck source=scripts/stages.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/stages.sh"
# shellcheck source=scripts/ethtool.sh
source "$TUNE_SCRIPTS/ethtool.sh"

usage() {
    cat <<'USAGE'
Gives an interface N queues, one for each of N workers, and spreads the clients over them.

usage: scripts/set_queues.sh IFACE N [check|apply|undo|status] [OPTIONS]
       scripts/set_queues.sh IFACE undo|status

  apply   set what differs; record what it was, and show each command                           [the default]
  check   compare only; exit status 1 if anything differs
  undo    restore what is recorded, last change first
  status  show what is recorded

  --channels M    give the interface M queues, more than N: the workers get 0 to N-1 and the server's port, by rules
                  in the NIC (ntuple); the rest of the traffic goes to the others
  --port PORT     the server's UDP port                                                         [default: 4433]
  --only A,B      only these stages:
                    channels  ethtool -L: queues of the interface
                    rss       ethtool -X: the table that spreads packets over queues
                    hash      ethtool -N rx-flow-hash: spread UDP by addresses and ports
                    ntuple    ethtool -N flow-type: the server's port to the workers' queues (with --channels)
  --dry-run       show what would be run, and run nothing
  --state-file F  where to record        [default: /var/lib/xdp-server/tune/set_queues.IFACE.state]
  --root DIR      look for /proc, /sys and /var below DIR; also: TUNE_ROOT

Setting channels stops the interface for a moment, and some drivers refuse it while XDP is in use: do it before the
server starts. What the driver cannot do is skipped, with a line that says so.

Exit status: 0 done, or nothing differs; 1 something differs, or could not be done; 2 wrong usage.
USAGE
}

port=4433
channels=
parse_arguments 2 'port channels' '' "$@"
iface=${words[0]-}
workers=${words[1]-}
need_interface "$iface"
if [[ $action != undo && $action != status ]]; then
    [[ $workers =~ ^[1-9][0-9]{0,3}$ ]] || usage_error "how many queues? $0 $iface N, with N from 1 on"
    all_channels=${channels:-$workers}
    [[ $all_channels =~ ^[1-9][0-9]{0,3}$ && $all_channels -ge $workers ]] ||
        usage_error "--channels $all_channels: a number from N, $workers, on"
fi
need_port
# shellcheck disable=SC2034 # stages.sh reads these two.
state_name=set_queues.$iface undo_arguments=$iface

plan() {
    local receiving
    if [[ -n $listing ]]; then
        known=(channels rss hash ntuple)
        return
    fi
    if ! need_ethtool; then
        return
    fi
    # The table must never name a queue that is not there: fewer queues after it, more before.
    receiving=$(channels_of "$iface" "$all_channels" | cut -d'|' -f4)
    if [[ ${receiving:-0} -gt $all_channels ]]; then
        spread
        stage channels "$iface" "$all_channels"
    else
        stage channels "$iface" "$all_channels"
        spread
    fi
    stage hash "$iface"
    if [[ $all_channels -gt $workers ]]; then
        stage ntuple "$iface" "$workers" "$port"
    else
        skip_stage ntuple "all $workers queues are the workers': the table leads the port to them"
    fi
}

# The main table: over the workers' queues, or, where these get their packets by rules, over the others.
spread() {
    if [[ $all_channels -gt $workers ]]; then
        stage rss "$iface" "$workers" "$((all_channels - workers))"
    else
        stage rss "$iface" 0 "$workers"
    fi
}

perform plan
