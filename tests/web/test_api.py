"""JSON for programs, of a real server: the fleet, a node, and which nodes a filter chooses."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

import node_pb2 as pb
from edge import history
from edge.fleet.export import row_json, snapshot_json
from edge.fleet.row import Row
from edge.web import api
from edge.web.api import Answers, node_pieces
from edge.web.packing import Piece
from edge.web.selection import Selection
from server import Registry
from tests.fixtures.examples import NOW, WALL, example_row, shared_registry
from tests.fixtures.sessions import Clock, Serving
from tests.fixtures.web import Answer, ask

Serve = Callable[..., Serving]


@pytest.fixture
def serving(serve: Serve) -> Serving:
    """A fleet at a moment that stands still."""
    serving = serve(http=True, clock=Clock(NOW))
    serving.registry.wall = lambda: WALL + 0.123456
    for row in shared_registry().snapshot():
        serving.registry.restore(row)
    return serving


# ---- The fleet ----


def test_a_fleet_is_told_as_json_prints_it_byte_for_byte(serving: Serving) -> None:
    answer = ask(serving.http, "/api/fleet")
    assert answer.text == snapshot_json(serving.registry)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("path", ["/api/fleet", "/api/fleet?match=h200", "/api/nodes/Node-1007", "/api/match"])
def test_an_answer_is_packed_where_that_is_asked_for(serving: Serving, path: str) -> None:
    plain, packed = (
        subprocess.run(["curl", "-fsSi", *options, serving.http + path], check=True, capture_output=True, timeout=10).stdout
        for options in ((), ("--compressed",))
    )
    head, content = packed.split(b"\r\n\r\n")
    assert b"content-encoding: gzip" in head
    assert b"content-encoding" not in plain
    assert plain.endswith(b"\r\n\r\n" + content)
    assert ask(serving.http, path, Accept_Encoding="identity").headers["Vary"] == "Accept-Encoding"


def test_a_fleet_of_any_size_is_told_in_pieces(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "CHUNK_CHARACTERS", 1000)
    assert ask(serving.http, "/api/fleet").text == snapshot_json(serving.registry)


def test_an_empty_fleet_is_told_too(serve: Serve) -> None:
    assert json.loads(ask(serve(http=True).http, "/api/fleet").text)["nodes"] == []


def test_a_filter_chooses_nodes_of_the_fleet(serving: Serving) -> None:
    told = json.loads(ask(serving.http, "/api/fleet?match=state:lost,left").text)
    rows = {row.node_id: row for row in serving.registry.snapshot()}
    assert told["nodes"] == [json.loads(json.dumps(row_json(rows[node_id], NOW))) for node_id in ("Node-1011", "Node-1017")]
    assert told["time"] == WALL + 0.123


@pytest.mark.parametrize(
    ("match", "terms"),
    [
        ("util<", "util<"),
        ("h200 wat<5 util<5 for 90d", "wat<5, util<5 for 90d (for goes back 45d12h at most)"),
        ("a|" * 101, "a filter of more than 100 words"),
    ],
)
def test_a_filter_that_can_not_be_read_is_refused_with_its_terms(serving: Serving, match: str, terms: str) -> None:
    sentence = f"the filter can't be read at: {terms}; the help of the screen, by ? after /, tells how it is written\n"
    for path in ("/api/fleet", "/metrics"):
        assert ask(serving.http, f"{path}?match={quote(match)}")[::2] == (400, sentence)


def test_a_node_that_is_forgotten_while_the_fleet_is_told_is_left_out(serving: Serving) -> None:
    rows = serving.registry.snapshot()
    serving.registry.rows = lambda node_ids: [row for row in rows[1:] if row.node_id in node_ids] or [None]  # type: ignore
    assert len(json.loads(ask(serving.http, "/api/fleet").text)["nodes"]) == len(rows) - 1


# ---- One node ----


def told(row: Row) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads("".join(node_pieces(row, NOW)))
    return answer


def test_a_node_is_told_as_json_tells_it_and_with_what_runs_and_what_was(serving: Serving) -> None:
    answer = ask(serving.http, "/api/nodes/Node-1004")
    (row,) = serving.registry.rows(["Node-1004"])
    assert row
    node = json.loads(answer.text)
    assert answer.headers["content-type"] == "application/json"
    assert [node.pop("processes"), node.pop("history")] == [told(row)["processes"], told(row)["history"]]
    assert node == json.loads(json.dumps(row_json(row, NOW)))


def test_what_runs_on_a_node_is_told_by_its_messages() -> None:
    runs = pb.Process(device_index=0, pid=7, user="zoe", name="train.py", memory_used_bytes=2**30)
    row = example_row(1)._replace(packed_processes=pb.ProcessList(processes=[runs, runs]).SerializeToString())
    one = {"device_index": 0, "pid": 7, "user": "zoe", "name": "train.py", "memory_used_bytes": str(2**30)}
    assert told(row)["processes"] == [one, one]
    assert told(example_row(1))["processes"] == []


def test_the_last_readings_of_a_node_and_its_devices_are_told_the_oldest_first() -> None:
    frames = history.encode((1, 2, 3, 10, 20, 30, 11, None, 31)) + history.encode((None, 2, 3, 12, 22, 32, 13, 23, None))
    row = example_row(2)._replace(history=frames, interval_seconds=2.0)
    assert told(row)["history"] == {
        "seconds": 2.0, "utilization_percent": [1, None], "memory_percent": [2, 2], "temperature_celsius": [3, 3],
        "devices": [
            {"utilization_percent": [10, 12], "memory_percent": [20, 22], "temperature_celsius": [30, 32]},
            {"utilization_percent": [11, 13], "memory_percent": [None, 23], "temperature_celsius": [31, None]},
        ],
    }  # fmt: skip


def test_a_node_that_has_sent_nothing_yet_is_told() -> None:
    row = Row("a", "10.0.0.7", None, 1.0, heartbeat_at=NOW)
    assert told(row)["history"] == {
        "seconds": 1.0, "utilization_percent": [], "memory_percent": [], "temperature_celsius": [], "devices": [],
    }  # fmt: skip


def test_one_device_is_the_first_and_a_box_without_one_has_its_host_alone() -> None:
    assert len(told(example_row(1))["history"]["devices"]) == 1
    assert len(told(example_row(0))["history"]["devices"][0]["utilization_percent"]) == history.SAMPLES


@pytest.mark.parametrize("node_id", ["a b", "rack/7", "50%", "ä♥", "日本", "a?b#c", "\\", "fleet", "a+b", "//x", "x/", "é&é=1"])
def test_a_node_is_found_by_any_name_that_it_may_have(serving: Serving, node_id: str) -> None:
    serving.registry.restore(example_row(1)._replace(node_id=node_id))
    for path in ("/api/nodes/", "/api/nodes?id="):
        assert json.loads(ask(serving.http, f"{path}{quote(node_id, safe='')}").text)["node_id"] == node_id


@pytest.mark.parametrize("node_id", [".", "..", "/"])
def test_a_node_whose_name_is_a_way_in_paths_is_found_by_a_question(serving: Serving, node_id: str) -> None:
    serving.registry.restore(example_row(1)._replace(node_id=node_id))
    assert json.loads(ask(serving.http, f"/api/nodes?id={quote(node_id, safe='')}").text)["node_id"] == node_id


@pytest.mark.parametrize("node_id", ["nobody", "Node-1000 ", "é" * 100, "%1b[31m", "%ff%fe", "%00"])
def test_a_node_that_is_not_there_is_named(serving: Serving, node_id: str) -> None:
    answer = ask(serving.http, f"/api/nodes/{quote(node_id, safe='%')}")
    assert answer.status == 404
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith("there is no node '")
    assert answer.text.endswith("here: /api/fleet has all\n")
    assert answer.text[:-1].isprintable()


@pytest.mark.parametrize("path", ["/api/", "/api", "/api/node/x", "/api/nodes", "/api/fleet/"])
def test_what_is_not_there_says_what_is(serving: Serving, path: str) -> None:
    answer = ask(serving.http, path)
    assert answer.status == 404
    assert "/api/fleet" in answer.text


@pytest.mark.parametrize("path", ["/api/fleet", "/api/fleet?match=h200", "/api/nodes/Node-1000", "/api/match"])
def test_who_asks_for_the_headers_gets_them_alone(serving: Serving, path: str) -> None:
    answer = ask(serving.http, path, "HEAD")
    assert (answer.status, answer.headers["content-type"], answer.text) == (200, "application/json", "")


# ---- Which nodes a filter chooses ----


def matched(serving: Serving, match: str) -> Answer:
    return ask(serving.http, f"/api/match?match={quote(match)}")


def test_a_filter_chooses_nodes_by_their_names_and_says_what_it_can_not_read(serving: Serving) -> None:
    answer = matched(serving, "state:lost,left wat<5")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.text) == {"node_ids": ["Node-1011", "Node-1017"], "not_understood": ["wat<5"]}


def test_no_filter_chooses_all(serving: Serving) -> None:
    names = sorted(row.node_id for row in serving.registry.snapshot())
    assert json.loads(ask(serving.http, "/api/match").text) == {"node_ids": names, "not_understood": []}


class Made:
    """Answers, and how many were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rest_seconds: float = 0.0) -> None:
        self.clock, self.registry, self.asked = Clock(), Registry(1.0, 100), list[str]()
        self.answers = Answers(self.registry, self.clock)

        async def choose(_fleet: object, text: str, _network: str) -> Selection:
            self.asked.append(text)
            await asyncio.sleep(0)
            return Selection((), (text,), rest_seconds)

        monkeypatch.setattr(api, "select", choose)

    def ask(self, *texts: str) -> list[Any]:
        async def run() -> list[Piece]:
            return await asyncio.gather(*map(self.answers.to, texts))

        return [json.loads(answer.plain)["not_understood"][0] for answer in asyncio.run(run())]


