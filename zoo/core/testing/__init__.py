"""One table of op cases, every backend.

    cases/      the table: a row per op and interesting setting, with an independent reference in float64
    ref.py      those references, in plain numpy and plain loops
    tol.py      how near a result must come, by op, with the reason
    check.py    the properties that every row has on every device and dtype
    devices.py  the devices of this machine, and devices that watch an op being run

Elementwise rows are made from the op table itself: a new one there is tested at once, here and on every backend.
"""
