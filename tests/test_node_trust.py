"""How a node knows its servers, and what it proves itself by. Real servers in TLS, files, terminals."""

from __future__ import annotations

import itertools
import os
import pathlib
import signal
import stat
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest

import node
import node_pb2 as pb
from edge import trust
from edge.credentials import NO_KEY, PREFIX, Role, Token, point_of
from edge.errors import Distrust
from edge.fleet.guard import NAMES_TOLD, Guard
from edge.hardware.identity import Identity
from edge.hardware.options import parse_options
from edge.program import Failure
from edge.protocol import MAX_NODE_ID
from edge.text import MAX_SENTENCE
from edge.trust import (
    MAX_SAVED,
    NAME_ALONE,
    NO_FILES,
    NOBODY,
    Files,
    Trust,
    parse_tokens,
    read_tokens,
    save,
    saved_for,
    trust_of,
)
from tests.fixtures.pki import Authority, pem_of
from tests.fixtures.processes import Program, Terminal, eventually
from tests.fixtures.secure import Between, Guarded, own_server, start_guarded
from tests.fixtures.sessions import Serving

SIMULATED = ("--hardware", "simulated", "--seed", "1")
OWN, OWN_KEY, OWN_CERTIFICATE = own_server()
OTHER, OTHER_KEY, OTHER_CERTIFICATE = own_server()
COMPANY, STRANGERS = Authority("a company"), Authority("strangers")
USER = Authority()  # its key is a server's or a node's, and COMPANY signs it
Serve = Callable[..., str]


@pytest.fixture
def guarded() -> Iterator[Serve]:
    """Starts servers; returns their addresses."""
    servers: list[grpc.Server] = []

    def start(servicer: Guarded, key: bytes = b"", certificate: bytes = b"", **settings: Any) -> str:
        server, address = start_guarded(servicer, key, certificate, **settings)
        servers.append(server)
        return address

    yield start
    for server in servers:
        server.stop(0)


@pytest.fixture
def run() -> Iterator[Callable[..., node.NodeState]]:
    """Starts nodes of this process that keep connected, and ends them."""
    running: list[tuple[node.NodeState, threading.Thread]] = []

    def start(address: str, tokens: Sequence[Token] = (), files: Files = NO_FILES, slow: float = 1000.0) -> node.NodeState:
        state = node.NodeState("box-1", address, pb.NodeInfo(), 60.0)
        state.publish(pb.Sample(sequence=1))
        proof = Trust(tokens, files, retry_seconds=lambda: slow)
        arguments = (state, Identity("box-1", "m"), proof, [address], 60.0, lambda: itertools.repeat(0.01))
        running.append((state, node.guarded(state, False, node.keep_connected, *arguments)))
        return state

    yield start
    for state, thread in running:
        state.close()
        thread.join(10)
        assert not thread.is_alive()
        assert not state.failure


def connected(state: node.NodeState) -> bool:
    return state.view().link.phase == "connected"


def refusal(state: node.NodeState) -> str:
    """Why the node waits, once it does."""
    eventually(state.is_waiting)
    return state.view().link.reason


def log_of(state: node.NodeState) -> str:
    return "\n".join(line.text for line in state.view().log)


def private(path: pathlib.Path, *lines: str, mode: int = 0o600) -> str:
    """A file of the user's."""
    path.write_text("\n".join(lines) + "\n")
    path.chmod(mode)
    return str(path)


# ---- Servers with a key of their own ----


def test_a_token_opens_tls_and_is_saved_once_it_was_accepted(
    guarded: Serve, run: Callable[..., node.NodeState], state_home: pathlib.Path
) -> None:
    token = OWN.token()
    servicer = Guarded(token)
    address = guarded(servicer, OWN_KEY, OWN_CERTIFICATE)
    state = run(address, [token])
    eventually(lambda: connected(state))
    assert servicer.brought == [token.bearer()]
    path = state_home / "edge-compute-node/tokens"
    eventually(path.exists)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (token.text() + "\n", 0o600)
    again = run(address)  # needs only the server
    eventually(lambda: connected(again))
    assert servicer.brought == [token.bearer()] * 2
    assert "warning" not in [line.kind for line in again.view().log]


