"""The tokens of a server: who may come in, to report or to look.

tokens.json in the state folder says which there are, and has no secret: those follow from the server's key. `server.pyz token`
changes it, and the running server follows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import grpc

from edge.command_line import Endpoint
from edge.credentials import AUTHORIZATION, ID_BYTES, NO_KEY, TOKEN_CHARACTERS, Role, Token, parse_token
from edge.drawing import fit
from edge.fleet.certificates import ANEW, TOKENS_FILE, OwnKey, Stamp, errors_as_failure, stamp_of
from edge.fleet.joining import Joining
from edge.fleet.row import End, Refused
from edge.program import Failure, time_stamp
from edge.state_folder import locked, read_private, write_private
from edge.text import visible

FORMAT = 1  # of the file
MAX_TOKENS = 1000  # in it; those that are over give way to new ones
MAX_NOTE = 80  # characters
NOTE_TOLD = 30  # cells of it, beside its token on a screen of 80 columns
LAST_MOMENT = 253402300799.0  # 9999-12-31 23:59:59
MAX_AUTHORIZATION = TOKEN_CHARACTERS + 100  # characters that are looked at
SHOW = "python3 server.pyz token list, on the server, shows what to paste"
MAKE = "python3 server.pyz token new, on the server, makes another"


class Issued(NamedTuple):
    """What is kept of a token. Times are unix seconds by the server's clock."""

    id: str  # six hexadecimal digits; interned, since each row has one
    role: Role
    note: str  # for people; empty: none
    created: float
    expires: float | None = None
    revoked: float | None = None

    def why_over(self, now: float) -> str:
        """Since when it is not valid; empty while it is. The wall clock counts: where that is turned back, so is the end.

        It stands in events for good: so it says the time, not how long ago that was.
        """
        if self.revoked is not None:
            return f"was revoked at {time_stamp(self.revoked)}"
        if self.expires is not None and now >= self.expires:
            return f"expired at {time_stamp(self.expires)}"
        return ""


class Offer(NamedTuple):
    """A token to be given; both are empty where none is valid."""

    text: str = ""  # the line to paste
    name: str = ""  # its id and its note


class Kept(NamedTuple):
    """What the file says: of tokens, and of the server as it was started last."""

    issued: tuple[Issued, ...] = ()  # the oldest first
    names_key: bool = True  # it proves itself by its own key, not by a certificate of the user's
    by_certificates: bool = False  # it lets nodes in by theirs, without a token
    listening: tuple[Endpoint, ...] = ()
    http: Endpoint | None = None  # the same for HTTP; None: it does not, or is of a version that did not tell


class Known(NamedTuple):
    """What is in force. Replaced as a whole, never changed."""

    kept: Kept
    by_id: dict[str, Issued]
    by_digest: dict[bytes, Issued]  # by the SHA-256 of a token's line: how long a look takes says nothing of its secret


