"""--prometheus-config: promtool takes what is printed, pasted as it is, for each way in which a server may run."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import pytest

import server
from edge.command_line import Endpoint
from edge.credentials import authority_of
from edge.fleet.certificates import OwnKey
from edge.fleet.options import parse_options
from edge.web.prometheus_config import AUTHORITY_FILE, TOKEN_FILE, reached
from tests.fixtures.pki import Authority
from tests.fixtures.processes import ROOT


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert server.main([*options, "--prometheus-config"]) == 0
    return capsys.readouterr().out


def check(folder: pathlib.Path, config: str) -> str:
    """What promtool says of it, in prometheus.yml of this folder."""
    if not (promtool := shutil.which("promtool")):
        pytest.skip("needs promtool, of Debian's package prometheus")
    (folder / "prometheus.yml").write_text(config)
    done = subprocess.run([promtool, "check", "config", "prometheus.yml"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_on_this_machine_alone_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    config = printed(capsys, "--http", "9100")
    assert "SUCCESS" in check(tmp_path, config)
    assert "targets: ['127.0.0.1:9100']" in config and "--http HOST:PORT" in config
    assert "honor_labels: true" in config and "https" not in config
    assert "# A second server is one more target of this job" in config and "job_name: edge-compute-node-2" not in config


def test_on_all_addresses_it_names_one_that_others_reach(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    config = printed(capsys, "--http", "0.0.0.0:9100")
    assert "SUCCESS" in check(tmp_path, config)
    assert "0.0.0.0" not in config and ":9100']" in config and "alone:" not in config


@pytest.mark.parametrize(
    ("listened", "target"),
    [
        (Endpoint("10.0.0.5", 50051), "10.0.0.5:50051"),  # the port that is left out elsewhere
        (Endpoint("2001:db8::7", 9100), "[2001:db8::7]:9100"),
        (Endpoint("it's.example", 9100), "it's.example:9100"),
    ],
)
def test_a_target_has_its_port(listened: Endpoint, target: str) -> None:
    assert reached(listened) == target


def test_of_a_secure_server_it_says_how_the_token_comes_there(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    state, beside = tmp_path / "its state", tmp_path / "prometheus"
    beside.mkdir()
    key = OwnKey(state)
    config = printed(capsys, "--http", "10.0.0.5:9100", "--secure", "--state", str(state))
    commands = [line.removeprefix("#     ") for line in config.splitlines() if line.startswith("#     ")]
    assert f"token new --role view --note Prometheus --state '{state}' > {TOKEN_FILE}" in commands[0]
    subprocess.run(["sh", "-ec", commands[-1]], cwd=beside, check=True)
    assert (beside / AUTHORITY_FILE).read_bytes() == authority_of(key.public)
    server.main(["token", "new", "--role", "view", "--state", str(state)])
    (beside / TOKEN_FILE).write_text(capsys.readouterr().out)
    assert "SUCCESS" in check(beside, config)
    assert "scheme: https" in config and "server_name: edge-compute-node" in config and f"credentials_file: {TOKEN_FILE}" in config
    assert "edge1-" not in config  # no secret
    assert "has an authority and a token of its own, so it is a job of its own: job_name: edge-compute-node-2" in config
    (also,) = re.findall(r'write job=~"(\S+)" there', config)
    assert all(re.fullmatch(also, name) for name in re.findall(r"job_name: ([\w-]+)", config)), also
    rules = (ROOT / "docs/prometheus-rules.yml").read_text()
    asking = [rule.split("\n")[0] for rule in rules.split("- alert: ")[1:] if 'job="edge-compute-node"' in rule]
    assert f"# {' and '.join(asking)} in prometheus-rules.yml ask" in config


def test_with_certificates_of_ones_own_it_calls_the_server_by_them(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    certificate, key = Authority("Our Authority").issue("edge.example")
    (tmp_path / "chain.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / TOKEN_FILE).touch()
    files = ("--tls-cert", str(tmp_path / "chain.pem"), "--tls-key", str(tmp_path / "key.pem"))
    config = printed(capsys, "--http", "10.0.0.5:9100", *files)
    assert "SUCCESS" in check(tmp_path, config)
    assert "server_name: 'edge.example'" in config and AUTHORITY_FILE not in config and "ca_file, below" not in config
    assert "A second server has a token of its own" in config
    assert not (tmp_path / AUTHORITY_FILE).exists()


def test_the_environment_stops_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_PROMETHEUS_CONFIG", "1")
    assert not parse_options([]).prometheus_config


def test_what_it_needs_it_says(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    assert server.main(["--http", "9100", "--secure", "--state", str(tmp_path / "none"), "--prometheus-config"]) == 1
    assert "start it with python3 server.pyz --secure" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()  # a slip makes no key
