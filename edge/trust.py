"""How a node or a screen knows its servers, and proves itself: tokens, certificates, and the channels that they open."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import random
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, NoReturn

import grpc

from edge.command_line import target_of
from edge.credentials import AUTHORIZATION, NO_KEY, SERVER_NAME, Role, Token, authority_of, parse_token, without_tokens
from edge.errors import Distrust, SessionEnded, explain
from edge.files import read_text, reason
from edge.program import Failure, OutputClosed, is_screen, put
from edge.protocol import CHANNEL_OPTIONS, VIEWER_OPTIONS
from edge.state_folder import locked, read_private, state_folder, write_private
from edge.text import MAX_SENTENCE, visible

MAX_SAVED = 16  # tokens
SOCKET = "unix:"  # begins the address of a server's socket on this machine
PROBE_SECONDS = 2.5
NOBODY = b"\2" + bytes(32)  # a public key that is on the curve and nobody's, as far as anyone knows: x is 0
# In gRPC's details, of a connection that broke before it was of use: who speaks plainly to TLS meets any of them.
BROKE = re.compile("failed to connect.*(Socket closed|Connection reset|Broken pipe|parsing HTTP/2|http1.x server)", re.DOTALL)
ANSWERED_IN_TLS = re.compile("CERTIFICATE|SIGNATURE|PUBLIC_KEY|ALERT|Hostname Verification")
NAME_ALONE = "Hostname Verification"  # is what a certificate lacks
HOW_TO_GIVE = "give it by --token-file or EDGE_TOKEN; a new start on a terminal asks for it"

Metadata = tuple[tuple[str, str], ...]


class Files(NamedTuple):
    """Paths that the user gives; empty: none. All are read again for each session."""

    tokens: str = ""  # a line each
    ca: str = ""  # certificates of who vouches for the servers
    certificate: str = ""  # that the node shows to them
    key: str = ""  # of that certificate


NO_FILES = Files()


class Holder(NamedTuple):
    """Who proves itself, in words."""

    role: Role
    who: str
    wants: str  # which token it needs
    flag: str  # that names its servers
    saved: str  # the file of what they accepted
    options: tuple[tuple[str, int], ...] = ()  # of its channels, where they differ from the usual ones
    is_by_server: bool = False  # a saved token is for the server that accepted it: others may be open. Else no server is spoken to
    # plainly once there is a token: who stands in between could be believed


NODE = Holder(Role.NODE, "this node", "the one for nodes", "--server", "tokens")
VIEWER = Holder(Role.VIEW, "this screen", "the one for looking", "--attach", "view-tokens", VIEWER_OPTIONS, is_by_server=True)
OTHER_ROLE = {
    Role.NODE: "this token is for looking: a node needs the one for nodes",
    Role.VIEW: "this token is for nodes: a screen needs the one for looking",
}


def trust_of(options: argparse.Namespace, holder: Holder = NODE) -> Trust:
    """What the command line, the environment and the state folder give. Raises Failure with what to do."""
    credential = pathlib.Path(os.environ.get("CREDENTIALS_DIRECTORY") or "/nowhere", "edge-token")
    tokens = options.token_file or (credential if credential.exists() else None)
    files = Files(*(str(path or "") for path in (tokens, options.ca, options.tls_cert, options.tls_key)))
    trust = Trust(options.tokens, files, holder=holder)
    if is_screen() and not options.headless:  # who sits there mends it at once; a service tries on until someone has
        trust.check()
    return trust


def slowly() -> float:
    """Seconds before the next try of who was refused: the slow end of the backoff, jittered as it is."""
    return random.uniform(15, 30)


class Trust:
    """Tokens and files, and the channels that they open. Several threads may use it, each for another server.

    Tokens that the user gives beat those that were saved for the same server. Each is tried until one fits: a server is proved by
    the key that the token names before the token is sent, so that a wrong one costs a handshake and tells nobody anything. What
    names no key is for those that the user's authority vouches for, and no other token is shown to them.
    """

    def __init__(
        self,
        given: Sequence[Token] = (),
        files: Files = NO_FILES,
        retry_seconds: Callable[[], float] = slowly,
        holder: Holder = NODE,
    ) -> None:
        self.holder = holder
        self.given = given
        self.retry_seconds = retry_seconds
        self._files = files
        self._in_use: dict[str, Token | None] = {}  # by server, in the last session with it
        self._pasted: dict[str, list[Token]] = {}  # by server
        self._saved: dict[str, list[Token]] = {}  # by server where they are for one, else all by ""
        self._fit: dict[str, Token | None] = {}  # by server, what it accepted
        self._tried: dict[str, list[Token | None]] = {}  # by server, since one was accepted, or all were refused
        self._is_unsaved = False

    def check(self) -> None:
        """What can be known before a server is asked. Raises Failure with what to do."""
        try:
            self._tokens("")
            self._read_files()
        except (OSError, ValueError) as error:
            raise Failure(str(error)) from None

    def ask(self, servers: Sequence[str]) -> None:
        """Have the user paste a token on the terminal, if none was given, and one of the servers wants one that is not saved. Where
        tokens are for one server, each of them is asked for.

        Raises Failure where there comes none.
        """
        deadline, ca = time.monotonic() + PROBE_SECONDS, bool(self._files.ca)
        if self.given or self._files.tokens or self._files.certificate:
            return
        for server in servers:
            left = deadline - time.monotonic()
            pasted = [token for tokens in self._pasted.values() for token in tokens]
            keys = {token.key for token in [*saved_for(server, self.holder), *pasted]}
            if left <= 0 or (ca and NO_KEY in keys):
                continue
            answer = tls_answer(server, keys - {NO_KEY}, left)
            if not answer:
                continue
            if NAME_ALONE in answer:  # several are pasted at once with commas
                self._pasted[server] = pasted
            elif self.holder.is_by_server:
                asked = time.monotonic()
                self._pasted[server] = prompt(server, ca, self.holder)
                deadline += time.monotonic() - asked
            else:
                self.given = prompt(server, ca, self.holder)
                return

    @contextlib.contextmanager
    def channel(self, server: str) -> Iterator[tuple[grpc.Channel, Metadata]]:
        """A channel to the server, and what each call on it must bring along. Raises SessionEnded where there can be none.

        A server that is named by its socket (unix:PATH) is of this user, and is believed.
        """
        options: dict[str, int | str] = {**dict(CHANNEL_OPTIONS), **dict(self.holder.options)}
        if server.startswith(SOCKET):
            self._in_use[server] = None
            with grpc.insecure_channel(server, options=tuple(options.items())) as channel:
                yield channel, ()
            return
        try:
            ways = self._in_turn(server)
            ca, certificate, key = self._read_files(server)
        except (OSError, ValueError) as error:
            raise Distrust(str(error)) from None
        tried = self._tried.get(server, ())
        token = self._in_use[server] = next((way for way in ways if way not in tried), ways[0] if ways else None)
        if not ways:
            with grpc.insecure_channel(target_of(server), options=tuple(options.items())) as channel:
                yield channel, ()
            return
        roots = ca
        if token and token.key != NO_KEY:
            roots = authority_of(token.key)
            options["grpc.ssl_target_name_override"] = SERVER_NAME
        credentials = grpc.ssl_channel_credentials(roots, key, certificate)
        with grpc.secure_channel(target_of(server), credentials, options=tuple(options.items())) as channel:
            yield channel, ((AUTHORIZATION, token.bearer()),) if token else ()

    def explain(self, error: grpc.RpcError, server: str) -> SessionEnded:
        """gRPC's error in the last session with this server, in words that say what to do."""
        token, code, details = self._in_use[server], error.code(), error.details() or ""
        is_secure = bool(token or self._files.ca)
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            said = without_tokens(visible(details, MAX_SENTENCE)) or f"no reason given ({code.name})"
            if token in self._saved_of(server) and token not in self.given and not self._files.tokens:
                where = f"the token is in {saved_path(self.holder)}"
                said += f" ({where}: remove it there, and a new start on a terminal asks for another)"
            return Distrust(f"{server} refuses {self.holder.who}: {said}", code, of_token=True)
        if code is grpc.StatusCode.UNAVAILABLE and is_secure:
            return self._explain_tls(details, server, token) or explain(error, server, self.holder.flag)
        if code is grpc.StatusCode.UNAVAILABLE and BROKE.search(details) and tls_answer(server):
            where = f"its screen shows {self.holder.wants} (key j), and so does server.pyz token list there"
            return Distrust(f"{server} wants a token: {where}; {HOW_TO_GIVE}", code)
        return explain(error, server, self.holder.flag)

    def tries_another(self, server: str, ended: SessionEnded) -> bool:
        """Whether the next session with this server, with another token, should follow at once."""
        if not isinstance(ended, Distrust) or not ended.of_token:
            return False
        tried = self._tried.setdefault(server, [])
        tried.append(self._in_use[server])
        with contextlib.suppress(OSError, ValueError):  # the next session tells it
            if any(way not in tried for way in self._in_turn(server)):
                return True
        tried.clear()
        return False

    def accepted(self, server: str, log: Callable[..., object]) -> None:
        """The server took the node: its token is saved, and what there is to know of that is logged once."""
        token = self._in_use.get(server)
        self._fit[server] = token
        self._tried.pop(server, None)
        if not token or self._is_unsaved or is_credential(self._files.tokens):  # systemd gives it again, and may have it encrypted
            return
        try:
            if save(token, server, self.holder):
                needs = f"{self.holder.flag}{' and --ca' * (token.key == NO_KEY)}"
                log(f"the token is kept in {saved_path(self.holder)}: the next start needs only {needs}")
        except OSError as error:
            self._is_unsaved = True
            log(f"the token can't be saved, so the next start needs it again: {error}", "warning")

    @property
    def shows_certificate(self) -> bool:
        """Whether the node proves itself by one: then its id must be in there."""
        return bool(self._files.certificate)

    def _in_turn(self, server: str) -> list[Token | None]:
        """What is tried to prove both ends, what this server accepted first: tokens, or None, the user's authority without one.
        Nothing: they talk plainly."""
        ways: list[Token | None] = [*self._tokens(server)]
        if self._files.ca and not any(way and way.key == NO_KEY for way in ways):
            ways.append(None)
        return sorted(ways, key=lambda way: server not in self._fit or way != self._fit[server])

    def _tokens(self, server: str) -> list[Token]:
        """Those that can be tried with this server. Raises OSError and ValueError, with a sentence."""
        given = read_tokens(self._files.tokens) if self._files.tokens else list(self.given)
        given += self._pasted.get(server, [])
        saved = [token for token in self._saved_of(server) if token.key != NO_KEY]  # who had a token is not to speak plain
        try:
            saved = saved_for(server, self.holder) or saved
            self._saved[server * self.holder.is_by_server] = saved
        except (OSError, ValueError):
            if not given:
                raise
        known = {token.key for token in given}
        tokens = given + [token for token in saved if token.key not in known]
        usable = [token for token in tokens if self._files.ca or token.key != NO_KEY]
        if tokens and not usable:
            raise ValueError(f"token {tokens[0].id} is for a server with certificates of your own: add --ca FILE, its authority's")
        return usable

    def _saved_of(self, server: str) -> list[Token]:
        return self._saved.get(server * self.holder.is_by_server, [])

    def _read_files(self, server: str = "") -> tuple[bytes | None, bytes | None, bytes | None]:
        """The authority's certificates, the node's, and its key. Raises ValueError with a sentence."""
        _, ca, certificate, key = self._files
        if certificate and not ca and not self._tokens(server):
            raise ValueError("--tls-cert proves this node to the server: add --ca FILE or a token, which prove the server to it")
        return read_pem(ca, "CERTIFICATE"), read_pem(certificate, "CERTIFICATE"), read_pem(key, "PRIVATE KEY")

    def _explain_tls(self, details: str, server: str, token: Token | None) -> SessionEnded | None:
        """Why a handshake failed; None: that was not what failed."""
        _, ca, certificate, key = self._files
        is_pinned = bool(token and token.key != NO_KEY)
        unsent = "the token was not sent" if token else "nothing was sent"
        if "WRONG_VERSION_NUMBER" in details:
            without = f"its token{self._place(token, server)}" if token else "--ca"
            return Distrust(
                f"{server} speaks no TLS: {unsent}; start that server with --secure, or {self.holder.who} without {without}"
            )
        if "Failed to create security handshaker" in details:
            named = ", ".join(path for path in (ca, certificate, key) if path)
            return Distrust(f"{named} can't be used: whole certificates in PEM are wanted, and the key that belongs to them")
        if "selected ALPN" in details:
            return Distrust(f"{server} is no gRPC server (is the port right?)")
        if "ALERT" in details:
            return Distrust(f"{server} refuses the handshake ({visible(details[-60:])}); {unsent}")
        if certificate and BROKE.search(details):
            return Distrust(
                f"{server} broke the connection when it saw {certificate}: that may be of another authority than the server's "
                "--client-ca, or have expired"
            )
        if not is_pinned and BROKE.search(details):
            return Distrust(
                f"{server} broke the connection after the handshake: it may want a certificate, as one with --client-ca does: "
                "--tls-cert FILE --tls-key FILE"
            )
        if not ANSWERED_IN_TLS.search(details):
            return None
        if is_pinned:
            return Distrust(
                f"{server} is not the server this token is for: another one, or someone in between; {unsent} (if that server was "
                "set up anew, take a new token from its own screen, key j; if it has certificates of your own now, add --ca FILE)",
                of_token=True,
            )
        return Distrust(why_not_by_authority(details, server, ca, unsent, self.holder.flag), of_token=True)

    def _place(self, token: Token, server: str) -> str:
        """Where a token is from, for a sentence."""
        if self._files.tokens:
            return f" in {self._files.tokens}"
        return f" in {saved_path(self.holder)}" if token in self._saved_of(server) else ""


