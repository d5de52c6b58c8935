#!/usr/bin/env bash
# Settings of the kernel for the machine that the server runs on. See usage below, and stages.sh for how it works.
set -euo pipefail
# shellcheck source=scripts/stages.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/stages.sh"

usage() {
    cat <<'USAGE'
Prepares the kernel of the server's host for hundreds of thousands of clients: shows, changes and restores settings.

usage: scripts/tune_server.sh [check|apply|undo|status] [OPTIONS]

  apply   change what is less than wanted; record what it was, and show each command            [the default]
  check   compare only; exit status 1 if anything differs
  undo    restore every recorded value, last change first
  status  show what is recorded

  --iface IF      the server's interface, for the stages rfs, napi and gro
  --backend NAME  xdp, io_uring or socket: what it will run on                                  [default: xdp]
  --port PORT     the server's UDP port                                                         [default: 4433]
  --no-aslr       add the stage aslr: trades the security of every program on this host for runs that repeat
  --only A,B      only these stages:
                    files       fs.file-max, fs.nr_open
                    sockets     net.core.rmem_max, wmem_max, and their defaults
                    udp         net.ipv4.udp_mem (scaled down on small machines), udp_rmem_min, udp_wmem_min
                    queues      netdev_max_backlog, somaxconn, optmem_max
                    ports       net.ipv4.ip_local_port_range, and the server's port reserved in it
                    maps        vm.max_map_count
                    limits      nofile and memlock of logins: /etc/security/limits.d/xdp-server.conf
                    conntrack   net.netfilter.nf_conntrack_max
                    notrack     no connection tracking for the port (nftables or iptables)
                    governor    CPU frequency governor performance
                    irqbalance  stopped
                    thp         transparent huge pages on request
                    rfs         receive flow steering (io_uring and socket)
                    napi        napi_defer_hard_irqs, gro_flush_timeout (xdp)
                    gro         rx-udp-gro-forwarding off (xdp)
                    aslr        kernel.randomize_va_space 0 (with --no-aslr)
  --dry-run       show what would be run, and run nothing
  --state-file F  where to record        [default: /var/lib/xdp-server/tune/tune_server.state]
  --root DIR      look for /proc, /sys, /etc and /var below DIR, to try this on a copy of a host; also: TUNE_ROOT

Values that are larger than wanted already stay. What this kernel has not got is skipped, with a line that says so.
All but the limits ends with the next reboot. Needs root, but for check, status and --dry-run.

Exit status: 0 done, or nothing differs; 1 something differs, or could not be done; 2 wrong usage.
USAGE
}

iface=
backend=xdp
port=4433
no_aslr=
parse_arguments 0 'iface backend port' 'no-aslr' "$@"
[[ $backend =~ ^(xdp|io_uring|socket)$ ]] || usage_error "--backend $backend: xdp, io_uring or socket"
need_port
[[ -z $iface ]] || need_interface "$iface"

plan() {
    stage files 4194304
    stage sockets 134217728 67108864
    stage udp 8388608 16777216 33554432
    stage queues
    stage ports "$port"
    stage maps 16777216
    stage limits 1048576
    stage conntrack 2097152
    stage notrack server "$port"
    stage governor
    stage irqbalance
    stage thp
    interface_stage rfs 'io_uring|socket'
    interface_stage napi xdp
    interface_stage gro xdp
    if [[ -n $no_aslr || -n $listing ]]; then
        stage aslr
    fi
}

# interface_stage NAME BACKENDS: a stage that takes an interface, and makes sense on these backends only.
interface_stage() {
    if [[ -z $listing && -z $iface ]]; then
        skip_stage "$1" "takes --iface IF"
    elif [[ -z $listing && ! $backend =~ ^($2)$ ]]; then
        skip_stage "$1" "not for --backend $backend"
    else
        stage "$1" "$iface"
    fi
}

perform plan
