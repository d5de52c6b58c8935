# shellcheck shell=bash
# rx-udp-gro-forwarding off: it merges UDP packets that no socket asked to have merged, so that several QUIC packets of
# one client reach AF_XDP as one that no frame holds. The server refuses interfaces that have it on.

readonly GRO_FEATURE=rx-udp-gro-forwarding

# feature_state IFACE: on, off, or nothing; then `fixed` if it cannot be changed
feature_state() {
    ethtool -k "$1" 2>/dev/null | awk -v name="$GRO_FEATURE:" '$1 == name { print $2, $3 == "[fixed]" ? "fixed" : "" }'
}

# stage_gro IFACE
stage_gro() {
    local state fixed complaint=
    if ! command -v ethtool >/dev/null; then
        report skipped "no ethtool here; type: sudo apt-get install ethtool"
        return
    fi
    read -r state fixed < <(feature_state "$1") || true
    case $state in
        '') report skipped "$1 has no $GRO_FEATURE" ;;
        off) report ok "$1: $GRO_FEATURE is off" ;;
        *)
            if ! applying; then
                report differs "$1: $GRO_FEATURE is on, wanted off"
            elif [[ -n $fixed ]]; then
                report failed "$1: $GRO_FEATURE is on, and the driver does not let it be turned off"
            else
                record undo_gro "$1" "$state"
                if run ethtool -K "$1" "$GRO_FEATURE" off; then
                    report changed "$1: $GRO_FEATURE off"
                else
                    unrecord
                    report failed "ethtool: $complaint"
                fi
            fi
            ;;
    esac
}

# undo_gro IFACE STATE
undo_gro() {
    local complaint=
    if [[ ! -e $root/sys/class/net/$1 ]]; then
        report skipped "$1 is gone, nothing to restore"
    elif run ethtool -K "$1" "$GRO_FEATURE" "$2"; then
        report restored "$1: $GRO_FEATURE $2"
    else
        report failed "ethtool: $complaint"
        return 1
    fi
}
