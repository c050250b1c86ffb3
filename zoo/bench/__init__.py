"""Benchmarks: what this machine can do, what share of it the kernels reach, and how models compare with their peers.

`case` says what a case is and how a port states its own; `runner` measures it, each candidate in a process of its own
(`worker`); `machine` knows the ceilings; `report` and `chart` show what came out. The kernels' cases are `kernels`.
"""
