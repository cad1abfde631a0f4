"""A real Prometheus scrapes a real server with fifty nodes: what its API answers, its rules, and the dashboards' queries.

All of the nodes are node.py; six have what a dashboard must show.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from edge.web.prometheus_config import JOB
from tests.fixtures.processes import ROOT, Program, environment, eventually, starting
from tests.fixtures.prometheus import Prometheus, any_of, as_grafana_asks, need_prometheus, promtool
from tests.fixtures.sessions import Stream, refusal

DOCS = ROOT / "docs"
RULES = DOCS / "prometheus-rules.yml"
DASHBOARD = json.loads((DOCS / "grafana.json").read_text())
OTHERS = range(10, 54)  # seeds of the nodes with nothing special
AT_ONCE = 4  # nodes that start together: more would keep a machine of two cores from all else
# NVIDIA's dashboard for DCGM's exporter (grafana.com, 12239). Its panel of the tensor cores asks for a figure of the profiler.
DCGM_LABELS = '{instance=~"$instance", gpu=~"$gpu"}'
DCGM_QUERIES = (
    f"DCGM_FI_DEV_GPU_TEMP{DCGM_LABELS}",
    f"avg(DCGM_FI_DEV_GPU_TEMP{DCGM_LABELS})",
    f"DCGM_FI_DEV_POWER_USAGE{DCGM_LABELS}",
    f"sum(DCGM_FI_DEV_POWER_USAGE{DCGM_LABELS})",
    f"DCGM_FI_DEV_SM_CLOCK{DCGM_LABELS} * 1000000",
    f"DCGM_FI_DEV_GPU_UTIL{DCGM_LABELS}",
    f"DCGM_FI_DEV_FB_USED{DCGM_LABELS}",
)


class Fleet:
    """A server, its nodes, and who scrapes it."""

    def __init__(self, folder: pathlib.Path, ending: contextlib.ExitStack) -> None:
        self.start = ending.enter_context(starting())
        options = ("--listen", "127.0.0.1:0", "--state", str(folder / "state"))
        self.server = self.start("server.py", "--json", *options, "--http", "0")
        secure = ("--secure", "--listen", "127.0.0.1:0", "--state", str(folder / "secure"))
        behind_tls = self.start("server.py", "--headless", *secure, "--http", "0")
        self.address = self.server.line(r"listening on (\S+)")[1]
        web = self.server.line(r"http://(127\.0\.0\.1:\d+)/$")[1]
        self.url, self.instance = f"http://{web}", f'instance="{web}"'
        self.doomed = self.node("--id", "doomed", "--seed", "5")
        self.node("--id", "hot", "--seed", "2", "--faults", "hot", "--label", "rack=a3", "--label", "team=ml")
        self.node("--id", "failed", "--seed", "3", "--faults", "failed-gpu", "--label", "rack=a3")
        for seed, node_id in ((6, "dgx"), (8, "pi"), (4, 'a "quoted\\ name"')):
            self.node("--id", node_id, "--seed", str(seed))
        for number in range(0, len(OTHERS), AT_ONCE):
            started = [self.node("--id", f"box-{seed}", "--seed", str(seed)) for seed in OTHERS[number : number + AT_ONCE]]
            for node in started:
                node.line("connected to", 60)
        self.break_off("cut off")
        refusal(self.address, node_id="x" * 100)
        self.secure_url = behind_tls.line(r"(https://127\.0\.0\.1:\d+)/$")[1]
        rules = folder / "rules.yml"
        rules.write_text(re.sub(r"interval: \w+", "interval: 1s", RULES.read_text()))
        secure_job = self.scrape_config(folder, self.secure_url, *secure)
        self.config = "\n".join((
            "global: {scrape_interval: 1s, evaluation_interval: 1s}",
            f"rule_files: [{rules}]",
            self.scrape_config(folder, self.url, *options),
            secure_job.replace("scrape_configs:\n", "").replace("job_name: ", "job_name: secure-"),
        ))  # fmt: skip
        self.prometheus = Prometheus(folder, self.config)
        ending.callback(self.prometheus.close)

    def node(self, *options: str) -> Program:
        """A box that does not exist."""
        return self.start("node.py", "--server", self.address, "--hardware", "simulated", "--headless", *options)

    def break_off(self, node_id: str) -> None:
        """A node whose connection broke."""
        stream = Stream(self.address, node_id)
        stream.answer()
        stream.close()

    def scrape_config(self, folder: pathlib.Path, url: str, *options: str) -> str:
        """What the program prints for a server with these options, after what it says is to be done beside prometheus.yml."""
        program = self.start("server.py", *options, "--http", url.partition("//")[2], "--prometheus-config")
        assert program.wait() == 0, program.lines
        config = "\n".join(program.lines)
        for command in re.findall(r"^#     (.+)", config, re.MULTILINE):
            if "sudo" not in command:
                here = command.replace("python3 server.pyz", f"{sys.executable} {ROOT / 'server.py'}")
                subprocess.run(["sh", "-ec", here], cwd=folder, env=environment(), timeout=30, check=True)
        return re.sub(r"(scrape_interval|scrape_timeout): 15s", r"\1: 1s", config)

    def metrics(self) -> str:
        """What the server answers."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def json(self) -> dict[str, Any]:
        """The nodes as --json has them, by name."""
        line = self.server.json_line(lambda line: "nodes" in line)
        return {node["node_id"]: node for node in line["nodes"]}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    need_prometheus()
    with contextlib.ExitStack() as ending:
        fleet = Fleet(tmp_path_factory.mktemp("fleet"), ending)
        fleet.prometheus.becomes(f'edge_fleet_nodes{{state="online", {fleet.instance}}}', 50, 30)
        yield fleet