class Tokens:
    """Who may come in. Any thread may call it; other processes may change the file at any time."""

    def __init__(
        self,
        folder: pathlib.Path,
        key: OwnKey,
        names_key: bool | None = None,
        wall: Callable[[], float] = time.time,
        by_certificates: bool = False,
    ) -> None:
        """Reads the file, or makes it with a token of each role. Raises Failure.

        `names_key`, `by_certificates`: of Kept, for a server that starts; `names_key` None: both as when it was started last.
        """
        self._folder, self._path, self._key, self._wall = folder, folder / TOKENS_FILE, key, wall
        self._stamp: Stamp = stamp_of(self._path)
        self._trouble = self._untold = ""  # what is wrong with the file as it is now
        with errors_as_failure():
            try:
                self._take(self._read())
            except FileNotFoundError:
                self._change(lambda kept: kept)
            except ValueError as error:
                raise Failure(str(error)) from error
        if names_key is not None:
            self._change_if_new(lambda kept: kept._replace(names_key=names_key, by_certificates=by_certificates))

    def issue(self, role: Role, note: str, expires: float | None) -> Issued:
        """Make a token. Raises Failure."""
        note = visible(note.strip(), MAX_NOTE + 1)
        if len(note) > MAX_NOTE:
            raise Failure(f"a note has at most {MAX_NOTE} characters: shorten it")
        return self._change(lambda kept: self._with_one_more(kept, role, note, expires)).issued[-1]

    def revoke(self, token_id: str) -> Issued:
        """Make a token invalid, named by its id or the first digits of it; one that is revoked stays as it is. Raises Failure."""
        number = only_id(token_id, self.issued())

        def without(kept: Kept) -> Kept:
            now = self._wall()
            return kept._replace(
                issued=tuple(one._replace(revoked=now) if one.id == number and one.revoked is None else one for one in kept.issued)
            )

        return next(one for one in self._change_if_new(without).issued if one.id == number)

    def set_listening(self, bound: Sequence[Endpoint], http: Endpoint | None = None) -> None:
        """Keep where the server listens, for nodes and for HTTP, for `token list` to tell. Raises Failure."""
        self._change_if_new(lambda kept: kept._replace(listening=tuple(bound), http=http))

    def listening(self) -> Sequence[Endpoint]:
        """Where the server listened when it was started last; empty: it never was."""
        return self._known.kept.listening

    def http(self) -> Endpoint | None:
        """The same of HTTP."""
        return self._known.kept.http

    @property
    def pin(self) -> str:
        """Of the server's own key, as curl's --pinnedpubkey has it."""
        return self._key.pin

    def joining(self, addresses: Sequence[str], state_folder: str = "") -> Joining:
        """How a box gets in at these addresses, as of now. `state_folder`: that commands have to name; empty: the usual one."""
        kept = self._known.kept
        node, view = Offer() if kept.by_certificates else self.offered(Role.NODE), self.offered(Role.VIEW)
        return Joining(
            is_secure=True,
            addresses=addresses,
            node_token=node.text,
            node_token_name=node.name,
            view_token=view.text,
            view_token_name=view.name,
            needs_ca=not kept.names_key,
            needs_certificate=kept.by_certificates,
            state_folder=state_folder,
        )

    def issued(self) -> list[Issued]:
        """All of them, the oldest first."""
        return list(self._known.kept.issued)

    def token_of(self, issued: Issued) -> Token:
        """The token itself, with its secret."""
        return self._token(issued, self._key.public if self._known.kept.names_key else NO_KEY)

    def offered(self, role: Role) -> Offer:
        """What a box, or a person, is given where no other was made for it: the oldest valid token that never ends, else the one
        that lasts longest. So one that was made for a site does not become everyone's. An empty one where none is valid."""
        now = self._wall()
        valid = [one for one in self.issued() if one.role is role and not one.why_over(now)]
        chosen = max(valid, key=lambda one: math.inf if one.expires is None else one.expires, default=None)  # the first of equals
        if not chosen:
            return Offer()
        note = fit(chosen.note, NOTE_TOLD).rstrip()
        return Offer(self.token_of(chosen).text(), f"{chosen.id}, {note}" if note else chosen.id)

    def refresh(self) -> str:
        """Read the file again if it has changed. Returns what is wrong with it, once: the old one stays in force. Empty else."""
        self._follow()
        trouble, self._untold = self._untold, ""
        return trouble

    def _follow(self) -> None:
        stamp = stamp_of(self._path)
        if stamp == self._stamp:
            return
        trouble = ""
        try:
            self._take(self._read())
        except (OSError, ValueError) as error:
            trouble = f"{error}; meanwhile the tokens that were read before stay in force"
            if isinstance(error, OSError):
                stamp = ()  # what could not be read, for lack of a file descriptor say, is read at the next look
        self._stamp = stamp
        if trouble != self._trouble:
            self._trouble = self._untold = trouble

    # ---- Who comes in ----

    def check(self, authorization: str | None, role: Role) -> str:
        """The one gate: the id of the token that lets a call in, by the header AUTHORIZATION. Raises Refused.

        Takes a few microseconds for a token that is known.
        """
        if authorization is None:
            raise Refused(f"this server wants a token: {SHOW}", grpc.StatusCode.UNAUTHENTICATED, "no token")
        scheme, _, text = authorization[:MAX_AUTHORIZATION].partition(" ")
        text = text.strip()  # there may be more than one blank before it
        is_bearer, digest = scheme.lower() == "bearer", digest_of(text)
        if is_bearer and digest not in self._known.by_digest:
            self._follow()  # it may just have been made
        issued = self._known.by_digest.get(digest) if is_bearer else None
        if not issued:
            raise Refused(self._why_unknown(scheme, text), grpc.StatusCode.UNAUTHENTICATED)
        if end := self.why_over(issued.id):
            raise Refused(end.reason, end.code, f"token {called(issued)} {issued.why_over(self._wall())}")
        if issued.role is not role:
            may, wanted = ("look", "report") if role is Role.NODE else ("report", "look")
            raise Refused(
                f"the token {issued.id} is one to {may}, not to {wanted}: {SHOW}",
                grpc.StatusCode.PERMISSION_DENIED,
                f"token {called(issued)} is one to {may}, not to {wanted}",
            )
        return issued.id

    def why_over(self, token_id: str) -> End | None:
        """Why a token that let a call in would do so no longer; None while it would."""
        issued = self._known.by_id.get(token_id)
        why = issued.why_over(self._wall()) if issued else "is not known here any more"
        return End(f"the token {token_id} {why}: {MAKE}", grpc.StatusCode.UNAUTHENTICATED) if why else None

    def _why_unknown(self, scheme: str, text: str) -> str:
        """Of a token that is not known. It comes from anyone: never with more of it than its id."""
        if scheme.lower() != "bearer":
            return f"the {AUTHORIZATION} header must be: Bearer, a blank, and the token"
        try:
            token = parse_token(text)
        except ValueError as error:
            return str(error)
        if token.key not in (self._key.public, NO_KEY):
            return f"the token {token.id} is for another server: {SHOW}"
        return f"the token {token.id} is not known here: {MAKE}"

    # ---- The file ----

    def _token(self, issued: Issued, key: bytes) -> Token:
        return Token(key, issued.role, issued.id, self._key.secret_of(issued.role, issued.id))

    def _take(self, kept: Kept) -> None:
        """From now on this is in force."""
        by_digest = {
            # Boxes keep their tokens when the server gets certificates of the user's, or loses them: it is the secret that counts.
            digest_of(self._token(one, key).text()): one
            for one in kept.issued
            for key in (self._key.public, NO_KEY)
        }
        self._known = Known(kept, {one.id: one for one in kept.issued}, by_digest)

    def _read(self) -> Kept:
        """Raises OSError; ValueError with a sentence, too."""
        text = read_private(self._path)
        try:
            return parse(text)
        except NewerFormat as error:
            raise ValueError(f"{self._path} is of a newer version: update this server.pyz") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{self._path} is damaged: put back a copy of it, or remove it: {ANEW}") from error

    def _change(self, edit: Callable[[Kept], Kept]) -> Kept:
        """Edit the file as it is now, alone, whoever else wants to. Raises Failure, and nothing has changed."""
        with errors_as_failure(), locked(self._folder):
            before = None
            try:
                before = self._read()
            except FileNotFoundError:
                pass  # the first start
            except ValueError as error:
                raise Failure(str(error)) from error
            after = edit(before or self._first())
            if after != before:
                write_private(self._path, written(after))
        self._take(after)
        return after

    def _change_if_new(self, edit: Callable[[Kept], Kept]) -> Kept:
        """The same, where it makes a difference to what is known: else the folder need not be writable."""
        return self._change(edit) if edit(self._known.kept) != self._known.kept else self._known.kept

    def _first(self) -> Kept:
        """What a first start makes."""
        kept = Kept()
        for role in Role:
            kept = self._with_one_more(kept, role, "first start", None)
        return kept

    def _with_one_more(self, kept: Kept, role: Role, note: str, expires: float | None) -> Kept:
        now, issued = self._wall(), list(kept.issued)
        while len(issued) >= MAX_TOKENS:
            over = next((one for one in issued if one.why_over(now)), None)
            if not over:
                raise Failure(f"{MAX_TOKENS} tokens are valid: revoke some of them first (python3 server.pyz token list)")
            issued.remove(over)
        taken = {one.id for one in issued}
        number = next(new for new in iter(lambda: sys.intern(os.urandom(ID_BYTES).hex()), "") if new not in taken)
        return kept._replace(issued=(*issued, Issued(number, role, note, now, expires)))


