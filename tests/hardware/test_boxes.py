"""Boxes that are odd: the real program, in a namespace where files of /proc, /sys and /etc are others."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from edge.hardware.host import FIRST_PID_NAMESPACE, LocalHost
from tests.fixtures.processes import EXECUTE, ROOT, Program, environment

Start = Callable[..., Program]
NODE = ("node.py", "--hardware", "host", "--json")


def has_namespaces() -> bool:
    unshare = shutil.which("unshare")
    return bool(unshare) and os.geteuid() == 0 and not subprocess.run([str(unshare), "-mnu", "true"], check=False).returncode


if not sys.platform.startswith("linux") or not has_namespaces():
    pytest.skip("needs root, and namespaces of Linux", allow_module_level=True)


def on_box(prepare: str, *argv: str, flags: str = "-m") -> list[str]:
    """The command line of a Python program in a namespace that a shell has prepared; $$ is the program's process id."""
    return ["unshare", flags, "sh", "-ec", f'{prepare}\nexec "$0" "$@"', sys.executable, *argv]


def reading_on(prepare: str, flags: str = "-m") -> Any:
    """What one reading says there."""
    command = on_box(prepare, *NODE, "--once", flags=flags)
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def well() -> set[str]:
    """What this machine's host reports."""
    return set(reading_on("true")["sample"]["host"])


@pytest.mark.parametrize(
    ("path", "missing", "notice"),
    [
        (
            "/proc/stat",
            {"cpu_percent", "cpu_core_percents", "uptime_seconds"},
            "uptime can't be read (line 'btime' not found in /proc/stat); processors can't be read (ValueError: there are none)",
        ),
        ("/proc/meminfo", {"memory_used_bytes"}, "memory can't be read (KeyError: b'MemTotal:')"),
        ("/etc/os-release", set(), None),
        ("/proc/$$/mountinfo", set(), None),
    ],
)
def test_a_file_that_is_empty_costs_its_readings(well: set[str], path: str, missing: set[str], notice: str | None) -> None:
    reading = reading_on(f"mount --bind /dev/null {path}")
    assert set(reading["sample"]["host"]) == well - missing
    assert reading["info"].get("notice") == notice
    assert reading["info"]["host"]["operating_system"]
    assert ("memory_total_bytes" in reading["info"]["host"]) == (path != "/proc/meminfo")


def test_without_proc_what_does_not_need_it_is_reported() -> None:
    reading = reading_on("mount -t tmpfs none /proc")
    assert "load_1m" in reading["sample"]["host"]
    assert "memory_used_bytes" not in reading["sample"]["host"]
    assert "network can't be read (No such file or directory)" in reading["info"]["notice"]


