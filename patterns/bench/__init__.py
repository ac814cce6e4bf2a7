"""Each pattern beside the bare sockets that it uses: the same frames, the same number of processes, one run.

`python -m patterns bench [NAME]`. A benchmark is a module with `run()`; it prints
what it measured, and what must be reached. Figures depend on the machine and on
what else runs there; the ratios much less.
"""
