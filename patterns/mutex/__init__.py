"""Mutual exclusion, three classic algorithms behind one interface, each a pure state machine.

Start with `coordinator.py`, `ricart_agrawala.py` or `token_ring.py`; each can be read
alone. `resource.py` is the side that makes a wrong grant harmless, and
`patterns/zeromq/mutex.py` runs all of them over real sockets.
"""
