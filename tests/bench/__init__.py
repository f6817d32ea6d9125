"""What Holdfast costs, measured against ordinary servers that protect nothing.

`python -m tests.bench.NAME` prints one JSON object a line for each case; `python -m tests.bench`
runs all of them and prints a table. A machine on which anything else runs gives other figures:
every comparison is made of short runs that alternate between ours and the peer, and of medians.
"""
