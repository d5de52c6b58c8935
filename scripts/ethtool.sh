# shellcheck shell=bash
# What several stages ask ethtool. To be sourced by those, after stages.sh.

# need_ethtool: whether it is there; reports when not
need_ethtool() {
    command -v ethtool >/dev/null && return
    report "$(applying && echo failed || echo skipped)" "there is no ethtool here; type: sudo apt-get install ethtool"
    return 1
}

# interface_is_gone IFACE: whether there is nothing left to restore; reports when so
interface_is_gone() {
    [[ ! -e $TUNE_ROOT/sys/class/net/$1 ]] || return 1
    report skipped "$1 is gone, nothing to restore"
}

# feature IFACE NAME on|off: a feature of an interface, to be on or off. Returns 1 when it is not so in the end.
feature() {
    local state fixed complaint=''
    read -r state fixed < <({ ethtool -k "$1" 2>/dev/null || true; } |
        awk -v name="$2:" '$1 == name { print $2, $3 }') || true
    if [[ -z $state ]]; then
        report skipped "$1 has no $2"
        return 1
    elif [[ $state == "$3" ]]; then
        report ok "$1: $2 is $3"
    elif [[ $fixed == '[fixed]' ]]; then
        report skipped "$1: $2 is $state, and the driver cannot change it"
        return 1
    elif ! applying; then
        report differs "$1: $2 is $state, wanted $3"
        return 1
    else
        record undo_feature "$1 $2" "$state"
        if ! run ethtool -K "$1" "$2" "$3"; then
            unrecord
            report failed "ethtool: $complaint"
            return 1
        fi
        report changed "$1: $2 from $state"
    fi
}

# undo_feature 'IFACE NAME' STATE
undo_feature() {
    local iface=${1% *} name=${1#* }
    interface_is_gone "$iface" || undo_run "$iface: $name $2" ethtool -K "$iface" "$name" "$2"
}

# undo_run WHAT COMMAND...: restores WHAT by a command.
undo_run() {
    local complaint=''
    if run "${@:2}"; then
        report restored "$1"
    else
        report failed "$2: $complaint"
        return 1
    fi
}

# channels_of IFACE COUNT: the channels (queues with an interrupt) of an interface, in the words of `ethtool -L`. Prints
# CURRENT|WANTED|MOST|RECEIVING: what it has, what would set COUNT, how many it can have, and how many receive now.
# Prints nothing when its driver cannot be asked.
channels_of() {
    { ethtool -l "$1" 2>/dev/null || true; } | awk -v count="$2" '
        /^Pre-set maximums/ { part = "max" }
        /^Current hardware settings/ { part = "now" }
        # Kinds that the driver has not got are n/a.
        $1 ~ /^(RX|TX|Combined):$/ { value[part $1] = $2 ~ /^[0-9]+$/ ? $2 : 0 }
        END {
            if (part != "now") {
                exit
            }
            rx = value["nowRX:"]; tx = value["nowTX:"]; combined = value["nowCombined:"]
            most = value["maxCombined:"]
            if (most == 0) {
                # Receive and transmit queues apart: veth, and some older drivers.
                most = value["maxRX:"] < value["maxTX:"] ? value["maxRX:"] : value["maxTX:"]
                current = "rx " rx " tx " tx
                wanted = "rx " count " tx " count
            } else if (rx == 0 && tx == 0) {
                current = "combined " combined
                wanted = "combined " count
            } else {
                # Either kind is possible with this driver, and separate ones are in use.
                current = "rx " rx " tx " tx " combined " combined
                wanted = "rx 0 tx 0 combined " count
            }
            printf "%s|%s|%d|%d\n", current, wanted, most, rx + combined
        }'
}
