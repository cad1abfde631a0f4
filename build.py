#!/usr/bin/env python3
"""Packs server.pyz and node.pyz, and is the one entry to all that people do with this project.

    python3 build.py                  dist/server.pyz and dist/node.pyz, for this machine's Python
    python3 build.py demo             builds them and shows them at work on this machine: a server and six nodes; with --faults,
                                      four more that are lost, hung, failed and hot
    python3 build.py test [ARG ...]   every check and test, from nothing; the arguments go to pytest
    python3 build.py protos           regenerates the gRPC stubs from node.proto; with --check, compares them
    python3 build.py screenshots      remakes the pictures in docs/
    python3 build.py bench [ARG ...]  runs the benchmarks

It needs Python 3.10 or newer with its venv module, a way to PyPI the first time, and nothing else.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):
    sys.exit(f"build.py needs Python 3.10 or newer; this is Python {sys.version.split()[0]} ({sys.executable})")

try:
    import lzma
    import zlib
except ImportError as error:
    sys.exit(f"build.py needs Python's module {error.name}, which this one ({sys.executable}) was built without; use another one")

import argparse
import contextlib
import hashlib
import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tarfile
import tempfile
import threading
import types
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pyz import bootstrap

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".cache"
DIST = ROOT / "dist"
VENV = ROOT / ".venv"
PROGRAMS = {"server": ("fleet", "web"), "node": ("hardware",)}  # each with the folders of edge/ that it alone has
# What the server alone needs, each with the Python whose wheel serves all: of a stable ABI there are several, but the oldest one
# runs on all, and once is enough. None: each has its own.
SECURE_PACKAGES: dict[str, int | None] = {"cffi": None, "cryptography": 10}
WEB_PACKAGES = ("anyio", "click", "exceptiongroup", "grpcio-health-checking", "h11", "starlette", "uvicorn")
SERVER_PACKAGES: dict[str, int | None] = {**SECURE_PACKAGES, **dict.fromkeys(WEB_PACKAGES, 10)}
STUBS = ("node_pb2.py", "node_pb2.pyi", "node_pb2_grpc.py")
REQUIREMENTS = ROOT / "requirements.txt"
DEV_REQUIREMENTS = ROOT / "requirements-dev.txt"

# What Python runs in a .pyz. Every version since 2.7 must be able to parse it: an old one shall say this and not `SyntaxError`.
MAIN = b"""\
import os
import sys

if sys.version_info < (3, 10):
    name = os.path.basename(os.path.dirname(os.path.abspath(__file__)))
    sys.exit("%s needs Python 3.10 or newer; this is Python %d.%d (%s)" % ((name,) + sys.version_info[:2] + (sys.executable,)))

from _signal import SIG_DFL, SIGINT, default_int_handler, getsignal, signal

is_ours = getsignal(SIGINT) is default_int_handler
if is_ours:  # Ctrl-C ends the start without a traceback; what it does to the program, the program says
    signal(SIGINT, SIG_DFL)

from pyz import bootstrap

program = bootstrap.load()
if is_ours:
    signal(SIGINT, default_int_handler)
try:
    status = program.main()
except (ImportError, SyntaxError) as error:  # of a module that is imported only where it is used
    status = bootstrap.mend(error)
sys.exit(status)
"""
# The first lines of a .pyz. Python skips what stands before a zip; but a copy that was cut off is no zip, and Python takes it for
# source code. Then it shows the second line, where the apostrophe and the zip's first bytes are syntax errors to every version.
HEAD = b"""#!/usr/bin/env python3
This copy isn't whole: copy the file again, and compare its SHA-256 with the one in SHA256SUMS. """
# Left out of the wheels: nothing that runs needs them.
UNUSED_SUFFIXES = (".pyi", ".pyx", ".pxd", ".pxi", ".proto", ".h", ".cc", ".typed")
UNUSED_PATHS = (
    "example.py",
    "cffi/",  # cryptography needs _cffi_backend, which lies beside it
    # Of the web packages: other event loops, protocols and parsers, templates, and what tests need.
    "anyio/_backends/_trio.py", "anyio/pytest_plugin.py", "click/shell_completion.py", "click/testing.py", "starlette/schemas.py",
    "starlette/templating.py", "starlette/testclient.py", "uvicorn/protocols/http/auto", "uvicorn/protocols/http/httptools",
    "uvicorn/protocols/http/zttp", "uvicorn/protocols/websockets/", "uvicorn/supervisors/watchfiles", "uvicorn/workers.py",
)  # fmt: skip


