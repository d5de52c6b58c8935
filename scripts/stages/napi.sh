# shellcheck shell=bash
# Interrupts of an interface whose queues are polled busily through AF_XDP (SO_PREFER_BUSY_POLL). Without these two,
# each packet that arrives between two polls raises an interrupt, and the kernel's handling of it competes with the
# worker.
#
# gro_flush_timeout: nanoseconds without a poll after which the kernel polls by itself. 200,000 is several turns of a
# worker (64 packets at about 1 us). Shorter than a turn: the timer fires while the worker works, and the interrupts are
# back. Longer: a worker that stalls or sleeps finds its packets later.
#
# napi_defer_hard_irqs: how many such timeouts in vain before interrupts are on again. 2 is what the documentation of
# DPDK's AF_XDP driver gives, with 200,000. Larger, such as 100: a polling worker does not notice, but a server that has
# ended, or sleeps, leaves the timer running for as many timeouts (20 ms), on each queue, after each packet. 0:
# interrupts are on again at once.

# stage_napi IFACE
stage_napi() {
    setting "/sys/class/net/$1/napi_defer_hard_irqs" at_least 2
    setting "/sys/class/net/$1/gro_flush_timeout" at_least 200000
}