def test_another_server_under_the_address_is_told_nothing(
    guarded: Serve, run: Callable[..., node.NodeState], state_home: pathlib.Path
) -> None:
    servicer = Guarded(refusal="")
    address = guarded(servicer, OTHER_KEY, OTHER_CERTIFICATE)
    state = run(address, [OWN.token()])
    assert refusal(state).startswith(
        f"{address} is not the server this token is for: another one, or someone in between; the token was not sent (if that server"
    )
    assert servicer.brought == []
    assert state.view().link.retry_at - state.clock() > 900  # at its own pace, and not by the backoff
    assert not (state_home / "edge-compute-node").exists()


@pytest.mark.parametrize("forges", [True, False], ids=["own certificate", "the server's name and key id"])
def test_who_stands_in_between_hears_no_secret(run: Callable[..., node.NodeState], tmp_path: pathlib.Path, forges: bool) -> None:
    forger = Authority("Edge Compute Node") if forges else Authority("someone")
    if forges:
        forger.public = OWN.public  # what the certificate says of who signed it
    between = Between(tmp_path, pem_of(USER.key), forger.certificate("edge-compute-node", key=USER.key))
    token = OWN.token()
    state = run(between.address, [token])
    assert "is not the server this token is for" in refusal(state)
    eventually(lambda: between.wire)
    between.close()
    assert between.heard == b""
    for secret in (token.text().encode(), token.secret, token.secret.hex().encode(), b"box-1"):
        assert secret not in between.wire


@pytest.mark.parametrize(
    ("own_first", "tokens"), [(False, [OTHER.token(1), OTHER.token(2), OWN.token()]), (True, [OWN.token(), OTHER.token(1)])]
)
def test_tokens_are_tried_until_ones_key_fits_which_is_the_first_next_time(
    guarded: Serve, run: Callable[..., node.NodeState], own_first: bool, tokens: list[Token]
) -> None:
    servicer = Guarded(OWN.token())
    state = run(guarded(servicer, OWN_KEY, OWN_CERTIFICATE), tokens)
    eventually(lambda: connected(state))
    assert servicer.brought == [OWN.token().bearer()]
    assert "next try" not in log_of(state)
    eventually(lambda: saved_for("a:1") == [OWN.token()])  # no server has accepted the others


def test_one_that_fit_is_the_first_and_the_others_are_not_forgotten() -> None:
    proof = Trust([OTHER.token(), OWN.token()])
    for expected in (OTHER.token(), OWN.token()):
        with proof.channel("a:1"):
            assert proof._in_use["a:1"] == expected
        assert proof.tries_another("a:1", Distrust("", of_token=True)) == (expected == OTHER.token())
    with proof.channel("a:1"):
        proof.tries_another("a:1", Distrust("", of_token=True))
    with proof.channel("a:1"):
        proof.accepted("a:1", print)
    with proof.channel("a:1"):
        assert proof._in_use["a:1"] == OWN.token()
    with proof.channel("b:1"):
        assert proof._in_use["b:1"] == OTHER.token()


def test_a_refused_token_gives_way_to_the_next_for_the_same_server(guarded: Serve, run: Callable[..., node.NodeState]) -> None:
    old, new = OWN.token(1), OWN.token(2)
    servicer = Guarded(new)
    state = run(guarded(servicer, OWN_KEY, OWN_CERTIFICATE), [old, new])
    eventually(lambda: connected(state))
    assert servicer.brought == [old.bearer(), new.bearer()]


