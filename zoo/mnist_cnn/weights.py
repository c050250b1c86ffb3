"""How the published state dict becomes ours. Names agree; two layouts differ."""

from __future__ import annotations

from zoo.hub.table import Table, flatten_channels_last, permute, row

CHANNELS_LAST = "torch stores (out, in, height, width), we (out, height, width, in)"

TABLE = Table(
    row("conv1.weight", "conv1.weight", permute(0, 2, 3, 1), why=CHANNELS_LAST),
    row("conv2.weight", "conv2.weight", permute(0, 2, 3, 1), why=CHANNELS_LAST),
    row("fc1.weight", "fc1.weight", flatten_channels_last(lambda c: (c.channels[1], c.side, c.side)),
        why="torch flattens the feature map as (channels, height, width), we as (height, width, channels)"),
)  # fmt: skip
