"""The command line of the server."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence

from edge.command_line import (
    Endpoint,
    Listed,
    Once,
    Options,
    is_ipv6,
    no_secret,
    parse_count,
    parse_endpoints,
    parse_http,
    parse_path,
    parse_seconds,
    parse_servers,
    parse_size,
    parse_speed,
    parse_threshold,
)
from edge.fleet.joining import is_near, is_wildcard
from edge.fleet.listening import default_endpoint
from edge.trust import parse_tokens

OF_A_SERVER = (
    "--listen", "--interval", "--max-nodes", "--secure", "--client-ca", "--no-journal", "--journal-size", "--http",
    "--prometheus-config",
)  # fmt: skip
OF_A_VIEWER = ("--token-file", "--ca")
OF_A_CHECK = ("--warning", "--critical")
NOT_OF_A_CHECK = ("--record", "--replay", "--headless", "--json", "--fps", "--no-color")


def void_options(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Flags that mean nothing beside the others, and why. In the environment they may stand: it is there for several programs."""
    if options.check is None:
        for flag in OF_A_CHECK:
            yield flag, "it is for --check: give that as well"
    else:
        for flag in NOT_OF_A_CHECK:
            yield flag, "--check tells how the fleet is in one line: give one of them"
    if options.replay:
        for flag in (*OF_A_SERVER, *OF_A_VIEWER, "--state", "--tls-cert", "--tls-key", "--record"):
            yield flag, "it is for a server, and --replay plays a file: give one of them"
    elif options.attach is None and options.check is not None:
        for flag in (*OF_A_SERVER, "--tls-cert", "--tls-key"):
            yield flag, "it is for a server here, and --check looks at one that runs: give one of them"
        for flag in OF_A_VIEWER:
            yield flag, "it is for looking at a server elsewhere: give --attach as well"
    elif options.attach is not None:
        for flag in OF_A_SERVER:
            yield flag, "it is for a server here, and --attach looks at one elsewhere: give one of them"
    else:
        for flag in OF_A_VIEWER:
            yield flag, "it is for looking at a server elsewhere: give --attach as well"
    if not options.replay:
        yield "--speed", "it is for a recording: give --replay as well"
    if options.no_journal:
        yield "--journal-size", "--no-journal keeps none: give one of them"
    if not options.http:
        yield "--prometheus-config", "Prometheus reads a server by HTTP: give --http PORT as well, as the server has it"


def is_taken(http: Endpoint, listened: Endpoint) -> bool:
    """Whether both can't be had. All addresses of IPv6 are those of IPv4, too."""
    hosts = (http.host, listened.host)
    takes_all = any(is_wildcard(host) and (is_ipv6(host) or not any(map(is_ipv6, hosts))) for host in hosts)
    is_localhost = "localhost" in hosts and all(map(is_near, hosts))
    return http.port == listened.port != 0 and (http.host == listened.host or takes_all or is_localhost)


def why_no_filter(words: Sequence[str]) -> str:
    """Why argparse finds no filter behind --check, where a word there begins as an option does; empty: that is not so."""
    word = next((word for flag, word in itertools.pairwise(words) if flag == "--check" and re.match("-[^-]", word)), "")
    return f"{word} reads as an option there: write --check={shlex.quote(word)}" if word not in ("", "-h") else ""


