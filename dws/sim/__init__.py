"""The production machines in virtual time: disks, nodes, virtual clients, faults, and what must hold.

What lives here: everything of a simulated cluster that is not the cluster's own
code. What must not: that code, and real disks, sockets and clocks.
"""