def queries_of_dashboard() -> list[tuple[str, str, str]]:
    """Kind and title of a panel, and what it asks."""
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    return [(panel["type"], panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


def names_in(text: str) -> set[str]:
    """Metrics that a text names."""
    return set(re.findall(r"(?<![\w:])(?:edge_[a-z]+_\w+|process_\w+|DCGM_FI_\w+)(?![\w:])", text))


def documented_names() -> set[str]:
    """Those of the table in docs/prometheus.md."""
    lines = (DOCS / "prometheus.md").read_text().splitlines()
    return {name for line in lines if line.startswith("| `") for name in names_in(line.split("|")[1])}


# ---- Without a server ----


@pytest.mark.parametrize("cases", sorted((ROOT / "tests").glob("prometheus-rules*.yml")), ids=lambda path: path.name)
def test_each_alert_comes_when_it_should_and_not_before(cases: pathlib.Path) -> None:
    code, told = promtool("test", "rules", str(cases))
    assert code == 0, told


def test_promtool_finds_nothing_in_the_rules_and_each_alert_is_tested_and_told() -> None:
    code, told = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert code == 0, told
    cases = "".join(path.read_text() for path in (ROOT / "tests").glob("prometheus-rules*.yml"))
    for alert in re.findall(r"- alert: (\w+)", RULES.read_text()):
        comes = re.findall(rf"alertname: {alert}\s+exp_alerts:", cases)
        stays_away = re.findall(rf"alertname: {alert}, exp_alerts: \[\]", cases)
        assert comes and stays_away and f"`{alert}`" in (DOCS / "prometheus.md").read_text(), alert


def test_alerts_are_judged_as_often_as_servers_are_read() -> None:
    """Each minute, as Prometheus does by itself, `for: 1m` would be two."""
    for group in RULES.read_text().split("- name: ")[1:]:
        if "for: 1m" in group:
            assert "interval: 15s" in group.partition("rules:")[0] and "scrape_interval: 15s" in JOB, group


def test_panels_of_the_dashboard_have_their_own_places() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_variables_stand_in_queries_as_grafana_writes_them() -> None:
    variables = {"node": "a", "server": any_of(["10.0.0.5:80", "b:80"]), "labels": 'label_rack="a3"', "__rate_interval": "4s"}
    asked = as_grafana_asks('x{n="$node", s=~"${server}", ${labels:raw}}[$__rate_interval]', variables)
    assert asked == r'x{n="a", s=~"(10\\.0\\.0\\.5:80|b:80)", label_rack="a3"}[4s]'


# ---- With a server, its nodes, and Prometheus ----


def test_promtool_finds_nothing_in_what_the_server_answers(fleet: Fleet) -> None:
    def families(text: str) -> set[str]:
        return set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))

    eventually(lambda: families(fleet.metrics()) >= documented_names())  # the journal's come with its first moment
    text = fleet.metrics()
    assert families(text) == documented_names()
    own = "".join(line for line in text.splitlines(keepends=True) if "DCGM_" not in line)
    assert promtool("check", "metrics", given=own) == (0, "")
    _, told = promtool("check", "metrics", given=text)  # labels of DCGM's exporter are as they are
    assert {line.partition(" ")[2] for line in told.splitlines()} == {
        "label names should be written in 'snake_case' not 'camelCase'"
    }


