# shellcheck shell=bash
# Memory mappings of one process. Rings, buffers and, above all, jemalloc's extents, which advice on huge pages splits,
# take one each. Fewer: mmap fails with ENOMEM though there is memory. More costs nothing until they are used.

# stage_maps COUNT
stage_maps() {
    setting /proc/sys/vm/max_map_count at_least "$1"
}
