# shellcheck shell=bash
# rx-udp-gro-forwarding off: it merges UDP packets that no socket asked to have merged, so that several QUIC packets of
# one client reach AF_XDP as one that no frame holds. The server refuses interfaces that have it on.

# shellcheck source=scripts/ethtool.sh
source "$TUNE_SCRIPTS/ethtool.sh"

# stage_gro IFACE
stage_gro() {
    need_ethtool || return 0
    feature "$1" rx-udp-gro-forwarding off || true
}
