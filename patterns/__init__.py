"""ZeroMQ message patterns, each a pure state machine that knows no socket and no clock.

Start with the module of the pattern you need; each can be read alone. `zeromq/`
runs them over real sockets.
"""