def test_what_prometheus_answers_is_what_the_server_prints(fleet: Fleet) -> None:
    nodes = {node_id: node["info"] for node_id, node in fleet.json().items() if node["state"] == "ONLINE"}
    boxes = [(node_id, info, index, gpu) for node_id, info in nodes.items() for index, gpu in enumerate(info.get("devices", ()))]

    def by_node(expression: str) -> dict[str, float]:
        return {sample.labels["node"]: sample.value for sample in fleet.prometheus.query(expression)}

    assert by_node("edge_node_memory_size_bytes") == {
        node_id: int(info["host"]["memory_total_bytes"]) for node_id, info in nodes.items()
    }
    assert by_node("edge_node_cpus") == {node_id: info["host"]["cpu_count"] for node_id, info in nodes.items()}
    assert by_node("edge_node_gpus") == {node_id: len(info.get("devices", ())) for node_id, info in nodes.items()}
    assert by_node("sum by (node) (edge_gpu_memory_size_bytes)") == {
        node_id: sum(int(gpu["memory_total_bytes"]) for gpu in info["devices"])
        for node_id, info in nodes.items()
        if "devices" in info
    }
    gpus = {
        (s.labels["node"], s.labels["gpu"]): (s.labels["uuid"], s.labels["name"]) for s in fleet.prometheus.query("edge_gpu_info")
    }
    assert gpus.items() >= {(node_id, str(index)): (gpu["uuid"], gpu["name"]) for node_id, _, index, gpu in boxes}.items()
    assert {
        s.labels["node"]: s.labels["label_team"] for s in fleet.prometheus.query('edge_node_info{label_rack="a3", label_team!=""}')
    } == {"hot": "ml"}
    assert fleet.prometheus.value(f"edge_fleet_gpus{{{fleet.instance}}}") == len(boxes)
    assert by_node("edge_gpu_failed == 1") == {"failed": 1}
    assert by_node("edge_gpu_temperature_celsius > edge_gpu_slowdown_temperature_celsius").keys() == {"hot"}


def test_series_of_a_killed_node_end_and_it_is_not_up(fleet: Fleet) -> None:
    prometheus = fleet.prometheus
    readings = '{node="doomed", __name__=~"edge_(node|gpu)_(utilization_ratio|cpu_utilization_ratio|memory_used_bytes)"}'
    assert prometheus.value('edge_node_up{node="doomed"}') == 1
    assert len(prometheus.query(readings)) == 2 + 2 * 4
    assert len(prometheus.query('DCGM_FI_DEV_GPU_TEMP{instance="doomed"}')) == 4
    fleet.doomed.kill()
    prometheus.becomes('edge_node_up{node="doomed"}', 0)
    assert prometheus.query(readings) == []
    assert prometheus.query('DCGM_FI_DEV_GPU_TEMP{instance="doomed"}') == []
    (state,) = prometheus.query('edge_node_state{node="doomed"}')
    assert state.labels["state"] == "disconnected"
    assert prometheus.value('edge_node_heartbeat_age_seconds{node="doomed"}') is not None
    assert prometheus.value(f'edge_fleet_nodes{{state="online", {fleet.instance}}}') == 49
    assert prometheus.value(f'sum(edge_fleet_nodes{{state!="online", {fleet.instance}}})') == 2  # and the one that was cut off


