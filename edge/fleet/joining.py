"""How a box gets in: where this server is reached, the token to paste there, and what to type."""

from __future__ import annotations

import contextlib
import ipaddress
import pathlib
import re
import shlex
import socket
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edge.command_line import Endpoint, is_ipv6, parse_endpoint, target_of
from edge.credentials import PREFIX
from edge.protocol import DEFAULT_PORT

AGENT, SUMS = "node.pyz", "SHA256SUMS"  # as they are served
ADDRESSES_TOLD = 4  # of a machine that has more
# Interfaces for what runs on this machine: other boxes do not reach them.
INNER = re.compile(r"docker|br-[0-9a-f]{12}$|veth|virbr|lxc|lxdbr|cni|flannel|cali|cilium|podman|vmnet|vboxnet|vEthernet")
FAR = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # of no machine (RFC 5737, 3849): by the default route


class Step(NamedTuple):
    """One thing to know or to do."""

    words: str
    text: str = ""  # to type or to paste


class Web(NamedTuple):
    """What this server serves by HTTP."""

    page: str  # its address, like http://10.0.0.5:8080/
    has_agent: bool  # node.pyz lies there, and other machines reach it
    pin: str = ""  # of the server's own key, as curl's --pinnedpubkey has it
    why_no_agent: str = ""  # and what would change that; empty where it has, or nothing would


class Joining(NamedTuple):
    """How a box gets in."""

    is_secure: bool
    addresses: Sequence[str]  # HOST[:PORT] of this machine, at least one, the likeliest first; no port where it is DEFAULT_PORT
    node_token: str = ""  # the line to paste; "" when open, or where none is valid, or certificates alone let in
    node_token_name: str = ""  # what people call it
    view_token: str = ""  # the same
    view_token_name: str = ""
    needs_ca: bool = False  # the server's certificate is the user's own: a node needs --ca FILE
    needs_certificate: bool = False  # --client-ca: a node needs --tls-cert FILE --tls-key FILE --id NAME, and no token
    state_folder: str = ""  # --state, where it was given: another folder has other tokens
    is_here: bool = True  # this program is the server: its tokens are at hand
    web: Web | None = None  # with --http


def steps(joining: Joining) -> list[Step]:
    """What to do on a box, in this order."""
    command = f"python3 node.pyz --server {joining.addresses[0]}"
    if joining.needs_certificate:
        command += " --ca CA-FILE --tls-cert FILE --tls-key FILE --id NAME"
    elif joining.needs_ca:
        command += " --ca FILE"
    found = [Step("On each box:", command)]
    if joining.web and joining.web.has_agent:
        password = " (its password is the view token)" if joining.is_secure else ""
        found.insert(0, Step(f"To get node.pyz on a box{password}:", fetching(joining, joining.web, AGENT)))
    if not joining.is_secure:
        found.append(Step("Open to whoever reaches it. To close it: server.pyz --secure"))
    elif joining.node_token:
        found.append(Step(f"Paste this token{named(joining.node_token_name)} at its prompt:", joining.node_token))
        found.append(Step("Or in a script:", f"EDGE_TOKEN={joining.node_token} {command}"))
    elif joining.needs_certificate:
        found.append(Step("NAME is one that stands in that certificate: the server takes no other."))
    elif not joining.is_here:
        found.append(Step("Its prompt wants a token, which that server's machine tells:", token_command(joining, "list")))
    else:
        found.append(Step("No node token is valid. Make one here:", token_command(joining, "new --role node")))
    return [*found, *looking(joining)]


def looking(joining: Joining) -> list[Step]:
    """By what else than a screen."""
    password = " (any user name, the view token as password)" if joining.is_secure else ""
    return [Step(f"In a browser{password}:", joining.web.page)] if joining.web else []


def fetching(joining: Joining, web: Web, name: str) -> str:
    """What to type on a box for a file. A server's own key is named there, as a token names it: nothing else proves it."""
    url = shlex.quote(f"{web.page}{name}")
    if not joining.is_secure:
        return f"curl -fO {url}"
    proof = "-f --cacert FILE" if joining.needs_ca else f"-fk --pinnedpubkey 'sha256//{web.pin}'"
    return f"curl {proof} -u view -O {url}"


def of_agent(joining: Joining) -> list[Step]:
    """What else there is to know of node.pyz: whether it came whole, or why it doesn't come from here."""
    if joining.web and joining.web.has_agent:
        return [Step("To check that it came whole:", f"{fetching(joining, joining.web, SUMS)} && sha256sum --check {SUMS}")]
    return [Step(joining.web.why_no_agent)] if joining.web and joining.web.why_no_agent else []


def unserved(joining: Joining, pin: str) -> list[Step]:
    """How node.pyz would come from a secure server which has not told where it listens for HTTP, if it does."""
    web = web_of(Endpoint(parse_endpoint(joining.addresses[0]).host, 0), has_agent=True, is_secure=True, pin=pin)
    command = fetching(joining, web._replace(page=web.page.replace(":0/", ":PORT/")), AGENT)
    return [Step("With --http 0.0.0.0:PORT at the server, to get node.pyz on a box (its password is the view token):", command)]