class BuildError(Exception):
    """What went wrong, in a sentence that says what to do."""


class Platform(NamedTuple):
    """A kind of machine that wheels are made for."""

    name: str  # ours: linux-aarch64
    group: str  # what --target calls it together with others
    key: str  # what bootstrap.find_key returns there, {} standing for the Python's version
    tags: tuple[str, ...]  # pip's --platform
    minors: tuple[int, ...] = (10, 11, 12, 13, 14, 15)  # of the Pythons to build for: 10 for 3.10
    blob: str = ""  # where its own files are packed, if not in a blob of its name
    lacks: tuple[str, ...] = ()  # the packages that have no wheel for it


PLATFORMS = (
    # Both spellings of each manylinux, or pip takes an old release in silence.
    Platform("linux-x86_64", "linux", "cpython-{}-x86_64-linux-gnu", ("manylinux2014_x86_64", "manylinux_2_17_x86_64")),
    Platform("linux-aarch64", "linux", "cpython-{}-aarch64-linux-gnu", ("manylinux2014_aarch64", "manylinux_2_17_aarch64")),
    Platform("musl-x86_64", "musl", "cpython-{}-x86_64-linux-musl", ("musllinux_1_1_x86_64", "musllinux_1_2_x86_64")),
    Platform("musl-aarch64", "musl", "cpython-{}-aarch64-linux-musl", ("musllinux_1_1_aarch64", "musllinux_1_2_aarch64")),
    Platform(
        "linux-armv7l", "armv7l", "cpython-{}-arm-linux-gnueabihf", ("linux_armv7l",), (11, 12, 13, 14, 15),
        lacks=("psutil", *SECURE_PACKAGES),
    ),
    # One universal build of grpcio and protobuf, but two of psutil.
    Platform("macos-arm64", "macos", "cpython-{}-darwin-arm64", ("macosx_11_0_universal2", "macosx_11_0_arm64"), blob="macos"),
    Platform(
        "macos-x86_64", "macos", "cpython-{}-darwin-x86_64", ("macosx_11_0_universal2", "macosx_11_0_x86_64"), blob="macos",
        lacks=(*SECURE_PACKAGES,),
    ),
    Platform("windows-amd64", "windows", "cp{}-win_amd64", ("win_amd64",)),
)  # fmt: skip


class Target(NamedTuple):
    """One Python on one platform."""

    platform: Platform
    minor: int

    @property
    def name(self) -> str:
        """What people call it, like cp312-linux-aarch64."""
        return f"cp3{self.minor}-{self.platform.name}"

    @property
    def key(self) -> str:
        """What that Python calls itself: see bootstrap.find_key."""
        return self.platform.key.format(f"3{self.minor}")


TARGETS = {target.name: target for target in (Target(platform, minor) for platform in PLATFORMS for minor in platform.minors)}
GROUPS = (*dict.fromkeys(platform.group for platform in PLATFORMS), "all")


def parse_target(text: str) -> list[Target]:
    """Parses a value of --target: one target's name, or a group's."""
    found = [target for target in TARGETS.values() if text in (target.name, target.platform.group, "all")]
    if not found:
        raise argparse.ArgumentTypeError(f"no target {text!r}: say {', '.join(GROUPS)} or one alone, like cp312-linux-aarch64")
    return found


def this_target() -> Target:
    """Returns the target of the Python that runs this. Raises BuildError if there is none."""
    key = bootstrap.find_key()
    for target in TARGETS.values():
        if target.key == key:
            return target
    raise BuildError(f"nothing can be built for this Python ({key}); run it with CPython 3.10 to 3.15")


# --- Fetching: wheels from PyPI, as requirements.txt pins them ---


