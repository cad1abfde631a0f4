"""What terminals send, whole and in pieces, as keys; by a clock of the test's own."""

from __future__ import annotations

import math

import pytest

from edge.keyboard import CONTROLS, FINAL_NAMES, MAX_PASTE, MAX_STRING, NUMBER_NAMES, PASTE, PAUSE_SECONDS, WHEEL_NAMES, Keyboard

COLOR = b"\x1b]11;rgb:1e1e/1e1e/1e1e\x1b\\"  # what a terminal answers when it is asked for its background


def keys_of(*pieces: bytes, apart_seconds: float = 0.005) -> list[str]:
    """The keys in what a terminal sends in pieces, and then no more for an hour."""
    keyboard, now, keys = Keyboard(), 1000.0, []
    for piece in pieces:
        keys += keyboard.feed(piece, now)
        now += apart_seconds
        keys += keyboard.rest(now)
    keys += keyboard.rest(now + 3600)
    assert keyboard.due == math.inf
    return keys


SENT = [
    (b"", []),
    (b"abc/? ", ["a", "b", "c", "/", "?", " "]),
    ("é機😀".encode(), ["é", "機", "😀"]),
    (b"\x1b[A\x1b[B\x1b[C\x1b[D", ["up", "down", "right", "left"]),
    (b"\x1bOA\x1bOB\x1bOC\x1bOD", ["up", "down", "right", "left"]),
    (b"\x1b[H\x1b[F\x1bOH\x1bOF\x1b[1~\x1b[4~\x1b[7~\x1b[8~", ["home", "end"] * 4),
    (b"\x1b[5~\x1b[6~", ["page up", "page down"]),
    (b"\x1b[1;5A\x1b[1;2B\x1b[5;3~\x1bO5C", ["up", "down", "page up", "right"]),  # with Ctrl, Shift, Alt
    (b"\x1b", ["escape"]),
    (b"\x1b\x1b[A", ["escape", "up"]),
    (b"\x1b\x1b", ["escape", "escape"]),
    (b"\r\n\t\x7f\b\x15", ["enter", "enter", "tab", "backspace", "backspace", "ctrl-u"]),
    (b"\x1bOM", ["enter"]),  # of the keypad
    (b"\x1bq\x1b\r\x1b\xe6\xa9\x9fx", ["alt-q", "alt-enter", "alt-機", "x"]),
    (b"\0\x1c\x1f", []),
    (b"\xff\xc0\x80q\xe6q\xe6\xa9\x1b[A\xed\xa0\x80\xc2\x9bq", ["q", "q", "up", "q"]),  # no UTF-8, a surrogate, a control character
    (b"\x1b[q\x1b[99;99;99q\x1b[<5q\x1b[ q", []),
    (b"\x1b[?1;2c\x1b[>0;276;0c\x1b[24;80R\x1b[8;24;80t\x1b[?2026;2$y\x1b[I\x1b[O", []),  # what terminals tell of themselves
    (b"\x1b[2~\x1b[3~\x1b[11~\x1b[24~\x1bOP\x1b[Z\x1b[[Aq", ["q"]),  # Insert, Delete, F1, F12, F1, Shift-Tab, F1
    (b"\x1b[9999999999999999A\x1b[" + b"1" * 50 + b"~", []),
    (b"\x1b[113u\x1b[27u\x1b[27;129u\x1b[57358u\x1b[113;5u\x1b[1114112u\x1b[u", ["q", "escape", "escape"]),  # kitty's
    (b"\x1b[\x1b[A\x1bO\x1b[B", ["up", "down"]),  # cut off by the next
    (b"\x1b[<35;81;7M\x1b[<0;1;1M\x1b[<0;1;1m\x1b[<64;1;1m", []),  # the mouse, as SGR has it
    (b"\x1b[<64;81;7M\x1b[<65;81;7M\x1b[<80;1;1M\x1b[<66;1;1M", ["wheel up", "wheel down", "wheel up"]),
    (b"\x1b[M#q!\x1b[M q!q", ["q"]),  # as X10 has it
    (b"\x1b[M`q!\x1b[Maq!\x1b[M\x60\xff\xff", ["wheel up", "wheel down", "wheel up"]),
    (b"\x1b[96;81;7M\x1b[97;81;7M\x1b[32;81;7M", ["wheel up", "wheel down"]),  # as urxvt has it
    (b"\x9bA\x8fB\x9b5~\x9b<65;81;7M\x9b<35;81;7Mq", ["up", "down", "page up", "wheel down", "q"]),  # controls of eight bits
    (b"\x9d11;rgb:1e/1e/1e\x9cq\x90q\x9cq\x9fq\x1b\\q\x9dq\x07q\x85\x9cq", ["q"] * 5),
    ("\x1b]0;\u0113\u015c q\x07q".encode(), ["q"]),  # the same bytes within characters
    (COLOR, []),
    (b"\x1b]11;rgb:1e1e/1e1e/1e1e\x07q", ["q"]),
    (b"\x1bP1+r5463=71\x1b\\\x1b_Gi=1;OK\x1b\\\x1b^q\x1b\\\x1bXq\x1b\\q", ["q"]),
    (b"\x1b]52;c;" + b"q" * 5000 + b"\x07q", ["q"]),
    (b"\x1b]0;\xe6\xa9\x9f\x1b[A", ["up"]),  # ESC ends it
    (b"\x1b[200~state:online\rq\rq\x1b[201~q", [PASTE + "state:online q q", "q"]),
    ("\x1b[200~機 \x1b[A\t\0\x1b[201~".encode(), [PASTE + "機  [A  "]),
    (b"\x1b[200~\x1b[201~\x1b[201~", [PASTE]),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "keys"), SENT, ids=lambda value: repr(value)[:30])