class NewerFormat(ValueError):
    """A file that a newer version wrote."""


def parse(text: str) -> Kept:
    """Read what `written` wrote. Raises NewerFormat, ValueError, TypeError, KeyError, RecursionError: it may hold anything."""
    content: Any = json.loads(text)
    number = content["format"]
    if isinstance(number, int) and number > FORMAT:
        raise NewerFormat
    entries, bound = content["tokens"], content["listening"]
    names_key, by_certificates = content["names_key"], content["by_certificates"]
    if number != FORMAT or type(names_key) is not bool or type(by_certificates) is not bool:
        raise ValueError
    if not isinstance(entries, list) or len(entries) > MAX_TOKENS:
        raise ValueError
    issued = tuple(parse_issued(entry) for entry in entries)
    if len({one.id for one in issued}) != len(issued):
        raise ValueError
    listening = tuple(Endpoint(text_of(host), port) for host, port in bound)
    http = Endpoint(*content["http"]) if content.get("http") is not None else None
    for host, port in (*listening, *([http] if http else [])):  # they come into commands to paste
        if not re.fullmatch(r"[\w.:%-]{1,255}", host, re.ASCII) or type(port) is not int or not 0 < port < 2**16:
            raise ValueError
    return Kept(issued, names_key, by_certificates, listening, http)


