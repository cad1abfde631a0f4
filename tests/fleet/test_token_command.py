"""`server.pyz token`: what it prints where, and what it makes of bad input."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from edge.command_line import Endpoint
from edge.credentials import Role, parse_token
from edge.fleet.certificates import KEY_FILE, TOKENS_FILE, OwnKey
from edge.fleet.token_command import main, parse_lifetime
from edge.fleet.tokens import Tokens
from tests.fixtures.processes import ROOT, environment

DAY = 86400
ALONE = "import sys; from edge.fleet.token_command import main; sys.exit(main(sys.argv[1:]))"  # in a process of its own
FOLLOWS = "a running server ends its sessions, and lets nobody in by it, within 2 s"


class Command:
    """The command, on a folder."""

    def __init__(self, folder: pathlib.Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capture = folder, capture

    def __call__(self, *argv: str, code: int = 0) -> tuple[str, str]:
        """What it prints to stdout and stderr."""
        self._capture.readouterr()
        assert main([*argv, "--state", str(self.folder)]) == code
        said = self._capture.readouterr()
        return said.out, said.err

    def tokens(self) -> Tokens:
        return Tokens(self.folder, OwnKey(self.folder, makes=False))


@pytest.fixture
def command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    for name in [name for name in os.environ if name.startswith("EDGE_")]:
        monkeypatch.delenv(name)
    return Command(tmp_path / "state", capsys)


@pytest.fixture
def started(command: Command) -> Command:
    """A server was started there."""
    Tokens(command.folder, OwnKey(command.folder), names_key=True)
    return command


def test_new_prints_the_token_alone(command: Command) -> None:
    out, err = command("new", "--note", "rack 7", "--expires", "7d")
    token = parse_token(out)
    assert out == token.text() + "\n"
    issued = command.tokens().issued()[-1]  # it may be made before the first start of the server, which finds it there
    assert command.tokens().token_of(issued) == token
    assert (issued.id, issued.role, issued.note) == (token.id, Role.NODE, "rack 7")
    assert issued.expires == pytest.approx(issued.created + 7 * DAY, abs=5)
    first, err = err.split("\n", 1)
    assert first == f"no secure server has been started with {command.folder} yet: its key is made now"
    assert re.fullmatch(rf"token {token.id} \(rack 7\), to report, valid until 20\d\d-\d\d-\d\d [\d:]+:\n", err)
    out, err = command("new", "--role", "view")
    assert parse_token(out).role is Role.VIEW
    assert err == f"token {parse_token(out).id}, to look, valid until it is revoked:\n"


def test_new_makes_no_key_where_no_folder_is_named(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(command.folder))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    for variable in ("", "STATE_DIRECTORY"):
        if variable:
            monkeypatch.setenv(variable, str(command.folder))
        assert main(["new"]) == 1
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith(f"server: no secure server was started with the state folder {command.folder}")
        assert not command.folder.exists()
    monkeypatch.setenv("EDGE_STATE", str(command.folder))
    assert main(["new"]) == 0
    assert capsys.readouterr().err.startswith(f"no secure server has been started with {command.folder} yet")


def test_list_says_what_to_do_and_shows_all_tokens(started: Command) -> None:
    node, view = started.tokens().issued()
    started.tokens().set_listening([Endpoint("10.0.0.5", 6000)])
    out, _ = started("new", "--note", "\x1b[31m日本")
    late = parse_token(out)
    started("revoke", view.id)
    out, err = started("list")
    assert not err
    told, _, table = out.partition("\n\n")
    text = started.tokens().offered(Role.NODE).text
    assert parse_token(text).id == node.id  # not the newest: it may have been made for one site
    assert f"\nPaste this token ({node.id}, first start) at its prompt:\n{text}\n" in told
    assert "python3 node.pyz --server 10.0.0.5:6000" in told
    assert f"EDGE_TOKEN={text} python3 node.pyz" in told
    rows = [re.split("  +", line) for line in table.splitlines()]
    assert rows[0] == ["ID", "ROLE", "STATE", "CREATED", "EXPIRES", "NOTE"]
    assert [row[:3] + row[4:] for row in rows[1:]] == [
        [node.id, "node", "valid", "never", "first start"],
        [text],  # at the left edge, for a mouse
        [view.id, "view", "revoked", "never", "first start"],
        [late.id, "node", "valid", "never", "�[31m日本"],
        [late.text()],
    ]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", rows[1][3])
    started("new", "--expires", "36500d", "--note", "rack 7, oslo 12")
    assert max(map(len, started("list")[0].partition("\n\n")[2].splitlines())) == 80


def test_list_tells_how_the_server_proves_itself(started: Command) -> None:
    Tokens(started.folder, OwnKey(started.folder), names_key=False)
    out, _ = started("list")
    assert re.search(r"python3 node.pyz --server \S+ --ca FILE\n", out)
    assert "EDGE_TOKEN=" in out
    Tokens(started.folder, OwnKey(started.folder), names_key=False, by_certificates=True)
    started.tokens().set_listening([Endpoint("10.0.0.5", 50051)])
    out, _ = started("list")
    assert "python3 node.pyz --server 10.0.0.5 --ca CA-FILE --tls-cert FILE --tls-key FILE --id NAME\n" in out
    assert "EDGE_TOKEN=" not in out


def test_list_tells_how_a_box_gets_its_agent(started: Command) -> None:
    """Nothing else does, where the server has no screen: the key is not in the log."""
    proof = f"-fk --pinnedpubkey 'sha256//{started.tokens().pin}' -u view"
    bound = [Endpoint("10.0.0.5", 6000)]
    started.tokens().set_listening(bound)
    words = "With --http 0.0.0.0:PORT at the server, to get node.pyz on a box (its password is the view token): curl"
    assert f"\n{words} {proof} -O https://10.0.0.5:PORT/node.pyz\n" in started("list")[0]
    started.tokens().set_listening(bound, Endpoint("10.0.0.5", 8080))
    out, _ = started("list")
    assert f"To get node.pyz on a box (its password is the view token): curl {proof} -O https://10.0.0.5:8080/node.pyz\n" in out
    assert "(any user name, the view token as password): https://10.0.0.5:8080/\n" in out and "PORT" not in out
    started.tokens().set_listening(bound, Endpoint("127.0.0.1", 8080))
    out, _ = started("list")
    assert "this machine alone reaches 127.0.0.1:8080. For boxes: --http 0.0.0.0:8080\n" in out and "curl" not in out
    Tokens(started.folder, OwnKey(started.folder), names_key=False)
    started.tokens().set_listening(bound, Endpoint("fleet.example", 8080))
    assert "curl -f --cacert FILE -u view -O https://fleet.example:8080/node.pyz\n" in started("list")[0]


def test_an_expired_one_is_shown_without_its_token(started: Command) -> None:
    issued = started.tokens().issue(Role.NODE, "", 1e9)
    out, _ = started("list")
    assert re.search(rf"\n{issued.id}  node  expired  .*  2001-09-0\d [\d:]+  —\n", out)


def test_revoke_twice_is_as_once_and_the_last_node_token_is_warned_of(started: Command) -> None:
    node, view = started.tokens().issued()
    assert started("revoke", view.id) == (f"token {view.id} (first start) is revoked: {FOLLOWS}\n", "")
    again, err = started("revoke", view.id)
    assert re.fullmatch(rf"token {view.id} \(first start\) was revoked at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d: it stays so\n", again)
    assert not err
    out, err = started("revoke", node.id)
    assert out.startswith(f"token {node.id} (first start) is revoked: ")
    assert err == "no node token is valid now: python3 server.pyz token new makes one\n"
    out, _ = started("list")
    assert f"No node token is valid. Make one here: python3 server.pyz token new --role node --state {started.folder}\n" in out


def test_what_is_not_there_is_said(command: Command, tmp_path: pathlib.Path) -> None:
    for argv in (("list",), ("revoke", "0a1b2c")):
        out, err = command(*argv, code=1)
        assert not out
        assert err == (
            f"server: no secure server was started with the state folder {command.folder}: start it with "
            f"python3 server.pyz --secure, or name its folder with --state\n"
        )
        assert not command.folder.exists()  # and none is made by looking
    token, _ = command("new")
    for name in ("zz", token.strip(), ""):
        _, err = command("revoke", name, code=1)
        assert err.startswith("server: a token is named by its id, six hexadecimal digits, or the first of them: python3")
    key = command.folder / KEY_FILE
    key.chmod(0o644)
    for argv in (("list",), ("new",), ("revoke", "0")):
        _, err = command(*argv, code=1)
        assert err == f"server: others may read {key}, which holds a secret: chmod 600 {key}\n"
    (tmp_path / "file").touch()
    command.folder = tmp_path / "file"
    for argv in (("list",), ("new",)):
        _, err = command(*argv, code=1)
        assert err.startswith(f"server: cannot read {tmp_path}/file/{KEY_FILE}: not a directory: give --state a folder")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "the following arguments are required: new|list|revoke"),
        (("show",), "argument new|list|revoke: invalid choice: 'show'"),
        (("list", "--role", "node"), "unrecognized arguments: --role node"),
        (("new", "--role", "admin"), "argument --role: 'admin' is none of node, view"),
        (("new", "--role", "node", "--role", "view"), "argument --role: give it once"),
        (("new", "--expires", "soon"), "argument --expires: 'soon' is no time to live: write a number and s, m, h, d or w"),
        (("new", "rack"), "unrecognized arguments: rack"),
        (("revoke",), "the following arguments are required: ID"),
        (("list", "--state", ""), "argument --state: it is empty: name a file or a folder"),
    ],
)
def test_a_command_line_that_is_not_understood(argv: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"server: {words}")
    assert said.err.endswith("try python3 server.pyz token --help\n")
    assert not said.out


@pytest.mark.parametrize("argv", [("--help",), ("new", "--help"), ("list", "--help"), ("revoke", "--help")])
def test_help_is_for_this_command(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python3 server.pyz token ")


def test_times_to_live() -> None:
    for text, seconds in (("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 7 * DAY), (" 4w ", 28 * DAY), ("36500d", 36500 * DAY)):
        assert parse_lifetime(text) == seconds
    for text in ("", "7", "d", "0d", "-1d", "1.5h", "7D", "7 d", "1e3s", "٧d", "36501d", "9" * 13 + "s", "7d7h", "inf", "never"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no time to live: write a number and s, m, h, d or w"):
            parse_lifetime(text)


def test_a_note_that_is_too_long_is_refused(started: Command) -> None:
    _, err = started("new", "--note", "x" * 81, code=1)
    assert err == "server: a note has at most 80 characters: shorten it\n"
    assert len(started.tokens().issued()) == 2


def test_the_folder_may_come_from_the_environment(
    started: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = started.tokens().issued()[0].id
    for name in ("EDGE_STATE", "STATE_DIRECTORY"):
        monkeypatch.setenv(name, str(started.folder))
        assert main(["list"]) == 0
        assert node in capsys.readouterr().out
        monkeypatch.delenv(name)


def test_several_at_once_are_all_kept(started: Command) -> None:
    argv = [sys.executable, "-c", ALONE, "new", "--state", str(started.folder)]
    many = [
        subprocess.Popen(argv, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    made = {parse_token(one.communicate(timeout=30)[0]).id for one in many}
    assert {one.id for one in started.tokens().issued()[2:]} == made
    assert len(made) == 2
    assert sorted(path.name for path in started.folder.iterdir()) == ["lock", KEY_FILE, TOKENS_FILE]


def test_a_closed_pipe_ends_it_quietly(started: Command) -> None:
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-c", ALONE, "list", "--state", str(started.folder)]
    result = subprocess.run(argv, cwd=ROOT, env=environment(), stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="takes /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("is_closed", [False, True])
def test_a_token_that_could_not_be_shown_is_revoked(started: Command, is_closed: bool) -> None:
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-c", ALONE, "new", "--note", "rack 7", "--state", str(started.folder)]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        out = write if is_closed else full
        result = subprocess.run(argv, cwd=ROOT, env=environment(), stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    issued = started.tokens().issued()[-1]
    assert issued.note == "rack 7"
    assert issued.revoked is not None
    said = result.stderr.splitlines()[1:]
    assert said[0] == f"nobody has seen token {issued.id} (rack 7): it is revoked"
    assert said[1:] == ([] if is_closed else ["server: cannot write: no space left on device"])
    assert result.returncode == (128 + signal.SIGPIPE if is_closed else 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_root_works_on_the_folder_of_a_service_as_its_user(tmp_path: pathlib.Path) -> None:
    """systemd keeps it below a folder that is closed to that very user."""
    closed, folder = tmp_path / "private", tmp_path / "private/edge-server"
    closed.mkdir(mode=0o700)
    Tokens(folder, OwnKey(folder), names_key=True)
    for path in (folder, *folder.iterdir()):
        os.chown(path, 54321, 54321)
    (tmp_path / "edge-server").symlink_to(folder)
    command = [sys.executable, "-c", ALONE, "new", "--state", str(tmp_path / "edge-server")]
    new = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert new.returncode == 0, new.stderr
    assert {path.stat().st_uid for path in folder.iterdir()} == {54321}
    assert len(parse_token(new.stdout).id) == 6
