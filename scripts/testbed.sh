#!/usr/bin/env bash
# A network for tests on one machine: two ends of a virtual cable, one of them in a network namespace.
#
#   root namespace                          namespace NAME
#   NAME0  10.99.N.1, fd99:0:0:N::1 ------- NAME1  10.99.N.2, fd99:0:0:N::2
#   the server's end                        the clients' end
#
# veth ends with as many receive and transmit queues as asked. XDP works on them natively, AF_XDP in copy
# mode, both without anything on the other end. A packet arrives on the receive queue with the number of
# the transmit queue that it left by, and the kernel chooses that by the packet's flow (addresses and
# ports); so many flows use all queues, and one flow only one. In generic XDP mode veth does not say which
# queue it was, and all packets arrive on queue 0.
#
# What is set, and why:
#   client's end, tx off   veth leaves UDP checksums to hardware that it has not got; packets would reach
#                          AF_XDP without. Turns off the segmentation offloads (TSO, USO) with it: several
#                          packets in one would never fit the frames of AF_XDP.
#   server's end           offloads as they are: the kernel completes what leaves for the client.
#   IPv6 with nodad        addresses work at once, instead of after the search for duplicates.
set -euo pipefail

usage() {
    cat <<'USAGE'
A network namespace with a veth pair, to run a server and its clients on one machine.

usage: scripts/testbed.sh up [--queues N] [--name NAME]   make it, or repair what is there
       scripts/testbed.sh down [--name NAME]              remove it; fine when there is none
       scripts/testbed.sh exec [--name NAME] COMMAND...   run a command at the clients' end
       scripts/testbed.sh status [--name NAME]            show it; exit status 1 when there is none

  --queues N   receive and transmit queues of both ends, 1 to 64     [default: 2]
  --name NAME  namespace, and with 0 and 1 appended, the two ends:   [default: xdpbed]
               up to 14 of a-z, 0-9, _ and -, a letter first

Several beds of different names live side by side. Needs root, iproute2 and ethtool.
USAGE
}

die() {
    printf 'testbed: %s\n' "$*" >&2
    exit 1
}

# Shows a command, then runs it. What it prints is left out: the line says it.
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    "$@" >/dev/null
}

in_bed() {
    ip netns exec "$name" "$@"
}

# Marks what this script has made, so that it never removes another's interface that has the same name.
mark() {
    printf 'testbed:%s' "$name"
}

server_exists() {
    [[ -e /sys/class/net/$server ]]
}

namespace_exists() {
    [[ -e /run/netns/$name ]]
}

refuse_what_is_not_ours() {
    if server_exists && [[ $(<"/sys/class/net/$server/ifalias") != "$(mark)" ]]; then
        die "there is an interface $server that this script has not made; choose another --name"
    fi
    if namespace_exists; then
        local others
        others=$(in_bed ip -o link show | awk -F': ' '{ sub(/@.*/, "", $2); print $2 }' |
            grep -vxF -e lo -e "$client" || true)
        if [[ -n $others ]]; then
            die "namespace $name has interfaces of others (${others//$'\n'/, }); choose another --name"
        fi
    fi
}

queues_of_server() {
    local folders=("/sys/class/net/$server/queues/rx-"*)
    echo "${#folders[@]}"
}

up() {
    if server_exists && namespace_exists && in_bed ip link show "$client" &>/dev/null; then
        if [[ $(queues_of_server) == "$queues" ]]; then
            echo "$name is there already, with $queues queues: setting it up again"
        else
            echo "$name is there already, but with $(queues_of_server) queues, not $queues: making it anew"
            down
        fi
    elif server_exists || namespace_exists; then
        echo "$name is there in part: making it anew"
        down
    fi
    [[ -e /proc/net/if_inet6 ]] || die "this kernel runs without IPv6; start it without ipv6.disable=1"

    local taken
    taken=$(ip -o -4 addr show to "10.99.$number.0/24" | awk -v own="$server" '$2 != own { print $2 }')
    [[ -z $taken ]] || die "10.99.$number.0/24 is in use on this host, by $taken; choose another --name"

    # A half-made bed helps nobody.
    trap 'echo "testbed: that failed; removing what was made" >&2; down' EXIT
    if ! server_exists; then
        local counts=(numrxqueues "$queues" numtxqueues "$queues")
        run ip netns add "$name"
        run ip link add "$server" "${counts[@]}" type veth peer name "$client" netns "$name" "${counts[@]}"
    fi
    run ip link set dev "$server" alias "$(mark)"
    run ip netns exec "$name" ethtool -K "$client" tx off
    run ip link set dev "$server" mtu 1500 up
    run ip -n "$name" link set dev lo up
    run ip -n "$name" link set dev "$client" mtu 1500 up
    run ip addr replace "$server_v4/24" dev "$server"
    run ip -n "$name" addr replace "$client_v4/24" dev "$client"
    run ip addr replace "$server_v6/64" dev "$server" nodad
    run ip -n "$name" addr replace "$client_v6/64" dev "$client" nodad
    # The kernel notices the carrier up to a second later, and drops what is sent until then.
    local attempt
    for attempt in {1..50}; do
        if [[ $(<"/sys/class/net/$server/operstate") == up ]] &&
            ip -n "$name" link show "$client" | grep -q 'state UP'; then
            break
        fi
        [[ $attempt -lt 50 ]] || die "the link did not come up within 5 seconds; see: ip link show $server"
        sleep 0.1
    done
    trap - EXIT
    status
}

