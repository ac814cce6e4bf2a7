"""Comparisons with servers that others made, on this machine and in one run.

    python -m loadgen.bench http        redirects, small pages and a large one; nginx and SeaweedFS beside

figures is pure: medians, ratios, the verdict. peers runs nginx, SeaweedFS and wrk; http is the comparison.
"""