class Revoking(Guarded):
    """A server that ends a session after its first answer, once the test wants it."""

    def __init__(self, *tokens: Token) -> None:
        super().__init__(*tokens)
        self.revoked = threading.Event()

    def StreamHeartbeats(self, requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
        for response in super().StreamHeartbeats(requests, context):
            yield response
            if not self.revoked.is_set():
                self.revoked.wait(20)
                context.abort(self.code, "token 000001 was revoked just now: take another one")


def test_a_token_that_is_revoked_in_a_session_gives_way_to_the_next(guarded: Serve, run: Callable[..., node.NodeState]) -> None:
    old, new = OWN.token(1), OWN.token(2)
    servicer = Revoking(old, new)
    state = run(guarded(servicer, OWN_KEY, OWN_CERTIFICATE), [old, new])
    eventually(lambda: connected(state))
    servicer.revoked.set()
    eventually(lambda: state.view().link.sessions == 2)
    assert servicer.brought == [old.bearer(), new.bearer()]
    alone = Revoking(old)
    other = run(guarded(alone, OWN_KEY, OWN_CERTIFICATE), [old])
    eventually(lambda: connected(other))
    alone.revoked.set()
    assert "refuses this node: token 000001 was revoked just now: take another one" in refusal(other)
    assert other.view().link.retry_at - other.clock() > 900


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_refusal_is_told_in_the_servers_words_and_tried_again_until_it_is_mended(
    guarded: Serve, run: Callable[..., node.NodeState], code: grpc.StatusCode
) -> None:
    token = OWN.token()
    servicer = Guarded(refusal=f"token 000000 was revoked: take another one; {token.text()}")
    servicer.code = code
    address = guarded(servicer, OWN_KEY, OWN_CERTIFICATE)
    state = run(address, [token], slow=0.05)
    eventually(lambda: len(servicer.brought) >= 3)  # it goes on
    assert f"{address} refuses this node: token 000000 was revoked: take another one; edge1-…; next try in" in log_of(state)
    assert token.text() not in log_of(state)
    servicer.tokens.append(token)
    eventually(lambda: connected(state))


def test_the_longest_sentence_of_a_server_comes_whole(run: Callable[..., node.NodeState], tmp_path: pathlib.Path) -> None:
    ca = tmp_path / "company.pem"
    ca.write_bytes(COMPANY.pem)
    names = [f"{place}".ljust(MAX_NODE_ID, "x") for place in range(NAMES_TOLD - 1)]  # the first is its common name, too
    certificate, key = map(str, COMPANY.write(tmp_path, *names))
    serving = Serving(guard=Guard(tmp_path / "state", *COMPANY.write(tmp_path, "127.0.0.1"), ca))
    state = run(serving.address, files=Files(ca=str(ca), certificate=certificate, key=key))
    said = f"the certificate is for {', '.join(names)}: not for a node box-1; see --id"
    assert refusal(state) == f"{serving.address} refuses this node: {said}"
    assert f"{said}; next try in" in log_of(state)
    serving.network.stop()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INTERNAL])
def test_what_a_server_says_without_end_is_cut(guarded: Serve, run: Callable[..., node.NodeState], code: grpc.StatusCode) -> None:
    servicer = Guarded(refusal="no\n" * 2000)
    servicer.code = code
    said = refusal(run(guarded(servicer, OWN_KEY, OWN_CERTIFICATE), [OWN.token()]))
    assert "no�no�no" in said
    assert len(said) < MAX_SENTENCE + 60


def test_a_server_that_speaks_no_tls_is_not_spoken_to(
    guarded: Serve, run: Callable[..., node.NodeState], tmp_path: pathlib.Path
) -> None:
    servicer = Guarded(refusal="")
    address = guarded(servicer)
    given, filed = run(address, [OWN.token()]), run(address, files=Files(tokens=private(tmp_path / "t", OWN.token().text())))
    said = f"{address} speaks no TLS: the token was not sent; start that server with --secure, or this node without its token"
    assert refusal(given) == said
    assert refusal(filed) == f"{said} in {tmp_path}/t"
    save(OWN.token(), "a:1")
    assert refusal(run(address)) == f"{said} in {trust.saved_path()}"
    assert servicer.brought == []


def test_a_node_without_a_token_says_that_a_secure_server_wants_one(guarded: Serve, run: Callable[..., node.NodeState]) -> None:
    address = guarded(Guarded(), OWN_KEY, OWN_CERTIFICATE)
    state = run(address)
    assert refusal(state).startswith(f"{address} wants a token: its screen shows the one for nodes (key j)")
    assert state.view().link.retry_at - state.clock() > 900


