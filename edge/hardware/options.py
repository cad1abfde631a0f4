"""The command line of the agent."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from edge.command_line import (
    Listed,
    Options,
    no_secret,
    one_of,
    parse_labels,
    parse_node_id,
    parse_path,
    parse_seconds,
    parse_servers,
    some_of,
)
from edge.hardware.machine import KINDS
from edge.hardware.simulated import FAULTS
from edge.program import is_screen
from edge.protocol import MAX_LABELS, MAX_NODE_ID, check_labels
from edge.trust import parse_tokens


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with 2 when it can't be understood."""
    secret = os.environ.pop("EDGE_TOKEN", "")  # no child inherits it
    parser = Options(
        prog="node",
        description="The agent of Edge Compute Node: shows this box's hardware, and reports it to a server.",
        epilog="examples:\n"
        "  node.pyz --server 10.0.0.5                      report to a server, with a screen here\n"
        "  node.pyz --server 10.0.0.5 --headless           the same without a screen, for a service\n"
        "  node.pyz --server 10.0.0.5 --server 10.0.0.6    to the second while the first is gone\n"
        "  node.pyz --once --json                          one reading as JSON; no server needed\n"
        "  node.pyz --hardware simulated --seed 3          a box that does not exist\n"
        "each option can also be set in the environment, by the name in brackets; a flag beats it",
    )
    about = "where to report (default localhost:50051); given again: another, where the ones before are gone"
    parser.option("--server", about, type=parse_servers, default="localhost", metavar="HOST[:PORT]", action=Listed)
    about = f"name of this node, up to {MAX_NODE_ID} characters (default Node-1234, from the machine's id)"
    parser.option("--id", about, type=parse_node_id)
    about = f"what this box is of, for filters and groups, like rack=a3; given again: up to {MAX_LABELS} (default none)"
    parser.option("--label", about, type=parse_labels, default=[], metavar="NAME=VALUE", action=Listed)
    about = f"{', '.join(KINDS[:-1])} or {KINDS[-1]} (default auto: NVIDIA GPUs if there are any)"
    parser.option("--hardware", about, type=one_of(KINDS), default="auto")
    parser.option("--seed", "of simulated hardware: which box, its id and its course (default random)", type=int, metavar="NUMBER")
    about = f"of simulated hardware: some of {', '.join(FAULTS)}, with commas, to see what trouble looks like (default none)"
    parser.option("--faults", about, type=some_of(FAULTS), default="", metavar="LIST")
    parser.option(
        "--interval", "seconds from one reading to the next (default 1)", type=parse_seconds, default="1", metavar="SECONDS"
    )
    about = "file that holds the token of a secure server, and that this user alone may read; or put the token into EDGE_TOKEN"
    parser.option("--token-file", about, type=parse_path, metavar="FILE")
    parser.add_argument("--token", type=no_secret, help=argparse.SUPPRESS)
    parser.option("--ca", "certificates of your own authority, which prove the servers", type=parse_path, metavar="FILE")
    parser.option("--tls-cert", "certificate that proves this node to a server with --client-ca", type=parse_path, metavar="FILE")
    parser.option("--tls-key", "its key", type=parse_path, metavar="FILE")
    parser.switch("--headless", "no screen: one plain line an event; by itself where stdout is no terminal")
    parser.switch("--once", "read the hardware once, print it, and exit")
    parser.switch("--json", "with --once and --headless: JSON, one object a line")
    parser.common()
    options = parser.parse_args(argv)
    if options.json and not (options.once or options.headless or not is_screen()):
        parser.error("--json needs --once or --headless")
    for name in ("seed", "faults"):
        if getattr(options, name) not in (None, frozenset()) and options.hardware != "simulated":
            parser.error(f"--{name} is for --hardware simulated")
    if bool(options.tls_cert) != bool(options.tls_key):
        parser.error("--tls-cert and --tls-key go together: give both")
    options.labels = dict(options.label)
    if len(options.labels) < len(options.label):
        parser.error("argument --label: give each name once")
    try:
        check_labels(options.labels)
    except ValueError as error:
        parser.error(f"argument --label: {error}")
    try:
        options.tokens = [] if options.token_file else parse_tokens(secret)
    except ValueError as error:
        parser.error(f"EDGE_TOKEN: {error}")
    return options
