"""The command line of both programs: argparse, where each option also comes from the environment."""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import re
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from edge.credentials import PREFIX, without_tokens
from edge.program import FRAMES_PER_SECOND, put, version_text
from edge.protocol import DEFAULT_PORT, MAX_INTERVAL_SECONDS, MIN_INTERVAL_SECONDS, check_labels, check_node_id

MIN_SIZE_BYTES = 2**20
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")  # of a switch in the environment


class Endpoint(NamedTuple):
    """An address of the network: a name, an IPv4 or an IPv6 address without its brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def target_of(address: str) -> str:
    """An address as gRPC takes it: a URI, in which the sign before an IPv6 zone is escaped (fe80::1%eth0)."""
    return address.replace("%", "%25")


def is_ipv6(host: str) -> bool:
    """Whether this is an IPv6 address, with or without a zone."""
    try:
        return bool(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
    except OSError:
        return False


def parse_endpoint(text: str) -> Endpoint:
    """HOST[:PORT], where HOST is a name, an IPv4 address, or an IPv6 address with or without brackets.

    Raises argparse.ArgumentTypeError with what to write instead.
    """
    if text.startswith(PREFIX):
        raise argparse.ArgumentTypeError("this is a token, which all on this box can see now (ps), and no address")
    if text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no address: write HOST:{text} if it is a port, like 0.0.0.0:{text}")
    inner = r"[^][/?#@*,\s"  # all but what is in no name and no address: gRPC would take some of it for parts of a URI
    match = re.fullmatch(rf"\[({inner}]+)\](?::(\d+))?|({inner}:]+)(?::(\d+))?|({inner}]*:{inner}]*:{inner}]*)", text)
    host = (match[1] or match[3] or match[5]) if match else ""
    if not match or (":" in host and not is_ipv6(host)):
        raise argparse.ArgumentTypeError(f"{text!r} is no address: write HOST or HOST:PORT, like 10.0.0.5:50051 or [fd00::5]:50051")
    port = int(match[2] or match[4] or DEFAULT_PORT)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} has no port from 1 to 65535")
    return Endpoint(host, port)


class Once(argparse.Action):
    """An option that means one thing: given again with another value, one of them would go unheard."""

    value: Any = None  # that was given

    def __call__(self, _parser: object, options: argparse.Namespace, values: Any, _flag: object = None) -> None:
        if self.value not in (None, values):
            raise argparse.ArgumentError(self, f"give it once, not as {self.value} and {values}")
        self.value = values
        setattr(options, self.dest, values)


class Listed(argparse.Action):
    """An option that may be given again, or name several with commas. The first flag takes the place of the default."""

    def __call__(self, _parser: object, options: argparse.Namespace, values: Any, _flag: object = None) -> None:
        before = getattr(options, self.dest)
        setattr(options, self.dest, before + values if isinstance(before, list) else values)


def number_between(lowest: float, highest: float, what: str) -> Callable[[str], float]:
    """A parser of numbers in a range, which raises argparse.ArgumentTypeError saying what is wanted."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what} from {lowest:g} to {highest:g}")
        return value

    return parse


parse_seconds = number_between(MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS, "number of seconds")
parse_speed = number_between(0.01, 10_000, "speed")
parse_fps = number_between(0.1, FRAMES_PER_SECOND, "number of frames a second")


def parse_server(text: str) -> Endpoint:
    """Where a node reports to: an endpoint with a port. Raises argparse.ArgumentTypeError."""
    endpoint = parse_endpoint(text)
    if not endpoint.port:
        raise argparse.ArgumentTypeError(f"{text!r} has no port from 1 to 65535")
    return endpoint


def several(parse_one: Callable[[str], Endpoint]) -> Callable[[str], list[Endpoint]]:
    """A parser of one, and more of them after commas, which raises argparse.ArgumentTypeError."""
    return lambda text: [parse_one(part.strip()) for part in text.split(",")]


parse_endpoints, parse_servers = several(parse_endpoint), several(parse_server)