def why_not_by_authority(details: str, server: str, ca: str, unsent: str, flag: str) -> str:
    """Why an authority's certificates, in the file `ca`, do not prove a server."""
    today = time.strftime("%Y-%m-%d")
    if NAME_ALONE in details:
        return (
            f"{server} has a certificate for another name: {unsent}; give {flag} a name or an address that is in it, or add this "
            "one to it"
        )
    if "not yet valid" in details:
        return f"the certificate of {server} is not valid yet by this box's clock ({today}): set the clock; {unsent}"
    if "has expired" in details:
        return f"the certificate of {server} has expired by this box's clock ({today}): renew it there; {unsent}"
    return (
        f"{server} has no certificate of the authority in {ca}: another server, or someone in between; {unsent} (is it the right "
        "file?)"
    )


# ---- Tokens in files ----


def parse_lines(text: str, path: str) -> list[Token]:
    """A token a line; blank lines and comments are skipped. Raises ValueError, naming the line."""
    tokens = []
    for number, line in enumerate(text.splitlines(), 1):
        if content := line.partition("#")[0].strip():
            try:
                tokens.append(parse_token(content))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    return tokens


def parse_tokens(text: str) -> list[Token]:
    """One token, or several with commas. Raises ValueError."""
    return [parse_token(part) for part in re.split(r"[,\s]+", text) if part]


