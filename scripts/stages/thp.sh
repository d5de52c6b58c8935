# shellcheck shell=bash
# Transparent huge pages, for the memory that gets no explicit ones: the server asks for them region by region
# (madvise), and so does its allocator. `madvise` grants exactly that, so it suffices; where `always` is set, it stays.
# `never` costs a TLB miss for nearly each connection touched.
#
# defrag says what to do when no huge page is free. `madvise` lets those who asked wait for one to be made, which
# happens while the server starts; with `defer` or `never` they get small pages, and keep them.

stage_thp() {
    setting /sys/kernel/mm/transparent_hugepage/enabled chosen 'madvise always'
    setting /sys/kernel/mm/transparent_hugepage/defrag chosen 'madvise defer+madvise always'
}
