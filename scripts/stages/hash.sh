# shellcheck shell=bash
# What the RSS hash of a UDP packet is made of: addresses and ports (`sdfn`). Many drivers leave the ports out by
# default, since fragments have none; all clients of one machine then arrive on one queue.

# shellcheck source=scripts/ethtool.sh
source "$TUNE_SCRIPTS/ethtool.sh"

# hash_fields IFACE FLOW: letters of the fields, or nothing
hash_fields() {
    { ethtool -n "$1" rx-flow-hash "$2" 2>/dev/null || true; } | awk '
        /^L2DA/ { fields = fields "m" }
        /^VLAN tag/ { fields = fields "v" }
        /^L3 proto/ { fields = fields "t" }
        /^IP SA/ { fields = fields "s" }
        /^IP DA/ { fields = fields "d" }
        /^L4 bytes 0/ { fields = fields "f" }
        /^L4 bytes 2/ { fields = fields "n" }
        END { print fields }'
}

# stage_hash IFACE
stage_hash() {
    local flow fields complaint=''
    for flow in udp4 udp6; do
        fields=$(hash_fields "$1" "$flow")
        if [[ -z $fields ]]; then
            report skipped "$1: its driver does not say what its hash of $flow is made of"
        elif [[ $fields == sdfn ]]; then
            report ok "$1 hashes $flow by addresses and ports"
        elif ! applying; then
            report differs "$1 hashes $flow by $fields, wanted sdfn: addresses and ports"
        else
            record undo_hash "$1 $flow" "$fields"
            if run ethtool -N "$1" rx-flow-hash "$flow" sdfn; then
                report changed "$1 hashes $flow by addresses and ports, from $fields"
            else
                unrecord
                report failed "ethtool: $complaint"
            fi
        fi
    done
}

# undo_hash 'IFACE FLOW' FIELDS
undo_hash() {
    local iface=${1% *} flow=${1#* }
    interface_is_gone "$iface" ||
        undo_run "$iface: hash of $flow by $2" ethtool -N "$iface" rx-flow-hash "$flow" "$2"
}