def show(text: str, lasting: bool = True) -> None:
    """Tells the user where the work stands: one line that is rewritten on a terminal, the lasting ones alone elsewhere."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\033[K{text[:width]}" + "\n" * lasting)
        sys.stderr.flush()
    elif lasting:
        print(text, file=sys.stderr)


def find_pip() -> list[str]:
    """Returns the command of this Python's pip, or of a virtual environment's when it has none of its own."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        make_venv()
    return [str(python), "-m", "pip"]


def make_venv() -> None:
    """Makes the virtual environment anew, empty but for pip."""
    base = getattr(sys, "_base_executable", sys.executable)  # not the one in the very folder that this clears
    done = subprocess.run([base, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(
            "this Python cannot make a virtual environment: install its venv module (on Debian and Ubuntu: apt-get install "
            f"python3-venv), then try again. It said: {last_line(done.stdout + done.stderr)}"
        )


def last_line(output: str) -> str:
    """Returns the last line that says something, preferably one that pip calls an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["nothing"]
    return next((line for line in lines if line.startswith("ERROR:")), lines[-1])


def run_pip(pip: list[str], arguments: list[str], title: str) -> None:
    """Runs pip and shows what it is at. Raises BuildError with the reason when it fails."""
    command = [*pip, "--disable-pip-version-check", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        output = ""
        for line in process.stdout or ():
            output += line
            show(f"{title}: {line.strip()}", lasting=False)
    if process.returncode:
        raise BuildError(
            f"{title} failed: pip could not get the packages. If this machine has no way to PyPI, set pip's proxy or index "
            f"(pip config), or build on another machine and copy dist/. pip said: {last_line(output)}"
        )


def fetch_libraries(target: Target, alone: bool) -> list[Path]:
    """Returns the wheels of what both programs need, or of what the server alone does: none where it has to do without."""
    pinned = re.findall(r"^([\w-]+)==", REQUIREMENTS.read_text(), re.MULTILINE)
    packages = {*pinned} - {*target.platform.lacks}
    if not alone:
        return fetch_wheels(target, packages - {*SERVER_PACKAGES})
    wheels = []
    for package in sorted(packages & {*SERVER_PACKAGES}):
        wheels += fetch_wheels(Target(target.platform, SERVER_PACKAGES[package] or target.minor), {package})
    return wheels


def fetch_wheels(target: Target, packages: set[str]) -> list[Path]:
    """Returns the target's wheels of these packages, from the cache or downloaded into it."""

    def choose(pin: re.Match[str]) -> str:
        return pin[0] if pin[1] in packages else ""

    requirements = re.sub(r"^([\w-]+)==.*\n(?:[ ].*\n)*", choose, REQUIREMENTS.read_text(), flags=re.MULTILINE)
    folder = CACHE / "wheels" / hashlib.sha256(requirements.encode()).hexdigest()[:12] / target.name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        what = f"{packages.copy().pop() if len(packages) == 1 else 'the libraries'} for {target.name}"
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            options = [f"--platform={tag}" for tag in target.platform.tags]
            options += [f"--abi={abi}" for abi in (f"cp3{target.minor}", "abi3", "none")]
            options += [f"--python-version=3.{target.minor}", "--implementation=cp", "--only-binary=:all:"]
            Path(temporary, "requirements.txt").write_text(requirements)
            options += ["--no-deps", "--require-hashes", f"--requirement={temporary}/requirements.txt"]
            options += [f"--dest={temporary}/wheels"]
            run_pip(find_pip(), ["download", *options], f"downloading {what}")
            Path(temporary, "wheels").rename(folder)
        show(f"downloaded {what}")
    return sorted(folder.glob("*.whl"))


# --- Packing ---


class File(NamedTuple):
    """A file that is unpacked beside the program or the libraries."""

    path: str
    content: bytes
    digest: str  # SHA-256

    @property
    def index_fields(self) -> str:
        """What pyz/ checks it by: size in bytes and CRC-32."""
        return f"{len(self.content)} {zlib.crc32(self.content):08x} {self.path}"


def make_file(path: str, content: bytes) -> File:
    """Wraps a file's content, with the line ends of text from Windows wheels made like all others."""
    if b"\0" not in content:
        content = content.replace(b"\r\n", b"\n")
    return File(path, content, hashlib.sha256(content).hexdigest())


def read_libraries(wheels: list[Path], alone: bool) -> list[File]:
    """Returns what a tree of these wheels holds, that of both programs or that of the server alone."""
    # Boxes with a google package of their own would hide ours, whose wheel has no such file.
    files = [] if alone else [make_file("google/__init__.py", b"")]
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not (name.endswith((*UNUSED_SUFFIXES, "/")) or name.startswith(UNUSED_PATHS) or ".dist-info/" in name):
                    content = archive.read(name)
                    files.append(make_file(name, strip(content) if alone else content))
    return files


def strip(content: bytes) -> bytes:
    """Cuts off what only debuggers read of a 64-bit Linux module, its symbols: a fifth of it. Others stay as they are."""
    if not content.startswith(b"\x7fELF\2\1"):
        return content
    (table,) = struct.unpack_from("<Q", content, 0x20)  # of the segments, which are all that is loaded
    size, count = struct.unpack_from("<HH", content, 0x36)
    segments = [struct.unpack_from("<8xQ16xQ", content, table + size * number) for number in range(count)]
    kept = bytearray(content[: max(offset + length for offset, length in segments)])
    struct.pack_into("<Q", kept, 0x28, 0)  # the table of the sections was behind them:
    struct.pack_into("<HHH", kept, 0x3A, 0, 0, 0)  # there is none
    return bytes(kept)


def read_licenses(wheels: list[Path]) -> dict[str, bytes]:
    """Returns the licenses of these packages, by the name that they have in the .pyz."""
    licenses = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if match := re.fullmatch(r"(.+)\.dist-info/(?:licenses/)?LICENSE(.*)", name):
                    licenses[f"licenses/{match[1]}{match[2]}"] = make_file(name, archive.read(name)).content
    return licenses


def name_tree(title: str, files: list[File]) -> str:
    """Names the folder of these files after their content."""
    listing = "".join(sorted(f"{file.digest} {file.path}\n" for file in files))
    return f"{title}-{hashlib.sha256(listing.encode()).hexdigest()[:12]}"


class Part(NamedTuple):
    """The files that the same targets need. Its name is BLOB/NUMBER, and the names of its files in the blob begin with that."""

    name: str
    targets: tuple[Target, ...]
    files: list[File]

    @property
    def blob(self) -> str:
        """The name of the solid archive that it lies in."""
        return self.name.partition("/")[0]


def divide(trees: dict[Target, list[File]], prefix: str) -> list[Part]:
    """Sorts the files of all targets into parts, whose names get this prefix.

    What one platform alone needs lies in a blob of its own, and all else in the blob `all`. Parts of many targets come first
    and those of one last: there the same module for one Python after the other lies side by side.
    """
    owners: dict[File, list[Target]] = {}
    for target, files in trees.items():
        for file in files:
            owners.setdefault(file, []).append(target)
    groups: dict[tuple[Target, ...], list[File]] = {}
    for file, targets in owners.items():
        groups.setdefault(tuple(targets), []).append(file)
    parts = []
    for number, group in enumerate(sorted(groups, key=lambda group: (-len(group), [target.name for target in group]))):
        blobs = {target.platform.blob or target.platform.name for target in group}
        blob = blobs.pop() if len(blobs) == 1 and len(group) < len(trees) else "all"
        parts.append(Part(f"{prefix}{blob}/{number}", group, sorted(groups[group], key=lambda file: file.path)))
    return parts


class Libraries(NamedTuple):
    """What is unpacked into a tree for each target."""

    trees: dict[Target, str]  # the name of its folder
    parts: list[Part]
    licenses: dict[str, bytes]


def make_libraries(targets: list[Target], alone: bool) -> Libraries:
    """Gathers the libraries of both programs, or those that the server alone has, for those of these targets that have any."""
    wheels = {target: found for target in targets if (found := fetch_libraries(target, alone))}
    files = {target: read_libraries(found, alone) for target, found in wheels.items()}
    licenses = {name: text for found in wheels.values() for name, text in read_licenses(found).items()}
    trees = {target: name_tree(target.name, tree) for target, tree in files.items()}
    return Libraries(trees, divide(files, "server-" if alone else ""), licenses)


def make_tar(parts: list[Part]) -> bytes:
    """Puts the files of these parts one after the other, with nothing that changes from one build to the next."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for part in parts:
            for file in part.files:
                member = tarfile.TarInfo(f"{part.name}/{file.path}")
                member.size = len(file.content)
                tar.addfile(member, io.BytesIO(file.content))
    return buffer.getvalue()


class Compressor:
    """Compresses tars with xz, several at a time, and shows how far it is. What it did before it finds in the cache."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.done_bytes = 0
        self.all_bytes = 0

    def compress(self, parts: list[Part]) -> bytes:
        """Returns the .tar.xz of these parts."""
        # The same module hardly differs from one Python to the next. A dictionary that is larger than it lets xz see that.
        largest = max(len(file.content) for part in parts for file in part.files)
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << (largest * 5 // 4).bit_length()}]
        tar = make_tar(parts)
        cached = CACHE / "blobs" / f"{hashlib.sha256(repr(filters).encode() + tar).hexdigest()}.tar.xz"
        if not cached.exists():
            with self.lock:
                self.all_bytes += len(tar)
            xz = lzma.LZMACompressor(filters=filters)
            blob = b"".join(xz.compress(self.count(tar[start : start + (1 << 18)])) for start in range(0, len(tar), 1 << 18))
            write_whole(cached, blob + xz.flush())
        return cached.read_bytes()

    def count(self, chunk: bytes) -> bytes:
        """Shows that one more chunk is being compressed."""
        if self.stop.is_set():
            raise BuildError("stopped")
        with self.lock:
            self.done_bytes += len(chunk)
            show(f"compressing: {self.done_bytes * 100 // self.all_bytes} % of {self.all_bytes >> 20} MiB", lasting=False)
        return chunk

    def compress_all(self, parts: list[Part]) -> dict[str, bytes]:
        """Returns each blob's .tar.xz. The lzma module lets other threads run while it works."""
        blobs = {name: [part for part in parts if part.blob == name] for name in dict.fromkeys(part.blob for part in parts)}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                return dict(zip(blobs, pool.map(self.compress, blobs.values()), strict=True))
            except BaseException:
                self.stop.set()  # after Ctrl-C the threads would work on
                raise


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file aside and renames it, so that no one meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    aside.replace(path)


def make_index(libraries: list[Libraries], tree: str, program: Part) -> bytes:
    """Lists what a .pyz holds, for pyz/bootstrap.py and pyz/unpack.py. Its lines:

    known KEY TARGET                 a target that build.py can build, and what that Python calls itself
    tree KEY FOLDER PART PART ...    libraries of a target in this file, first those of both programs; KEY `any`: the program
    PART SIZE CRC-32 PATH            a file
    """
    lines = [f"known {target.key} {target.name}" for target in TARGETS.values()]
    for trees, parts, _ in libraries:
        for target, folder in trees.items():
            lines.append(" ".join(["tree", target.key, folder, *(part.name for part in parts if target in part.targets)]))
    lines.append(f"tree any {tree} {program.name}")
    for part in [*(part for _, parts, _ in libraries for part in parts), program]:
        lines += [f"{part.name} {len(file.content)} {zlib.crc32(file.content):08x} {file.path}" for file in part.files]
    return "\n".join(lines).encode()


def write_pyz(path: Path, entries: dict[str, bytes]) -> None:
    """Writes a zip that Python runs. Nothing is deflated: what is large is compressed already, and zlibs differ in their output."""
    buffer = io.BytesIO()
    buffer.write(HEAD)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    write_whole(path, buffer.getvalue())
    path.chmod(0o755)


def describe(targets: list[Target]) -> str:
    """Names these targets, whole platforms in short."""
    texts = []
    for platform in PLATFORMS:
        minors = [target.minor for target in targets if target.platform is platform]
        texts += [f"{platform.name} (Python {', '.join(f'3.{minor}' for minor in minors)})"] if minors else []
    return ", ".join(texts)


def read_program(name: str, source: Path) -> list[File]:
    """Returns what a program's own tree holds: its script, the stubs, and what of edge/ is its own or both programs'."""
    paths = [source / path for path in (f"{name}.py", "node_pb2.py", "node_pb2_grpc.py")]
    paths += sorted(source.glob("edge/*.py"))
    paths += sorted(path for folder in PROGRAMS[name] for kind in ("py", "html") for path in source.glob(f"edge/{folder}/*.{kind}"))
    return [make_file(path.relative_to(source).as_posix(), path.read_bytes()) for path in paths]


def pack(targets: list[Target], source: Path = ROOT, dist: Path = DIST) -> int:
    """Packs both programs for these targets into dist/, with their checksums beside them. Returns the exit status."""
    shared, servers = (make_libraries(targets, alone) for alone in (False, True))
    compressor = Compressor()
    made = []
    for name in PROGRAMS:
        libraries = [shared, servers] if name == "server" else [shared]
        files = read_program(name, source)
        program = Part("program/0", (), files)
        contents = {"__main__.py": MAIN, **{f"pyz/{path.name}": path.read_bytes() for path in sorted(ROOT.glob("pyz/*.py"))}}
        contents["index"] = make_index(libraries, name_tree(name, files), program)
        blobs = compressor.compress_all([*(part for _, parts, _ in libraries for part in parts), program])
        contents |= {f"{blob}.tar.xz": content for blob, content in blobs.items()}
        licenses = [("licenses/edge-compute-node", (ROOT / "LICENSE").read_bytes())]
        licenses += [entry for _, _, entries in libraries for entry in entries.items()]
        contents |= dict(sorted(licenses))
        made.append(dist / f"{name}.pyz")
        write_pyz(made[-1], contents)
        show(f"{os.path.relpath(made[-1])}: {made[-1].stat().st_size / 1e6:.1f} MB, for {describe(targets)}")
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made)
    write_whole(dist / "SHA256SUMS", sums.encode())
    return 0


# --- The virtual environment, and what runs in it ---


def make_environment() -> str:
    """Returns the Python of the virtual environment with all pinned requirements; makes it anew when they changed."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    state = "\n".join([sys.version, REQUIREMENTS.read_text(), DEV_REQUIREMENTS.read_text()])
    stamp = VENV / ".requirements"
    if not stamp.exists() or stamp.read_text() != state:
        show("making the virtual environment .venv")
        make_venv()
        options = ["--no-deps", "--require-hashes", f"--requirement={REQUIREMENTS}", f"--requirement={DEV_REQUIREMENTS}"]
        run_pip([str(python), "-m", "pip"], ["install", *options], "installing the requirements")
        stamp.write_text(state)
    return str(python)


def test(pytest_arguments: list[str]) -> int:
    """Runs every check, then pytest, whose closing line comes last. Returns the first failed one's status."""
    python = make_environment()
    status = 0
    for check in (["-m", "ruff", "check"], ["-m", "mypy"], ["build.py", "protos", "--check"], ["-m", "pytest", *pytest_arguments]):
        show(f"--- {' '.join(check).removeprefix('-m ')}")
        status = subprocess.run([python, *check], cwd=ROOT, check=False).returncode or status
    return status


def protos(check: bool) -> int:
    """Generates the stubs from node.proto with the pinned grpcio-tools, or only tells which differ from that."""
    command = [make_environment(), "-m", "grpc_tools.protoc", "--proto_path=.", "node.proto"]
    with tempfile.TemporaryDirectory() as folder:
        command += [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise BuildError("node.proto does not compile; protoc says why above")
        made = {stub: Path(folder, stub).read_bytes() for stub in STUBS}
        changed = [stub for stub in STUBS if not (ROOT / stub).exists() or (ROOT / stub).read_bytes() != made[stub]]
        if check and changed:
            raise BuildError(f"not made from this node.proto: {', '.join(changed)}; run `python3 build.py protos`")
        for stub in changed:
            write_whole(ROOT / stub, made[stub])
    show(f"stubs {'changed: ' + ', '.join(changed) if changed else 'match node.proto'}")
    return 0


def screenshots() -> int:
    """Remakes the pictures in docs/ with the programs' own screens, and the page's where there is a Chromium."""
    return subprocess.run([make_environment(), "-m", "tests.pictures"], cwd=ROOT, check=False).returncode


def bench(arguments: list[str]) -> int:
    """Runs the benchmarks."""
    return subprocess.run([make_environment(), "-m", "bench", *arguments], cwd=ROOT, check=False).returncode


# --- The demo ---


FAULTS = ("hot", "failed-gpu", "hung-sensors")  # that a simulated node can show


def node_options(nodes: int, faults: bool) -> list[list[str]]:
    """Returns the hardware of each node: the first is this machine, the others are simulated; then those with a fault."""
    options = [["--hardware", "auto"], *map(simulated_box, range(1, nodes))][:nodes]
    for number, fault in enumerate(FAULTS if faults else (), 101):
        options.append([*simulated_box(number), "--faults", fault])
    return options


def simulated_box(number: int) -> list[str]:
    """Returns the options of one: two racks of two teams, so that the table has groups to show."""
    labels = ("--label", f"rack=a{number % 2 + 1}", "--label", f"team={('ml', 'vision')[number // 2 % 2]}")
    return ["--hardware", "simulated", "--seed", str(number), *labels]


def find_port(wanted: int | None) -> int:
    """Returns a free port on the loopback interface: the wanted one, or the usual one if it is free. Raises BuildError."""
    for port in (50051, 0) if wanted is None else (wanted,):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that is only in TIME_WAIT is free
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    if wanted:
        raise BuildError(f"port {wanted} is in use on 127.0.0.1: give --port another, or none")
    raise BuildError("no free port on 127.0.0.1")


def find_own_address() -> str:
    """Returns this machine's address on its network, else its name. Nothing is sent: a datagram socket only looks up the route."""
    with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return socket.gethostname()


class Demo:
    """A server in the foreground and nodes behind it, which end together."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.stop = threading.Event()
        self.signal = 0
        self.nodes: dict[Path, subprocess.Popen[bytes]] = {}
        self.doomed: dict[Path, subprocess.Popen[bytes]] = {}

    def note_signal(self, number: int, frame: types.FrameType | None) -> None:
        """Ends the wait; the work is done there."""
        self.signal = number
        self.stop.set()

    def run(self, nodes: int, port: int | None, faults: bool) -> int:
        """Runs until the server ends, a node dies or a signal comes. Returns the exit status."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self.note_signal)
        address = f"127.0.0.1:{find_port(port)}"
        server = subprocess.Popen([sys.executable, str(DIST / "server.pyz"), "--listen", address])
        trouble, restore = "", terminal_restorer()
        try:
            while server.poll() is None and not is_listening(address) and not self.stop.wait(0.05):
                pass
            for number, options in enumerate(node_options(nodes, faults) if server.poll() is None else []):
                self.nodes |= self.start_node(f"node {number}", address, options)
            if faults and server.poll() is None:
                self.doomed = self.start_node("doomed node", address, ["--hardware", "simulated", "--seed", "100"])
            while server.poll() is None and not trouble and not self.stop.wait(0.1):
                self.kill_doomed()
                trouble = self.find_trouble()
        finally:
            self.end(server)
            if server.returncode < 0:  # killed: it could not leave the terminal as it was
                restore()
        if trouble:
            raise BuildError(trouble)
        if self.signal or server.returncode < 0:
            return 128 + (self.signal or -server.returncode)
        return server.returncode

    def start_node(self, name: str, address: str, options: list[str]) -> dict[Path, subprocess.Popen[bytes]]:
        """Starts one in the background. A session of its own: Ctrl-C is for the server and this process."""
        command = [sys.executable, str(DIST / "node.pyz"), "--server", address, "--headless", *options]
        path = self.logs / name
        with path.open("wb") as log:
            node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        return {path: node}

    def kill_doomed(self) -> None:
        """Kills the node that shall be lost, once it has reported: it says no goodbye."""
        for log, node in self.doomed.items():
            if node.poll() is None and "connected to" in log.read_text(errors="replace"):
                node.kill()

    def find_trouble(self) -> str:
        """Says which node ended by itself, with the end of its log; nothing if none did."""
        for log, node in self.nodes.items():
            if node.poll() is not None:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
                return f"{log.name} ended with status {node.returncode}, so the demo did. The end of its output:\n{tail}"
        return ""

    def end(self, server: subprocess.Popen[bytes]) -> None:
        """Ends every process, the hard way if it must."""
        if self.signal == signal.SIGINT:  # the terminal sent it to the server too, and a second one would hurry it
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(2.5)
        processes = [server, *self.nodes.values(), *self.doomed.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def terminal_restorer() -> Callable[[], None]:
    """What brings the terminal back as it is now, when a full screen is killed on it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty() and os.name == "posix"):
        return lambda: None
    import termios

    attributes = termios.tcgetattr(sys.stdin)

    def restore() -> None:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, attributes)
        print("\x1b[?2026l\x1b[?7h\x1b[?1049l\x1b[?25h", end="", flush=True)  # no update, wrapping, the main screen, a cursor

    return restore


def is_listening(address: str) -> bool:
    """Tells whether something takes connections there."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def demo(nodes: int, port: int | None, faults: bool) -> int:
    """Builds the two files and shows them at work, one real node and simulated ones; says then how to run them by hand."""
    pack([this_target()])
    with tempfile.TemporaryDirectory(prefix="edge-demo-") as logs:
        status = Demo(Path(logs)).run(nodes, port, faults)
    print(
        "The two files are in dist/; copy them wherever you like, no install needed.\n"
        "  where you look    python3 server.pyz\n"
        f"  on each box       python3 node.pyz --server {find_own_address()}\n"
        "They run under this Python; for other Pythons and processors: python3 build.py --target linux"
    )
    return status


# --- The command line ---


def count(text: str) -> int:
    """Parses a number of nodes."""
    if not 0 <= int(text) <= 100:
        raise argparse.ArgumentTypeError("from 0 to 100")
    return int(text)


def port_number(text: str) -> int:
    """Parses a port."""
    if not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("from 1 to 65535")
    return int(text)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line; what follows `test` or `bench` is for pytest or the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "--target",
        action="extend",
        type=parse_target,
        metavar="TARGET",
        help=f"pack for this one, like cp312-linux-aarch64, or for a group: {', '.join(GROUPS)}; may be given again "
        "(default: this machine's Python)",
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="")
    command = commands.add_parser("demo", help="build both files, and run a server and some nodes on this machine")
    command.add_argument("--nodes", type=count, default=6, metavar="N", help="number of nodes, one of them real (default: 6)")
    about = "where its server listens on this machine (default: 50051, or any other if that is taken)"
    command.add_argument("--port", type=port_number, metavar="PORT", help=about)
    about = "four more nodes: one is lost, one has hung sensors, one a failed GPU, and one is hot"
    command.add_argument("--faults", action="store_true", help=about)
    commands.add_parser("test", help="run every check and test; the arguments go to pytest")
    command = commands.add_parser("protos", help="regenerate the stubs from node.proto")
    command.add_argument("--check", action="store_true", help="change nothing; fail if they differ")
    commands.add_parser("screenshots", help="remake the pictures in docs/")
    commands.add_parser("bench", help="run the benchmarks; the arguments go to python -m bench")
    end = next((place + 1 for place, word in enumerate(argv) if word in ("test", "bench")), len(argv))
    options = parser.parse_args(argv[:end])
    if options.target and options.command:
        parser.error(f"--target is for packing; {options.command} works with this machine's Python")
    return options, argv[end:]


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    options, rest = parse(sys.argv[1:] if argv is None else argv)
    commands: dict[str | None, Callable[[], int]] = {
        "demo": lambda: demo(options.nodes, options.port, options.faults),
        "test": lambda: test(rest),
        "protos": lambda: protos(options.check),
        "screenshots": screenshots,
        "bench": lambda: bench(rest),
        None: lambda: pack(list(dict.fromkeys(options.target or [this_target()]))),
    }
    try:
        return commands[options.command]()
    except (BuildError, OSError) as error:
        if options.debug:
            raise
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
