"""Virtual time: one heap of events, and a network that fails as ZeroMQ does.

What lives here: what any simulation of message patterns needs. What must not:
what is simulated (dws/sim), real clocks, sockets, threads.
"""
