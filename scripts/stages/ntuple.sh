# shellcheck shell=bash
# Rules in the NIC that lead packets to the server's port to the workers' queues, when the interface has more queues
# than workers (set_queues.sh --channels): to the one queue, or to several by an RSS context, a table besides the main
# one. Where all queues have a worker the main table does this already, and there is nothing to add.

# shellcheck source=scripts/ethtool.sh
source "$TUNE_SCRIPTS/ethtool.sh"

# rule_ids IFACE FLOW PORT: numbers of the rules there are for this port. FLOW is udp4 or udp6.
rule_ids() {
    { ethtool -n "$1" 2>/dev/null || true; } | awk -v type="UDP over IPv${2#udp}" -v port="$3" '
        $1 == "Filter:" { id = $2; matches = 0 }
        /Rule Type:/ { matches = index($0, type) > 0 }
        /Dest port:/ && matches && $3 == port { print id }'
}

# stage_ntuple IFACE WORKERS PORT
stage_ntuple() {
    local flow complaint='' destination missing=()
    for flow in udp4 udp6; do
        if [[ -n $(rule_ids "$1" "$flow" "$3") ]]; then
            report ok "$1 has a rule for $flow port $3"
        else
            missing+=("$flow")
        fi
    done
    if [[ ${#missing[@]} -eq 0 ]] || ! feature "$1" ntuple-filters on; then
        return
    fi
    if ! applying; then
        report differs "$1 has no rule for port $3 of: ${missing[*]}"
        return
    fi
    make_destination "$1" "$2" || return 0
    for flow in "${missing[@]}"; do
        record undo_rule "$1 $flow" "$3"
        if run ethtool -N "$1" flow-type "$flow" dst-port "$3" "${destination[@]}"; then
            report changed "$1 leads $flow port $3 to the workers' queues (${destination[*]})"
        else
            unrecord
            report failed "ethtool: $complaint"
        fi
    done
}

# make_destination IFACE WORKERS: where rules lead to, in `destination`, as words of ethtool
make_destination() {
    local number
    if [[ $2 -eq 1 ]]; then
        destination=(action 0)
        return
    fi
    # Its number is known only when it is there: the one thing that is recorded after its change.
    show ethtool -X "$1" context new start 0 equal "$2"
    destination=(context NEW)
    if [[ -n $dry_run ]]; then
        return
    fi
    if ! number=$(ethtool -X "$1" context new start 0 equal "$2" 2>&1); then
        report failed "ethtool: ${number##*$'\n'} (a driver without RSS contexts? leave --channels out)"
        return 1
    fi
    number=${number##* }
    record undo_context "$1" "$number"
    destination=(context "$number")
}

# undo_rule 'IFACE FLOW' PORT
undo_rule() {
    local iface=${1% *} flow=${1#* } id failures=0
    if interface_is_gone "$iface"; then
        return
    fi
    for id in $(rule_ids "$iface" "$flow" "$2"); do
        undo_run "$iface: rule $id for $flow port $2 deleted" ethtool -N "$iface" delete "$id" || failures=1
    done
    return "$failures"
}

# undo_context IFACE NUMBER
undo_context() {
    interface_is_gone "$1" || undo_run "$1: RSS context $2 deleted" ethtool -X "$1" context "$2" delete
}
