"""What a terminal sends, read key by key: a state machine over bytes, which knows no terminal and no clock of its own.

The sequences are those of ECMA-48, of xterm ("XTerm Control Sequences") and of kitty's keyboard protocol.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator

PASTE = "paste:"  # what was pasted is one key: this, and the text on one line
PAUSE_SECONDS = 0.05  # after which what is unfinished counts as it is: ESC alone is the key Escape
STRING_SECONDS = 1.0  # that a string has to end: its beginning may have come by chance, and must not eat all that is typed
PASTE_PAUSE_SECONDS = 1.0  # that a paste may stand still, on a slow line
PASTE_SECONDS = 10.0  # and take in all
MAX_PARAMETERS = 64  # bytes
MAX_STRING = 65536  # bytes
MAX_PASTE = 4096  # bytes that are kept

ESC, BEL, ST = 0x1B, 0x07, 0x9C
EIGHT_BITS = b"\x8f\x90\x98\x9b\x9d\x9e\x9f"  # what ESC and the same less 0x40 begin, in one byte; no character of UTF-8 begins so
PASTE_END = b"\x1b[201~"
CONTROLS = {chr(number): f"ctrl-{chr(number + 96)}" for number in range(1, 27)} | {
    "\x1b": "escape", "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\b": "backspace",
}  # fmt: skip
FINAL_NAMES = {"A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end"}
NUMBER_NAMES = {"1": "home", "4": "end", "5": "page up", "6": "page down", "7": "home", "8": "end"}  # before a final "~"
WHEEL_NAMES = {64: "wheel up", 65: "wheel down"}
LOCKS = 64 | 128  # Caps Lock and Num Lock, among the modifiers

Reading = Generator[float, "int | None", "int | None"]
"""A part of the machine: it yields until when it waits, is sent the next byte, or None when that moment has passed, and returns
a byte that it can't use, with which something else begins."""