def test_tls_is_told_from_what_is_none(guarded: Serve, tmp_path: pathlib.Path) -> None:
    point_of(NOBODY)
    own = guarded(Guarded(), OWN_KEY, OWN_CERTIFICATE)
    assert NAME_ALONE in trust.tls_answer(own, [OTHER.public, OWN.public])
    assert NAME_ALONE not in trust.tls_answer(own, [OTHER.public]) != ""
    assert trust.tls_answer(guarded(Guarded(), OWN_KEY, OWN_CERTIFICATE))
    company = COMPANY.certificate("127.0.0.1", key=USER.key)
    assert trust.tls_answer(guarded(Guarded(), pem_of(USER.key), company, client_ca=COMPANY.pem))
    assert not trust.tls_answer(guarded(Guarded()))
    assert not trust.tls_answer("127.0.0.1:1")
    assert not trust.tls_answer("no-such-host.invalid:1", seconds=1)


def test_who_had_a_token_does_not_speak_plain_when_it_is_gone(state_home: pathlib.Path) -> None:
    save(OWN.token(), "a:1")
    proof = Trust()
    proof.check()
    trust.saved_path().unlink()
    with proof.channel("a:1"):
        assert proof._in_use["a:1"] == OWN.token()


# ---- Servers that an authority vouches for ----


class Company:
    """Its files in a folder, and its server."""

    def __init__(self, folder: pathlib.Path, guarded: Serve) -> None:
        self.folder, self.guarded = folder, guarded
        (folder / "ca.pem").write_bytes(COMPANY.pem)
        (folder / "node.pem").write_bytes(COMPANY.certificate("box-1", key=USER.key))
        (folder / "node.key").write_bytes(pem_of(USER.key))
        self.ca = Files(ca=str(folder / "ca.pem"))
        self.both = self.ca._replace(certificate=str(folder / "node.pem"), key=str(folder / "node.key"))
        self.servicer = Guarded(refusal="")

    def serve(self, *names: str, **settings: Any) -> str:
        return self.guarded(self.servicer, pem_of(USER.key), COMPANY.certificate(*names, key=USER.key), **settings)


@pytest.fixture
def company(tmp_path: pathlib.Path, guarded: Serve) -> Company:
    return Company(tmp_path, guarded)


def test_an_authority_proves_the_server_and_a_token_goes_along_if_there_is_one(
    company: Company, run: Callable[..., node.NodeState]
) -> None:
    save(OWN.token(), "a:1")  # of another server: not shown to this one
    address = company.serve("127.0.0.1")
    token = OWN.token()._replace(key=NO_KEY)
    for tokens in ([], [token]):
        state = run(address, tokens, company.ca)
        eventually(lambda state=state: connected(state))  # type: ignore[misc]
    assert company.servicer.brought == ["", token.bearer()]
    assert saved_for(address) == [token, OWN.token()]
    assert saved_for("b:1") == [OWN.token()]  # the authority may vouch for others as well


def test_under_an_authority_no_server_is_shown_the_token_of_another(company: Company, run: Callable[..., node.NodeState]) -> None:
    address = company.serve("127.0.0.1")
    given = run(address, [OWN.token(), OTHER.token(1)], company.ca)
    eventually(lambda: connected(given))
    assert company.servicer.brought == [""]


def test_what_was_saved_for_one_server_of_an_authority_is_not_shown_to_the_next(company: Company) -> None:
    token = OWN.token()._replace(key=NO_KEY)
    save(token, "a:1")
    proof = Trust(files=company.ca)
    for server, expected in (("a:1", token), ("b:1", None), ("a:1", token)):
        with proof.channel(server) as (_, metadata):
            assert [value for _, value in metadata] == ([expected.bearer()] if expected else [])


def test_servers_with_a_key_and_with_an_authority_stand_side_by_side(
    company: Company, guarded: Serve, run: Callable[..., node.NodeState]
) -> None:
    servicer = Guarded(OWN.token())
    pinned = run(guarded(servicer, OWN_KEY, OWN_CERTIFICATE), [OWN.token()], company.ca)
    eventually(lambda: connected(pinned))
    assert servicer.brought == [OWN.token().bearer()]


