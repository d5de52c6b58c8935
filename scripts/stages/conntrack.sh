# shellcheck shell=bash
# The size of the connection tracking table. What stages/notrack.sh exempts takes no entry; the rest of the host's
# traffic does. When it is full, new connections are dropped (`nf_conntrack: table full` in dmesg). An entry is about
# 300 bytes.

# stage_conntrack ENTRIES
stage_conntrack() {
    setting /proc/sys/net/netfilter/nf_conntrack_max at_least "$1"
}
