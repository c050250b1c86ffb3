"""What `--debug` sets, wherever it stands on the line."""

debug = False


def set_debug(value: bool) -> None:
    global debug
    debug = debug or value