def parse_http(text: str) -> Endpoint:
    """[HOST:]PORT: on this machine alone where it is a port. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() and (is_ipv6(text) or not re.search(r":\d+$", text)):
        raise argparse.ArgumentTypeError(f"{text!r} has no port: write PORT or HOST:PORT, like 8080 or 0.0.0.0:8080")
    return parse_endpoint(f"127.0.0.1:{text}" if text.isdecimal() else text)


def parse_node_id(text: str) -> str:
    """The name of a node. Raises argparse.ArgumentTypeError."""
    try:
        return check_node_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_labels(text: str) -> list[tuple[str, str]]:
    """NAME=VALUE, and more of them after commas; none, where the text is empty. Raises argparse.ArgumentTypeError."""
    labels = []
    for part in text.split(",") if text else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            if not equals:
                raise ValueError(f"{part!r} is no label: write NAME=VALUE, like rack=a3")
            if name.lower() == "state":
                raise ValueError("state asks for ONLINE, LOST and so on in the server's filters: give the label another name")
            check_labels({name: value})
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        labels.append((name, value))
    return labels


def no_secret(_text: str) -> NoReturn:
    """Of --token, which is no option. Raises argparse.ArgumentTypeError."""
    raise argparse.ArgumentTypeError(
        "a token in a command can be seen by all on this box (ps): put it into a file, for --token-file, or into EDGE_TOKEN"
    )


def count_from(lowest: int) -> Callable[[str], int]:
    """A parser of a number of things, at least so many, which raises argparse.ArgumentTypeError."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,7}", text, re.ASCII) or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is no count from {lowest} to 9999999")
        return int(text)

    return parse


parse_count, parse_threshold = count_from(1), count_from(0)


def parse_size(text: str) -> int:
    """A number of bytes, as 500MB or 2GiB. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?([kmgt]?)(i?b?)", text.lower(), re.ASCII)
    size = int(float(match[1]) * (1000 if match[3] == "b" else 1024) ** " kmgt".index(match[2] or " ")) if match else 0
    if size < MIN_SIZE_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is no size from 1MiB on, like 500MB or 2GiB")
    return size


def parse_path(text: str) -> pathlib.Path:
    """A file or a folder. Raises argparse.ArgumentTypeError."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a file or a folder")
    if text.startswith(PREFIX):
        raise argparse.ArgumentTypeError("this is a token, which all on this box can see now (ps): give a file that holds it")
    return pathlib.Path(text)


def one_of(words: Sequence[str]) -> Callable[[str], str]:
    """A parser of these words alone, which raises argparse.ArgumentTypeError naming them."""

    def parse(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(words)}")
        return text

    return parse


def some_of(words: Sequence[str]) -> Callable[[str], frozenset[str]]:
    """A parser of some of these words, with commas between them; of none, where the text is empty.

    Raises argparse.ArgumentTypeError naming them.
    """
    parse_one = one_of(words)
    return lambda text: frozenset(parse_one(part.strip()) for part in text.split(",") if text)


class Options(argparse.ArgumentParser):
    """argparse, where each option also comes from the environment: --interval from EDGE_INTERVAL. A flag beats it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            usage="python3 %(prog)s.pyz [option …]",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )

    def option(self, flag: str, about: str, **settings: Any) -> None:
        """Add an option that takes a value."""
        name = self._environment(flag)
        settings["default"] = os.environ.get(name, settings.get("default"))
        self.add_argument(flag, help=f"{about} [{name}]", **{"action": Once, **settings})

    def switch(self, flag: str, about: str) -> None:
        """Add an option that takes none."""
        name = self._environment(flag)
        value = os.environ.get(name, "").lower()
        if value not in (*YES, *NO):
            self.error(f"argument {flag}: {value!r} is neither 1 nor 0")
        self.add_argument(flag, action="store_true", default=value in YES, help=f"{about} [{name}]")

    def common(self) -> None:
        """The options that both programs end with."""
        about = f"frames a second at most, less for a slow line (default {FRAMES_PER_SECOND})"
        self.option("--fps", about, type=parse_fps, default=str(FRAMES_PER_SECOND), metavar="RATE")
        self.switch("--no-color", "no colours (also with NO_COLOR set)")
        self.switch("--debug", "tracebacks")
        self.add_argument("--version", action="version", version=version_text(self.prog), help="version, Python and target")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Of --help and --version: argparse itself would be silent where stdout can't be written."""
        if message and file is sys.stdout:
            put(message.removesuffix("\n"))
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        flag = message.removeprefix("argument ").partition(":")[0]
        given = any(argument.partition("=")[0] == flag for argument in sys.argv)
        if flag.startswith("--") and not given and self._environment(flag) in os.environ:
            message += f" (from {self._environment(flag)} in the environment)"
        message = without_tokens(message)  # of a flag that is not there, say
        self.exit(2, f"{self.prog}: {message}\ntry python3 {self.prog}.pyz --help\n")

    @staticmethod
    def _environment(flag: str) -> str:
        return "EDGE_" + flag.removeprefix("--").upper().replace("-", "_")
