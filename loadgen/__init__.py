"""Load on a dws cluster, and what came of it.

    python -m loadgen run --help        load of your own on a running cluster
    python -m loadgen demo              a cluster of its own, a site, load, the analysis

plan, histogram and report are pure; worker, runner, demo and cli do the rest.
"""
