# shellcheck shell=bash
# Turns off address space layout randomisation, for every program that starts from then on. SECURITY TRADE: who finds a
# memory error in any program on this host need no longer guess where its code and stack are. For benchmarks on hosts
# that nobody else reaches: addresses, and with them cache conflicts, are then the same in each run. The throughput
# gained is hardly measurable.

stage_aslr() {
    echo "kernel.randomize_va_space 0 trades security for runs that repeat: no program on this host has randomised" \
        "addresses then; undo it when the measurement is over"
    setting /proc/sys/kernel/randomize_va_space is 0
}