def is_credential(path: str) -> bool:
    """Whether systemd keeps this file for the service."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder and path) and pathlib.Path(folder or "") in pathlib.Path(path).parents


def read_tokens(path: str) -> list[Token]:
    """The tokens of a file of the user's. Raises OSError and ValueError, with a sentence."""
    if tokens := parse_lines(read_private(pathlib.Path(path)), path):
        return tokens
    raise ValueError(f"{path} holds no token: put one on a line of it")


def saved_path(holder: Holder = NODE) -> pathlib.Path:
    """Where tokens that were accepted are kept. Raises OSError where this user has no home."""
    return state_folder() / holder.saved


def saved_for(server: str, holder: Holder = NODE) -> list[Token]:
    """The tokens that servers have accepted, the newest first; of those that name no server, and of a holder's whose tokens are for
    servers, what this one has. No server: all that any may have.

    Raises OSError and ValueError, with a sentence.
    """
    try:
        path = saved_path(holder)
        path.stat()  # where not even that is allowed, nothing was saved by this user
    except OSError:
        return []
    text = read_private(path)
    tokens = parse_lines(text, str(path))
    ours = {line.partition("#")[0].strip() for line in text.splitlines() if line.endswith(f"# {server}")}
    is_by_server = holder.is_by_server and server != ""
    return [token for token in tokens if (token.key != NO_KEY and not is_by_server) or token.text() in ours]