def test_no_rule_has_an_error_and_the_alerts_see_this_fleet(fleet: Fleet) -> None:
    def rules() -> list[Any]:
        return [rule for group in fleet.prometheus.get("rules")["groups"] for rule in group["rules"]]

    def alerts() -> set[tuple[str, str]]:
        return {
            (rule["name"], alert["labels"].get("node", ""))
            for rule in rules()
            for alert in rule.get("alerts", ())
            if alert["state"]
        }

    eventually(lambda: all(rule["health"] != "unknown" for rule in rules()))
    assert [(rule["name"], rule["lastError"]) for rule in rules() if rule["health"] != "ok"] == []
    expected = {("EdgeNodeDown", "cut off"), ("EdgeGpuFailed", "failed"), ("EdgeGpuHot", "hot")}
    eventually(lambda: alerts() >= expected)
    assert {name for name, _ in alerts()} <= {"EdgeNodeDown", "EdgeGpuFailed", "EdgeGpuHot", "EdgeGpusIdle", "EdgeServerLags"}
    recorded = {rule["name"] for rule in rules() if rule["type"] == "recording"} - {"server:edge_many_nodes_down:count"}
    asked = {name for rule in rules() for name in names_in(rule["query"])}
    eventually(lambda: asked | recorded <= set(fleet.prometheus.get("label/__name__/values")))


def test_each_query_of_our_dashboard_returns_data(fleet: Fleet) -> None:
    prometheus = fleet.prometheus
    variables = {"server": ".*", "labels": "", "node": "hot", "__rate_interval": "4s"}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", as_grafana_asks(variable["query"]["query"], variables))
            assert match
            values = prometheus.get(f"label/{match[2]}/values", **{"match[]": match[1]})
            assert values, variable

    def answer(kind: str, query: str, chosen: dict[str, str]) -> list[Any]:
        asked = as_grafana_asks(query, chosen)
        if kind == "timeseries":
            return [series["metric"] for series in prometheus.query_range(asked, 5)]
        return [sample.labels for sample in prometheus.query(asked)]

    missing = queries_of_dashboard()

    def is_complete() -> bool:
        missing[:] = [one for one in missing if not answer(one[0], one[2], variables)]
        return not missing

    with contextlib.suppress(pytest.fail.Exception):
        eventually(is_complete)
    assert missing == []
    in_a_rack = {**variables, "labels": 'label_rack="a3"', "server": any_of([fleet.url.removeprefix("http://")])}
    for kind, title, query in queries_of_dashboard():
        if "labels" in query:
            assert {labels["node"] for labels in answer(kind, query, in_a_rack)} <= {"hot", "failed"}, title
    for annotation in DASHBOARD["annotations"]["list"]:
        prometheus.query(annotation["expr"])


def test_queries_of_the_dashboard_for_dcgm_return_the_nodes(fleet: Fleet) -> None:
    prometheus, metric = fleet.prometheus, {"match[]": "DCGM_FI_DEV_GPU_TEMP"}
    instances, gpus = prometheus.get("label/instance/values", **metric), prometheus.get("label/gpu/values", **metric)
    assert {"hot", "dgx", "failed"} <= set(instances)
    assert gpus == [str(index) for index in range(8)]
    for query in DCGM_QUERIES:
        assert prometheus.query(as_grafana_asks(query, {"instance": any_of(instances), "gpu": any_of(gpus)})), query
    one = {"instance": "dgx", "gpu": any_of(gpus)}
    assert len(prometheus.query(as_grafana_asks(DCGM_QUERIES[0], one))) == 8
    (total,) = prometheus.query(as_grafana_asks(DCGM_QUERIES[3], one))
    assert 8 * 70 <= total.value <= 8 * 750


def test_a_secure_server_is_scraped_with_its_authority_and_a_view_token(fleet: Fleet) -> None:
    job = 'job="secure-edge-compute-node"'
    fleet.prometheus.becomes(f"up{{{job}}}", 1)
    assert fleet.prometheus.value(f"count(edge_server_info{{{job}}})") == 1
    (target,) = [one for one in fleet.prometheus.get("targets")["activeTargets"] if one["labels"]["job"].startswith("secure-")]
    assert target["scrapeUrl"] == f"{fleet.secure_url}/metrics"
