"""Comparisons with servers that others made and with what bare sockets and disks give, in one run.

    dws-loadgen bench --help

figures and table are pure: medians, ratios, the verdict, and what is wanted. bench runs rounds of stages,
each of which starts servers (peers, or a cluster of ours) and lets drivers do jobs on them; quiet watches
who else uses the machine; text and html say what came out.
"""
