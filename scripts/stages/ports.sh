# shellcheck shell=bash
# Ports that the kernel gives to sockets that do not choose one. A load generator's endpoints need one each.
#
# From 1024 on, the server's own port is in that range, and any program on the host may be given it before the server
# starts; the server would then find it taken. It is reserved for those who ask for it by number.

# stage_ports [RESERVED]: RESERVED is a port that is not to be given away
stage_ports() {
    setting /proc/sys/net/ipv4/ip_local_port_range contains '1024 65535'
    if [[ $# -gt 0 ]]; then
        setting /proc/sys/net/ipv4/ip_local_reserved_ports lists_port "$1"
    fi
}
