"""The server's own key and certificate, and the user's: with real handshakes, by gRPC and by openssl."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import os
import pathlib
import random
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from edge.credentials import SERVER_NAME, Role, authority_of
from edge.fleet.certificates import KEY_FILE, TOKENS_FILE, OwnKey, UserFiles, chosen_folder
from edge.program import Failure
from tests.fixtures.pki import Authority, pem_of
from tests.fixtures.processes import ROOT, environment

ONCE = "from edge.fleet.certificates import *; import pathlib, sys; print(OwnKey(pathlib.Path(sys.argv[1])).public.hex())"


@contextlib.contextmanager
def served(*credentials: grpc.ServerCredentials) -> Iterator[list[int]]:
    """The ports of a server that answers with the names in the client's certificate, one for each credentials."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        names: Any = context.auth_context().get("x509_subject_alternative_name", [request])
        return bytes(names[0])

    handler = grpc.method_handlers_generic_handler("a.S", {"Ask": grpc.unary_unary_rpc_method_handler(answer)})
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[handler])
    ports = [server.add_secure_port("127.0.0.1:0", one) for one in credentials]
    server.start()
    yield ports
    server.stop(0).wait()


def ask(port: int, roots: bytes, name: str = "", pair: tuple[bytes, bytes] = (b"", b"")) -> str:
    """What the server answers on a new connection; what gRPC says where it does not."""
    options: list[tuple[str, Any]] = [("grpc.ssl_target_name_override", name)] if name else []
    options.append(("grpc.use_local_subchannel_pool", 1))  # a new handshake each time
    certificate, key = pair
    credentials = grpc.ssl_channel_credentials(roots, key or None, certificate or None)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        try:
            call: Any = channel.unary_unary("/a.S/Ask")
            return str(call(b"yes", timeout=10), "utf-8")
        except grpc.RpcError as error:
            return str(error.details())


# ---- The server's own ----


