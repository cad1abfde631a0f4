"""Which tokens let in whom, and the file that says so."""

from __future__ import annotations

import json
import os
import pathlib
import random
import resource
import string
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest

from edge.command_line import Endpoint
from edge.credentials import NO_KEY, Role, Token, parse_token
from edge.fleet.certificates import TOKENS_FILE, OwnKey
from edge.fleet.row import Refused
from edge.fleet.tokens import MAX_NOTE, MAX_TOKENS, Issued, Tokens, authorization_of, parse
from edge.program import Failure, time_stamp
from edge.state_folder import locked, read_private, write_private
from tests.fixtures.processes import ROOT
from tests.fixtures.sessions import Clock

HOUR = 3600.0


@pytest.fixture
def clock() -> Clock:
    return Clock(1e9)


@pytest.fixture
def tokens(tmp_path: pathlib.Path, clock: Clock) -> Tokens:
    return Tokens(tmp_path, OwnKey(tmp_path), wall=clock)


def again(tmp_path: pathlib.Path, clock: Clock | None = None, names_key: bool | None = None) -> Tokens:
    """What another process sees."""
    return Tokens(tmp_path, OwnKey(tmp_path), names_key, clock or Clock(1e9))


def bearer(tokens: Tokens, issued: Issued) -> str:
    return tokens.token_of(issued).bearer()


def refused(tokens: Tokens, authorization: str | None, role: Role = Role.NODE) -> Refused:
    """How a call is refused: never with what could be a secret."""
    with pytest.raises(Refused) as caught:
        tokens.check(authorization, role)
    for text in (caught.value.end.reason, caught.value.told_here):
        assert not authorization or len(authorization) < 20 or authorization[-20:] not in text
        assert len(text) < 300
    return caught.value


# ---- Who comes in ----


