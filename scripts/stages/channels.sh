# shellcheck shell=bash
# Channels of an interface: its queues, each with an interrupt. One for each worker: an AF_XDP socket receives only what
# arrives on its own queue. With more, packets arrive where no worker is, and take the kernel's slower way.

# shellcheck source=scripts/ethtool.sh
source "$TUNE_SCRIPTS/ethtool.sh"

# stage_channels IFACE COUNT
stage_channels() {
    local complaint='' current wanted most
    IFS='|' read -r current wanted most _ < <(channels_of "$1" "$2") || true
    if [[ -z $current ]]; then
        report skipped "$1: its driver does not let channels be set"
        return
    fi
    if [[ $current == "$wanted" ]]; then
        report ok "$1 has channels: $current"
    elif [[ $2 -gt $most ]]; then
        report "$(applying && echo failed || echo differs)" \
            "$1 can have $most channels at most, and $2 are wanted: give $most"
    elif ! applying; then
        report differs "$1 has channels: $current (of $most), wanted $wanted"
    else
        record undo_channels "$1" "$current"
        # shellcheck disable=SC2086 # Several words.
        if run ethtool -L "$1" $wanted; then
            report changed "$1 has channels: $wanted, from $current"
        else
            unrecord
            report failed "ethtool: $complaint (AF_XDP sockets and XDP programs of the interface may be in the way)"
        fi
    fi
}

# undo_channels IFACE WORDS
undo_channels() {
    # shellcheck disable=SC2086 # Several words.
    interface_is_gone "$1" || undo_run "$1 has channels: $2" ethtool -L "$1" $2
}