def test_the_first_start_makes_a_key_and_the_second_has_the_same(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "a/state"
    first, second = OwnKey(folder), OwnKey(folder, makes=False)
    assert len(first.public) == 33
    assert first.public == second.public
    assert first.secret_of(Role.NODE, "0a1b2c") == second.secret_of(Role.NODE, "0a1b2c")
    assert len({first.secret_of(role, number) for role in Role for number in ("000000", "000001")}) == 4
    assert {len(first.secret_of(role, "000000")) for role in Role} == {15}
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert OwnKey(tmp_path / "b").public != first.public


def test_the_secrets_of_a_key_are_the_same_in_every_version(tmp_path: pathlib.Path) -> None:
    """What was handed out must be valid after an update."""
    (tmp_path / KEY_FILE).write_bytes(pem_of(ec.derive_private_key(7, ec.SECP256R1())))
    (tmp_path / KEY_FILE).chmod(0o600)
    key = OwnKey(tmp_path)
    assert key.public.hex() == "028e533b6fa0bf7b4625bb30667c01fb607ef9f8b8a80fef5b300628703187b2a3"
    assert key.secret_of(Role.NODE, "0a1b2c").hex() == "e932a5f0fe9c4a331eed6e06fdf709"


def test_a_node_that_knows_the_key_trusts_its_certificate_and_no_other(tmp_path: pathlib.Path) -> None:
    key, other = OwnKey(tmp_path / "one"), OwnKey(tmp_path / "two")
    with served(grpc.ssl_server_credentials([key.own_certificate()])) as (port,):
        assert ask(port, authority_of(key.public), SERVER_NAME) == "yes"
        assert "CERTIFICATE_VERIFY_FAILED" in ask(port, authority_of(other.public), SERVER_NAME)
        assert "Hostname Verification" in ask(port, authority_of(key.public), "elsewhere")
    with served(grpc.ssl_server_credentials([key.own_certificate()])) as (port,):  # made anew, as at the next start
        assert ask(port, authority_of(key.public), SERVER_NAME) == "yes"


@pytest.mark.parametrize("year", [1970, 2026, 2199])
def test_openssl_believes_it_in_any_year_and_by_its_strictest_rules(tmp_path: pathlib.Path, year: int) -> None:
    key = OwnKey(tmp_path)
    (tmp_path / "root.pem").write_bytes(authority_of(key.public))
    (tmp_path / "leaf.pem").write_bytes(key.own_certificate().certificate)
    moment = str((year - 1970) * 31_556_952 + 86_400)
    how = ["-x509_strict", "-purpose", "sslserver", "-verify_hostname", SERVER_NAME, "-attime", moment]
    argv = ["openssl", "verify", *how, "-CAfile", str(tmp_path / "root.pem"), str(tmp_path / "leaf.pem")]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert result.stdout.endswith("leaf.pem: OK\n"), result.stderr


def test_several_first_starts_at_once_make_one_key(tmp_path: pathlib.Path) -> None:
    folder = str(tmp_path / "state")
    starts = [subprocess.Popen([sys.executable, "-c", ONCE, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({start.communicate(timeout=30)[0] for start in starts}) == 1
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["lock", KEY_FILE]


def test_a_key_is_never_made_where_one_is_missed(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Failure, match=f"no secure server was started with the state folder {tmp_path}/none: start it"):
        OwnKey(tmp_path / "none", makes=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / TOKENS_FILE).write_text("{}")
    with pytest.raises(Failure, match=f"{tmp_path} has tokens, and the key that they are of is gone: put back"):
        OwnKey(tmp_path)
    assert not (tmp_path / KEY_FILE).exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00" * 100,
        pem_of(ec.generate_private_key(ec.SECP256R1()))[:150],
        pem_of(ec.generate_private_key(ec.SECP384R1())),
        pem_of(ed25519.Ed25519PrivateKey.generate()),
        pem_of(ec.generate_private_key(ec.SECP256R1()), b"password"),
        Authority().pem,
    ],
    ids=["empty", "noise", "cut", "curve", "kind", "password", "certificate"],
)
def test_a_damaged_key_is_told_and_left_alone(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Failure, match=f"{path} is damaged: put back a copy of it"):
        OwnKey(tmp_path)
    assert path.read_bytes() == content


def test_a_key_that_is_not_this_users_alone_is_refused(tmp_path: pathlib.Path) -> None:
    OwnKey(tmp_path)
    path = tmp_path / KEY_FILE
    path.chmod(0o640)
    with pytest.raises(Failure, match=f"others may read {path}, which holds a secret: chmod 600 {path}$"):
        OwnKey(tmp_path)
    path.chmod(0o600)
    os.chown(path, 65534, -1)
    with pytest.raises(Failure, match=f"{path} belongs to another user, nobody: run as nobody, or give another file$"):
        OwnKey(tmp_path)


def test_a_folder_that_cannot_be_used_is_told_with_the_option(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for folder in (tmp_path / "file", tmp_path / "file/state", tmp_path / "loop", pathlib.Path("/proc/state")):
        with pytest.raises(Failure, match=rf"cannot (read|write in) {folder}.*: give --state a folder that this user can"):
            OwnKey(folder)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "given"))
    assert chosen_folder(None) == tmp_path / "given"
    assert chosen_folder(pathlib.Path("x")) == pathlib.Path("x")
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a container's user that nobody knows
    with pytest.raises(Failure, match=r"this user has no home folder.*: give --state a folder"):
        chosen_folder(None)


def test_a_folder_that_is_read_only_serves_once_all_is_there(tmp_path: pathlib.Path) -> None:
    """Configuration management puts the key there, and mounts it read-only."""
    public = OwnKey(tmp_path / "state").public.hex()
    (tmp_path / "empty").mkdir()
    for folder, words in (("state", public), ("empty", "read-only file system: give --state a folder")):
        mount = f"cd {tmp_path}/{folder} && mount --bind . . && mount -o remount,ro,bind {tmp_path}/{folder}"
        script = f"{mount} && cd {ROOT} && exec {sys.executable} -c '{ONCE}' {tmp_path}/{folder}"
        result = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=30, check=False)
        assert words in result.stdout + result.stderr


# ---- The user's ----


