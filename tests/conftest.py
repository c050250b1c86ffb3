"""For all tests: which devices take part, and no green run in which nothing ran."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from zoo.core.testing.devices import device_names

# what this user's cache says of fast algorithms would change last bits
os.environ["ZOO_TUNE"] = "0"

# the same examples in every run, however slow the machine
settings.register_profile("zoo", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("zoo")


def pytest_configure(config: Any) -> None:
    """pytest sets the warning filters anew for each test: zoo's own, of infinities and NaN in kernels, is repeated
    here; what it does not cover would reach users, so it is an error."""
    # pytest started in the background of a script, or by nohup, may have inherited that Ctrl-C or a closed terminal is
    # ignored, and would pass that on to the programs that tests start and interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.addinivalue_line("filterwarnings", "error::RuntimeWarning")
    config.addinivalue_line("filterwarnings", r"ignore::RuntimeWarning:zoo\.core\.backends\.numpy")


def pytest_report_header(config: Any) -> str:
    usable, missing = device_names()
    absent = "".join(f"; no {name}" for name in missing)
    return f"zoo devices: {', '.join(usable)}{absent}"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    """A run whose every test was skipped shows nothing, so it fails. ZOO_TEST_SKIPPED=FILE gets the names of those that
    were, a line each, to be run where what they lacked is there: `pytest @FILE`."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (file := os.environ.get("ZOO_TEST_SKIPPED")) and reporter:
        skipped = dict.fromkeys(report.nodeid for report in reporter.stats.get("skipped", ()))
        Path(file).write_text("".join(f"{name}\n" for name in skipped), encoding="utf-8")
    counts = {k: len(v) for k, v in reporter.stats.items()} if reporter else {}
    if exitstatus == 0 and counts.get("skipped") and not counts.get("passed"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