def save(token: Token, server: str, holder: Holder = NODE) -> bool:
    """Keep a token for the next start, as the newest; other agents of this user may do so too. Returns whether it was not kept yet.

    Raises OSError, with a sentence.
    """
    path = saved_path(holder)
    line = f"{token.text()}  # {server}" if token.key == NO_KEY or holder.is_by_server else token.text()
    with locked(path.parent):
        lines: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            lines = [one.strip() for one in read_private(path).splitlines()]
        if lines[:1] != [line]:
            others = [one for one in lines if one not in ("", line)]
            write_private(path, "\n".join([line, *others][:MAX_SAVED]) + "\n")
    return line not in lines


def read_pem(path: str, kind: str) -> bytes | None:
    """A file of certificates, or a key; None for no path. Raises ValueError, with a sentence."""
    if not path:
        return None
    try:
        text = read_text(pathlib.Path(path))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {reason(error).lower()}") from error
    if not re.search(f"-----BEGIN [A-Z ]*{kind}-----", text):
        raise ValueError(f"{path} has no {kind.lower()} in it (in PEM: a line BEGIN {kind})")
    if "ENCRYPTED" in text:
        raise ValueError(f"the key in {path} has a passphrase, which nobody could enter at each start: give one without")
    return text.encode()


# ---- Asking ----


