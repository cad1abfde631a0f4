"""The page, the agent and its checksum, as they lie there."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from edge.web import files
from edge.web.files import page_headers, sources_of
from tests.fixtures.sessions import Serving
from tests.fixtures.web import ask

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where server.pyz and node.pyz lie."""
    (tmp_path / "node.pyz").write_bytes(CONTENT)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "server.pyz")])
    return tmp_path


@pytest.fixture
def serving(folder: pathlib.Path) -> Iterator[Serving]:
    assert folder
    here = Serving(http=True)
    yield here
    here.network.stop()


# ---- The page ----


def test_the_page_may_run_what_it_has_and_nothing_else(serving: Serving) -> None:
    answer = ask(serving.http)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert policy.pop("script-src") == hashes(answer.text, "script")
    assert policy.pop("style-src") == hashes(answer.text, "style")
    assert policy.pop("connect-src") == "'self'"
    assert policy.pop("img-src") == "data:"
    assert policy == dict.fromkeys(("default-src", "frame-ancestors", "base-uri", "form-action"), "'none'")


def hashes(page: str, element: str) -> str:
    """Of the elements of this kind, found by another way."""
    parts = [part.split(f"</{element}>")[0] for part in re.split(rf"<{element}[^>]*>", page)[1:]]
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts) or "'none'"


def test_the_hash_of_a_script_is_that_of_its_text() -> None:
    page = b"<style>\n a{}\n</style><script type=module>\nlet a = 1\n</script><p>script</p>"
    digest = base64.b64encode(hashlib.sha256(b"\nlet a = 1\n").digest()).decode()
    assert sources_of(page, b"script") == f"'sha256-{digest}'"
    assert sources_of(b"<scripts>x</scripts>", b"script") == "'none'"
    assert page_headers(page)["etag"] != page_headers(page + b" ")["etag"]