def test_a_first_start_makes_a_token_of_each_role_and_the_next_has_the_same(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    assert [(one.role, one.note, one.expires) for one in tokens.issued()] == [(role, "first start", None) for role in Role]
    second = again(tmp_path)
    assert second.issued() == tokens.issued()
    for one in tokens.issued():
        assert second.token_of(one).text() == tokens.token_of(one).text() == tokens.offered(one.role).text
        assert parse_token(tokens.offered(one.role).text).key == OwnKey(tmp_path).public
        assert second.check(bearer(tokens, one), one.role) == one.id


def test_no_secret_lies_in_the_file(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    content = (tmp_path / TOKENS_FILE).read_text()
    for one in tokens.issued():
        token = tokens.token_of(one)
        assert token.text() not in content
        assert token.secret.hex() not in content
    assert (tmp_path / TOKENS_FILE).stat().st_mode & 0o777 == 0o600


def test_each_role_does_its_own_and_no_other(tokens: Tokens) -> None:
    node, view = tokens.issued()
    end = refused(tokens, bearer(tokens, view), Role.NODE).end
    assert end.code is grpc.StatusCode.PERMISSION_DENIED
    assert f"the token {view.id} is one to look, not to report: python3 server.pyz token list" in end.reason
    error = refused(tokens, bearer(tokens, node), Role.VIEW)
    assert error.told_here == f"token {node.id} (first start) is one to report, not to look"


@pytest.mark.parametrize(
    ("authorization", "words"),
    [
        (None, "this server wants a token: python3 server.pyz token list, on the server, shows what to paste"),
        ("", "header must be: Bearer, a blank, and the token"),
        ("Basic dXNlcjpwYXNz", "header must be: Bearer"),
        ("Bearer", "the token is empty"),
        ("Bearer ", "the token is empty"),
        ("Bearer hello", "this is no token: one begins with edge1-"),
        ("Bearer edge1-" + "A" * 100_000, "has something after its end"),
        ("Bearer " * 50_000, "no token"),
        ("\0\ud800\x1b[31m", "header must be"),
        ("Bearer edge1-\ud800\x1b" + "é" * 70, "characters that no token has"),
    ],
)
def test_what_is_no_token_is_refused(tokens: Tokens, authorization: str | None, words: str) -> None:
    end = refused(tokens, authorization).end
    assert words in end.reason
    assert end.code is grpc.StatusCode.UNAUTHENTICATED
    assert end.reason.isprintable()


def test_every_changed_character_of_a_good_one_is_refused_with_a_sentence(tokens: Tokens) -> None:
    text = tokens.offered(Role.NODE).text
    source = random.Random(1)
    for place in range(len(text)):
        for other in source.sample(string.ascii_letters + string.digits + "-_+/= \0é", 4):
            if other != text[place]:
                end = refused(tokens, f"Bearer {text[:place]}{other}{text[place + 1 :]}").end
                assert end.code is grpc.StatusCode.UNAUTHENTICATED
                assert "token" in end.reason
    assert tokens.check(f"bearer {text}", Role.NODE)  # RFC 9110: the scheme has no case


def test_a_forged_token_is_not_known(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    """Whoever makes one, with all that is no secret right."""
    one = tokens.issued()[0]
    good = tokens.token_of(one)
    view = good._replace(role=Role.VIEW)
    for forged in (good._replace(secret=bytes(15)), good._replace(id="000000"), view, view._replace(key=NO_KEY)):
        assert f"the token {forged.id} is not known here: python3 server.pyz" in refused(tokens, forged.bearer()).end.reason
    elsewhere = good._replace(key=OwnKey(tmp_path / "other").public)
    assert "is for another server" in refused(tokens, elsewhere.bearer()).end.reason


def test_the_servers_proof_may_change_and_boxes_keep_their_tokens(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    old = bearer(tokens, tokens.issued()[0])
    by_authority = again(tmp_path, names_key=False)
    new = bearer(by_authority, by_authority.issued()[0])
    assert parse_token(by_authority.offered(Role.NODE).text).key == NO_KEY
    assert again(tmp_path).offered(Role.NODE).text == by_authority.offered(Role.NODE).text  # as `token list` sees it
    for now in (tokens, by_authority, again(tmp_path, names_key=True)):
        assert now.check(old, Role.NODE) == now.check(new, Role.NODE)


def test_several_headers_are_no_token(tokens: Tokens) -> None:
    good = bearer(tokens, tokens.issued()[0])
    assert authorization_of(None) is None
    assert authorization_of((("user-agent", "grpc"),)) is None
    assert authorization_of((("a", "b"), ("Authorization", good))) == good
    assert authorization_of((("authorization", b"\xff"),)) == "�"
    refused(tokens, authorization_of([("authorization", good), ("authorization", good)]))
    refused(tokens, authorization_of([("authorization", "Bearer x"), ("authorization", good)]))


# ---- Their ends ----


def test_a_token_ends_at_its_time(tokens: Tokens, clock: Clock) -> None:
    one = tokens.issue(Role.NODE, "rack 7", clock.now + HOUR)
    header = bearer(tokens, one)
    clock.now += HOUR - 1
    assert tokens.check(header, Role.NODE) == one.id
    assert tokens.why_over(one.id) is None
    clock.now += 61
    error, ended = refused(tokens, header), f"expired at {time_stamp(clock.now - 60)}"
    assert error.end == tokens.why_over(one.id)
    assert error.end.reason == f"the token {one.id} {ended}: python3 server.pyz token new, on the server, makes another"
    assert error.end.code is grpc.StatusCode.UNAUTHENTICATED
    assert error.told_here == f"token {one.id} (rack 7) {ended}"
    clock.now = 5.0  # a board that has lost its clock: tokens that never end are not touched
    assert tokens.check(bearer(tokens, tokens.issued()[0]), Role.NODE)
    clock.now = 7e9
    assert tokens.check(bearer(tokens, tokens.issued()[0]), Role.NODE)


def test_a_token_is_revoked_by_its_first_digits_and_for_good(tokens: Tokens, clock: Clock) -> None:
    one = tokens.issue(Role.NODE, "", None)
    header = bearer(tokens, one)
    other = tokens.issue(Role.NODE, "", None)
    others = [each.id for each in tokens.issued() if each != one]
    shortest = next(one.id[:n] for n in range(1, 7) if not any(each.startswith(one.id[:n]) for each in others))
    assert tokens.revoke(f" {shortest.upper()}\n").revoked == clock.now
    clock.now += 10
    assert tokens.revoke(one.id).revoked == clock.now - 10  # twice is as once
    said = f"the token {one.id} was revoked at {time_stamp(clock.now - 10)}: "
    assert refused(tokens, header).end.reason.startswith(said)
    assert tokens.why_over(other.id) is None
    clock.now = 1.0
    assert refused(tokens, header).end.reason.startswith(said)


def test_what_names_no_token_is_not_revoked_nor_said_again(tokens: Tokens) -> None:
    secret = tokens.offered(Role.NODE).text
    for text in ("", "0a1b2c3", "xyz", "-1", secret, "*", "٣"):
        with pytest.raises(Failure, match="named by its id, six hexadecimal digits") as caught:
            tokens.revoke(text)
        assert secret not in str(caught.value)
    known = {one.id[:2] for one in tokens.issued()}
    unknown = next(f"{number:02x}" for number in range(256) if f"{number:02x}" not in known)
    with pytest.raises(Failure, match=f"no token {unknown} is known here: python3 server.pyz token list"):
        tokens.revoke(unknown)
    for _ in range(16):
        tokens.issue(Role.VIEW, "", None)
    twice = next(digit for digit in "0123456789abcdef" if sum(one.id.startswith(digit) for one in tokens.issued()) > 1)
    with pytest.raises(Failure, match=rf"\d+ tokens begin with {twice}"):
        tokens.revoke(twice)


def test_the_oldest_valid_one_that_never_ends_is_what_a_box_is_given_else_the_one_that_lasts_longest(
    tokens: Tokens, clock: Clock
) -> None:
    def offered() -> str:
        offer = tokens.offered(Role.NODE)
        assert parse_token(offer.text).id == offer.name[:6]
        return offer.name

    first = tokens.issued()[0]
    clock.now += 1
    long = tokens.issue(Role.NODE, "", clock.now + 2 * HOUR)
    tokens.issue(Role.NODE, "", clock.now + HOUR)
    site = tokens.issue(Role.NODE, "a site " * 10, None)
    assert offered() == f"{first.id}, first start"
    tokens.revoke(first.id)
    assert offered() == f"{site.id}, a site a site a site a site a…"
    tokens.revoke(site.id)
    assert offered() == long.id
    clock.now += 2 * HOUR
    assert tokens.offered(Role.NODE) == ("", "")
    assert parse_token(tokens.offered(Role.VIEW).text).id == tokens.issued()[1].id


# ---- The file ----


def test_a_running_server_follows_the_file(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    command = again(tmp_path)
    new = command.issue(Role.NODE, "", None)
    assert tokens.check(bearer(command, new), Role.NODE) == new.id  # at once: else its node would wait for its next try
    command.revoke(new.id)
    assert tokens.refresh() == ""
    end = tokens.why_over(new.id)
    assert end
    assert "was revoked" in end.reason
    gone = tokens.issued()[0].id
    content = json.loads(read_private(tmp_path / TOKENS_FILE))
    content["tokens"] = [one for one in content["tokens"] if one["id"] != gone]
    write_private(tmp_path / TOKENS_FILE, json.dumps(content))
    assert tokens.refresh() == ""
    end = tokens.why_over(gone)
    assert end
    assert "is not known here any more" in end.reason


def test_a_file_that_goes_bad_is_told_once_and_the_old_stays_in_force(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    path = tmp_path / TOKENS_FILE
    header, good = bearer(tokens, tokens.issued()[0]), path.read_text()

    def told() -> list[str]:
        said = [tokens.refresh() for _ in range(3)]
        assert tokens.check(header, Role.NODE)
        assert said[1:] == ["", ""]
        return said[:1]

    write_private(path, "{")
    assert told()[0].startswith(f"{path} is damaged: put back a copy of it, or remove it: new ones are made at the next start")
    write_private(path, good)
    assert told() == [""]
    path.chmod(0o644)
    assert told() == [
        f"others may read {path}, which holds a secret: chmod 600 {path}; meanwhile the tokens that were read before stay in force"
    ]
    path.chmod(0o600)
    assert told() == [""]
    path.unlink()
    assert told()[0].startswith(f"cannot read {path}: no such file or directory; meanwhile")
    write_private(path, good)
    assert told() == [""]


def test_a_change_that_could_not_be_read_is_read_at_the_next_look(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    revoked = again(tmp_path).revoke(tokens.issued()[0].id)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        said = [tokens.refresh() for _ in range(3)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert said[0].startswith(f"cannot read {tmp_path / TOKENS_FILE}: too many open files; meanwhile the tokens")
    assert said[1:] == ["", ""]
    assert not tokens.why_over(revoked.id)
    assert tokens.refresh() == ""
    assert tokens.why_over(revoked.id)


@pytest.mark.parametrize("host", ["", "10.0.0.9\x1b[2J", "a b", "$(true)", "\ud800", "h" * 256])
def test_addresses_that_no_command_may_name_are_damage(host: str) -> None:
    content = {"format": 1, "names_key": True, "by_certificates": False, "listening": [[host, 50051]], "tokens": []}
    with pytest.raises(ValueError, match=r"^$"):
        parse(json.dumps(content))


TOKEN: dict[str, Any] = {"id": "0a1b2c", "role": "node", "note": "", "created": 1.0, "expires": None, "revoked": None}
FILE: dict[str, Any] = {"format": 1, "names_key": True, "by_certificates": False, "listening": [["::", 50051]], "tokens": [TOKEN]}


def test_the_file_of_this_version_is_read(tmp_path: pathlib.Path) -> None:
    """As it is written today, with what a later version may add."""
    key = OwnKey(tmp_path)
    token = {**TOKEN, "more": 1, "note": "\x1b[31m\ud800 é"}
    write_private(tmp_path / TOKENS_FILE, json.dumps({**FILE, "tokens": [token], "more": 1}))
    tokens = Tokens(tmp_path, key)
    assert tokens.issued() == [Issued("0a1b2c", Role.NODE, "�[31m� é", 1.0)]
    assert tokens.listening() == (Endpoint("::", 50051),)


def damaged_files() -> Iterator[str]:
    """Whatever may lie there."""
    yield from ("", "{", "null", "[]", "5", "NaN", '"text"', "[" * 100_000, "\ufffd", "{}", "9" * 10_000)
    many = [{**TOKEN, "id": f"{number:06x}"} for number in range(MAX_TOKENS + 1)]
    bad_values: dict[str, Sequence[Any]] = {
        "format": (0, "1", None, [1], 1.5),
        "names_key": (1, "true", None),
        "by_certificates": (0, "", None),
        "listening": (None, 5, "ab", ["::"], [["::"]], [[5, 5]], [["::", "5"]], [["::", 1e300]], [["::", 0]], [["::", True]]),
        "tokens": (None, 5, {}, [5], [None], [[]], [{}], [TOKEN, TOKEN], many),
    }
    for name, values in bad_values.items():
        yield json.dumps({key: value for key, value in FILE.items() if key != name})
        yield from (json.dumps({**FILE, name: value}) for value in values)
    bad_moments = ("1", -1, float("nan"), float("inf"), 1e300, 10**400, True, [1])
    bad_values = {
        "id": (5, None, "", "0A1B2C", "0a1b2", "0a1b2c\n", "٠a1b2c", ["0a1b2c"]),
        "role": (5, None, "admin", ["node"], {}),
        "note": (5, None, ["x"]),
        "created": (*bad_moments, None),
        "expires": bad_moments,
        "revoked": bad_moments,
    }
    for name, values in bad_values.items():
        yield json.dumps({**FILE, "tokens": [{key: value for key, value in TOKEN.items() if key != name}]})
        yield from (json.dumps({**FILE, "tokens": [{**TOKEN, name: value}]}) for value in values)


def test_a_damaged_file_ends_the_start_and_is_left_alone(tmp_path: pathlib.Path) -> None:
    key, path = OwnKey(tmp_path), tmp_path / TOKENS_FILE
    path.touch(0o600)
    for content in damaged_files():
        path.write_text(content)
        with pytest.raises(Failure) as caught:
            Tokens(tmp_path, key)
        assert str(caught.value).startswith(f"{path} is damaged: put back a copy of it, or remove it: "), content
        assert path.read_text() == content


def test_a_file_of_a_newer_version_says_so(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    write_private(tmp_path / TOKENS_FILE, json.dumps({"format": 2, "what": "ever"}))
    words = f"{tmp_path}/{TOKENS_FILE} is of a newer version: update this server.pyz"
    assert tokens.refresh().startswith(f"{words}; meanwhile")
    for act in (lambda: again(tmp_path), lambda: tokens.issue(Role.NODE, "", None), lambda: tokens.revoke(tokens.issued()[0].id)):
        with pytest.raises(Failure, match=words):
            act()


def test_a_huge_file_costs_a_sentence(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    write_private(tmp_path / TOKENS_FILE, " " * 2**20 + "{}")
    assert "larger than any such file" in tokens.refresh()
    with pytest.raises(Failure, match="larger than any such file"):
        again(tmp_path)


def test_many_who_make_tokens_at_once_lose_none(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    code = (
        "from edge.fleet.tokens import *; folder = pathlib.Path(sys.argv[1])\n"
        "tokens = Tokens(folder, OwnKey(folder))\n"
        "for _ in range(10): tokens.revoke(tokens.issue(Role.NODE, sys.argv[2], None).id)"
    )
    argv = [sys.executable, "-c", f"import pathlib, sys\n{code}", str(tmp_path)]
    processes = [subprocess.Popen([*argv, str(number)], cwd=ROOT) for number in range(2)]
    assert [process.wait(30) for process in processes] == [0, 0]
    assert tokens.refresh() == ""
    made = tokens.issued()[2:]
    assert sorted(one.note for one in made) == sorted("01" * 10)
    assert all(one.revoked for one in made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "server-key.pem", TOKENS_FILE]


def test_a_folder_that_another_process_holds_costs_a_sentence(
    tokens: Tokens, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.state_folder.LOCK_PATIENCE_SECONDS", 0.05)
    with locked(tmp_path):
        with pytest.raises(Failure, match=f"another process holds {tmp_path}/lock, and does not end: try again; fuser"):
            tokens.issue(Role.NODE, "", None)
        assert again(tmp_path).issued() == tokens.issued()  # who only reads need not wait


def test_several_first_starts_make_one_pair(tmp_path: pathlib.Path) -> None:
    key = OwnKey(tmp_path)
    one, two = Tokens(tmp_path, key), Tokens(tmp_path, key)
    assert one.issued() == two.issued()
    (tmp_path / TOKENS_FILE).unlink()
    made = one.issue(Role.NODE, "x", None)  # as if it were the first: what was before is unknown
    assert [each.note for each in one.issued()] == ["first start", "first start", "x"]
    assert two.refresh() == ""
    assert two.issued()[-1] == made


def test_notes_are_bounded_and_safe_on_a_terminal(tokens: Tokens) -> None:
    assert tokens.issue(Role.NODE, "  \x1b[31mred\n\u202e \ud800 ", None).note == "�[31mred�� �"
    assert tokens.issue(Role.NODE, "é" * MAX_NOTE, None).note == "é" * MAX_NOTE
    with pytest.raises(Failure, match=f"a note has at most {MAX_NOTE} characters"):
        tokens.issue(Role.NODE, "x" * (MAX_NOTE + 1), None)


def test_tokens_that_are_over_give_way(tokens: Tokens, tmp_path: pathlib.Path, clock: Clock) -> None:
    keep = {**TOKEN, "created": 5.0}
    entries = [{**keep, "id": f"{number:06x}", "revoked": 7.0 if number == 500 else None} for number in range(MAX_TOKENS)]
    write_private(tmp_path / TOKENS_FILE, json.dumps({**FILE, "tokens": entries}))
    assert tokens.refresh() == ""
    new = tokens.issue(Role.NODE, "", None)
    assert len(tokens.issued()) == MAX_TOKENS
    assert tokens.issued()[-1] == new
    assert "0001f4" not in {one.id for one in tokens.issued()}
    with pytest.raises(Failure, match=f"{MAX_TOKENS} tokens are valid: revoke some of them first"):
        tokens.issue(Role.NODE, "", None)


def test_where_the_server_listens_is_kept_for_the_command(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    assert not again(tmp_path).listening()
    tokens.set_listening([Endpoint("::", 6000), Endpoint("10.0.0.5", 50051)])
    assert again(tmp_path).listening() == (Endpoint("::", 6000), Endpoint("10.0.0.5", 50051))
    assert again(tmp_path).http() is None
    tokens.set_listening([Endpoint("::", 6000), Endpoint("10.0.0.5", 50051)], Endpoint("::", 8080))
    assert again(tmp_path).http() == Endpoint("::", 8080)
    content = json.loads((tmp_path / TOKENS_FILE).read_text())
    damaged: list[Any] = [["a b", 80], ["10.0.0.5", 0], ["10.0.0.5", True], [80, 80], "ab", {}, 7, ["10.0.0.5"]]
    for http in damaged:
        with pytest.raises((ValueError, TypeError)):
            parse(json.dumps({**content, "http": http}))
    del content["http"]  # of a version that did not tell
    assert parse(json.dumps(content)).http is None
    tokens.set_listening([Endpoint("::", 6000), Endpoint("10.0.0.5", 50051)])
    assert again(tmp_path).http() is None
    before = (tmp_path / TOKENS_FILE).stat()
    tokens.set_listening([Endpoint("::", 6000), Endpoint("10.0.0.5", 50051)])
    again(tmp_path, names_key=True)
    assert (tmp_path / TOKENS_FILE).stat() == before  # what says nothing new needs no folder that can be written


def test_a_file_of_another_user_is_refused(tokens: Tokens, tmp_path: pathlib.Path) -> None:
    os.chown(tmp_path / TOKENS_FILE, 65534, -1)
    with pytest.raises(Failure, match="belongs to another user, nobody: run as nobody"):
        again(tmp_path)
    assert "belongs to another user" in tokens.refresh()


def test_a_token_says_nothing_of_its_secret_in_a_traceback(tokens: Tokens) -> None:
    token = tokens.token_of(tokens.issued()[0])
    assert isinstance(token, Token)
    assert token.text() not in repr(token)
    assert token.secret.hex() not in repr(vars(tokens))