@pytest.mark.parametrize(
    ("name", "validity", "signer", "said"),
    [
        ("example.com", {}, COMPANY, "has a certificate for another name: nothing was sent; give --server"),
        ("127.0.0.1", {}, STRANGERS, "has no certificate of the authority in {ca}: another server"),
        ("127.0.0.1", {"begins_in_days": 1}, COMPANY, "is not valid yet by this box's clock (20"),
        ("127.0.0.1", {"begins_in_days": -31}, COMPANY, "has expired by this box's clock (20"),
    ],
    ids=["name", "authority", "early", "late"],
)
def test_a_certificate_that_proves_nothing_is_told(
    company: Company, run: Callable[..., node.NodeState], name: str, validity: dict[str, Any], signer: Authority, said: str
) -> None:
    address = company.guarded(company.servicer, pem_of(USER.key), signer.certificate(name, key=USER.key, **validity))
    state = run(address, files=company.ca)
    assert said.format(ca=company.ca.ca) in refusal(state)
    assert company.servicer.brought == []


def test_a_client_certificate_is_shown_and_a_refused_one_named(company: Company, run: Callable[..., node.NodeState]) -> None:
    address = company.serve("127.0.0.1", client_ca=COMPANY.pem)
    good = run(address, files=company.both)
    eventually(lambda: connected(good))
    (company.folder / "node.pem").write_bytes(STRANGERS.certificate("box-1", key=USER.key))
    state = run(address, files=company.both)
    assert refusal(state).startswith(f"{address} broke the connection when it saw {company.both.certificate}: that may")
    own = company.guarded(company.servicer, OWN_KEY, OWN_CERTIFICATE, client_ca=COMPANY.pem)
    (company.folder / "node.pem").write_bytes(COMPANY.certificate("box-1", key=USER.key))
    both = run(own, [OWN.token()], company.both._replace(ca=""))  # the server proved by its key, the node by its certificate
    eventually(lambda: connected(both))


def test_files_are_read_again_for_each_session(company: Company, run: Callable[..., node.NodeState]) -> None:
    ca = pathlib.Path(company.ca.ca)
    ca.write_bytes(STRANGERS.pem)
    tokens = private(company.folder / "tokens", OTHER.token().text())
    state = run(company.serve("127.0.0.1"), files=company.ca._replace(tokens=tokens), slow=0.02)
    eventually(lambda: "no certificate of the authority" in log_of(state))
    ca.unlink()
    eventually(lambda: f"cannot read {ca}: no such file or directory; next try" in log_of(state))
    ca.write_bytes(COMPANY.pem)
    eventually(lambda: connected(state))


def test_what_is_no_certificate_is_told(company: Company, run: Callable[..., node.NodeState]) -> None:
    address = company.serve("127.0.0.1")
    ca = pathlib.Path(company.ca.ca)
    ca.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert refusal(run(address, files=company.ca)).startswith(f"{ca} can't be used: whole certificates in PEM are wanted")
    (company.folder / "node.key").write_bytes(pem_of(OTHER.key))  # of another certificate
    ca.write_bytes(COMPANY.pem)
    assert f"{company.both.key} can't be used" in refusal(run(address, files=company.both))
    for name, text, said in (
        ("ca.pem", "hello", "has no certificate in it"),
        ("node.pem", OTHER_KEY.decode(), "has no certificate in it"),
        ("node.key", "", "has no private key in it"),
        ("node.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----", "has a passphrase"),
    ):
        before = (company.folder / name).read_bytes()
        (company.folder / name).write_text(text)
        with pytest.raises(Failure, match=said):
            Trust(files=company.both).check()
        (company.folder / name).write_bytes(before)
    with pytest.raises(Failure, match="--tls-cert proves this node to the server: add --ca"):
        Trust(files=company.both._replace(ca="")).check()


def test_a_token_that_names_no_server_needs_its_authority(company: Company) -> None:
    nameless = OWN.token()._replace(key=NO_KEY)
    with pytest.raises(Failure, match="token 000000 is for a server with certificates of your own: add --ca"):
        Trust([nameless]).check()
    Trust([nameless], company.ca).check()
    Trust([nameless, OWN.token()]).check()


# ---- Where tokens come from ----


