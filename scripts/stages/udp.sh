# shellcheck shell=bash
# Memory of all UDP sockets together.
#
# net.ipv4.udp_mem has three numbers, in pages: below the first the kernel leaves all sockets alone; above the second it
# holds each to its minimum (udp_rmem_min, udp_wmem_min: bytes); the third is the end: packets are dropped, and
# /proc/net/snmp counts MemErrors.
#
# The numbers wanted are for hosts of 256 GiB, and for pages of 4 KiB. The third never gets more than half of this
# host's memory, lest packets alone run it out of memory, and the other two keep their share of it:
#
#     factor = min(1, MemTotal / 2 / third)

# Smallest size of a page on any machine, in bytes: the unit of the numbers wanted.
readonly REFERENCE_PAGE=4096

# stage_udp LOW PRESSURE MAX: udp_mem, in pages of 4 KiB
stage_udp() {
    local page total half numbers
    setting /proc/sys/net/ipv4/udp_rmem_min at_least 65536
    setting /proc/sys/net/ipv4/udp_wmem_min at_least 65536
    page=$(getconf PAGESIZE)
    total=$(awk '$1 == "MemTotal:" { print $2 }' "$TUNE_ROOT/proc/meminfo" 2>/dev/null || true)
    if [[ -z $total ]]; then
        report skipped "net.ipv4.udp_mem: /proc/meminfo does not say how much memory there is"
        return
    fi
    half=$((total * 1024 / 2 / page))
    numbers=("$(($1 * REFERENCE_PAGE / page))" "$(($2 * REFERENCE_PAGE / page))" "$(($3 * REFERENCE_PAGE / page))")
    if [[ ${numbers[2]} -gt $half ]]; then
        echo "net.ipv4.udp_mem: ${numbers[*]} scaled down by $half/${numbers[2]}: at most half of this host's" \
            "$((total / 1024)) MiB, $half pages of $page bytes"
        numbers=("$((numbers[0] * half / numbers[2]))" "$((numbers[1] * half / numbers[2]))" "$half")
    fi
    setting /proc/sys/net/ipv4/udp_mem at_least "${numbers[*]}"
}
