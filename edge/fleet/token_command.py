"""`server.pyz token new|list|revoke`: who may come in. A running server follows.

ID      ROLE  STATE    CREATED              EXPIRES  NOTE
0a1b2c  node  valid    2026-11-25 21:40:02  never    first start
edge1-A9rQtlOUIhz5sFHh_spXh9CY3-Y3_JC575RdDDdyWBGAChssAAECAwQFBgcICQoLDA0Owqc6
93e00f  view  revoked  2026-11-25 21:40:02  never    first start
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

from edge.command_line import Once, Options, one_of, parse_path
from edge.credentials import Role
from edge.drawing import cells
from edge.fleet.certificates import KEY_FILE, OwnKey, chosen_folder
from edge.fleet.joining import own_addresses, told, unserved, web_of
from edge.fleet.listening import default_endpoint
from edge.fleet.tokens import Tokens, called
from edge.program import Failure, OutputClosed, main_of, put, time_stamp
from edge.text import MISSING

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
MAX_LIFETIME_SECONDS = 36500 * 86400
HEADINGS = ("ID", "ROLE", "STATE", "CREATED", "EXPIRES", "NOTE")


class TokenOptions(Options):
    """The command line of `token`."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"server: {message}\ntry python3 server.pyz token --help\n")


def parse_lifetime(text: str) -> float:
    """90s, 30m, 12h, 7d or 4w, in seconds. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d{1,12})([smhdw])", text.strip(), re.ASCII)
    seconds = int(match[1]) * UNIT_SECONDS[match[2]] if match else 0
    if not 0 < seconds <= MAX_LIFETIME_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time to live: write a number and s, m, h, d or w, like 90s, 12h or 7d, up to 36500d"
        )
    return float(seconds)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """What follows `token`. Exits with 2 when it can't be understood."""
    parser = TokenOptions(
        prog="server",
        description="The tokens of a server that was started with --secure: who may come in, to report or to look.\n"
        "A running server follows within 2 s.",
        epilog="examples:\n"
        "  server.pyz token list                               what to do on a box, and all tokens\n"
        "  server.pyz token new --note 'rack 7' --expires 7d   one more; it alone goes to stdout\n"
        "  server.pyz token revoke 0a1b2c                      its sessions end; by its id, or the first of it",
    )
    parser.usage = "python3 server.pyz token new|list|revoke [option …]"
    commands = parser.add_subparsers(dest="command", required=True, metavar="new|list|revoke", parser_class=TokenOptions)

    def command(usage: str, about: str) -> TokenOptions:
        made: TokenOptions = commands.add_parser(usage.partition(" ")[0], description=about, help=about)
        made.usage = f"python3 server.pyz token {usage} [option …]"
        made.option("--state", "the server's state folder (default as the server's)", type=parse_path, metavar="FOLDER")
        made.switch("--debug", "tracebacks")
        return made

    new = command("new", "make a token: it alone goes to stdout")
    command("list", "what to do on a box, and all tokens")
    revoke = command("revoke ID", "make a token invalid, for good")
    role = one_of([role.value for role in Role])
    new.add_argument(
        "--role", action=Once, type=role, default="node", metavar="node|view", help="to report, or to look (default node)"
    )
    new.add_argument("--note", action=Once, default="", metavar="TEXT", help="what it is for, for people (default none)")
    new.add_argument(
        "--expires", action=Once, type=parse_lifetime, metavar="TIME", help="after 90s, 30m, 12h, 7d or 4w (default never)"
    )
    revoke.add_argument("id", metavar="ID", help="its id, or the first digits of it")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> int:
    """The command after its command line. Raises Failure."""
    folder = entered_as_owner(chosen_folder(options.state))
    makes = options.command == "new" and bool(options.state)  # to prepare a server; a slip must not make one that nobody starts
    is_new = makes and not os.path.lexists(folder / KEY_FILE)
    tokens = Tokens(folder, OwnKey(folder, makes))
    if is_new:
        put(f"no secure server has been started with {options.state} yet: its key is made now", sys.stderr)
    now = time.time()
    if options.command == "new":
        make(tokens, Role(options.role), options.note, now + options.expires if options.expires else None)
    elif options.command == "revoke":
        revoke(tokens, options.id)
    else:
        addresses = own_addresses(tokens.listening() or [default_endpoint()])
        joining = tokens.joining(addresses, str(options.state or ""))
        if http := tokens.http():
            joining = joining._replace(web=web_of(http, has_agent=True, is_secure=True, pin=tokens.pin))
        lines = [*told(joining), *([] if http else [f"{words} {text}" for words, text in unserved(joining, tokens.pin)])]
        put("\n".join([*lines, "", *table(tokens, now)]))
    return 0


def entered_as_owner(folder: pathlib.Path) -> pathlib.Path:
    """Where root works on another user's folder, as with `sudo` on that of a service: as that user, since files of root would be
    closed to the server; and from within, since a folder above may be closed to that user (/var/lib/private is)."""
    if os.name != "posix" or os.geteuid() != 0 or not folder.is_dir() or not (owner := folder.stat()).st_uid:
        return folder
    import cryptography.hazmat.primitives.asymmetric.ec
    import cryptography.hazmat.primitives.serialization  # noqa: F401  # later they might lie where that user can't read

    os.chdir(folder)
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    return pathlib.Path()


def make(tokens: Tokens, role: Role, note: str, expires: float | None) -> None:
    """The token alone goes to stdout: TOKEN=$(server.pyz token new) is all that a script needs."""
    issued = tokens.issue(role, note, expires)
    until = f"until {time_stamp(expires)}" if expires else "until it is revoked"
    put(f"token {called(issued)}, to {'report' if role is Role.NODE else 'look'}, valid {until}:", sys.stderr)
    try:
        put(tokens.token_of(issued).text())
    except (Failure, OutputClosed):
        tokens.revoke(issued.id)
        put(f"nobody has seen token {called(issued)}: it is revoked", sys.stderr)
        raise


def revoke(tokens: Tokens, token_id: str) -> None:
    """One that was revoked before is no error: it is as it should be."""
    before = {one.id for one in tokens.issued() if one.revoked is not None}
    issued = tokens.revoke(token_id)
    if issued.id in before:
        put(f"token {called(issued)} {issued.why_over(time.time())}: it stays so")
    else:
        put(f"token {called(issued)} is revoked: a running server ends its sessions, and lets nobody in by it, within 2 s")
    if not tokens.offered(Role.NODE).text and issued.role is Role.NODE:
        put("no node token is valid now: python3 server.pyz token new makes one", sys.stderr)


def table(tokens: Tokens, now: float) -> Iterator[str]:
    """All tokens, a row each; below one that is valid the line to paste, which fills 78 of a terminal's 80 columns."""
    rows, below = [HEADINGS], [""]
    for one in tokens.issued():
        is_over = bool(one.why_over(now))
        state = "revoked" if one.revoked is not None else "expired" if is_over else "valid"
        expires = "never" if one.expires is None else time_stamp(one.expires)
        rows.append((one.id, one.role.value, state, time_stamp(one.created), expires, one.note or MISSING))
        below.append("" if is_over else tokens.token_of(one).text())
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    for row, text in zip(rows, below, strict=True):
        yield "  ".join(text + " " * (width - cells(text)) for text, width in zip(row, widths, strict=True)).rstrip()
        if text:
            yield text


def main(argv: Sequence[str] | None) -> int:
    """Run the command with what follows `token`; return its exit code: 0, 1 for a failure, 2 for the command line."""
    return main_of("server", parse_options, run, argv)