def test_what_a_terminal_sends_is_read_key_by_key(sent: bytes, keys: list[str]) -> None:
    assert keys_of(sent) == keys
    if len(sent) < 100:
        assert keys_of(*[sent[place : place + 1] for place in range(len(sent))]) == keys  # and byte by byte
    assert keys_of(sent + b"\x1b[A") == [*keys, "up"]


def test_every_name_can_be_pressed() -> None:
    pressed = {key for _, keys in SENT for key in keys}
    assert {*FINAL_NAMES.values(), *NUMBER_NAMES.values(), *WHEEL_NAMES.values()} <= pressed
    assert keys_of("".join(CONTROLS).replace("\x1b", "").encode()) == [name for name in CONTROLS.values() if name != "escape"]
    assert [key for number in range(0x80) if len(key := "".join(keys_of(bytes([number])))) == 1] == [
        chr(n) for n in range(0x20, 0x7F)
    ]


# ---- Time ----


@pytest.mark.parametrize(
    "begun", [b"\x1b", b"\x1b[", b"\x1b[1;5", b"\x1bO", b"\xe6", b"\xe6\xa9", b"\x1b\xe6", b"\x1b[M#", b"\x1b[[", b"\x1b]1\x1b"]
)
def test_what_is_unfinished_waits_for_a_moment(begun: bytes) -> None:
    keyboard = Keyboard()
    assert keyboard.feed(begun, 10) == []
    assert keyboard.due == 10 + PAUSE_SECONDS == pytest.approx(10.05)
    assert keyboard.rest(10.04) == []
    assert keyboard.rest(10.05) == ["escape"] * (begun.endswith(b"\x1b"))
    assert keyboard.due == math.inf
    assert keyboard.rest(11) == []
    assert keyboard.feed(b"q", 11) == ["q"]


def test_each_piece_has_its_own_moment() -> None:
    assert keys_of(b"\x1b", b"[", b"1", b";", b"5", b"B", apart_seconds=0.04) == ["down"]
    assert keys_of(b"\x1b", b"[", b"B", apart_seconds=0.06) == ["escape", "[", "B"]
    assert keys_of(b"\xe6", b"\xa9", b"\x9f", apart_seconds=0.04) == ["機"]


def test_what_waited_for_us_has_come_in_time() -> None:
    """A frame took long: the rest of a key lies there, and is read before the clock is looked at."""
    keyboard = Keyboard()
    assert keyboard.feed(b"\x1b", 10) == []
    assert keyboard.feed(b"[B", 12) == ["down"]


@pytest.mark.parametrize("begin", [b"\x1b]", b"\x1bP", b"\x1b_", b"\x1b^", b"\x1bX"])
def test_a_string_has_a_second_to_end(begin: bytes) -> None:
    keyboard = Keyboard()
    assert keyboard.feed(begin, 10) == []
    for tenth in range(1, 10):  # someone types
        assert keyboard.rest(10 + tenth / 10) == []
        assert keyboard.feed(b"q", 10 + tenth / 10) == []
    assert keyboard.rest(11) == []
    assert keyboard.feed(b"q", 11) == ["q"]
    assert Keyboard().feed(begin + b"q" * (MAX_STRING + 3), 10) == ["q"] * 3  # and not more bytes than any has


def test_a_paste_without_an_end_is_one() -> None:
    keyboard = Keyboard()
    assert keyboard.feed(b"\x1b[200~stat", 10) == []
    assert keyboard.rest(10.9) == []
    assert keyboard.feed(b"e:", 10.9) == []
    assert keyboard.rest(11.9) == [PASTE + "state:"]
    assert keyboard.feed(b"q", 12) == ["q"]
    keyboard.feed(b"\x1b[200~", 20)
    for second in range(1, 20):  # a key is held down
        keyboard.feed(b"x", 20 + second / 2)
        assert keyboard.rest(20 + second / 2) == []
    assert keyboard.rest(30) == [PASTE + "x" * 19]


def test_a_paste_of_a_whole_file_is_cut() -> None:
    keyboard = Keyboard()
    for _ in range(100):
        assert keyboard.feed(b"\x1b[200~" * (_ == 0) + b"q\n" * 5000, 10) == []
    assert keyboard.feed(b"\x1b[201~q", 10) == [PASTE + "q " * (MAX_PASTE // 2), "q"]
