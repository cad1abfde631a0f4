"""Where the server listens, and what the system has to say of it."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from urllib.parse import quote, unquote

from edge.command_line import Endpoint
from edge.files import reason
from edge.limits import allow_open_files
from edge.program import Failure
from edge.protocol import DEFAULT_PORT
from edge.state_folder import make_folder, state_folder
from edge.text import visible

OTHER_FILES = 32  # that the server has open beside its connections
HTTP_CONNECTIONS = 256  # at most, with --http
FOLDER_NAME = "edge-compute-node"  # of a folder in that of all programs
SERVICE_FOLDER = pathlib.Path("/run", FOLDER_NAME)  # as the README has the service made
MAX_SOCKET_PATH = 103  # bytes: 107 with Linux
CROWDED = 0.9  # of all connections that are let in
CROWD_SECONDS = 60.0  # from one look at how many there are to the next


def default_endpoint() -> Endpoint:
    """All addresses, IPv6 and IPv4; IPv4 alone where IPv6 is off."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::", 0))
        return Endpoint("::", DEFAULT_PORT)
    return Endpoint("0.0.0.0", DEFAULT_PORT)


def listening_socket(endpoint: Endpoint, flag: str = "--listen") -> socket.socket:
    """One that listens there, for IPv6 and IPv4 where that is all addresses. Raises Failure, with what to do about `flag`."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as unless_it_listens:
            bound = unless_it_listens.enter_context(socket.socket(family, kind))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.bind(address)
            bound.listen(512)  # with less, of many who come at once some try again after a second
            unless_it_listens.pop_all()
            return bound
    except (socket.gaierror, UnicodeError):
        raise Failure(f"cannot resolve {endpoint.host}: give {flag} an address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = Endpoint(endpoint.host, endpoint.port + 1 if endpoint.port < 65535 else DEFAULT_PORT)
            raise Failure(f"port {endpoint.port} is in use: is a server running already? Else try {flag} {other}") from None
        why = (error.strerror or str(error)).lower()
        raise Failure(f"cannot listen on {endpoint}: {why}; give {flag} another address or port") from None


def why_not_bound(endpoint: Endpoint) -> str:
    """gRPC does not say why it can't listen: the system does, when asked again."""
    try:
        listening_socket(endpoint).close()
    except Failure as error:
        return str(error)
    return f"cannot listen on {endpoint}: gRPC gives no reason; give --listen another address or port"


def socket_folders(state: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """Where the socket of a server may be, by which its own user looks at it. A server makes it in the first of these; who looks
    may run with other variables than a service does. `state`: the folder of --state."""
    if given := os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:  # systemd sets it
        yield pathlib.Path(given)
    if home := os.environ.get("XDG_RUNTIME_DIR"):
        yield pathlib.Path(home) / FOLDER_NAME
    with contextlib.suppress(OSError):  # this user has no home
        yield state or state_folder()
    yield SERVICE_FOLDER


def socket_path(folder: pathlib.Path, port: int) -> pathlib.Path:
    """In a folder of its own, since systemd lets others look into that of a service."""
    return folder / "watch" / f"{port}.sock"


def socket_target(path: pathlib.Path) -> str:
    """What gRPC calls it."""
    return f"unix:{quote(str(path.absolute()))}"


def bind_socket(bind: Callable[[str], object], folder: pathlib.Path, port: int) -> str:
    """Make the socket by which this server's own user looks, as `bind` does with gRPC's name of it: in a folder that is this user's
    alone, since whoever gets at the socket may look. Returns a warning where that can't be; empty else."""
    if os.name != "posix":
        return ""
    path = socket_path(folder, port)
    try:
        make_folder(path.parent)
        status = path.parent.lstat()  # a link may lead to another folder of this user
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            why = f"{path.parent} is not this user's alone: chmod 700 {path.parent}"
        elif len(os.fsencode(path.absolute())) > MAX_SOCKET_PATH:
            why = f"the path {path} is too long for a socket"
        else:
            bind(socket_target(path))
            return ""
    except (OSError, RuntimeError) as error:
        why = f"no socket can be made at {path}: {reason(error)}"
    return f"--attach on this machine needs an address: {why}"


def other_files(with_http: bool) -> int:
    """Open files that a server needs beside its nodes' connections."""
    return OTHER_FILES + HTTP_CONNECTIONS * with_http


def files_for(max_nodes: int, with_http: bool = False) -> int:
    """Open files that a server of so many nodes needs: one a node, some for those that are refused or say nothing yet, others."""
    return max_nodes + max(max_nodes // 10, 100) + other_files(with_http)


def most_connections(max_nodes: int, with_http: bool = False) -> int:
    """Raise the limit on open files as far as it is needed, and may be. Returns how many connections gRPC can let in."""
    return max(allow_open_files(files_for(max_nodes, with_http)) - other_files(with_http), 1)


def too_few_files(max_nodes: int, with_http: bool = False) -> str:
    """A warning where the system allows fewer connections than nodes; empty else."""
    nodes = most_connections(max_nodes, with_http)
    few = f"only {nodes + other_files(with_http)} files may be open here, so about {nodes} nodes"
    return "" if nodes >= max_nodes else f"{few}: raise it with ulimit -Hn {files_for(max_nodes, with_http)}"


def open_files() -> int:
    """How many files this process has open, connections among them; 0 where the system does not say. Takes 20 ms for 10,000."""
    try:
        return len(os.listdir("/dev/fd"))  # noqa: PTH208  # names are enough
    except OSError:
        return 0


class Crowd:
    """Tells when nearly all connections are taken that are let in: who comes then is turned away without a word."""

    def __init__(self, most: int, files: Callable[[], int] = open_files) -> None:
        """`most` are let in. Make it when the server listens, and nobody has come."""
        self._most, self._files = most, files
        self._others = files()
        self._look_at = 0.0

    def tick(self, now: float, calls: int, others: int = 0) -> str:
        """A warning, once in CROWD_SECONDS at most, else empty. `now`: seconds of any steady clock; `calls` that nodes have;
        `others`: connections beside those that are let in for calls."""
        if now < self._look_at:
            return ""
        self._look_at = now + CROWD_SECONDS
        taken = self._files() - self._others - others
        if taken < CROWDED * self._most:
            return ""
        return (
            f"{taken:,} of {self._most:,} connections are taken, {min(calls, taken):,} of them by nodes: start the server with a "
            f"larger --max-nodes; or keep the others out by a firewall"
        )


def peer_address(peer: str) -> str:
    """gRPC's "ipv4:10.0.0.7:41234" or "ipv6:%5Bfe80::7%252%5D:41234" as an address a person reads, without the port."""
    address, _, zone = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]").partition("%")
    with contextlib.suppress(OSError, ValueError, OverflowError):
        zone = socket.if_indextoname(int(zone))
    return visible(address.removeprefix("::ffff:") + (f"%{zone}" if zone else "")) or visible(peer)
