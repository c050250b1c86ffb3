"""How ports are found."""

from __future__ import annotations

import pytest

from zoo import port as ports
from zoo.core.errors import ZooError


def test_ports_of_other_packages_are_found(site):
    assert {"scaler", "broken", "odd"} <= set(ports.names())
    assert ports.get("scaler").task == "multiply numbers by learned factors"


def test_listing_imports_no_port(site):
    import sys

    ports.names()
    assert "zoo_scaler" not in sys.modules


def test_an_unknown_name_is_told_with_the_nearest(site):
    with pytest.raises(ZooError) as raised:
        ports.get("scalar")
    assert raised.value.what == "there is no model named 'scalar'" and raised.value.fix == "Did you mean scaler?"


@pytest.mark.parametrize(
    ("name", "why"), [("broken", "ImportError: no module named left_pad"), ("odd", "is a int, not")]
)
def test_a_broken_port_names_its_package_and_disturbs_no_other(site, name, why):
    with pytest.raises(ZooError) as raised:
        ports.get(name)
    assert f"zoo-{name}" in raised.value.what and why in raised.value.why
    assert ports.get("scaler").name == "scaler"


def test_every_port_of_the_zoo_is_whole():
    for name in ports._own():
        port = ports.get(name)
        assert isinstance(port, ports.Port) and port.name == name and port.task and callable(port.run)
