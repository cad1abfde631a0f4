"""gzip of pieces that were packed alone, as others unpack it."""

from __future__ import annotations

import gzip

import pytest
from starlette.requests import Request

from edge.web.packing import Packing, piece_of

TEXTS = b"all of the fleet", b"", b"what changed" * 10_000, bytes(range(256)), b"what changed"


def packing(encoding: str = "gzip") -> Packing:
    return Packing(Request({"type": "http", "headers": [(b"accept-encoding", encoding.encode())]}))


def test_pieces_that_were_packed_alone_are_one_answer_of_each_who_gets_them() -> None:
    shared = [piece_of(text) for text in TEXTS]
    for start in range(len(TEXTS) + 1):
        answer = packing()
        sent = b"".join(map(answer.next, shared[start:])) + answer.end()
        assert gzip.decompress(sent) == b"".join(TEXTS[start:])  # it checks the sum and the length
    assert len(sent) == 20
    here = packing()
    assert gzip.decompress(b"".join(here.next(text) for text in TEXTS) + here.end()) == b"".join(TEXTS)
    assert gzip.decompress(packing().whole(shared[2])) == TEXTS[2]


def test_who_does_not_take_it_gets_the_pieces_as_they_are() -> None:
    answer = packing("br")
    assert answer.next(piece_of(TEXTS[0])) + answer.next(TEXTS[2]) + answer.end() == TEXTS[0] + TEXTS[2]
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("encoding", "is_packed"),
    [
        ("GZIP", True), ("br;q=1.0, gzip;q=0.8", True), ("gzip;q=0", False), ("gzip; q=0.0, identity", False),
        ("*", False), ("deflate", False), ("x-gzipped", False), ("", False),
    ],
)  # fmt: skip
def test_who_does_not_ask_for_gzip_gets_none(encoding: str, is_packed: bool) -> None:
    assert packing(encoding).is_wanted == is_packed