def contradictions(options: argparse.Namespace, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags that can't be had as they stand, and why. `words`: of the command line."""
    pair = {"--tls-cert": options.tls_cert, "--tls-key": options.tls_key}
    given = [flag for flag, path in {**pair, "--client-ca": options.client_ca}.items() if path]
    if given and (missing := [flag for flag, path in pair.items() if not path]):
        yield given[0], f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
    if options.attach is not None and options.replay:
        yield "--replay", "it plays a file, and --attach looks at a server: give one of them"
    flags = {word.partition("=")[0] for word in words}
    yield from ((flag, why) for flag, why in void_options(options) if flag in flags)
    if None not in (options.check, options.warning, options.critical) and options.warning > options.critical:
        why = f"{options.warning} is never reached, since more than {options.critical} are critical"
        yield "--warning", f"{why}: give --critical the larger count"
    if options.http and options.attach is None and options.check is None and not options.replay:
        taken = (listened for listened in options.listen or [default_endpoint()] if is_taken(options.http, listened))
        yield from (("--http", f"--listen has {one}, for the nodes: give one of them another port") for one in taken)


def parser_of(kind: type[Options]) -> Options:
    """All options."""
    parser = kind(
        prog="server",
        description="The orchestrator of Edge Compute Node: one live table of all your GPU and edge boxes.",
        epilog="examples:\n"
        "  server.pyz                                 listen on port 50051 of all addresses\n"
        "  server.pyz --listen 10.0.0.5:6000          on one address, another port\n"
        "  server.pyz --json | jq '.nodes[].state'    the fleet once a second, for programs\n"
        "  server.pyz --secure                        encrypted, and only for who has a token of this server\n"
        "  server.pyz token list                      its tokens; token new and token revoke change them\n"
        "  server.pyz --attach 10.0.0.5               the screen of a server elsewhere; --attach alone: of this machine's\n"
        "  server.pyz --check                         exit code 2 where a node is lost, for monitoring\n"
        "  server.pyz --replay last-night.edge        a recording, made with --record\n"
        "each option can also be set in the environment, by the name in brackets; a flag beats it",
    )
    parser.option(
        "--listen",
        "where nodes report to; may be given again (default [::]:50051, IPv4 too)",
        type=parse_endpoints,
        action=Listed,
        metavar="HOST[:PORT]",
    )
    parser.option(
        "--interval", "seconds between a node's heartbeats (default 1)", type=parse_seconds, default="1", metavar="SECONDS"
    )
    parser.option(
        "--max-nodes", "nodes at most, the lost ones counted (default 15000)", type=parse_count, default="15000", metavar="COUNT"
    )
    parser.switch("--secure", "encrypted, and nobody gets in without a token; the first start makes a key and tokens")
    folder = "of journal, key and tokens (default $STATE_DIRECTORY, else edge-compute-node in $XDG_STATE_HOME or ~/.local/state)"
    parser.option("--state", folder, type=parse_path, metavar="FOLDER")
    about = "secure, with a certificate of your own and its chain; with --attach: one that proves you"
    parser.option("--tls-cert", about, type=parse_path, metavar="FILE")
    parser.option("--tls-key", "its key", type=parse_path, metavar="FILE")
    parser.option("--client-ca", "nodes come by certificates of this authority, with no token", type=parse_path, metavar="FILE")
    about = "look at a server elsewhere, with its screen here; given again: at several; alone: at this machine's own"
    parser.option("--attach", about, type=parse_servers, action=Listed, nargs="?", const=[], metavar="HOST[:PORT]")
    about = "file that holds the token for looking at secure servers, and that this user alone may read; or EDGE_TOKEN"
    parser.option("--token-file", about, type=parse_path, metavar="FILE")
    parser.add_argument("--token", type=no_secret, help=argparse.SUPPRESS)
    parser.option("--ca", "certificates of your own authority, which prove the servers", type=parse_path, metavar="FILE")
    parser.switch("--no-journal", "keep nothing on disk: no past to go back to, and none that is known after a restart")
    about = "what the journal may take on disk (default 1GiB)"
    parser.option("--journal-size", about, type=parse_size, default="1GiB", metavar="SIZE")
    parser.option("--record", "keep all that is seen in a file of its own, for --replay", type=parse_path, metavar="FILE")
    parser.option("--replay", "play a recording, or a journal", type=parse_path, metavar="FILE")
    parser.option("--speed", "of --replay, in times of the real one (default 1)", type=parse_speed, default="1", metavar="NUMBER")
    about = "a page for browsers, figures for Prometheus and JSON, by HTTP; on this machine alone where HOST is not given"
    parser.option("--http", about, type=parse_http, metavar="[HOST:]PORT")
    about = "print what Prometheus needs to read this server, by the other options here; and exit"
    parser.add_argument("--prometheus-config", action="store_true", help=about)  # in the environment it would stop every server
    about = "no screen: is the fleet well? One line and an exit code for monitoring, by how many nodes match (default state:lost)"
    parser.add_argument("--check", action=Once, nargs="?", const="", metavar="FILTER", help=about)  # not from the environment
    parser.option("--warning", "of --check: a warning where more nodes match", type=parse_threshold, metavar="COUNT")
    about = "of --check: critical where more nodes match (default 0, unless --warning is given)"
    parser.option("--critical", about, type=parse_threshold, metavar="COUNT")
    parser.switch("--headless", "no screen: one plain line an event; by itself where stdout is no terminal")
    parser.switch("--json", "no screen: the whole fleet as one line of JSON each second")
    parser.common()
    return parser


def parse_options(argv: Sequence[str] | None, kind: type[Options] = Options) -> argparse.Namespace:
    """The command line. Exits with 2 when it can't be understood; `kind` may do otherwise."""
    secret = os.environ.pop("EDGE_TOKEN", "")  # no child inherits it
    parser = parser_of(kind)
    words = list(sys.argv[1:] if argv is None else argv)
    if why := why_no_filter(words):
        parser.error(f"argument --check: {why}")
    options, unknown = parser.parse_known_args(words)
    if unknown:
        told = "token comes first: python3 server.pyz token new|list|revoke [option …]"
        parser.error(told if "token" in unknown else f"unrecognized arguments: {' '.join(unknown)}")
    if wrong := next(contradictions(options, words), None):
        parser.error(f"argument {wrong[0]}: {wrong[1]}")
    options.secure = options.secure or bool(options.tls_cert)
    try:
        options.tokens = [] if options.token_file or options.attach is None else parse_tokens(secret)
    except ValueError as error:
        parser.error(f"EDGE_TOKEN: {error}")
    return options