def test_more_memory_available_than_there_is_means_none_in_use(tmp_path: pathlib.Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 998384 kB\nMemFree: 1100000 kB\nMemAvailable: 1100000 kB\n")  # LXC; and psutil warns of the rest
    reading = reading_on(f"mount --bind {meminfo} /proc/meminfo")
    assert reading["sample"]["host"]["memory_used_bytes"] == "0"
    assert reading["info"]["host"]["memory_total_bytes"] == str(998384 * 1024)


def test_names_that_are_no_utf8_have_replacement_characters(tmp_path: pathlib.Path) -> None:
    release = tmp_path / "os-release"
    release.write_bytes(b"NAME=x\nPRETTY_NAME='B\xe4r \\$5 \xff OS'\n")
    # sethostname(2) takes any bytes; hostname(1) does not.
    name = "import ctypes; assert ctypes.CDLL(None).sethostname(b'b\\xe4r', 3) == 0"
    reading = reading_on(f'mount --bind {release} /etc/os-release; {sys.executable} -c "{name}"', flags="-mu")
    assert reading["info"]["host"]["operating_system"] == "B�r $5 � OS"
    assert reading["info"]["hostname"] == "b�r"


def test_the_name_of_a_process_may_be_cut_in_a_character(tmp_path: pathlib.Path) -> None:
    name = "v训练模型进程"  # the kernel keeps 15 bytes, and so cuts the fifth
    code = f"import ctypes, time; ctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        link = tmp_path / "proc/self/ns/pid"
        link.parent.mkdir(parents=True)
        link.symlink_to(FIRST_PID_NAMESPACE)
        host = LocalHost(root=tmp_path)
        user, text = host.owner(process.pid)
        process.kill()
    assert (text, host.notices()) == ("v训练模型�", [])
    assert user.encode()


def test_a_memory_that_grows_is_told_to_the_server(start: Start, tmp_path: pathlib.Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 1000000 kB\nMemFree: 500000 kB\nMemAvailable: 500000 kB\n")
    server = start("server.py", "--headless", "--json", "--listen", "127.0.0.1:0")
    address = server.line(r"listening on (\S+:\d+)")[1]
    prepare = f"mount --bind {meminfo} /proc/meminfo"
    command = on_box(prepare, *NODE, "--headless", "--server", address, "--id", "box", "--interval", "0.2")
    start(*EXECUTE, *command)

    def memory(line: Any) -> tuple[str | None, str | None]:
        (row,) = line["nodes"] or [{"info": {}, "sample": {}}]
        return row["info"].get("host", {}).get("memory_total_bytes"), row["sample"].get("host", {}).get("memory_used_bytes")

    server.json_line(lambda line: memory(line) == (str(1000000 * 1024), str(500000 * 1024)))
    meminfo.write_text("MemTotal: 4000000 kB\nMemFree: 100000 kB\nMemAvailable: 1000000 kB\n")
    server.json_line(lambda line: memory(line) == (str(4000000 * 1024), str(3000000 * 1024)))
    meminfo.write_text("")
    line = server.json_line(lambda line: memory(line) == (None, None) and line["nodes"][0]["info"].get("notice"))
    assert line["nodes"][0]["info"]["session_number"] == 1
    assert line["nodes"][0]["info"]["notice"] == "memory can't be read (KeyError: b'MemTotal:')"


def test_the_fullest_disk_that_is_written_to_counts(tmp_path: pathlib.Path) -> None:
    if not shutil.which("mkfs.ext4") or not pathlib.Path("/dev/loop-control").exists():
        pytest.skip("needs mkfs.ext4 and loop devices")
    prepare = f"""
cd {tmp_path}
truncate -s 20M full small
mkfs.ext4 -q -m 0 full
mkfs.ext4 -q -m 0 small
mkdir at image
mount -o loop full at
dd if=/dev/zero of=at/filled bs=1M count=14 2> dd
mount --bind at at
cd {ROOT}
"""
    full = reading_on(prepare)
    used, total = int(full["sample"]["host"]["disk_used_bytes"]), int(full["info"]["host"]["disk_total_bytes"])
    assert 14 * 2**20 < used < total < 20 * 2**20
    image = reading_on(f"cd {tmp_path}; mount -o loop,ro full image; cd {ROOT}")
    assert int(image["info"]["host"]["disk_total_bytes"]) > 20 * 2**20  # as without it


INTERFACES = """
import pathlib, psutil
from edge.hardware.network import counted_once, with_indexes
print(*sorted(name for name, _ in counted_once(with_indexes(psutil.net_io_counters(pernic=True)), pathlib.Path("/"))))
"""
ELSEWHERE = """
mount -t sysfs none /sys
unshare -n sleep 10 < /dev/null > /dev/null 2>&1 &
other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
far() { ip link add $1 type veth peer name $1 netns $other; }
"""


@pytest.mark.parametrize(
    ("made", "counted"),
    [
        ("", ""),
        ("far eth0", "eth0"),
        ("far eth0; far eth1", "eth0 eth1"),
        ("far eth0; ip link add docker0 type bridge; far veth1; ip link set veth1 master docker0", "eth0"),
        ("far eth0; ip link add br0 type bridge; ip link set eth0 master br0", "br0"),
        ("far eth0; ip link add link eth0 name eth0.7 type vlan id 7", "eth0"),
        ("far eth0; ip link add bond0 type bond; ip link set eth0 master bond0", "eth0"),
        ("ip link add one type veth peer name two", "two"),  # both ends of a pair: the first of them
        ("far eth0; ip tuntap add tun0 mode tun", "eth0"),
        ("ip tuntap add tun0 mode tun", "tun0"),
    ],
)
def test_no_byte_counts_twice_where_nothing_is_physical(made: str, counted: str) -> None:
    command = on_box(ELSEWHERE + made.replace(";", "\n"), "-c", INTERFACES, flags="-mn")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode and ("nknown device type" in done.stderr or "not supported" in done.stderr):
        pytest.skip(f"this kernel has no such interface: {done.stderr.strip()}")
    assert (done.stdout.strip(), done.stderr) == (counted, "")