def test_a_file_holds_a_token_a_line(tmp_path: pathlib.Path) -> None:
    one, two = OWN.token(1), OTHER.token(2)
    path = private(tmp_path / "tokens", "# of both sites", f"  {one.text()}  # the first", "", two.text(), mode=0o400)
    assert read_tokens(path) == [one, two]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["", OWN.token().text()[:-5]], "tokens, line 2: the token is cut off: it has 73 characters instead of 78; copy it again"),
        ([OWN.token().text(), "hello"], "tokens, line 2: this is no token"),
        (["# none"], "tokens holds no token: put one on a line of it"),
        ([OWN.token().text(), OWN.token().text()[:-1] + "é"], "tokens, line 2: the token has characters"),
    ],
)
def test_a_file_that_holds_none_is_refused_and_not_repeated(tmp_path: pathlib.Path, lines: list[str], said: str) -> None:
    path = private(tmp_path / "tokens", *lines)
    with pytest.raises(Failure) as error:
        Trust(files=Files(tokens=path)).check()
    assert said in str(error.value)
    assert not error.value.__cause__
    assert OWN.token().text()[40:60] not in str(error.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644])
def test_a_file_that_others_can_read_is_refused(start: Callable[..., Program], tmp_path: pathlib.Path, mode: int) -> None:
    path = private(tmp_path / "tokens", OWN.token().text(), mode=mode)
    with pytest.raises(Failure, match=f"others may read {path}, which holds a secret: chmod 600 {path}"):
        Trust(files=Files(tokens=path)).check()
    save(OWN.token(), "a:1")
    trust.saved_path().chmod(mode)
    with pytest.raises(Failure, match="chmod 600"):
        Trust().check()
    Trust([OWN.token()]).check()  # who brings one does not need it


SOON = "import sys, node; from edge.trust import slowly; slowly.__code__ = (lambda: 0.1).__code__; node.main(sys.argv[1:])"


def test_a_service_tries_on_until_its_token_is_mended(
    guarded: Serve, start: Callable[..., Program], tmp_path: pathlib.Path
) -> None:
    """It must not end for it: systemd gives up services that end too often."""
    path = private(tmp_path / "tokens", OWN.token().text()[:-1])
    servicer = Guarded(OWN.token())
    address = guarded(servicer, OWN_KEY, OWN_CERTIFICATE)
    program = start("-c", SOON, "--server", address, "--headless", "--token-file", path, *SIMULATED)
    program.line(f"{path}, line 1: the token is cut off: it has 77 characters instead of 78; copy it again, whole; next try in")
    pathlib.Path(path).write_text(OWN.token().text())
    pathlib.Path(path).chmod(0o640)
    program.line(f"others may read {path}, which holds a secret: chmod 600 {path}; next try in")
    pathlib.Path(path).chmod(0o600)
    program.line("connected to")
    assert servicer.brought == [OWN.token().bearer()]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_saved_tokens_that_cannot_be_read_are_not_as_if_there_were_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        monkeypatch.setenv("STATE_DIRECTORY", folder)
        save(OWN.token(), "a:1")  # by root, once
        pathlib.Path(folder).chmod(0o755)
        os.seteuid(54321)
        try:
            with pytest.raises(Distrust, match="cannot read"), Trust().channel("a:1"):
                pass
        finally:
            os.seteuid(0)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_refused(tmp_path: pathlib.Path) -> None:
    path = private(tmp_path / "tokens", OWN.token().text())
    os.chown(path, 65534, 65534)
    with pytest.raises(Failure, match=f"{path} belongs to another user"):
        Trust(files=Files(tokens=path)).check()


def parsed(*argv: str) -> Trust:
    return trust_of(parse_options(argv))


