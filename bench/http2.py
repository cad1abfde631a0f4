"""HTTP/2: as much of it as a node needs, or an attacker (RFC 9113, RFC 7541)."""

from __future__ import annotations

import grpc

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
ACKNOWLEDGES, END_STREAM, END_HEADERS = 1, 1, 4  # flags
FRAME_HEADER = 9
DATA_OVERHEAD = FRAME_HEADER + 5  # and gRPC's header of a message
DEFAULT_WINDOW = 65_535
INITIAL_WINDOW_SIZE = 4  # a setting
STREAM_CALL, UNARY_CALL = b"/node.NodeService/StreamHeartbeats", b"/node.NodeService/Heartbeat"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


GREETING = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACKNOWLEDGES, 0)  # of who does not wait for the server's settings
CANCEL = (8).to_bytes(4, "big")  # the reason of a RST_STREAM


def data_frame(message: bytes, flags: int = 0, stream: int = 1, compressed: bool = False) -> bytes:
    """A message on a stream."""
    return frame(DATA, flags, stream, bytes([compressed]) + len(message).to_bytes(4, "big") + message)


def window_updates(count: int) -> bytes:
    """So many bytes may come again, on the connection and on the stream."""
    return frame(WINDOW_UPDATE, 0, 0, count.to_bytes(4, "big")) + frame(WINDOW_UPDATE, 0, 1, count.to_bytes(4, "big"))


def request_headers(stream: int = 1, path: bytes = STREAM_CALL, encoding: bytes = b"", authorization: str = "") -> bytes:
    """What opens a stream. Names from HPACK's static table, values literal and not indexed."""

    def literal(name: bytes, value: bytes) -> bytes:
        return name + bytes([len(value)]) + value

    block = b"\x83\x86"  # :method POST, :scheme http
    block += literal(b"\x04", path) + literal(b"\x01", b"bench")  # :path, :authority
    block += literal(b"\x0f\x10", b"application/grpc") + literal(b"\x00\x02te", b"trailers")
    if encoding:
        block += literal(b"\x00\x0dgrpc-encoding", encoding)
    if authorization:
        block += literal(b"\x0f\x08", authorization.encode())
    return frame(HEADERS, END_HEADERS, stream, block)


def status_of(block: bytes) -> str:
    """grpc-status in a block of headers, "" where there is none. gRPC's C core never uses Huffman codes for it."""
    _, found, rest = block.partition(b"grpc-status")
    return grpc_name(int(rest[1 : 1 + rest[0]])) if found else ""


def grpc_name(number: int) -> str:
    """ "UNAVAILABLE" for 14."""
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), str(number))


def split_frames(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], bytes]:
    """The whole frames in `data` as kind, flags, stream and payload, and what is left over."""
    frames, at = [], 0
    while len(data) - at >= FRAME_HEADER:
        end = at + FRAME_HEADER + int.from_bytes(data[at : at + 3], "big")
        if end > len(data):
            break
        frames.append((data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big"), data[at + FRAME_HEADER : end]))
        at = end
    return frames, data[at:]