def parse_issued(entry: Any) -> Issued:
    """Raises ValueError, TypeError, KeyError."""
    number = text_of(entry["id"])
    if not re.fullmatch(f"[0-9a-f]{{{2 * ID_BYTES}}}", number):
        raise ValueError
    created, expires, revoked = (moment_of(entry[name]) for name in ("created", "expires", "revoked"))
    if created is None:
        raise ValueError
    return Issued(sys.intern(number), Role(entry["role"]), visible(text_of(entry["note"]), MAX_NOTE), created, expires, revoked)


def text_of(value: object) -> str:
    """Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError
    return value


def moment_of(value: object) -> float | None:
    """Unix seconds, or none. Raises ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LAST_MOMENT:  # nor is NaN one
        raise ValueError
    return float(value)


def written(kept: Kept) -> str:
    """The file, for people to read as well."""
    content = {
        "format": FORMAT,
        "names_key": kept.names_key,
        "by_certificates": kept.by_certificates,
        "listening": kept.listening,
        "http": kept.http,
        "tokens": [{**one._asdict(), "role": one.role.value} for one in kept.issued],
    }
    return json.dumps(content, indent=1) + "\n"


def only_id(start: str, issued: Iterable[Issued]) -> str:
    """The id that begins so. Raises Failure. What is no id may be a secret that was pasted: it is not said again."""
    start = start.strip().lower()
    if not re.fullmatch(f"[0-9a-f]{{1,{2 * ID_BYTES}}}", start):
        raise Failure("a token is named by its id, six hexadecimal digits, or the first of them: python3 server.pyz token list")
    found = [one.id for one in issued if one.id.startswith(start)]
    if len(found) != 1:
        why = f"{len(found)} tokens begin with {start}" if found else f"no token {start} is known here"
        raise Failure(f"{why}: python3 server.pyz token list shows all of them")
    return found[0]


def digest_of(text: str) -> bytes:
    """Of a token's line."""
    return hashlib.sha256(text.encode(errors="replace")).digest()


def called(issued: Issued) -> str:
    """What people call it."""
    return f"{issued.id} ({issued.note})" if issued.note else issued.id


def authorization_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """The header for `check` from what came with a call; None where it has none. Several make one that is no token, as in HTTP."""
    values = [value for name, value in metadata or () if name.lower() == AUTHORIZATION]
    texts = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
    return ", ".join(texts) if texts else None