class Keyboard:
    """One terminal's input. `now` is any monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.due = math.inf  # when `rest` has something to do
        self._keys: list[str] = []
        self._now = 0.0
        self._machine = self._read_all()
        next(self._machine)

    def feed(self, sent: bytes, now: float) -> list[str]:
        """The keys that these bytes finish. They go on with what came before, however late they are read: who is late may be us."""
        self._now = now
        for byte in sent:
            self.due = self._machine.send(byte)
        return self._take()

    def rest(self, now: float) -> list[str]:
        """Nothing more has come until now: the keys that this finishes."""
        self._now = now
        if now >= self.due:
            self.due = self._machine.send(None)
        return self._take()

    def _take(self) -> list[str]:
        keys, self._keys = self._keys, []
        return keys

    def _put(self, key: str) -> None:
        if key:
            self._keys.append(key)

    def _soon(self) -> float:
        return self._now + PAUSE_SECONDS

    def _read_all(self) -> Reading:
        byte = None
        while True:
            if byte is None:
                byte = yield math.inf
            if byte == ESC:
                byte = yield from self._read_escape()
            elif byte is not None and byte in EIGHT_BITS:
                byte = yield from self._read_escaped(byte - 0x40, ST)
            elif byte is not None:
                byte = yield from self._read_character(byte)

    def _read_character(self, first: int, modifier: str = "") -> Reading:
        """A character of UTF-8, in up to four bytes. What is none does nothing."""
        sent = bytes([first])
        while len(sent) < 1 + (first >= 0xC2) + (first >= 0xE0) + (first >= 0xF0):
            byte = yield self._soon()
            if byte is None or byte & 0xC0 != 0x80:
                return byte
            sent += bytes([byte])
        if key := name_of(sent.decode(errors="ignore")):
            self._put(modifier + key)
        return None

    def _read_escape(self) -> Reading:
        byte = yield self._soon()
        if byte is None or byte == ESC:
            self._put("escape")
        else:
            return (yield from self._read_escaped(byte, BEL))
        return byte

    def _read_escaped(self, byte: int, end: int) -> Reading:
        """What ESC begins. A string may have this end, too."""
        if byte in b"[O":
            return (yield from self._read_sequence(chr(byte)))
        elif byte in b"]P_^X":  # OSC, DCS, APC, PM, SOS: a terminal's late answer
            return (yield from self._read_string(end))
        elif byte != ord("\\"):  # ST, with which a string ends
            return (yield from self._read_character(byte, "alt-"))
        return None

    def _read_string(self, end: int) -> Reading:
        until = self._now + STRING_SECONDS
        for _ in range(MAX_STRING):
            byte = yield until
            if byte in (None, ESC):
                return byte
            if byte in (BEL, end):
                break
        return None

    def _read_sequence(self, introducer: str) -> Reading:
        """CSI or SS3: parameters, and a final byte."""
        parameters = ""
        while len(parameters) < MAX_PARAMETERS:
            byte = yield self._soon()
            if byte is None or not 0x20 <= byte < 0x7F:
                return byte
            if byte < 0x40:
                parameters += chr(byte)
            elif (whole := introducer + parameters + chr(byte)) == "[M":
                return (yield from self._read_mouse())
            elif whole == "[[":  # one letter more: F1 to F5 of Linux' console
                yield self._soon()
                return None
            elif whole == "[200~":
                return (yield from self._read_paste())
            else:
                self._put(name_of_sequence(introducer, parameters, chr(byte)))
                return None
        return None

    def _read_mouse(self) -> Reading:
        """X10's report, after `ESC [ M`: button, column and line, each a byte with 32 added."""
        report = b""
        while len(report) < 3:
            byte = yield self._soon()
            if byte is None or byte == ESC:
                return byte
            report += bytes([byte])
        self._put(wheel_of(report[0] - 32))
        return None

    def _read_paste(self) -> Reading:
        sent, end = bytearray(), self._now + PASTE_SECONDS
        while not sent.endswith(PASTE_END):
            byte = yield min(self._now + PASTE_PAUSE_SECONDS, end)
            if byte is None:
                break
            sent.append(byte)
            if len(sent) > 2 * MAX_PASTE:
                del sent[MAX_PASTE : -len(PASTE_END)]
        text = sent.removesuffix(PASTE_END)[:MAX_PASTE].decode(errors="ignore")
        self._put(PASTE + "".join(character if character.isprintable() else " " for character in text))
        return None


def name_of(character: str) -> str:
    """What a character is called as a key; "" for what is none."""
    return CONTROLS.get(character) or (character if character.isprintable() else "")


def name_of_sequence(introducer: str, parameters: str, final: str) -> str:
    """What a CSI ("[") or SS3 ("O") is called as a key; "" for what does nothing here."""
    if final in "Mm" and (mouse := re.fullmatch(r"(<?)(\d{1,9});\d+;\d+", parameters)):  # SGR's, and urxvt's with 32 added
        return wheel_of(int(mouse[2]) - (0 if mouse[1] else 32)) if final == "M" else ""
    key = re.fullmatch(r"(\d{0,7})(?:;(\d{1,3}))?", parameters)  # its number, and 1 + the modifiers that are held down
    if not key:
        return ""
    if final == "u":  # kitty's: the character's number
        held = (int(key[2] or 1) - 1) & ~LOCKS
        return name_of(chr(int(key[1]))) if key[1] and not held and int(key[1]) <= 0x10FFFF else ""
    if introducer == "O" and final == "M":  # of the keypad
        return "enter"
    return NUMBER_NAMES.get(key[1], "") if final == "~" else FINAL_NAMES.get(final, "")


def wheel_of(button: int) -> str:
    """What a report of the mouse is called: the wheel's keys, whatever is held down with it; "" for all else."""
    return WHEEL_NAMES.get(button & ~(4 | 8 | 16), "")
