# shellcheck shell=bash
# Huge pages of 2 MiB in the kernel's pool, for packet buffers and connection tables. Too few: the server goes on with
# smaller pages, at a TLB miss for nearly each connection touched. Too many are lost to everything else, used or not.

readonly HUGE_PAGE_KB=2048

# stage_hugepages PAGES [NODE]: PAGES in the pool at least, of NUMA node NODE or of the host
stage_hugepages() {
    local directory=/sys/kernel/mm/hugepages before more count free available lock=''
    local lock_file=$TUNE_ROOT/proc/sys/vm/nr_hugepages
    [[ -z ${2-} ]] || directory=/sys/devices/system/node/node$2/hugepages
    directory+=/hugepages-${HUGE_PAGE_KB}kB
    if ! before=$(cat "$TUNE_ROOT$directory/nr_hugepages" 2>/dev/null); then
        report skipped "there are no huge pages of $HUGE_PAGE_KB kB here: no $directory"
        return
    fi
    if applying && [[ $before -lt $1 ]]; then
        available=$(awk '$1 == "MemAvailable:" { print $2 }' "$TUNE_ROOT/proc/meminfo" 2>/dev/null || true)
        more=$((($1 - before) * HUGE_PAGE_KB))
        if [[ -n $available && $more -gt $((available * 3 / 4)) ]]; then
            report failed "$((more / 1024)) MiB more are wanted, and $((available / 1024)) MiB are available, of which a" \
                "quarter is left to the rest: give the server fewer queues, or a lower --max-connections-per-worker"
            return
        fi
        if [[ -z $dry_run && -e $lock_file ]]; then
            # Who else changes the pool here takes this lock, such as run.sh.
            exec {lock}<"$lock_file"
            flock "$lock"
        fi
        echo "$1 huge pages of $HUGE_PAGE_KB kB are $(($1 * HUGE_PAGE_KB / 1024)) MiB; $before are there"
        compact
    fi
    setting "$directory/nr_hugepages" at_least "$1"
    [[ -z $lock ]] || exec {lock}<&-
    count=$(cat "$TUNE_ROOT$directory/nr_hugepages")
    free=$(cat "$TUNE_ROOT$directory/free_hugepages" 2>/dev/null || echo unknown)
    echo "in the pool: $count, of which free: $free"
    if applying && [[ -z $dry_run && $count -lt $1 ]]; then
        echo "Memory is too full or in too small pieces. End what uses much of it and apply again, or have the pages" \
            "reserved at boot: hugepages=$1 on the kernel's command line."
    fi
}

# Moves used memory together, so that there are free pieces of a huge page's size.
compact() {
    local complaint=''
    [[ -e $TUNE_ROOT/proc/sys/vm/compact_memory ]] || return 0
    write_value /proc/sys/vm/compact_memory $'1\n' || echo "not compacted: $complaint"
}
