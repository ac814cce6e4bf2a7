"""Drills: a loaded cluster is brought through a fault, and everything that it promised is checked.

What lives here: proxy (a network that fails), cluster (real processes), workload (mixed load with a history),
watch (what the balancer says meanwhile), disks (stalled, damaged and full ones), faults (what is done in a
round), readback (every page from every holder), drill (the order of all that), report, cli. What must not:
the cluster's own code, which is run as it is.
"""