def test_who_asks_the_same_shares_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch)
    assert made.ask("a", "b", "a", "a", "b") == ["a", "b", "a", "a", "b"]
    made.clock.now += 0.9
    made.ask("a")
    assert made.asked == ["a", "b"]
    made.clock.now += 0.2
    made.ask("a")
    assert made.asked == ["a", "b", "a"]


def test_an_answer_that_cost_much_is_good_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, rest_seconds=10)
    made.ask("a")
    made.clock.now += 9.9
    made.ask("a")
    assert made.asked == ["a"]
    made.clock.now += 0.2
    made.ask("a")
    assert made.asked == ["a", "a"]


def test_only_the_newest_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch)
    texts = [str(number) for number in range(40)]
    made.ask(*texts)
    made.ask(texts[0], texts[-1])
    assert made.asked == [*texts, texts[0]]
    assert len(made.answers._kept) <= 16


def test_an_answer_that_can_not_be_made_keeps_nobody_from_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch)
    choose: Any = api.__dict__["select"]

    async def fail(fleet: Any, text: str, network: str) -> Selection:
        if text == "bad":
            raise ValueError(text)
        chosen: Selection = await choose(fleet, text, network)
        return chosen

    monkeypatch.setattr(api, "select", fail)
    with pytest.raises(ValueError, match="bad"):
        made.ask("bad")
    assert made.ask("good") == ["good"]
