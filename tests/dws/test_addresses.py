"""Endpoints: which are legal, and that everybody who is given one says so in the same words."""

import pytest

import dws
from dws.addresses import endpoint_fault, parts_of
from dws.errors import ConfigError
from dws.nodes.endpoints import with_offset


@pytest.mark.parametrize(
    "text", ["tcp://127.0.0.1:1", "tcp://a-b.example_c:65535", "tcp://[::1]:5600", "tcp://h:05600"]
)
def test_endpoints(text: str) -> None:
    assert endpoint_fault(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "h:1", "tcp://h", "tcp://h:", "tcp://:1", "tcp://*:1", "tcp://h:1/x", "tcp://h h:1", "tcp://h:1\n",
        "tcp://h:x", "tcp://h:-1", "tcp://h:\u0661", "http://h:1", "ipc:///tmp/x", "tcp://u@h:1", "tcp://a;b:1",
    ],
)  # fmt: skip
def test_no_endpoints(text: str) -> None:
    assert endpoint_fault(text) == f"{text!r} is not an endpoint, such as tcp://127.0.0.1:5600"


@pytest.mark.parametrize("port", [0, 65_536, 99_999, 999_999_999])
def test_ports_that_are_none(port: int) -> None:
    text = f"tcp://h:{port}"
    assert endpoint_fault(text) == f"{text!r} has no possible port: wanted 1 to 65535"
    with pytest.raises(ConfigError, match="wanted 1 to 65535"):
        dws.connect(text)


def test_other_schemes() -> None:
    assert endpoint_fault("https://h:1", ("http", "https")) is None
    assert "http://127.0.0.1" in (endpoint_fault("tcp://h:1", ("http", "https")) or "")


def test_ports_in_a_row_end_with_the_last_port() -> None:
    assert with_offset("tcp://h:65533", 2) == "tcp://h:65535"
    with pytest.raises(ConfigError, match="wanted 1 to 65533, since the next 2 belong to it"):
        with_offset("tcp://h:65534", 2)


def test_parts() -> None:
    assert parts_of("tcp://[::1]:5600") == ("[::1]", 5600)
    assert parts_of("http://h:80") == ("h", 80)
