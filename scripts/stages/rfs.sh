# shellcheck shell=bash
# Receive flow steering, for the socket and io_uring backends: the kernel handles a packet on the CPU where the flow's
# socket was last read. AF_XDP does not come by there.
#
# The kernel notes the CPU for connected sockets only. The server's sockets serve all clients and are not connected, so
# for them it is RSS and the reuseport program that choose. This serves load generators on the same host that have a
# connected socket for each client, and TCP.
#
# Both numbers are slots of hash tables. Fewer than active flows: flows share a slot, and go where the other was read.
# The first is the host's; the second is of each queue, and 16 queues of 4096 fill the first.

# stage_rfs IFACE
stage_rfs() {
    local queue found=
    setting /proc/sys/net/core/rps_sock_flow_entries at_least 65536
    for queue in "$TUNE_ROOT/sys/class/net/$1"/queues/rx-*; do
        [[ -e $queue ]] || continue
        found=yes
        setting "${queue#"$TUNE_ROOT"}/rps_flow_cnt" at_least 4096
    done
    [[ -n $found ]] || report skipped "$1 shows no receive queues"
}