down() {
    if ! server_exists && ! namespace_exists; then
        echo "$name is not there: nothing to remove"
        return
    fi
    # Deleting one end deletes both.
    if server_exists; then
        run ip link del "$server"
    fi
    if namespace_exists; then
        local processes
        processes=$(ip netns pids "$name" | tr '\n' ' ')
        if [[ -n $processes ]]; then
            echo "testbed: still running, from now on without a network: processes $processes" >&2
        fi
        run ip netns del "$name"
    fi
}

status() {
    if ! server_exists || ! namespace_exists; then
        echo "$name is down; to make it: $0 up --name $name"
        return 1
    fi
    # Two pieces of what ip shows: the mode (xdp is native), and the program.
    local xdp
    xdp=$(ip link show dev "$server" |
        sed -nE 's/.* (xdp[a-z]*) qdisc .*/\1/p; s/.*prog\/xdp (id [0-9]+( name [^ ]+)?).*/\1/p' |
        paste -sd' ')
    echo "$name is up: $(queues_of_server) queues"
    echo "  server  $server  $server_v4  $server_v6  XDP: ${xdp:-none}"
    echo "  client  $client  $client_v4  $client_v6  in namespace $name"
}

[[ $# -gt 0 ]] || { usage >&2; exit 2; }
action=$1
shift
case $action in
    up | down | exec | status) ;;
    -h | --help | help) usage; exit 0 ;;
    *) usage >&2; die "unknown action: $action" ;;
esac

name=xdpbed
queues=2
while [[ $# -gt 0 ]]; do
    case $1 in
        --name | --queues)
            [[ $# -ge 2 ]] || die "$1 needs a value"
            if [[ $1 == --name ]]; then name=$2; else queues=$2; fi
            shift 2
            ;;
        -h | --help) usage; exit 0 ;;
        --) shift; break ;;
        -*) usage >&2; die "unknown option: $1" ;;
        *) break ;;
    esac
done
if [[ $action == exec ]]; then
    [[ $# -gt 0 ]] || die "exec needs a command, such as: $0 exec ping -c 1 10.99.0.1"
else
    [[ $# -eq 0 ]] || die "unexpected: $1"
fi
# 15 characters are the kernel's limit for interface names.
[[ $name =~ ^[a-z][a-z0-9_-]{0,13}$ ]] || die "--name $name: up to 14 of a-z, 0-9, _ and -, a letter first"
[[ $queues =~ ^[1-9][0-9]?$ && $queues -le 64 ]] || die "--queues $queues: 1 to 64"

server=${name}0
client=${name}1
# The default bed has the addresses that examples show; others get a number from 1 to 255 from their name.
number=0
if [[ $name != xdpbed ]]; then
    number=$(($(printf %s "$name" | cksum | cut -d' ' -f1) % 255 + 1))
fi
server_v4=10.99.$number.1
client_v4=10.99.$number.2
network_v6=fd99:
if [[ $number -ne 0 ]]; then
    network_v6=$(printf 'fd99:0:0:%x:' "$number")
fi
server_v6=$network_v6:1
client_v6=$network_v6:2

[[ $(id -u) -eq 0 ]] || die "needs root; type: sudo $0 $action ..."
command -v ip >/dev/null || die "the command ip is missing; type: sudo apt-get install iproute2"
command -v ethtool >/dev/null || die "the command ethtool is missing; type: sudo apt-get install ethtool"

refuse_what_is_not_ours
case $action in
    exec)
        namespace_exists || die "$name is down; to make it: $0 up --name $name"
        exec ip netns exec "$name" "$@"
        ;;
    *) "$action" ;;
esac