def tls_answer(server: str, keys: Collection[bytes] = (), seconds: float = PROBE_SECONDS) -> str:
    """Why a server that answers in TLS is not believed, in gRPC's words; empty where it does not, or not in time.

    It is asked by a handshake that can't succeed, so that nothing is said to it: its name is not asked for. Where that alone is
    missing (NAME_ALONE), the server has one of the keys.
    """
    credentials = grpc.ssl_channel_credentials(b"".join(authority_of(key) for key in keys or [NOBODY]))
    with grpc.secure_channel(target_of(server), credentials, options=CHANNEL_OPTIONS) as channel:
        try:
            channel.unary_unary("/", request_serializer=bytes)(b"", timeout=seconds)
        except grpc.RpcError as error:
            details = error.details() or ""
            return details if ANSWERED_IN_TLS.search(details) else ""
    return NAME_ALONE


def prompt(server: str, has_ca: bool, holder: Holder = NODE) -> list[Token]:
    """Have the user paste a token, or several with commas; nothing of it is shown. Raises Failure when nothing was entered.

    `has_ca`: the servers are proved by an authority, so that the token need not.
    """
    say(f"{server} wants a token: its screen shows {holder.wants} (key j), and so does python3 server.pyz token list there.")
    while True:
        text = re.sub(r"\x1b\[20[01]~", "", read_hidden()).strip()  # what marks a paste, where another program has left that on
        if not text:
            raise Failure(f"{server} wants a token and got none: {HOW_TO_GIVE}")
        try:
            tokens = parse_tokens(text)
            if any(token.role is not holder.role for token in tokens):
                raise ValueError(OTHER_ROLE[holder.role])
            if not has_ca and any(token.key == NO_KEY for token in tokens):
                raise ValueError("this token is for a server with certificates of your own: start again with --ca FILE")
        except ValueError as error:
            say(f"{error}.")
        else:
            return tokens


def say(text: str) -> None:
    """Print a sentence on the terminal, in lines that fit it."""
    import shutil
    import textwrap

    put(textwrap.fill(text, max(shutil.get_terminal_size().columns - 1, 20), break_long_words=False, break_on_hyphens=False))


def read_hidden() -> str:
    """A line that is not shown while it is typed; empty at the end of input. SIGTERM ends it with OutputClosed."""
    from getpass import getpass

    def end(number: int, _frame: object) -> NoReturn:  # by getpass's own way out, so that the terminal shows again what is typed
        raise OutputClosed(number)

    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, end)
    try:
        return getpass("Paste it here, it stays hidden (Enter alone ends): ")
    except EOFError:
        return ""
    except UnicodeDecodeError:
        return "�"
    finally:
        signal.signal(signal.SIGTERM, before)
