#!/usr/bin/env bash
# Settings of the kernel for a machine that load generators run on. See usage below, and stages.sh for how it works.
set -euo pipefail
# shellcheck source=scripts/stages.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/stages.sh"

usage() {
    cat <<'USAGE'
Prepares the kernel of a load generator's host for many clients: shows, changes and restores settings.

usage: scripts/tune_client.sh [check|apply|undo|status] [OPTIONS]

  apply   change what is less than wanted; record what it was, and show each command            [the default]
  check   compare only; exit status 1 if anything differs
  undo    restore every recorded value, last change first
  status  show what is recorded

  --port PORT     the server's UDP port                                                         [default: 4433]
  --only A,B      only these stages:
                    files      fs.file-max, fs.nr_open
                    sockets    net.core.rmem_max, wmem_max, and their defaults
                    udp        net.ipv4.udp_mem (scaled down on small machines), udp_rmem_min, udp_wmem_min
                    queues     netdev_max_backlog, somaxconn, optmem_max
                    ports      net.ipv4.ip_local_port_range
                    maps       vm.max_map_count
                    limits     nofile and memlock of logins: /etc/security/limits.d/xdp-server.conf
                    conntrack  net.netfilter.nf_conntrack_max
                    notrack    no connection tracking for the server's port (nftables or iptables)
                    governor   CPU frequency governor performance
  --dry-run       show what would be run, and run nothing
  --state-file F  where to record        [default: /var/lib/xdp-server/tune/tune_client.state]
  --root DIR      look for /proc, /sys, /etc and /var below DIR, to try this on a copy of a host; also: TUNE_ROOT

Values that are larger than wanted already stay. What this kernel has not got is skipped, with a line that says so.
All but the limits ends with the next reboot. Needs root, but for check, status and --dry-run.

Exit status: 0 done, or nothing differs; 1 something differs, or could not be done; 2 wrong usage.
USAGE
}

port=4433
parse_arguments 0 'port' '' "$@"
need_port

plan() {
    stage files 4194304
    stage sockets 67108864 67108864
    stage udp 4194304 8388608 16777216
    stage queues
    stage ports
    stage maps 16777216
    stage limits 1048576
    stage conntrack 2097152
    stage notrack client "$port"
    stage governor
}

perform plan
