"""How a box gets in: the addresses of real interfaces in networks of their own, and what is told in plain lines."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from typing import Any

import pytest

from edge.command_line import Endpoint, parse_server
from edge.fleet.joining import FAR, Web, default_source, own_addresses, told, web_of
from tests.fixtures.examples import NODE_TOKEN, OPEN, OPEN_WEB, PIN, SECURE, SECURE_WEB, VIEW_TOKEN
from tests.fixtures.sessions import Serving

NETWORK = ("unshare", "--net", "--uts", "sh", "-ec")
LO = "ip link set lo up"
ASK = """
import json, sys
if sys.argv[2] == "without psutil":
    sys.modules["psutil"] = None
from edge.command_line import parse_endpoints
from edge.fleet.joining import own_addresses
print(json.dumps(own_addresses(parse_endpoints(sys.argv[1]))))
"""


def cable(name: str, *addresses: str) -> str:
    """An interface that is up, with a peer so that it is running."""
    lines = [f"ip link add {name} type veth peer name {name[:12]}-p", f"ip link set {name} up", f"ip link set {name[:12]}-p up"]
    return "\n".join(lines + [f"ip address add {address} dev {name}{' nodad' * (':' in address)}" for address in addresses])


def addresses_in(setup: str, listen: str, psutil: str = "with psutil") -> list[str]:
    """What a server that listens there calls itself, in a network of its own that is set up so."""
    script = f'{setup}\nexec "$0" "$@"'
    command = [*NETWORK, script, sys.executable, "-c", ASK, listen, psutil]
    found: list[str] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


@pytest.fixture(scope="module")
def needs_network() -> None:
    laid = os.geteuid() == 0 and shutil.which("ip")
    if not laid or subprocess.run([*NETWORK, cable("eth0", "10.0.0.5/24")], check=False).returncode:
        pytest.skip("needs root, iproute2, and a network namespace with a veth in it")


# As a machine has them: in a bad order, and the default route on the last of the real ones. What runs on it has networks inside.
MACHINE = "\n".join(
    [
        LO,
        cable("docker0", "172.17.0.1/16"),
        cable("br-0123456789ab", "172.18.0.1/16", "fd00:18::1/64"),
        cable("ath0", "169.254.7.7/16"),
        cable("eth0", "fd00:1::5/64", "10.1.0.5/24", "10.1.0.6/24"),
        cable("br-lan", "192.168.1.1/24"),
        cable("wan0", "fd00:2::5/64", "203.0.113.7/24"),
        "ip link add down0 type veth peer name down1",
        "ip address add 10.9.9.9/24 dev down0",
        "ip route add default via 203.0.113.1",
        "ip -6 route add default via fd00:2::1",
    ]
)
ALL_IPV4 = ["203.0.113.7", "10.1.0.5", "10.1.0.6", "192.168.1.1", "169.254.7.7", "172.17.0.1", "172.18.0.1"]
ALL = [
    "203.0.113.7", "fd00:2::5", "10.1.0.5", "10.1.0.6", "192.168.1.1", "fd00:1::5",
    "169.254.7.7", "172.17.0.1", "172.18.0.1", "fd00:18::1",
]  # fmt: skip
IPV6_ALONE = "\n".join([LO, cable("eth0", "10.1.0.5/24"), cable("eth1", "fd00:2::5/64"), "ip -6 route add default via fd00:2::1"])


@pytest.mark.usefixtures("needs_network")
@pytest.mark.parametrize(
    ("setup", "listen", "addresses"),
    [
        (MACHINE, "::", ALL),
        (MACHINE, "[::0]:6000", [f"[{address}]:6000" if ":" in address else f"{address}:6000" for address in ALL]),
        (MACHINE, "0.0.0.0", ALL_IPV4),
        (MACHINE, "0.0.0.0:6000,10.1.0.5", [*(f"{address}:6000" for address in ALL_IPV4), "10.1.0.5"]),
        (MACHINE, "10.1.0.5,[fe80::1%wan0]:6000,localhost", ["10.1.0.5", "[fe80::1%wan0]:6000", "localhost"]),
        (IPV6_ALONE, "::", ["fd00:2::5", "10.1.0.5"]),
        (cable("eth0", "169.254.7.7/16"), "::", ["169.254.7.7"]),
        (f"{LO}\nip address add 10.0.0.9/32 dev lo", "::", ["10.0.0.9"]),  # a machine that routes to itself
        (LO, "[::]:6000", [f"{socket.gethostname()}:6000"]),
        ("true", "::", [socket.gethostname()]),
        (f"{LO}\n{cable('eth0')}", "::", [socket.gethostname()]),
    ],
    ids=["all", "port", "ipv4", "both", "bound", "ipv6", "link-local", "routed", "lo", "none", "no-address"],
)
def test_the_addresses_of_this_machine(setup: str, listen: str, addresses: list[str]) -> None:
    assert addresses_in(setup, listen) == addresses


@pytest.mark.usefixtures("needs_network")
def test_without_psutil_those_of_the_default_routes_are_known() -> None:
    """It has no wheel for 32-bit ARM."""
    assert addresses_in(MACHINE, "::", "without psutil") == ["203.0.113.7", "fd00:2::5"]
    assert addresses_in(LO, "::", "without psutil") == [socket.gethostname()]


@pytest.mark.parametrize("listen", [[Endpoint("::", 50051)], [Endpoint("::", 6000)], [Endpoint("0.0.0.0", 65535)]])
def test_here_each_address_is_one_that_a_node_takes(listen: list[Endpoint]) -> None:
    addresses = own_addresses(listen)
    assert addresses
    assert {parse_server(address).port for address in addresses} == {listen[0].port}
    assert not {"127.0.0.1", "::1", "::", "0.0.0.0"} & {parse_server(address).host for address in addresses}
    for family in FAR:
        source = default_source(family)
        assert not source or socket.inet_pton(family, source.partition("%")[0])


@pytest.mark.usefixtures("needs_network")
@pytest.mark.parametrize(
    ("name", "address"),
    [("box-7.example", "box-7.example"), ("", "localhost"), ("(none)", "localhost"), ("\x1b[2Jbox", "localhost")],
)
def test_the_name_of_a_machine_without_an_address(name: str, address: str) -> None:
    assert addresses_in(f"{sys.executable} -c 'import socket; socket.sethostname({json.dumps(name)})'", "::") == [address]


# ---- What is told ----

COMMAND = "python3 node.pyz --server 10.0.0.5"
CLOSE = "Open to whoever reaches it. To close it: server.pyz --secure"
OTHERS = "This machine's other addresses: fd00::5"


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {},
            [
                f"On each box: {COMMAND}", "Paste this token (0a1b2c, first start) at its prompt:", NODE_TOKEN,
                f"Or in a script: EDGE_TOKEN={NODE_TOKEN} {COMMAND}", OTHERS,
            ],
        ),
        ({"is_secure": False, "node_token": ""}, [f"On each box: {COMMAND}", CLOSE, OTHERS]),
        (
            {"node_token": ""},
            [f"On each box: {COMMAND}", "No node token is valid. Make one here: python3 server.pyz token new --role node", OTHERS],
        ),
        (
            {"needs_ca": True},
            [
                f"On each box: {COMMAND} --ca FILE", "Paste this token (0a1b2c, first start) at its prompt:", NODE_TOKEN,
                f"Or in a script: EDGE_TOKEN={NODE_TOKEN} {COMMAND} --ca FILE", OTHERS,
            ],
        ),
        (
            {"needs_ca": True, "needs_certificate": True, "node_token": ""},
            [
                f"On each box: {COMMAND} --ca CA-FILE --tls-cert FILE --tls-key FILE --id NAME",
                "NAME is one that stands in that certificate: the server takes no other.", OTHERS,
            ],
        ),
    ],
    ids=["secure", "open", "no-token", "ca", "client-ca"],
)  # fmt: skip
def test_what_is_told_in_plain_lines(changes: dict[str, Any], lines: list[str]) -> None:
    assert told(SECURE._replace(**changes)) == lines
    assert VIEW_TOKEN not in "".join(lines)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, None),
        (2, "10.0.0.1"),
        (4, "10.0.0.1, 10.0.0.2, 10.0.0.3"),
        (5, "10.0.0.1, 10.0.0.2, 10.0.0.3 and 1 more"),
        (200, "10.0.0.1, 10.0.0.2, 10.0.0.3 and 196 more"),
    ],
)
def test_four_addresses_are_told_and_how_many_more_there_are(count: int, said: str | None) -> None:
    last = told(OPEN._replace(addresses=[f"10.0.0.{number}" for number in range(count)]))[-1]
    assert last == (
        f"This machine's other addresses: {said}" if said else "Open to whoever reaches it. To close it: server.pyz --secure"
    )


# ---- What is told of HTTP ----


def test_what_is_told_of_http_in_plain_lines() -> None:
    fetch, look = "To get node.pyz on a box: curl -fO http://10.0.0.5:8080/node.pyz", "In a browser: http://10.0.0.5:8080/"
    sums = "To check that it came whole: curl -fO http://10.0.0.5:8080/SHA256SUMS && sha256sum --check SHA256SUMS"
    assert told(OPEN_WEB) == [fetch, f"On each box: {COMMAND}", CLOSE, look, sums, OTHERS]
    proof = f"-fk --pinnedpubkey 'sha256//{PIN}'"
    fetch = f"To get node.pyz on a box (its password is the view token): curl {proof} -u view -O https://10.0.0.5:8080/node.pyz"
    look = "In a browser (any user name, the view token as password): https://10.0.0.5:8080/"
    lines = told(SECURE_WEB)
    sums = f"To check that it came whole: curl {proof} -u view -O https://10.0.0.5:8080/SHA256SUMS && sha256sum --check SHA256SUMS"
    assert (lines[0], lines[-3:-1]) == (fetch, [look, sums])
    assert told(SECURE_WEB, with_tokens=False)[1:] == [look]
    assert "curl -f --cacert FILE -u view -O https://10.0.0.5:8080/node.pyz" in told(SECURE_WEB._replace(needs_ca=True))[0]
    assert not [line for line in told(OPEN_WEB._replace(web=Web("http://127.0.0.1:80/", has_agent=False))) if "curl" in line]


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_an_error_is_no_agent(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """curl would save its sentence as node.pyz, and say nothing."""
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "server.pyz")])  # there is no node.pyz
    serving = Serving(http=True)
    (fetch, *_) = told(OPEN._replace(web=Web(f"{serving.http}/", has_agent=True)))
    done = subprocess.run(["sh", "-c", fetch.partition(": ")[2]], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, "404" in done.stderr) == (22, True)
    assert not list(tmp_path.iterdir())
    serving.network.stop()


@pytest.mark.parametrize(
    ("bound", "page", "has_agent"),
    [
        (Endpoint("127.0.0.1", 8080), "http://127.0.0.1:8080/", False),
        (Endpoint("::1", 8080), "http://[::1]:8080/", False),
        (Endpoint("localhost", 8080), "http://localhost:8080/", False),
        (Endpoint("10.0.0.5", 50051), "http://10.0.0.5:50051/", True),
        (Endpoint("fe80::1%eth0", 80), "http://[fe80::1%25eth0]:80/", True),
        (Endpoint("gpu-07", 80), "http://gpu-07:80/", True),
    ],
)
def test_only_what_others_reach_is_told_to_them(bound: Endpoint, page: str, has_agent: bool) -> None:
    why = "" if has_agent else f"No box gets node.pyz from it: this machine alone reaches {bound}. For boxes: --http 0.0.0.0:8080"
    assert web_of(bound, True) == Web(page, has_agent, why_no_agent=why)
    assert web_of(bound, False) == Web(page, False)
    lines = told(OPEN._replace(web=web_of(bound, True)))
    assert (why in lines, any("curl" in line for line in lines)) == (not has_agent, has_agent)


def test_of_all_addresses_the_likeliest_is_told_and_of_a_certificate_its_name() -> None:
    assert web_of(Endpoint("0.0.0.0", 80), True, True, "fleet.example", "pin") == Web("https://fleet.example:80/", True, "pin")
    assert not web_of(Endpoint("0.0.0.0", 80), True).page.startswith("http://0.0.0.0")
