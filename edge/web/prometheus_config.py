"""`server.pyz --prometheus-config`: what stands in prometheus.yml, so that Prometheus reads the server with these options."""

from __future__ import annotations

import argparse
import pathlib
import shlex
from collections.abc import Iterator

from edge.command_line import Endpoint
from edge.credentials import SERVER_NAME, authority_of
from edge.fleet.certificates import OwnKey, UserFiles, chosen_folder, errors_as_failure
from edge.fleet.joining import is_near, own_hosts
from edge.fleet.token_command import entered_as_owner
from edge.program import put
from edge.state_folder import write_private

AUTHORITY_FILE = "server-authority.pem"
TOKEN_FILE = "edge-view-token"
HEAD = "# For prometheus.yml, of Prometheus from 2.26 on. Where that has scrape_configs already, add the job below to them.\n"
HERE = "# This server answers on its own machine alone: Prometheus runs there, too; else give --http HOST:PORT.\n"
TOKEN = """\
# A token for looking, in a file beside prometheus.yml that Prometheus alone may read; made where the server runs, by its user:
#     {command} > {file}
#     chmod 600 {file}; sudo chown prometheus: {file}
"""
AUTHORITY = """\
# What the server is known by, beside prometheus.yml as well; it is no secret:
#     install -m 644 {path} .
"""
OWN_AUTHORITY = "# Where Prometheus's machine does not know your authority: name its certificates below server_name, as ca_file.\n"
SECOND = "# A second server is one more target of this job, beside the one below: targets: ['10.0.0.5:9105', '10.1.0.5:9105']\n"
SECOND_SECURE = """\
# A second server has {its} of its own, so it is a job of its own: job_name: edge-compute-node-2, with files of its own.
# EdgeServerDown and EdgeNoScrape in prometheus-rules.yml ask for job="edge-compute-node": write job=~"edge-compute-node.*" there.
"""
JOB = """\
scrape_configs:
  - job_name: edge-compute-node
    honor_labels: true  # DCGM's names have the node as `instance`, which dashboards look for
    scrape_interval: 15s
    scrape_timeout: 15s  # of a large fleet, heartbeats come first
"""


def print_config(options: argparse.Namespace) -> int:
    """The snippet, on stdout. Raises Failure."""
    put("".join(snippet(options)).rstrip("\n"))
    return 0


def snippet(options: argparse.Namespace) -> Iterator[str]:
    """Its parts, comments first. A secure server's authority is written beside its key. Raises Failure."""
    target = f"    static_configs:\n      - targets: [{quoted(reached(options.http))}]\n"
    yield HEAD
    if is_near(options.http.host):
        yield HERE
    if not options.secure:
        yield SECOND + JOB + target
        return
    state = f" --state {shlex.quote(str(options.state))}" if options.state else ""
    yield TOKEN.format(command=f"python3 server.pyz token new --role view --note Prometheus{state}", file=TOKEN_FILE)
    if options.tls_cert:
        name = UserFiles(options.tls_cert, options.tls_key, options.client_ca).name
        yield OWN_AUTHORITY
        its, tls = "a token", [f"server_name: {quoted(name)}"] if name else []
    else:
        yield AUTHORITY.format(path=shlex.quote(str(written_authority(options.state))))
        its, tls = "an authority and a token", [f"ca_file: {AUTHORITY_FILE}", f"server_name: {SERVER_NAME}"]
    yield SECOND_SECURE.format(its=its) + JOB + "    scheme: https\n"
    yield from ["    tls_config:\n", *(f"      {line}\n" for line in tls)] if tls else ()
    yield f"    authorization:\n      credentials_file: {TOKEN_FILE}\n" + target


def written_authority(state: pathlib.Path | None) -> pathlib.Path:
    """Where what proves the server lies now, for programs that know TLS and nothing else. Raises Failure."""
    folder = chosen_folder(state).absolute()
    inside = entered_as_owner(folder)
    authority = authority_of(OwnKey(inside, makes=False).public).decode()
    with errors_as_failure():
        write_private(inside / AUTHORITY_FILE, authority)
    return folder / AUTHORITY_FILE


def reached(listened: Endpoint) -> str:
    """Where Prometheus reaches it, with its port."""
    return str(listened._replace(host=own_hosts(listened.host)[0]))


def quoted(text: str) -> str:
    """As YAML has any text."""
    return "'" + text.replace("'", "''") + "'"