def test_a_page_that_changes_while_it_is_served_has_the_policy_that_fits(
    serving: Serving, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = folder / "page.html"
    monkeypatch.setattr(files, "PAGE", page)
    page.write_text("<script>1</script>")
    before = ask(serving.http)
    page.write_text("<script>2 + 2</script>")
    after = ask(serving.http)
    assert (before.text, after.text) == ("<script>1</script>", "<script>2 + 2</script>")
    assert before.headers["Content-Security-Policy"] != after.headers["Content-Security-Policy"]
    assert hashes(after.text, "script") in after.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/", "/node.pyz"])
def test_what_a_client_has_already_is_not_sent_again(serving: Serving, path: str) -> None:
    first = ask(serving.http, path, "HEAD").headers
    again = ask(serving.http, path, If_None_Match=first["ETag"])
    assert (again.status, again.text, again.headers["ETag"]) == (304, "", first["ETag"])
    assert again.headers["Cache-Control"] == "no-cache"
    assert ask(serving.http, path, "HEAD", If_None_Match='"another"').status == 200
    assert ask(serving.http, path, "HEAD", If_None_Match='"another", W/' + first["ETag"]).status == 304


def test_the_page_is_packed_where_that_is_asked_for_and_is_kept_under_another_tag(serving: Serving) -> None:
    plain = ask(serving.http)
    packed = fetched(serving, "gzip")
    assert gzip.decompress(packed.body).decode() == plain.text
    assert len(packed.body) < len(plain.text) / 3
    assert (packed.headers["Content-Encoding"], packed.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert packed.headers["ETag"] != plain.headers["ETag"]
    again = fetched(serving, "gzip", packed.headers["ETag"])
    assert (again.status, again.body, again.headers["Content-Encoding"]) == (304, b"", None)
    assert (again.headers["Vary"], again.headers["ETag"]) == ("Accept-Encoding", packed.headers["ETag"])
    assert fetched(serving, "identity", packed.headers["ETag"]).status == 200


class Fetched(NamedTuple):
    """The page, or what is said instead, as it came."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def fetched(serving: Serving, encoding: str, tag: str = "") -> Fetched:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(serving.http).netloc, timeout=10)) as connection:
        connection.request("GET", "/", headers={"accept-encoding": encoding, "if-none-match": tag})
        answer = connection.getresponse()
        return Fetched(answer.status, answer.headers, answer.read())


# ---- The agent ----

curl = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")


@curl
@pytest.mark.parametrize("has_sums", [False, True])
def test_a_box_gets_its_agent_from_the_server(serving: Serving, folder: pathlib.Path, has_sums: bool) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    if has_sums:
        (folder / "SHA256SUMS").write_text(f"{digest}  node.pyz\n{'0' * 64}  server.pyz\n")
    box = folder / "box"
    box.mkdir()
    for name in ("node.pyz", "SHA256SUMS"):
        subprocess.run(["curl", "-sSfO", f"{serving.http}/{name}"], cwd=box, check=True)
    assert (box / "node.pyz").read_bytes() == CONTENT
    checked = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=box, check=True, capture_output=True, text=True)
    assert checked.stdout == "node.pyz: OK\n"
    (box / "node.pyz").write_bytes(CONTENT[:100_000])  # broken off
    subprocess.run(["curl", "-sSfC", "-", "-O", f"{serving.http}/node.pyz"], cwd=box, check=True)
    assert (box / "node.pyz").read_bytes() == CONTENT


def test_the_checksum_is_of_the_agent_that_lies_there_now(serving: Serving, folder: pathlib.Path) -> None:
    before = ask(serving.http, "/SHA256SUMS").text
    (folder / "node.pyz").write_bytes(b"another")
    assert ask(serving.http, "/SHA256SUMS").text == f"{hashlib.sha256(b'another').hexdigest()}  node.pyz\n" != before
    assert ask(serving.http, "/node.pyz").text == "another"


@pytest.mark.parametrize(
    "kept",
    [b"", b"\xff\n" * 9, f"{'0' * 64}  other.pyz\n{'0' * 64}  xnode.pyz\n{'0' * 64}  node.pyz.old\n".encode(), None],
    ids=["empty", "garbage", "others", "folder"],
)
def test_sums_that_do_not_name_the_agent_are_as_none(serving: Serving, folder: pathlib.Path, kept: bytes | None) -> None:
    if kept is None:
        (folder / "SHA256SUMS").mkdir()
    else:
        (folder / "SHA256SUMS").write_bytes(kept)
    assert ask(serving.http, "/SHA256SUMS").text == f"{hashlib.sha256(CONTENT).hexdigest()}  node.pyz\n"


def test_the_sums_that_lie_there_tell_of_an_agent_that_is_damaged(serving: Serving, folder: pathlib.Path) -> None:
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  server.pyz\n{'1' * 64} *node.pyz\n")
    assert ask(serving.http, "/SHA256SUMS").text == f"{'1' * 64} *node.pyz\n"


@pytest.mark.parametrize("kind", ["gone", "a folder", "a pipe", "nobody's"])
def test_an_agent_that_is_not_there_is_told(serving: Serving, folder: pathlib.Path, kind: str) -> None:
    agent = folder / "node.pyz"
    agent.unlink()
    if kind == "a folder":
        agent.mkdir()
    elif kind == "a pipe":
        os.mkfifo(agent)
    elif kind == "nobody's":
        agent.symlink_to(folder / "nothing")
    for path in ("/node.pyz", "/SHA256SUMS"):
        answer = ask(serving.http, path)
        assert (answer.status, answer.text.partition(":")[0]) == (404, "there is no node.pyz beside server.pyz"), answer


def test_an_agent_may_come_and_go_while_the_server_runs(folder: pathlib.Path, serving: Serving) -> None:
    agent = folder / "node.pyz"
    for _ in range(2):
        agent.unlink()
        assert [ask(serving.http, path).status for path in ("/node.pyz", "/SHA256SUMS")] == [404, 404]
        agent.write_bytes(b"newer")
        assert ask(serving.http, "/node.pyz").text == "newer"
        assert ask(serving.http, "/SHA256SUMS").text == f"{hashlib.sha256(b'newer').hexdigest()}  node.pyz\n"
