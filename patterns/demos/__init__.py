"""Each pattern, run over real sockets by several processes, and narrated.

`python -m patterns list` names them, `python -m patterns demo NAME [--fault]` runs
one. A demo is a module with `run(fault)`; the processes that it starts are the
same module, given a role. With `fault` something breaks, and the pattern mends it.
"""