def told(files: UserFiles) -> str:
    """What a look at the files says, in words."""
    return "; ".join(text for _, text in files.refresh())


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA"])
def test_a_certificate_of_the_users_authority_is_served_by_its_names(tmp_path: pathlib.Path, kind: str) -> None:
    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}
    key = ec.generate_private_key(curves[kind]) if kind in curves else rsa.generate_private_key(65537, 2048)
    authority = Authority()
    files = UserFiles(*authority.write(tmp_path, "edge.example", "127.0.0.1", key=key), None)
    assert not told(files)
    with served(files.server_credentials(), files.server_credentials()) as ports:  # each port has its own
        for port in ports:
            assert ask(port, authority.pem) == "yes"  # by its address
        assert ask(ports[0], authority.pem, "edge.example") == "yes"
        assert "Hostname Verification" in ask(ports[0], authority.pem, "other.example")
        assert "CERTIFICATE_VERIFY_FAILED" in ask(ports[0], Authority().pem)


def test_a_chain_is_served_whole(tmp_path: pathlib.Path) -> None:
    root = Authority("root")
    between = Authority("between", above=root)
    certificate, key = between.write(tmp_path, "127.0.0.1")
    alone = UserFiles(certificate, key, None)
    certificate.write_bytes(certificate.read_bytes() + between.pem)
    with served(alone.server_credentials(), UserFiles(certificate, key, None).server_credentials()) as (bare, whole):
        assert "CERTIFICATE_VERIFY_FAILED" in ask(bare, root.pem)
        assert ask(whole, root.pem) == "yes"
    certificate.write_bytes(between.pem + certificate.read_bytes())
    with pytest.raises(Failure, match=r"own certificate is not the first in .* \(--tls-cert\): put it above the others"):
        UserFiles(certificate, key, None)


def test_with_client_ca_only_its_certificates_come_in(tmp_path: pathlib.Path) -> None:
    authority, nodes = Authority(), Authority("nodes")
    (tmp_path / "nodes.pem").write_bytes(nodes.pem)
    files = UserFiles(*authority.write(tmp_path, "127.0.0.1"), tmp_path / "nodes.pem")
    with served(files.server_credentials()) as (port,):
        assert ask(port, authority.pem, pair=nodes.issue("gpu-07")) == "gpu-07"
        assert ask(port, authority.pem) != "yes"
        assert ask(port, authority.pem, pair=authority.issue("gpu-07")) != "gpu-07"


def test_files_are_read_again_when_they_have_changed_and_are_at_rest(tmp_path: pathlib.Path) -> None:
    old, new = Authority("old"), Authority("new")
    certificate, key = old.write(tmp_path, "127.0.0.1")
    files = UserFiles(certificate, key, None)
    with served(files.server_credentials(), files.server_credentials()) as ports:
        assert [ask(port, old.pem) for port in ports] == ["yes", "yes"]
        fresh, fresh_key = new.issue("127.0.0.1")
        certificate.write_bytes(fresh)
        assert not told(files)  # the key is not there yet: nothing is said of it
        key.write_bytes(fresh_key)
        assert not told(files)
        assert [ask(port, old.pem) for port in ports] == ["yes", "yes"]
        ((kind, text),) = files.refresh()
        assert kind == "renewed"
        assert re.fullmatch(rf"the certificate files are read again: {certificate} is valid until 20[\d: -]+", text)
        assert not told(files)
        os.utime(key)
        assert [told(files) for _ in range(3)] == ["", "", ""]  # they are as they were
        assert [ask(port, new.pem) for port in ports] == ["yes", "yes"]
        assert "CERTIFICATE_VERIFY_FAILED" in ask(ports[0], old.pem)

        key.write_bytes(b"nonsense")
        said = [told(files) for _ in range(4)]
        assert said[:1] + said[2:] == ["", "", ""]
        assert said[1] == f"{key} (--tls-key) has no private key in PEM that can be read; what was read before stays in use"
        certificate.unlink()
        said = [told(files) for _ in range(4)]
        assert said[:1] + said[2:] == ["", "", ""]
        assert f"cannot read {certificate} (--tls-cert): no such file or directory; what was read before" in said[1]
        assert [ask(port, new.pem) for port in ports] == ["yes", "yes"]

        old.write(tmp_path, "127.0.0.1")
        assert [bool(told(files)) for _ in range(3)] == [False, True, False]
        assert [ask(port, old.pem) for port in ports] == ["yes", "yes"]


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (("gpu.example", "10.0.0.5"), "gpu.example"),
        (("10.0.0.5", "gpu.example"), "10.0.0.5"),
        (("fd00::5",), "fd00::5"),
        (("localhost", "127.0.0.1", "::1", "*.gpu.example", "gpu.example"), "gpu.example"),
        (("localhost",), "localhost"),
        (("*.example",), ""),
        (("a b; reboot", "$x"), ""),  # nothing for a shell
    ],
)
def test_the_name_that_nodes_are_told_to_go_to(tmp_path: pathlib.Path, names: tuple[str, ...], name: str) -> None:
    certificate, key = Authority().issue(*names)
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    for path, content in zip(paths, (certificate, key), strict=True):
        path.write_bytes(content)
    assert UserFiles(*paths, None).name == name


