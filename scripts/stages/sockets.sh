# shellcheck shell=bash
# Buffers of sockets, in bytes: the largest that a program may ask for, and what those get that do not ask.
#
# A worker's one UDP socket holds what arrives while the worker is busy elsewhere. At 25,000 packets a second and
# worker, 64 MiB are about a second: the kernel charges a small packet some 2 KiB. Smaller: packets are dropped, which
# /proc/net/snmp counts as RcvbufErrors. Larger: packets older than their sender's patience are kept.
#
# The default applies to every socket on the host that does not choose. It is a limit, not a reservation: memory is
# used as packets come. stages/udp.sh bounds the sum.

# stage_sockets MAX DEFAULT
stage_sockets() {
    setting /proc/sys/net/core/rmem_max at_least "$1"
    setting /proc/sys/net/core/wmem_max at_least "$1"
    setting /proc/sys/net/core/rmem_default at_least "$2"
    setting /proc/sys/net/core/wmem_default at_least "$2"
}
