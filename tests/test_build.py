"""Tests of build.py and of the two files that people copy: the real .pyz, under every Python here, in every trap met so far.

Some need root, a mount namespace or Debian's packages, and say so when they are skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import build
from pyz import bootstrap
from tests.fixtures.foreign import ARCHITECTURES, foreign_python
from tests.fixtures.processes import EXECUTE, ROOT, Program, Terminal, eventually, starting

STRANGER = 12345  # a user id that is neither root's nor ours
NAME = "edge-compute-node"
Damage = Callable[[Path], object]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


# What a server does to be secure, and nothing else: the end of server.py, in its stead.
MAKE_CERTIFICATE = """

def make(_options: argparse.Namespace) -> int:
    from datetime import datetime
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
    key = ec.generate_private_key(ec.SECP256R1())
    key = load_pem_private_key(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), None)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server.pyz")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(1950, 1, 1), datetime(9999, 12, 31))
    certificate = x509.load_pem_x509_certificate(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    certificate.verify_directly_issued_by(certificate)
    print("made with", x509.__file__)
    return 0


def main() -> int:
    return main_of("server", lambda _: argparse.Namespace(debug=False), make, None)
"""


class Interpreter(NamedTuple):
    """A Python of this machine."""

    path: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return "{}.{}".format(*self.version)


def find_interpreters() -> list[Interpreter]:
    """Returns a Python of each version that this machine has, the one that runs this first, then pyenv's and those in the PATH."""
    paths = [getattr(sys, "_base_executable", sys.executable), *map(str, Path.home().glob(".pyenv/versions/*/bin/python"))]
    paths += [str(path) for folder in os.get_exec_path() for path in Path(folder).glob("python[23]*") if path.name[-1].isdigit()]
    found: dict[tuple[int, int], Interpreter] = {}
    for path in paths:
        if version := ask_version(path):
            found.setdefault(version, Interpreter(path, version))
    return list(found.values())


def ask_version(path: str) -> tuple[int, int] | None:
    """Returns a Python's version; None if it does not run, as pyenv's shims where none is chosen."""
    with contextlib.suppress(OSError):
        asked = subprocess.run([path, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=False)
        if match := re.fullmatch(r"\((\d), (\d+)\)\n", asked.stdout):
            return int(match[1]), int(match[2])
    return None


INTERPRETERS = find_interpreters()
NEW = [python for python in INTERPRETERS if (3, 10) <= python.version <= (3, 15)]
PUBLIC = Interpreter("/usr/bin/python3", ask_version("/usr/bin/python3") or (0, 0))
needs_public_python = pytest.mark.skipif(PUBLIC.version < (3, 10), reason="no new Python that every user may run")
OLD = [python for python in INTERPRETERS if python.version < (3, 10)]
HERE = NEW[0]
every_new_python = pytest.mark.parametrize("python", NEW, ids=str)
EMULATED = ("cp314-linux-aarch64", "cp315-linux-aarch64", "cp314-linux-armv7l")
ABROAD = ("cp314-linux-x86_64", "cp315-linux-x86_64", "cp311-linux-aarch64", *EMULATED)  # whose Pythons are Debian's


@pytest.fixture(scope="module")
def abroad() -> Iterator[None]:
    """Debian's other Pythons come from afar: they are fetched while other tests go on."""

    def fetch(targets: list[str]) -> None:
        for target in targets:
            with contextlib.suppress(pytest.skip.Exception):  # the test that needs it says why
                find_foreign(target)

    with ThreadPoolExecutor() as pool:
        for processor in ARCHITECTURES:
            pool.submit(fetch, [target for target in ABROAD if target.endswith(processor)])
        yield


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Both programs as they are released: for all of Linux. In a folder that every user can read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        build.pack(build.parse_target("linux"), dist=Path(folder, "dist"))
        yield Path(folder, "dist")


class Box:
    """A machine that a file is copied to: a home, and a temporary folder. No one else has put anything there."""

    def __init__(self, folder: Path, dist: Path) -> None:
        self.home = folder / "home"
        self.temporary = folder / "tmp"
        self.dist = dist
        for made in (self.home, self.temporary):
            made.mkdir()

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / NAME

    def environment(self, **changes: str) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": str(self.temporary), "LANG": "C.UTF-8", **changes}

    def run(
        self, *, python: Interpreter = HERE, program: str = "node", before: tuple[str, ...] = (), user: int = 0, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """Starts a program that tells its version, after the beginning of a command, as a user, with a changed environment."""
        command = [*before, python.path, str(self.dist / f"{program}.pyz"), "--version"]
        identity: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
        return subprocess.run(
            command, env=self.environment(**changes), cwd="/", capture_output=True, text=True, check=False, timeout=120, **identity
        )

    def tree(self, title: str = "cp") -> Path:
        """The one tree of this title: of libraries, if it is not named."""
        (tree,) = self.cache.glob(f"{title}*-*")
        return tree


@pytest.fixture
def box(dist: Path) -> Iterator[Box]:
    """A box that every user may look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Box(Path(folder), dist)


@pytest.fixture(scope="session")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of a server that makes a certificate and ends, and in dist/ what is packed of them for all of Linux."""
    folder = tmp_path_factory.mktemp("maker")
    copy_sources(folder)
    with (folder / "server.py").open("a") as source:
        source.write(MAKE_CERTIFICATE)
    build.pack(build.parse_target("linux"), source=folder, dist=folder / "dist")
    return folder


def make_certificate(box: Box, server: Path, *python: str, **changes: str) -> Path:
    """Has a server make a key and a certificate. Returns the tree of the libraries that it did it with."""
    command = [*python, str(server)]
    done = subprocess.run(command, env=box.environment(**changes), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.removeprefix("made with ")).parents[2]


@pytest.fixture
def mount() -> Callable[..., tuple[str, ...]]:
    """Makes the beginning of a command that runs the rest of it with tmpfs mounted in places, seen by no one else."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    try:
        subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", "/var/tmp"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a mount namespace")

    def prefix(**options: str) -> tuple[str, ...]:
        mounts = "".join(f"mount -t tmpfs -o {option} none {place} && " for place, option in options.items())
        return (*unshare, "sh", "-c", mounts + 'exec "$0" "$@"')

    return prefix


def expect_version(done: subprocess.CompletedProcess[str]) -> Path:
    """Checks that a program started and told its version; returns where its libraries lie."""
    assert done.returncode == 0, done.stderr
    match = re.fullmatch(r"(?:node|server) [\d.]+ \(Python [\d.]+, target cp3\d+-linux-\w+, unpacked in (.*)\)\n", done.stdout)
    assert match, done.stdout
    return Path(match[1])


def expect_sentence(done: subprocess.CompletedProcess[str], pattern: str) -> None:
    """Checks that a program ended with this one sentence and nothing else."""
    assert done.returncode == 1
    assert re.fullmatch(pattern, done.stderr.strip()), done.stderr
    assert done.stdout == ""


def find_damaged(pyz: Path, cache: Path) -> list[str]:
    """Returns the files of the unpacked trees that are not what the .pyz holds."""
    parts: dict[str, Path] = {}
    damaged = []
    for line in zipfile.ZipFile(pyz).read("index").decode().splitlines():
        words = line.split(" ", 3)
        if words[0] == "tree" and (cache / words[2]).exists():
            parts.update(dict.fromkeys(words[3].split(), cache / words[2]))
        elif words[0] in parts:
            path = parts[words[0]] / words[3]
            if not path.exists() or f"{zlib.crc32(path.read_bytes()):08x}" != words[2]:
                damaged.append(str(path))
    return damaged


# --- Any Python, any processor ---


@pytest.mark.usefixtures("abroad")
@every_new_python
def test_a_heartbeat_arrives(box: Box, start: Callable[..., Program], tmp_path: Path, python: Interpreter) -> None:
    """The released files do what they are for under this Python, and nobody listens, in an environment that would have gRPC abort
    and the OpenSSL that makes the server's certificate find nothing. So do a page for browsers, and an answer for monitoring."""
    (tmp_path / "openssl.cnf").write_text("openssl_conf = a\n[a]\nproviders = b\n[b]\nbase = c\n[c]\nactivate = 1\n")
    execute = ("-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])", python.path)
    environment = {"HOME": str(box.home), "GRPC_POLL_STRATEGY": "nonsense", "OPENSSL_CONF": str(tmp_path / "openssl.cnf")}
    options = ("--secure", "--state", str(tmp_path / "state"), "--listen", "127.0.0.1:0", "--headless")
    server = start(*execute, str(box.dist / "server.pyz"), *options, **environment)
    address, token = server.line(r"listening on ([\d.:]+)", 60)[1], server.line("^edge1-.*")[0]
    pyz = str(box.dist / "node.pyz")
    options = ("--server", address, "--hardware", "simulated", "--seed", "1")
    node = start(*execute, pyz, *options, EDGE_TOKEN=token, **environment)
    server.line(" joined ", 60)
    assert node.end() == 130
    server.line(" left ")
    assert server.end() == 130
    expect_ways_out(start, execute, box.dist / "server.pyz", environment)


def expect_ways_out(start: Callable[..., Program], execute: tuple[str, ...], pyz: Path, environment: dict[str, str]) -> None:
    """A server of this Python has a page, and tells the same Python's --check how its fleet is."""
    port = free_port()
    options = ("--listen", "127.0.0.1:0", "--http", str(port), "--headless", "--no-journal")
    server = start(*execute, str(pyz), *options, **environment)
    address = server.line(r"listening on ([\d.:]+)", 60)[1]
    assert fetched(port, "/healthz") == b"ok\n"
    assert fetched(port, "/").lower().startswith(b"<!doctype html>")
    checking = start(*execute, str(pyz), "--check", "--attach", address, **environment)
    assert checking.wait(60) == 3  # nobody reports to it
    checking.line(r"^EDGE UNKNOWN - 0 of 0 nodes: .* \| matching=0;;0;0;0 ")
    assert server.end() == 130


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def fetched(port: int, path: str) -> bytes:
    """What a server of this machine has there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as response:
        content: bytes = response.read()
    return content


def test_what_few_servers_need_is_not_imported_by_all() -> None:
    command = [sys.executable, "-c", "import server, sys; print(*sys.modules)"]
    modules = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "grpc" in modules
    assert not {"anyio", "click", "cryptography", "h11", "starlette", "uvicorn"} & {*modules}


def test_only_what_runs_is_packed(box: Box) -> None:
    """No tests, no benchmarks, no pictures; and nothing of the other program's."""
    for program, folders in build.PROGRAMS.items():
        lines = zipfile.ZipFile(box.dist / f"{program}.pyz").read("index").decode().splitlines()
        paths = {line.split(" ", 3)[3] for line in lines if line.startswith("program/0 ")}
        assert {path for path in paths if "/" not in path} == {f"{program}.py", "node_pb2.py", "node_pb2_grpc.py"}
        assert {path.split("/")[1] for path in paths if path.count("/") == 2} == {*folders}
        assert {path.split("/")[0] for path in paths if "/" in path} == {"edge"}


def test_a_node_carries_nothing_that_the_server_alone_needs(box: Box) -> None:
    """And the server no more of it than it needs."""
    node, server = (zipfile.ZipFile(box.dist / f"{program}.pyz") for program in ("node", "server"))
    for package in ("cryptography", "cffi", "uvicorn", "starlette", "grpc_health"):
        assert package not in node.read("index").decode() + " ".join(node.namelist())
    assert not [name for name in node.namelist() if name.startswith("server-")]
    lines = [line.split(" ", 3) for line in server.read("index").decode().splitlines()]
    modules = {words[3].split(".")[0] for words in lines if words[0].startswith("server-") and words[3].endswith(".so")}
    assert modules == {"_cffi_backend", "cryptography/hazmat/bindings/_rust"}
    packages = {re.split("[/.]", words[3])[0] for words in lines if words[0].startswith("server-")}
    web = {"anyio", "click", "exceptiongroup", "grpc_health", "h11", "starlette", "uvicorn"}
    assert packages == {"_cffi_backend", "cryptography"} | web
    assert {f"licenses/cryptography-50.0.2{end}" for end in ("", ".APACHE", ".BSD")} < {*server.namelist()}


@pytest.mark.parametrize("target", ["cp314-linux-x86_64", "cp315-linux-x86_64", "cp311-linux-aarch64"])
def test_the_server_of_another_python_can_make_its_certificate(box: Box, maker: Path, target: str) -> None:
    assert make_certificate(box, maker / "dist/server.pyz", *find_foreign(target)).name.startswith(target)


def test_where_the_server_has_no_library_for_it_it_says_what_to_install(box: Box, maker: Path, tmp_path: Path) -> None:
    target = "cp314-linux-armv7l"
    build.pack(build.parse_target(target), source=maker, dist=tmp_path)
    command = [*find_foreign(target), str(tmp_path / "server.pyz")]
    done = subprocess.run(command, env=box.environment(), capture_output=True, text=True, check=False, timeout=120)
    expect_sentence(done, rf"server: what .* needs .* cryptography, which .* not got for {target}: install python3-cryptography .*")


def test_the_targets_without_a_library_of_the_servers() -> None:
    lacking = {platform.name for platform in build.PLATFORMS if {*build.SECURE_PACKAGES} & {*platform.lacks}}
    assert lacking == {"linux-armv7l", "macos-x86_64"}
    assert not [platform.name for platform in build.PLATFORMS if {*build.WEB_PACKAGES} & {*platform.lacks}]


def find_foreign(target: str) -> list[str]:
    """The command of Debian's Python for a target."""
    minor, processor = re.fullmatch(r"cp3(\d+)-linux-(\w+)", target).groups()  # type: ignore[union-attr]
    return foreign_python(processor, int(minor))


@pytest.mark.parametrize("python", OLD, ids=str)
@pytest.mark.parametrize("program", build.PROGRAMS)
def test_an_old_python_gets_a_sentence(box: Box, python: Interpreter, program: str) -> None:
    done = box.run(python=python, program=program)
    expect_sentence(done, rf"{program}.pyz needs Python 3.10 or newer; this is Python {python} \(.*\)")


@pytest.mark.parametrize("target", ["cp314-linux-x86_64", "cp315-linux-x86_64", "cp311-linux-aarch64"])
def test_another_python_sends_a_heartbeat(box: Box, start: Callable[..., Program], target: str) -> None:
    """A node as it is released, under Debian's Python of that version and processor, reports to this machine's server."""
    expect_foreign_heartbeat(box, start, target, box.dist)


@pytest.mark.parametrize("target", ["cp314-linux-x86_64", "cp315-linux-x86_64"])
def test_another_python_has_the_ways_out(box: Box, start: Callable[..., Program], target: str) -> None:
    execute = (*EXECUTE, *find_foreign(target))
    expect_ways_out(start, execute, box.dist / "server.pyz", {"HOME": str(box.home)})


@pytest.fixture(scope="module")
def emulated(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """The nodes for other processors, on their way to their heartbeats: two at a time, since qemu takes its time of one core."""

    def report(target: str, folder: Path) -> None:
        with starting() as start:
            expect_foreign_heartbeat(Box(folder, dist), start, target, folder)

    folders = {target: tmp_path_factory.mktemp(target) for target in EMULATED}
    for target, folder in folders.items():
        build.pack(build.parse_target(target), dist=folder)
    with ThreadPoolExecutor(2) as pool:
        yield {target: pool.submit(report, target, folder) for target, folder in folders.items()}


@pytest.mark.parametrize("target", EMULATED)
def test_a_node_for_another_python_alone_sends_a_heartbeat(emulated: dict[str, Future[None]], target: str) -> None:
    """Packed for that one: under qemu, unpacking what is for all takes a minute."""
    emulated[target].result()


def expect_foreign_heartbeat(box: Box, start: Callable[..., Program], target: str, dist: Path) -> None:
    """Starts a server and the other Python's node, and waits for it to join."""
    python = find_foreign(target)
    options = ("--secure", "--state", str(box.home / "state"), "--listen", "127.0.0.1:0", "--headless")
    server = start(str(box.dist / "server.pyz"), *options, HOME=str(box.home))
    address, token = server.line(r"listening on ([\d.:]+)", 60)[1], server.line("^edge1-.*")[0]
    node = (*python, str(dist / "node.pyz"), "--server", address, "--hardware", "simulated", "--seed", "1")
    start(*EXECUTE, *node, HOME=str(box.home), EDGE_TOKEN=token)
    server.line(" joined ", 180)
    (tree,) = box.cache.glob(f"{target}-*")
    assert tree.is_dir()


def test_a_target_that_is_not_in_the_file(box: Box, tmp_path: Path) -> None:
    """The sentence lists those that are, and the command that builds this one."""
    other = next(target for target in build.TARGETS.values() if target.key != bootstrap.find_key())
    build.pack([other], dist=tmp_path)
    box.dist = tmp_path
    mine = build.this_target().name
    expect_sentence(box.run(), rf"node.pyz has no libraries .* only for {other.name}; build it: python3 build.py --target {mine}")


# --- The cache ---


def test_both_programs_and_new_versions_share_the_libraries(box: Box, tmp_path: Path) -> None:
    tree = expect_version(box.run())
    assert tree == box.tree()
    node, born = box.tree("node"), tree.stat().st_ino
    assert expect_version(box.run(program="server")) == tree
    (alone,) = {*box.cache.glob("cp*")} - {tree}
    born_alone = alone.stat().st_ino
    copy_sources(tmp_path)
    for name in build.PROGRAMS:
        with (tmp_path / f"{name}.py").open("a") as source:
            source.write("# a new version\n")
    build.pack([build.this_target()], source=tmp_path, dist=tmp_path)
    box.dist = tmp_path
    for name in build.PROGRAMS:
        assert expect_version(box.run(program=name)) == tree
        assert len(list(box.cache.glob(f"{name}-*"))) == 2
    assert (tree.stat().st_ino, alone.stat().st_ino) == (born, born_alone)
    assert {*box.cache.glob("cp*")} == {tree, alone}
    assert node.exists()


def test_edge_cache_moves_the_cache(box: Box, tmp_path: Path) -> None:
    place = tmp_path / "not there yet"
    assert expect_version(box.run(EDGE_CACHE=str(place))).is_relative_to(place)
    assert not box.cache.exists()


def test_the_first_start_says_that_it_unpacks(box: Box) -> None:
    """On a terminal, and only once."""

    def read_terminal() -> str:
        ours, its = pty.openpty()
        command = [HERE.path, str(box.dist / "node.pyz"), "--version"]
        subprocess.run(command, env=box.environment(), stdin=its, stdout=its, stderr=its, check=True)
        os.close(its)
        output = b""
        with contextlib.suppress(OSError):  # EIO: all is read
            while chunk := os.read(ours, 4096):
                output += chunk
        os.close(ours)
        return output.decode()

    assert re.match(r"node.pyz: unpacking into .* \(once\)\r\n", read_terminal())
    assert "unpacking" not in read_terminal()


@pytest.mark.parametrize("setting", ["PYTHONDONTWRITEBYTECODE=1", "PYTHONPYCACHEPREFIX=/proc/nowhere"])
def test_bytecode_is_kept_whatever_the_environment_says(box: Box, setting: str) -> None:
    """Without it a start takes three times as long."""
    tree = expect_version(box.run(before=("env", setting)))
    assert list(tree.glob("grpc/__pycache__/__init__.*.pyc"))
    assert list(box.tree("node").glob("__pycache__/node.*.pyc"))


def test_a_hundred_cold_starts_at_once(box: Box) -> None:
    command = [HERE.path, str(box.dist / "node.pyz"), "--version"]
    options: dict[str, Any] = {"env": box.environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    starts = [subprocess.Popen(command, **options) for _ in range(100)]
    failures = [process.communicate()[1] for process in starts if process.wait()]
    assert not failures
    assert sorted(path.name for path in box.cache.iterdir()) == sorted(["lock", box.tree().name, box.tree("node").name])
    assert not find_damaged(box.dist / "node.pyz", box.cache)


def measure(folder: Path) -> int:
    """Tells how far the unpacking is: the bytes written so far, and a hundred thousand for each file."""
    done = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                done += 100_000 + Path(parent, name).stat().st_size
    return done


@pytest.mark.parametrize("is_cold", [True, False])
def test_ctrl_c_during_the_start_ends_it_without_a_word(box: Box, is_cold: bool) -> None:
    if not is_cold:
        box.run()
    command = [HERE.path, "-X", "importtime", str(box.dist / "node.pyz"), "--version"]
    with subprocess.Popen(command, env=box.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:  # it says what it imports
            if line.endswith(("pyz.unpack\n", "edge.protocol\n")):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in rest


def test_a_hundred_kills_while_unpacking(box: Box, tmp_path: Path) -> None:
    """Each a little later than the one before. What is there afterwards under its own name is whole, and the next start works."""
    expect_version(box.run())
    whole = measure(box.tree())
    with ThreadPoolExecutor(2) as pool:  # two boxes side by side, each with every other kill
        list(pool.map(kill_while_unpacking, (box, Box(tmp_path, box.dist)), (whole, whole), (range(0, 100, 2), range(1, 100, 2))))


def kill_while_unpacking(box: Box, whole: int, percents: range) -> None:
    """Starts and kills as often, when so much of the whole has been unpacked."""
    pyz = box.dist / "node.pyz"
    for number in percents:
        shutil.rmtree(box.cache, ignore_errors=True)
        process = subprocess.Popen([HERE.path, str(pyz), "--version"], env=box.environment(), stdout=subprocess.DEVNULL)
        while process.poll() is None and measure(box.cache) < whole * number // 100:
            time.sleep(0.01)  # the processors are for the unpacking
        assert process.poll() is None
        process.kill()
        process.wait()
        box.cache.mkdir(parents=True, exist_ok=True)
        assert not find_damaged(pyz, box.cache)
        if number % 10 >= 8:
            expect_version(box.run())
            assert not list(box.cache.glob("new-*"))


def cut(path: Path, size: int) -> None:
    """Cuts a file off, as a full disk or a power cut may; its time stays."""
    before = path.stat()
    os.truncate(path, size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def zero(path: Path, keep: int = 0) -> None:
    """Overwrites all but the beginning of a file with zeros, as a power cut may leave it; its size and time stay."""
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:keep] + bytes(len(content) - keep))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def zero_source(path: Path) -> None:
    """Does the same to a source file whose bytecode is lost as well."""
    zero(path)
    shutil.rmtree(path.parent / "__pycache__")


def empty_all(folder: Path) -> None:
    """Cuts every file off at its beginning."""
    for path in folder.rglob("*"):
        if path.is_file():
            cut(path, 0)


def find(tree: Path, pattern: str) -> Path:
    return next(tree.glob(pattern))


DAMAGES: dict[str, Damage] = {
    "module cut off": lambda tree: cut(find(tree, "grpc/_cython/cygrpc.*.so"), 9_000_000),
    "module empty": lambda tree: cut(find(tree, "grpc/_cython/cygrpc.*.so"), 0),
    "module zeroed": lambda tree: zero(find(tree, "grpc/_cython/cygrpc.*.so")),
    "module half zeroed": lambda tree: find(tree, "grpc/_cython/cygrpc.*.so").write_bytes(bytes(9_000_000)),
    "source cut off": lambda tree: cut(tree / "grpc/_common.py", 2000),
    "source zeroed": lambda tree: zero_source(tree / "grpc/_common.py"),
    "source changed": lambda tree: (tree / "rich/console.py").write_bytes(bytes((tree / "rich/console.py").stat().st_size)),
    "bytecode cut off": lambda tree: cut(find(tree, "grpc/__pycache__/__init__.*.pyc"), 5000),
    "bytecode zeroed": lambda tree: zero(find(tree, "grpc/__pycache__/__init__.*.pyc"), keep=16),
    "file missing": lambda tree: (tree / "google/__init__.py").unlink(),
    "folder missing": lambda tree: shutil.rmtree(tree / "rich"),
    "mark missing": lambda tree: (tree / ".in-use").unlink(),
    "program cut off": lambda tree: cut(find(tree.parent, "node-*/node.py"), 1000),
    "program zeroed": lambda tree: zero_source(find(tree.parent, "node-*/node_pb2.py")),
    "all files empty": lambda tree: empty_all(tree.parent),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_repaired(box: Box, damage: Damage) -> None:
    tree = expect_version(box.run())
    damage(tree)
    assert expect_version(box.run()) == tree
    assert not find_damaged(box.dist / "node.pyz", box.cache)
    assert expect_version(box.run()) == tree


LATER_DAMAGES: dict[str, Damage] = {
    "module cut off": lambda tree: cut(find(tree, "cryptography/hazmat/bindings/_rust.*"), 9_000_000),
    "module zeroed": lambda tree: zero(find(tree, "cryptography/hazmat/bindings/_rust.*")),
    "source zeroed": lambda tree: zero_source(tree / "cryptography/x509/name.py"),
    "folder missing": lambda tree: shutil.rmtree(tree / "cryptography"),
}


@pytest.mark.parametrize("damage", LATER_DAMAGES.values(), ids=LATER_DAMAGES.keys())
def test_a_damaged_library_is_repaired_where_it_is_used_at_last(box: Box, maker: Path, damage: Damage) -> None:
    """The server imports what it needs to be secure when it needs it, and not before."""
    server = maker / "dist/server.pyz"
    tree = make_certificate(box, server, HERE.path)
    damage(tree)
    assert make_certificate(box, server, HERE.path) == tree
    assert not find_damaged(server, box.cache)


def age(tree: Path, days: float) -> None:
    """Makes a tree look as if nothing had started from it for so long."""
    then = time.time() - days * 86400
    os.utime(tree / ".in-use", (then, then))


def copy_tree(tree: Path, name: str) -> Path:
    """Makes a tree of another version."""
    return Path(shutil.copytree(tree, tree.with_name(name)))


def test_old_trees_are_swept_but_never_one_in_use(box: Box, start: Callable[..., Program]) -> None:
    server = start(str(box.dist / "server.pyz"), "--listen", "127.0.0.1:0", "--headless", **box.environment())
    server.line("listening on", 60)
    program = box.tree("server")
    libraries = [*box.cache.glob("cp*")]
    assert len(libraries) == 2  # those of both programs, and those of the server alone
    old, recent = copy_tree(program, "server-000000000000"), copy_tree(program, "server-111111111111")
    age(old, 31)
    age(recent, 29)
    for tree in (*libraries, program):
        age(tree, 31)
    expect_version(box.run())  # cold for the program: sweeps
    assert not old.exists()
    assert recent.exists()
    assert all(tree.exists() for tree in (*libraries, program))
    assert server.end() == 130
    shared = expect_version(box.run())
    for tree in (*libraries, program):
        age(tree, 31 if tree != shared else 2)
    age(box.tree("node"), 2)
    expect_version(box.run())  # warm, the first of the day: marks its trees and sweeps
    assert [*box.cache.glob("cp*")] == [shared]
    assert not program.exists()
    assert time.time() - (box.tree("node") / ".in-use").stat().st_mtime < 3600


# --- Other people's things in the way ---


def test_a_google_package_of_the_boxs_own(box: Box, tmp_path: Path) -> None:
    (tmp_path / "google").mkdir()
    (tmp_path / "google/__init__.py").touch()
    expect_version(box.run(PYTHONPATH=str(tmp_path)))


@pytest.mark.parametrize("program", build.PROGRAMS)
def test_old_libraries_that_are_imported_before_us(box: Box, tmp_path: Path, program: str) -> None:
    """As .pth files and sitecustomize do; and a finder that would go on giving them."""
    names = ["google", "google.protobuf", "grpc", "rich", "rich.console", "typing_extensions", "psutil", "edge", "node_pb2"]
    names += ["cryptography", "_cffi_backend"] if program == "server" else []
    for name in names:
        folder = tmp_path / name.replace(".", "/")
        folder.mkdir()
        (folder / "__init__.py").write_text("__version__ = '0.1'\n")
    customize = f"import sys, {', '.join(names)}\n"
    customize += "from importlib.machinery import PathFinder\n"
    customize += "class First:\n    find_spec = lambda self, name, *_: PathFinder.find_spec(name, [sys.path[-1]])\n"
    customize += f"sys.meta_path.insert(0, First())\nsys.path.append({str(tmp_path)!r})\n"
    (tmp_path / "sitecustomize.py").write_text(customize)
    expect_version(box.run(program=program, PYTHONPATH=str(tmp_path)))


def test_modules_named_like_pythons_own(box: Box, tmp_path: Path) -> None:
    """As in a folder of scripts that PYTHONPATH names."""
    for name in ("queue", "argparse", "asyncio", "tarfile"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    (tmp_path / "startup.py").write_text("raise SystemExit('nor this')\n")
    for _ in ("cold", "warm"):
        expect_version(box.run(PYTHONPATH=f"{tmp_path}:/nowhere:", PYTHONSTARTUP=str(tmp_path / "startup.py")))


@pytest.mark.parametrize("implementation", ["cpp", "python", "upb", "nonsense"])
def test_an_environment_for_another_protobuf(box: Box, implementation: str) -> None:
    expect_version(box.run(PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=implementation))


def test_spaces_and_every_script_in_paths(box: Box, tmp_path: Path) -> None:
    odd = tmp_path / "drei Bücher, 三冊 ☃"
    odd.mkdir()
    shutil.copy(box.dist / "node.pyz", odd / "ein Knoten ☃.pyz")
    (odd / "home").mkdir()
    for locale in ("C.UTF-8", "C"):
        command = [HERE.path, str(odd / "ein Knoten ☃.pyz"), "--version"]
        environment = {"HOME": str(odd / "home"), "LC_ALL": locale}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
        assert expect_version(done).is_relative_to(odd)


def test_a_python_without_lzma(box: Box, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['lzma'] = None\n")
    expect_sentence(box.run(PYTHONPATH=str(tmp_path)), r"node.pyz can't unpack .* was built without lzma; use another one")
    expect_version(box.run())
    expect_version(box.run(PYTHONPATH=str(tmp_path)))


# --- Homes ---


def test_a_home_that_can_not_be_written_to(box: Box, mount: Callable[..., tuple[str, ...]]) -> None:
    tree = expect_version(box.run(before=mount(**{str(box.home): "ro", "/var/tmp": "ro"})))
    assert tree.is_relative_to(box.temporary)


def test_a_home_that_is_full(box: Box, mount: Callable[..., tuple[str, ...]]) -> None:
    tree = expect_version(box.run(before=mount(**{str(box.home): "size=5m", "/var/tmp": "size=1m"})))
    assert tree.is_relative_to(box.temporary)


def test_a_home_mounted_noexec(box: Box, mount: Callable[..., tuple[str, ...]]) -> None:
    tree = expect_version(box.run(before=mount(**{str(box.home): "noexec", "/var/tmp": "noexec"})))
    assert tree.is_relative_to(box.temporary)


@pytest.mark.parametrize("home", ["{}/absent/home", "/dev/null", "relative", ""])
def test_a_home_that_is_none(box: Box, mount: Callable[..., tuple[str, ...]], tmp_path: Path, home: str) -> None:
    """As a service's often is. It is not made."""
    tree = expect_version(box.run(before=mount(**{"/var/tmp": "size=100m"}), HOME=home.format(tmp_path)))
    assert tree.is_relative_to("/var/tmp")
    assert not list(tmp_path.iterdir())


def test_no_place_at_all(box: Box, mount: Callable[..., tuple[str, ...]]) -> None:
    before = mount(**{str(box.home): "noexec", "/var/tmp": "size=1m", str(box.temporary): "ro", "/dev/shm": "size=1m"})
    place = f"{NAME}-{os.geteuid() if before[1:3] == ('--mount', 'sh') else 0}"
    expect_sentence(
        box.run(before=before),
        f"node.pyz found no folder to unpack its libraries into:\n"
        f"  {box.home}/.cache/{NAME}: {box.home} is mounted noexec\n"
        f"  /var/tmp/{place}: No space left on device\n"
        f"  {box.temporary}/{place}: Read-only file system\n"
        f"  /dev/shm/{place}: No space left on device\n"
        "Set EDGE_CACHE to a folder .*",
    )


@needs_root
@needs_public_python
def test_another_user(box: Box) -> None:
    expect_version(box.run())
    home = box.home.parent / "other home"
    home.mkdir()
    os.chown(home, STRANGER, STRANGER)
    tree = expect_version(box.run(python=PUBLIC, user=STRANGER, HOME=str(home)))
    assert tree.is_relative_to(home)
    assert tree.stat().st_uid == STRANGER


@needs_root
@needs_public_python
@pytest.mark.parametrize("arguments", ["server --listen 127.0.0.1:0 --headless", "node --once --hardware simulated"])
def test_a_user_who_may_start_few_threads(box: Box, arguments: str) -> None:
    os.chown(box.home, STRANGER, STRANGER)
    program, *options = arguments.split()
    command = ["prlimit", "--nproc=6", PUBLIC.path, str(box.dist / f"{program}.pyz"), *options]
    identity: dict[str, Any] = {"user": STRANGER, "group": STRANGER, "extra_groups": []}
    done = subprocess.run(command, env=box.environment(), capture_output=True, text=True, check=False, timeout=120, **identity)
    expect_sentence(done, rf"{program}: too few threads may be started here, and \d+ are needed: .* \(ulimit -u, .*\)")


@needs_root
@needs_public_python
def test_sudo_with_the_users_home(box: Box, mount: Callable[..., tuple[str, ...]]) -> None:
    """Root takes no code from a folder of the user's, and leaves nothing there that the user can't write to."""
    os.chown(box.home, STRANGER, STRANGER)
    private = mount(**{"/var/tmp": "size=100m"})
    assert expect_version(box.run(before=private)).is_relative_to("/var/tmp")
    assert not list(box.home.iterdir())
    assert expect_version(box.run(python=PUBLIC, user=STRANGER)).is_relative_to(box.home)
    assert expect_version(box.run(before=private)).is_relative_to("/var/tmp")


def plant(box: Box, place: Path) -> None:
    """Puts into that place whole trees whose program is somebody else's."""
    expect_version(box.run())
    shutil.copytree(box.cache, place / NAME)
    (program,) = (place / NAME).glob("node-*/node.py")
    program.write_bytes(b"print('stolen')\n".ljust(program.stat().st_size, b"#"))
    os.utime(program, (bootstrap.FILE_TIME, bootstrap.FILE_TIME))
    shutil.rmtree(program.parent / "__pycache__")


def give_away(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, STRANGER, STRANGER)


def replace_by_link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


HOSTILITIES: dict[str, tuple[Damage, str]] = {
    "another user's": (give_away, "belongs to another user"),
    "a link": (replace_by_link, "is not a folder"),
    "no sticky bit above": (lambda place: place.parent.chmod(0o777), "anyone can replace what lies in .*"),
}


@needs_root
@pytest.mark.parametrize(("hostility", "reason"), HOSTILITIES.values(), ids=HOSTILITIES.keys())
def test_a_hostile_shared_folder(box: Box, tmp_path: Path, hostility: Damage, reason: str) -> None:
    """Code that another user could have put there is not run."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    plant(box, shared)
    hostility(shared / NAME)
    expect_sentence(box.run(EDGE_CACHE=str(shared)), rf"node.pyz found no folder .*\n.*: .*({reason})\nSet EDGE_CACHE .*")


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_place_that_others_could_write_to_is_made_anew(box: Box, tmp_path: Path, mode: int) -> None:
    """Where it is ours; of another user's, even of root's, nothing is run."""
    plant(box, tmp_path)
    (tmp_path / NAME).chmod(mode)
    assert expect_version(box.run(EDGE_CACHE=str(tmp_path))).is_relative_to(tmp_path)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]


@needs_root
@needs_public_python
def test_a_place_of_roots_that_others_can_write_to(box: Box) -> None:
    shared = box.home.parent / "shared"
    shared.mkdir()
    plant(box, shared)
    for path in (shared, *shared.rglob("*")):
        path.chmod(0o777 if path == shared / NAME else 0o755)
    done = box.run(python=PUBLIC, user=STRANGER, EDGE_CACHE=str(shared))
    expect_sentence(done, rf"node.pyz found no folder .*\n.*: others can write to {shared / NAME}\nSet EDGE_CACHE .*")


def test_a_umask_that_leaves_all_open(box: Box) -> None:
    """What is made, the folders above it too, is this user's alone."""
    openly = ("sh", "-c", 'umask 000; exec "$0" "$@"')
    for _ in ("cold", "warm"):
        assert expect_version(box.run(before=openly)) == box.tree()
        expect_version(box.run(before=openly, XDG_CACHE_HOME=str(box.home / "made/for us")))
    for path in (box.home / ".cache", box.home / "made", box.home / "made/for us"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert not [path for path in box.home.rglob("*") if path.stat().st_mode & 0o022]


def test_a_cache_that_was_left_open_to_all_is_closed(box: Box) -> None:
    tree = expect_version(box.run())
    tree.parent.parent.chmod(0o777)
    assert expect_version(box.run()) == tree
    assert tree.parent.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_planted_runs_where_nothing_is_wrong(box: Box, tmp_path: Path) -> None:
    """So that the test above shows what it says."""
    plant(box, tmp_path)
    assert box.run(EDGE_CACHE=str(tmp_path)).stdout == "stolen\n"


# --- The copy ---


@pytest.mark.parametrize("place", [0.2, 0.5, 0.999])
def test_a_damaged_copy(box: Box, tmp_path: Path, place: float) -> None:
    content = bytearray((box.dist / "node.pyz").read_bytes())
    with zipfile.ZipFile(box.dist / "node.pyz") as archive:
        end = archive.start_dir
    content[int(end * place)] ^= 1
    (tmp_path / "node.pyz").write_bytes(content)
    box.dist = tmp_path
    expect_sentence(box.run(), r"node.pyz is damaged \(.*\): copy it again, and compare its SHA-256 with the one in SHA256SUMS")
    assert not box.cache.exists()


@pytest.mark.parametrize("python", INTERPRETERS, ids=str)
def test_a_copy_that_was_cut_off(box: Box, tmp_path: Path, python: Interpreter) -> None:
    """It fails before our code runs, but with our words."""
    content = (box.dist / "node.pyz").read_bytes()
    box.dist = tmp_path
    for size in (200, 5000, len(content) // 2, len(content) - 1):
        (tmp_path / "node.pyz").write_bytes(content[:size])
        done = box.run(python=python)
        assert done.returncode == 1
        assert "copy the file again, and compare its SHA-256" in done.stderr


def test_the_checksums(box: Box) -> None:
    for line in (box.dist / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((box.dist / name).read_bytes()).hexdigest() == digest
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=box.dist, capture_output=True, check=False)
    assert done.stdout == b"server.pyz: OK\nnode.pyz: OK\n"


def test_sizes(box: Box, tmp_path: Path) -> None:
    build.pack([build.this_target()], dist=tmp_path)
    for name, all_linux, this in (("server", 32e6, 10e6), ("node", 25.5e6, 6.5e6)):
        assert (box.dist / f"{name}.pyz").stat().st_size < all_linux
        assert (tmp_path / f"{name}.pyz").stat().st_size < this


def test_the_licenses_come_along(box: Box) -> None:
    names = " ".join(zipfile.ZipFile(box.dist / "node.pyz").namelist())
    for package in ("edge-compute-node", "grpcio", "protobuf", "psutil", "rich", "typing_extensions"):  # pynvml.py holds its own
        assert f"licenses/{package}" in names
    names = " ".join(zipfile.ZipFile(box.dist / "server.pyz").namelist())
    for package in build.WEB_PACKAGES:
        assert f"licenses/{package.replace('-', '_')}" in names


def test_the_bootstrap_can_be_read_at_one_sitting() -> None:
    for path in ROOT.glob("pyz/*.py"):
        assert len(path.read_text().splitlines()) < 220


# --- build.py ---


def copy_sources(folder: Path) -> None:
    """All that build.py needs."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.pyi"), *ROOT.glob("requirements*.txt"), ROOT / "node.proto", ROOT / "LICENSE"]:
        shutil.copy(path, folder)
    for name in ("edge", "pyz"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project in another folder, with the same wheels at hand."""
    folder = tmp_path / "another folder"
    (folder / ".cache").mkdir(parents=True)
    copy_sources(folder)
    for name in ("wheels", "blobs"):
        (build.CACHE / name).mkdir(parents=True, exist_ok=True)
        (folder / ".cache" / name).symlink_to(build.CACHE / name)
    return folder


def test_the_same_bytes_from_another_python_in_another_folder(dist: Path, checkout: Path, tmp_path: Path) -> None:
    """Compressed anew, not taken from the cache."""
    target = build.this_target()
    build.pack([target], dist=tmp_path)
    (checkout / ".cache/blobs").unlink()
    other = NEW[-1]
    subprocess.run([other.path, "build.py", "--target", target.name], cwd=checkout, check=True, capture_output=True)
    for name in ("node.pyz", "server.pyz", "SHA256SUMS"):
        assert (checkout / "dist" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_protos_check(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "ROOT", checkout)
    monkeypatch.setattr(build, "make_environment", lambda: sys.executable)
    assert build.protos(check=True) == 0
    with (checkout / "node.proto").open("a") as proto:
        proto.write("message More {}\n")
    with pytest.raises(build.BuildError, match=r"not made from this node.proto: node_pb2.py, node_pb2.pyi; run"):
        build.protos(check=True)
    assert build.protos(check=False) == 0
    assert build.protos(check=True) == 0


def fail_to_build(checkout: Path, *options: str, **environment: str) -> str:
    """Runs build.py, which shall end with one sentence, and returns that."""
    command = [HERE.path, *options, "build.py"]
    done = subprocess.run(command, cwd=checkout, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    return sentence


def test_no_way_to_the_packages(checkout: Path) -> None:
    (checkout / ".cache/wheels").unlink()
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    sentence = fail_to_build(checkout, **nowhere)
    assert re.match("build.py: downloading .* failed: .* If this machine has no way to PyPI, .* pip said: ERROR: ", sentence)


def test_a_python_without_pip_and_venv(checkout: Path, tmp_path: Path) -> None:
    """As Debian's is without python3-venv: -S hides pip, and a module that fails takes the place of venv."""
    (checkout / ".cache/wheels").unlink()
    (tmp_path / "venv.py").write_text("raise SystemExit('no ensurepip')\n")
    sentence = fail_to_build(checkout, "-S", PYTHONPATH=str(tmp_path))
    assert sentence.startswith("build.py: this Python cannot make a virtual environment: install its venv module")


WRONG = ["--target amiga", "--target linux demo", "demo --nodes -1", "demo --port 0", "demo --port 65536", "dance"]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_arguments(arguments: str) -> None:
    done = subprocess.run([sys.executable, "build.py", *arguments.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["lzma", "zlib"])
def test_a_python_that_lacks_a_compressor(checkout: Path, tmp_path: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules['{module}'] = None\n")
    sentence = fail_to_build(checkout, PYTHONPATH=str(tmp_path))
    assert sentence.startswith(f"build.py needs Python's module {module}, which this one (")


def find_started(checkout: Path) -> list[psutil.Process]:
    """Returns what runs from this folder's dist/."""
    commands = {process: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
    return [process for process, words in commands.items() if any(str(checkout / "dist") in word for word in words)]


@pytest.fixture
def port_taken() -> Iterator[None]:
    """The port that the demo would like is not to be had, so it takes another: two suites on one machine would meet there."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # taken it is
            stack.enter_context(socket.create_server(("127.0.0.1", 50051)))
        yield


@pytest.mark.usefixtures("port_taken")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_demo(checkout: Path, start: Callable[..., Program], number: signal.Signals) -> None:
    demo = start(str(checkout / "build.py"), "demo", "--nodes", "3", EDGE_CACHE=str(checkout))
    eventually(lambda: sum(" joined " in line for line in demo.lines) == 3, 60)
    assert demo.end(number) == 128 + number
    assert "python3 node.pyz --server" in "\n".join(demo.lines)
    assert not find_started(checkout)


@pytest.mark.usefixtures("port_taken")
def test_the_demo_on_a_terminal(checkout: Path, terminal: Callable[..., Terminal]) -> None:
    """`q` ends it, after a question."""
    screen = terminal(str(checkout / "build.py"), "demo", "--nodes", "2", EDGE_CACHE=str(checkout))
    screen.shows("h200", 60)
    assert len(find_started(checkout)) == 3
    screen.press("qq")
    assert screen.wait() == 0
    screen.shows("python3 node.pyz --server")
    assert not find_started(checkout)


def test_the_nodes_of_the_demo() -> None:
    assert build.node_options(0, faults=False) == []
    assert build.node_options(2, faults=False) == [["--hardware", "auto"], build.simulated_box(1)]
    assert build.simulated_box(1) == ["--hardware", "simulated", "--seed", "1", "--label", "rack=a2", "--label", "team=ml"]
    faulty = build.node_options(2, faults=True)[2:]
    assert [options[-2:] for options in faulty] == [["--faults", fault] for fault in ("hot", "failed-gpu", "hung-sensors")]
    assert all(options[:2] == ["--hardware", "simulated"] for options in faulty)


@pytest.mark.usefixtures("port_taken")
def test_the_demo_with_faults_has_a_node_that_is_lost(checkout: Path, start: Callable[..., Program]) -> None:
    """It dies without a goodbye; the others, and the demo, go on."""
    demo = start(str(checkout / "build.py"), "demo", "--nodes", "1", "--faults", EDGE_CACHE=str(checkout))
    eventually(lambda: sum(" joined " in line for line in demo.lines) == 5, 60)
    demo.line(" disconnected Node-")
    assert demo.end() == 130
    assert not find_started(checkout)


def test_the_demo_on_a_port_of_the_users_choice(checkout: Path, start: Callable[..., Program]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = start(str(checkout / "build.py"), "demo", "--nodes", "0", "--port", port, EDGE_CACHE=str(checkout))
        refused.line(f"build.py: port {port} is in use on 127.0.0.1: give --port another, or none", 60)
        assert refused.wait() == 1
    demo = start(str(checkout / "build.py"), "demo", "--nodes", "0", "--port", port, EDGE_CACHE=str(checkout))
    demo.line(f"listening on 127.0.0.1:{port}", 60)
    assert demo.end() == 130


@pytest.mark.usefixtures("port_taken")
def test_a_node_that_dies_ends_the_demo(checkout: Path, start: Callable[..., Program]) -> None:
    demo = start(str(checkout / "build.py"), "demo", "--nodes", "1", EDGE_CACHE=str(checkout))
    demo.line(" joined ", 60)
    (node,) = (process for process in find_started(checkout) if any("node.pyz" in word for word in process.cmdline()))
    node.kill()
    assert demo.wait() == 1
    demo.line("build.py: node 0 ended with status -9, so the demo did. The end of its output:")
    demo.line("for the server at 127.0.0.1")
    assert not find_started(checkout)