def test_a_client_ca_is_read_again_too(tmp_path: pathlib.Path) -> None:
    authority, old, new = Authority(), Authority("old"), Authority("new")
    (tmp_path / "nodes.pem").write_bytes(old.pem)
    files = UserFiles(*authority.write(tmp_path, "127.0.0.1"), tmp_path / "nodes.pem")
    with served(files.server_credentials()) as (port,):
        (tmp_path / "nodes.pem").write_bytes(new.pem)
        assert [bool(told(files)) for _ in range(2)] == [False, True]
        assert ask(port, authority.pem, pair=new.issue("gpu-07")) == "gpu-07"
        assert ask(port, authority.pem, pair=old.issue("gpu-07")) != "gpu-07"


def test_a_link_that_is_turned_is_a_change(tmp_path: pathlib.Path) -> None:
    """As certbot and Kubernetes put new ones there."""
    old, new = Authority("old"), Authority("new")
    for folder, authority in (("1", old), ("2", new)):
        (tmp_path / folder).mkdir()
        authority.write(tmp_path / folder, "127.0.0.1")
    (tmp_path / "live").symlink_to("1")
    files = UserFiles(tmp_path / "live/127.0.0.1.pem", tmp_path / "live/127.0.0.1-key.pem", None)
    with served(files.server_credentials()) as (port,):
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").replace(tmp_path / "live")
        assert [bool(told(files)) for _ in range(2)] == [False, True]
        assert ask(port, new.pem) == "yes"


def test_a_certificate_out_of_its_time_is_a_warning(tmp_path: pathlib.Path) -> None:
    authority = Authority()
    certificate, key = authority.write(tmp_path, "127.0.0.1", begins_in_days=-40)
    files = UserFiles(certificate, key, None)
    assert "expired at 20" in told(files)
    assert not told(files)
    authority.write(tmp_path, "127.0.0.1", begins_in_days=1)
    said = [told(files) for _ in range(3)]
    assert (said[0], said[2]) == ("", "")
    assert re.search("read again.*; the certificate in .* is valid from", said[1])
    assert "is valid from" in told(UserFiles(certificate, key, None))
    authority.write(tmp_path, "127.0.0.1")
    now = [1e9]
    files = UserFiles(certificate, key, None, wall=lambda: now[0])
    assert "is valid from" in told(files)
    now[0] = 4e9  # what runs for long sees the end of it
    assert "expired at" in told(files)
    key.chmod(0o644)
    assert f"everyone on this machine can read the key in {key}: chmod o= {key}" in told(UserFiles(certificate, key, None))


