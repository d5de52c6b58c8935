# shellcheck shell=bash
# Queues of the kernel's network stack, for the backends that use it, and for the packets that XDP passes on.

stage_queues() {
    # Packets that wait for a CPU that another one has handed them to (RPS, RFS, loopback, veth). Smaller: bursts are
    # dropped, the second column of /proc/net/softnet_stat. Larger: they wait longer.
    setting /proc/sys/net/core/netdev_max_backlog at_least 300000
    # Connections of TCP that wait to be accepted: the metrics' port, and whatever else listens on this host.
    setting /proc/sys/net/core/somaxconn at_least 65535
    # Bytes of ancillary data and BPF programs on one socket. GSO and GRO carry a control message with each train; a
    # socket over this limit fails with ENOBUFS.
    setting /proc/sys/net/core/optmem_max at_least 2048000
}