def test_the_sources_have_an_order(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [OWN.token(number) for number in range(5)]
    save(tokens[0], "a:1")
    assert parsed()._tokens("a:1") == tokens[:1]
    monkeypatch.setenv("EDGE_TOKEN", f"{tokens[1].text()}, {tokens[2].text()}")
    assert parsed()._tokens("a:1") == tokens[1:3]
    assert "EDGE_TOKEN" not in os.environ
    monkeypatch.setenv("EDGE_TOKEN", tokens[1].text())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert parsed()._tokens("a:1") == tokens[1:2]  # it has none of ours
    monkeypatch.setenv("EDGE_TOKEN", tokens[1].text())
    private(tmp_path / "edge-token", tokens[3].text(), mode=0o400)
    assert parsed()._tokens("a:1") == tokens[3:4]
    assert "EDGE_TOKEN" not in os.environ
    path = private(tmp_path / "mine", tokens[4].text())
    assert parsed("--token-file", path)._tokens("a:1") == tokens[4:5]
    save(OTHER.token(), "a:1")
    assert parsed("--token-file", path)._tokens("a:1") == [tokens[4], OTHER.token()]  # for another server
    monkeypatch.setenv("EDGE_TOKEN_FILE", path)
    assert parsed()._tokens("a:1")[0] == tokens[4]


def test_a_credential_of_systemd_is_not_copied(
    guarded: Serve, run: Callable[..., node.NodeState], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = private(tmp_path / "edge-token", OWN.token().text())
    state = run(guarded(Guarded(OWN.token()), OWN_KEY, OWN_CERTIFICATE), files=Files(tokens=path))
    eventually(lambda: connected(state))
    assert saved_for("a:1") == []


@pytest.mark.parametrize(
    ("argv", "environ", "said"),
    [
        (["--token", OWN.token().text()], {}, "a token in a command can be seen by all on this box (ps): put it into a file"),
        (["--token=" + OWN.token().text()], {}, "a token in a command can be seen by all on this box (ps)"),
        (["--tokn", OWN.token().text()], {}, "unrecognized arguments: --tokn edge1-…"),
        ([OWN.token().text()], {}, "unrecognized arguments: edge1-…"),
        (["--id", OWN.token().text()], {}, "at most 63 characters"),
        (["--server", OWN.token().text() + ":x"], {}, "this is a token, which all on this box can see now"),
        (["--token-file", OWN.token().text()], {}, "this is a token, which all on this box can see now (ps): give a file"),
        (["--token-file", ""], {}, "it is empty"),
        ([], {"EDGE_TOKEN": OWN.token().text()[:-2]}, "EDGE_TOKEN: the token is cut off: it has 76 characters instead of 78"),
        ([], {"EDGE_TOKEN": OWN.token().text() + ",x"}, "EDGE_TOKEN: this is no token"),
        (["--tls-cert", "x"], {}, "--tls-cert and --tls-key go together: give both"),
        ([], {"EDGE_TLS_KEY": "x"}, "--tls-cert and --tls-key go together: give both"),
        (["--ca", ""], {}, "it is empty"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], environ: dict[str, str], said: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        parse_options(argv)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert OWN.token().text()[len(PREFIX) + 4 : 60] not in shown


def test_several_tokens_stand_in_a_variable() -> None:
    one, two = OWN.token(1), OTHER.token(2)
    assert parse_tokens(f" {one.text()},{two.text()} ,\n") == [one, two]
    assert parse_tokens("") == []


# ---- The saved ones ----


def test_saved_tokens_are_the_newest_first_and_bounded() -> None:
    tokens = [OWN.token(number) for number in range(MAX_SAVED + 3)]
    for token in [*tokens, tokens[-2]]:
        save(token, "a:1")
    assert saved_for("a:1") == [tokens[-2], tokens[-1], *tokens[-3:2:-1]]
    assert len(saved_for("a:1")) == MAX_SAVED


def test_what_a_user_wrote_beside_saved_tokens_stays() -> None:
    save(OWN.token(1), "a:1")
    path = trust.saved_path()
    path.write_text(f"# of the lab, since May\n\n{OWN.token(1).text()}  # old\n")
    save(OWN.token(2), "a:1")
    assert path.read_text() == f"{OWN.token(2).text()}\n# of the lab, since May\n{OWN.token(1).text()}  # old\n"
    assert saved_for("a:1") == [OWN.token(2), OWN.token(1)]


def test_agents_that_save_at_once_lose_nothing() -> None:
    tokens = [OWN.token(number) for number in range(12)]
    threads = [threading.Thread(target=save, args=(token, "a:1")) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(saved_for("a:1")) == sorted(tokens)


def test_what_cannot_be_saved_is_told_once(guarded: Serve, run: Callable[..., node.NodeState], state_home: pathlib.Path) -> None:
    (state_home / "edge-compute-node").write_text("in the way")
    servicer = Guarded(OWN.token())
    server, address = start_guarded(servicer, OWN_KEY, OWN_CERTIFICATE)
    state = run(address, [OWN.token()])
    eventually(lambda: connected(state))
    eventually(lambda: "the token can't be saved, so the next start needs it again: cannot" in log_of(state))
    server.stop(0)
    guarded(servicer, OWN_KEY, OWN_CERTIFICATE, port=int(address.rpartition(":")[2]))
    eventually(lambda: state.view().link.sessions == 2)
    assert log_of(state).count("can't be saved") == 1


# ---- The prompt, and whole programs ----


def test_a_terminal_asks_for_the_token_and_the_second_start_does_not(guarded: Serve, terminal: Callable[..., Terminal]) -> None:
    token = OWN.token()
    servicer = Guarded(token)
    address = guarded(servicer, OWN_KEY, OWN_CERTIFICATE)
    screen = terminal("node.py", "--server", address, *SIMULATED)
    screen.shows(r"wants a token: its screen shows the one for nodes \(key j\)[\s\S]*Paste it here")
    for wrong, said in (
        (token.text()[:-3], "is cut off: it has 75 characters instead of 78"),
        (OWN.token(role=Role.VIEW).text(), "this token is for looking: a node needs the one for nodes"),
        (token._replace(key=NO_KEY).text(), "start again with --ca FILE"),
    ):
        screen.press(wrong + "\r")
        screen.shows(said + r"[\s\S]*Paste it here")
    screen.press(f"\x1b[200~ {token.text()} \x1b[201~\r")
    screen.shows("● connected to")
    screen.press("q")
    assert screen.wait() == 0
    assert screen.is_restored()
    assert token.text()[10:60].encode() not in screen.raw
    again = terminal("node.py", "--server", address, *SIMULATED)
    again.shows("● connected to")
    assert b"Paste" not in again.raw
    assert servicer.brought == [token.bearer()] * 2
    servicer.tokens.clear()
    servicer.brought.clear()
    refused = terminal("node.py", "--server", address, *SIMULATED)
    refused.shows(r"the token is in [\s\S]*remove it there")


def test_a_terminal_asks_for_the_token_of_another_server(guarded: Serve, terminal: Callable[..., Terminal]) -> None:
    save(OTHER.token(), "a:1")
    servicer = Guarded(OWN.token())
    screen = terminal("node.py", "--server", guarded(servicer, OWN_KEY, OWN_CERTIFICATE), *SIMULATED)
    screen.shows("Paste it here")
    screen.press(OWN.token().text() + "\r")
    screen.shows("● connected to")
    eventually(lambda: saved_for("a:1") == [OWN.token(), OTHER.token()])
    assert servicer.brought == [OWN.token().bearer()]


@pytest.mark.parametrize(
    ("keys", "code", "said"), [("\r", 1, "and got none: give it by"), ("\x04", 1, "got none"), ("\x03", 130, "")]
)
def test_who_has_no_token_leaves_the_prompt(
    guarded: Serve, terminal: Callable[..., Terminal], keys: str, code: int, said: str
) -> None:
    screen = terminal("node.py", "--server", guarded(Guarded(), OWN_KEY, OWN_CERTIFICATE), *SIMULATED)
    screen.shows("Paste it here")
    screen.press(keys)
    assert screen.wait() == code
    screen.shows(said)
    assert "Traceback" not in screen.text()


def test_a_signal_ends_the_prompt_and_the_terminal_is_as_it_was(guarded: Serve, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("node.py", "--server", guarded(Guarded(), OWN_KEY, OWN_CERTIFICATE), *SIMULATED)
    screen.shows("Paste it here")
    eventually(lambda: not termios.tcgetattr(screen.slave)[3] & termios.ECHO)
    screen.process.send_signal(signal.SIGTERM)
    assert screen.wait() == 143
    assert termios.tcgetattr(screen.slave)[:4] == screen.before[:4]


def test_an_open_server_asks_nothing_and_neither_does_one_that_is_away(guarded: Serve, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("node.py", "--server", guarded(Guarded(refusal="")), *SIMULATED)
    away = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED)
    screen.shows("● connected to")
    away.shows("nothing listens on")
    assert b"token" not in screen.raw + away.raw