def test_what_is_wrong_with_the_users_files_is_said_in_a_sentence(tmp_path: pathlib.Path) -> None:
    authority = Authority()
    certificate, key = authority.write(tmp_path, "127.0.0.1")
    _, other_key = authority.write(tmp_path, "localhost")

    def made(name: str, content: bytes) -> pathlib.Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    private = load_pem_private_key(key.read_bytes(), None)
    encrypted = made("encrypted", pem_of(private, b"password"))
    edwards = made("edwards", pem_of(ed25519.Ed25519PrivateKey.generate()))
    curve = made("curve", pem_of(ec.generate_private_key(ec.SECP521R1())))
    nothing, cut = made("nothing", b""), made("cut", certificate.read_bytes()[:200])
    large = made("large", b"x" * (2**20 + 1))
    none, folder = tmp_path / "none", tmp_path
    os.mkfifo(tmp_path / "pipe")
    for files, words in (
        ((none, key, None), f"cannot read {none} (--tls-cert): no such file or directory"),
        ((certificate, none, None), f"cannot read {none} (--tls-key): no such file"),
        ((certificate, key, none), f"cannot read {none} (--client-ca): no such file"),
        ((folder, key, None), f"{folder} (--tls-cert) is no file"),
        ((certificate, tmp_path / "pipe", None), f"{tmp_path}/pipe (--tls-key) is no file"),
        ((nothing, key, None), f"{nothing} (--tls-cert) has no certificate in PEM"),
        ((cut, key, None), f"{cut} (--tls-cert) has no certificate in PEM"),
        ((key, certificate, None), f"{key} (--tls-cert) has no certificate in PEM"),
        ((large, key, None), f"{large} (--tls-cert) is too large"),
        ((certificate, nothing, None), f"{nothing} (--tls-key) has no private key in PEM"),
        ((certificate, certificate, None), f"{certificate} (--tls-key) has no private key in PEM"),
        ((certificate, encrypted, None), f"{encrypted} (--tls-key) has a password: openssl pkey -in FILE -out NEW takes"),
        ((certificate, other_key, None), f"the key in {other_key} (--tls-key) is not that of the certificate in {certificate}"),
        ((certificate, edwards, None), f"the key in {edwards} (--tls-key) is of a kind that gRPC does not take"),
        ((certificate, curve, None), f"the key in {curve} (--tls-key) is of a kind that gRPC does not take"),
        ((certificate, key, key), f"{key} (--client-ca) has no certificate in PEM"),
    ):  # fmt: skip
        with pytest.raises(Failure) as caught:
            UserFiles(*files)
        assert words in str(caught.value)


def test_whatever_is_changed_in_the_files_costs_a_sentence(tmp_path: pathlib.Path) -> None:
    source = random.Random(5)
    paths = Authority().write(tmp_path, "127.0.0.1")
    good = {path: path.read_bytes() for path in paths}
    version = b"\xa0\x03\x02\x01\x02"

    def changed(pem: bytes, place: int, value: int) -> bytes:
        first, *lines, last = pem.splitlines()
        content = bytearray(base64.b64decode(b"".join(lines)))
        content[place % len(content)] = value
        return b"\n".join([first, base64.encodebytes(content).strip(), last, b""])

    whole = base64.b64decode(b"".join(good[paths[0]].splitlines()[1:-1]))
    changes = [(paths[0], whole.index(version) + 4, 9)]
    changes += [(source.choice(paths), source.randrange(1000), source.randrange(256)) for _ in range(200)]
    for path, place, value in changes:
        path.write_bytes(changed(good[path], place, value))
        with contextlib.suppress(Failure):
            UserFiles(*paths, None).refresh()
        path.write_bytes(good[path])


def test_key_and_certificate_may_be_in_one_file_as_openssl_writes_it(tmp_path: pathlib.Path) -> None:
    parameters = subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey"], capture_output=True, check=True).stdout
    authority = Authority()
    certificate, _ = authority.issue("127.0.0.1", key=load_pem_private_key(parameters, None))
    (tmp_path / "all.pem").write_bytes(parameters.replace(b"\n", b"\r\n") + certificate)
    files = UserFiles(tmp_path / "all.pem", tmp_path / "all.pem", None)
    with served(files.server_credentials()) as (port,):
        assert ask(port, authority.pem) == "yes"


def test_an_open_server_does_not_load_the_library_of_certificates() -> None:
    code = "import server, edge.fleet.certificates, sys; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=False).returncode == 0