def details(joining: Joining) -> list[Step]:
    """What else there is to know."""
    found = elsewhere(joining, len(joining.addresses))
    if joining.node_token:
        found.append(Step("The node token lets a box report, and see nothing."))
    if joining.view_token:
        name = named(joining.view_token_name)
        found.append(Step(f"The view token{name} lets a person see the fleet, and report nothing:", joining.view_token))
    if joining.is_secure and joining.is_here:
        found.append(Step("All tokens (new makes one more, revoke ends one):", token_command(joining, "list")))
    return [*found, *of_agent(joining)]  # the last, where there may be no room


def named(name: str) -> str:
    """A token's name, after a word for it."""
    return f" ({name})" if name else ""


def token_command(joining: Joining, verb: str) -> str:
    """What to type here."""
    folder = f" --state {shlex.quote(joining.state_folder)}" if joining.state_folder else ""
    return f"python3 server.pyz token {verb}{folder}"


def elsewhere(joining: Joining, most: int) -> list[Step]:
    """Up to so many of the addresses that no command names."""
    others = joining.addresses[1:]
    more = f" and {len(others) - most} more" if len(others) > most else ""
    return [Step(f"This machine's other addresses: {', '.join(others[:most])}{more}")] if others else []


def told(joining: Joining, with_tokens: bool = True) -> list[str]:
    """What to do on a box, as plain lines; a token has one of its own. `with_tokens` False: for where others may read it later."""
    if joining.node_token and not with_tokens:
        found = [Step("What to type and to paste on a box:", token_command(joining, "list")), *looking(joining)]
        return [f"{step.words} {step.text}" for step in found]
    lines: list[str] = []
    for words, text in [*steps(joining), *of_agent(joining), *elsewhere(joining, ADDRESSES_TOLD - 1)]:
        lines += [words, text] if text.startswith(PREFIX) else [f"{words} {text}".rstrip()]
    return lines


def own_look(state: pathlib.Path | None) -> str:
    """How this server's own user looks at it."""
    return f"Look at it here: python3 server.pyz --attach{f' --state {shlex.quote(str(state))}' if state else ''}"


# ---- Addresses ----


def own_addresses(bound: Sequence[Endpoint]) -> list[str]:
    """Where other machines reach this one, the likeliest first: what the server is bound to; for all addresses, what they are, and
    this machine's name where it has none but for itself."""
    found: dict[str, None] = {}
    for host, port in bound:
        found |= dict.fromkeys(own if port == DEFAULT_PORT else str(Endpoint(own, port)) for own in own_hosts(host))
    return list(found)


def own_hosts(bound: str) -> list[str]:
    """The same without a port, of one host: at least one."""
    return (machine_addresses(with_ipv6=is_ipv6(bound)) or [own_name()]) if is_wildcard(bound) else [bound]


def web_of(bound: Endpoint, has_agent: bool, is_secure: bool = False, name: str = "", pin: str = "") -> Web:
    """What to tell of HTTP where the server is bound to this. `name`: of the user's certificate; `pin`: of its own key."""
    host = name or own_hosts(bound.host)[0]
    page = f"http{'s' if is_secure else ''}://{target_of(str(Endpoint(host, bound.port)))}/"
    if not has_agent or not is_near(bound.host):
        return Web(page, has_agent, pin)
    why = f"No box gets node.pyz from it: this machine alone reaches {bound}. For boxes: --http 0.0.0.0:{bound.port}"
    return Web(page, False, pin, why)


def is_near(host: str) -> bool:
    """Whether this machine alone reaches it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def own_name() -> str:
    """This machine's; where it has none that a command can name, what every machine calls itself."""
    name = socket.gethostname()
    return name if re.fullmatch(r"[\w.-]+", name, re.ASCII) else "localhost"


def is_wildcard(host: str) -> bool:
    """Whether this stands for all addresses of a machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_unspecified
    return False


def machine_addresses(with_ipv6: bool) -> list[str]:
    """Of this machine, for others: that of the default route first, then IPv4; those of inner networks last.

    No loopback, and no IPv6 address that means something only with the name of an interface here.
    """
    likeliest = [source for family in FAR if (source := default_source(family))]
    inner: dict[str, bool] = dict.fromkeys(likeliest, False)
    for interface, address in interface_addresses():
        inner.setdefault(address, bool(INNER.match(interface)))
    ranks = {}
    for text, is_inner in inner.items():
        ip = ipaddress.ip_address(text)
        is_reached = with_ipv6 and not ip.is_link_local if ip.version == 6 else True
        if is_reached and not ip.is_loopback and not ip.is_unspecified:
            ranks[text] = (is_inner, ip.is_link_local, text not in likeliest, ip.version)
    return sorted(ranks, key=lambda text: ranks[text])


def default_source(family: socket.AddressFamily) -> str:
    """This machine's address on its default route; empty where it has none. A UDP socket that connects sends nothing."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((FAR[family], DEFAULT_PORT))
        return str(probe.getsockname()[0])
    return ""


def interface_addresses() -> Iterator[tuple[str, str]]:
    """Interfaces that are up, and their addresses; none without psutil (it has no wheel for 32-bit ARM)."""
    with contextlib.suppress(ImportError, OSError):
        import psutil

        are_up = psutil.net_if_stats()
        for interface, addresses in psutil.net_if_addrs().items():
            if interface in are_up and are_up[interface].isup:
                yield from ((interface, entry.address) for entry in addresses if entry.family in FAR)
