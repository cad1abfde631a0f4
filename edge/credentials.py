"""Tokens: one line of text that proves a server to a node, and then the node, or a viewer, to the server.

A token names the server by its public key, so that a node knows whom it talks to before it says anything: the one certificate that
it trusts is made from that key. Under certificates of the user's own authority a token names no key, and the authority proves the
server.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import re
import zlib
from typing import NamedTuple

PREFIX = "edge1-"
KEY_BYTES, ID_BYTES, SECRET_BYTES, CHECKSUM_BYTES = 33, 3, 15, 3  # a multiple of three in all: 78 characters fit any terminal
TOKEN_CHARACTERS = len(PREFIX) + (KEY_BYTES + ID_BYTES + SECRET_BYTES + CHECKSUM_BYTES) * 4 // 3
NO_KEY = bytes(KEY_BYTES)  # of a token for servers that are proved by --ca
SERVER_NAME = "edge-compute-node"  # in the certificate of a server's own key: who it is, is the key, whatever its address
AUTHORITY_NAME = "Edge Compute Node"
AUTHORIZATION = "authorization"  # the header of a call, as HTTP has it: "Bearer " and the token (RFC 6750)
# P-256 (SEC 2, 2.4.2): y^2 = x^3 - 3x + B, modulo P
P = 2**256 - 2**224 + 2**192 + 2**96 - 1
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B


class Role(enum.Enum):
    """What its holder may do."""

    NODE = "node"  # report
    VIEW = "view"  # look


class Token(NamedTuple):
    """What one line says."""

    key: bytes  # the server's public key, compressed (SEC 1, 2.3.3); NO_KEY where an authority proves it
    role: Role
    id: str  # what people call it: six hexadecimal digits, no secret
    secret: bytes

    def __repr__(self) -> str:
        """Without the secret: it must not come into a traceback."""
        return f"Token({self.role.value} {self.id})"

    def text(self) -> str:
        """The line to paste."""
        flag = 0x80 if self.role is Role.VIEW else 0  # no compressed key has this bit
        content = bytes([self.key[0] | flag]) + self.key[1:] + bytes.fromhex(self.id) + self.secret
        return PREFIX + base64.urlsafe_b64encode(content + checksum(content)).decode()

    def bearer(self) -> str:
        """The value of the header that proves its holder."""
        return f"Bearer {self.text()}"


def checksum(content: bytes) -> bytes:
    """Tells a token that was cut or mistyped from one that is wrong."""
    return zlib.crc32(content).to_bytes(4, "big")[-CHECKSUM_BYTES:]


def parse_token(text: str) -> Token:
    """Read a token. Raises ValueError with what is wrong with it: never with the text, which may be almost a secret."""
    text = text.strip()
    if not text:
        raise ValueError("the token is empty")
    if not text.startswith(PREFIX):
        raise ValueError(f"this is no token: one begins with {PREFIX}")
    if len(text) != TOKEN_CHARACTERS:
        much = "is cut off" if len(text) < TOKEN_CHARACTERS else "has something after its end"
        raise ValueError(f"the token {much}: it has {len(text)} characters instead of {TOKEN_CHARACTERS}; copy it again, whole")
    if not re.fullmatch(r"[\w-]+", text, re.ASCII):
        raise ValueError("the token has characters that no token has: copy it again, whole")
    raw = base64.urlsafe_b64decode(text.removeprefix(PREFIX))
    content = raw[:-CHECKSUM_BYTES]
    if raw[-CHECKSUM_BYTES:] != checksum(content):
        raise ValueError("the token is mistyped or damaged (its checksum does not fit): copy it again, whole")
    role = Role.VIEW if content[0] & 0x80 else Role.NODE
    key = bytes([content[0] & 0x7F]) + content[1:KEY_BYTES]
    if key != NO_KEY:
        point_of(key)
    secret = content[KEY_BYTES + ID_BYTES :]
    return Token(key, role, content[KEY_BYTES : KEY_BYTES + ID_BYTES].hex(), secret)


def point_of(key: bytes) -> bytes:
    """A compressed public key, whole (SEC 1, 2.3.4). Raises ValueError where it is no key of P-256."""
    x = int.from_bytes(key[1:], "big")
    square = (x**3 - 3 * x + B) % P
    y = pow(square, (P + 1) // 4, P)
    if key[0] not in (2, 3) or x >= P or y * y % P != square:
        raise ValueError("the token names no server: make another one there")
    if y % 2 != key[0] % 2:
        y = P - y
    return b"\x04" + key[1:] + y.to_bytes(32, "big")


def key_id(point: bytes) -> bytes:
    """What a certificate calls a key: 160 bits of its SHA-256 (RFC 7093, 2)."""
    return hashlib.sha256(point).digest()[:20]


def authority_of(key: bytes) -> bytes:
    """The one certificate that a node trusts, in PEM: an authority with this public key.

    Nobody signed it, and nobody need: who is trusted from the start is believed by its name and its key, and what it signed is
    checked (RFC 5280, 6.1.1). So a node needs no certificate to be sent to it first, and no library to make one. It is valid from
    1950 to 9999: boards without a clock start in 1970.
    """
    point = point_of(key)
    signature_kind = der(0x30, oid("2a8648ce3d040302"))  # ecdsa-with-SHA256
    curve = der(0x30, oid("2a8648ce3d0201"), oid("2a8648ce3d030107"))  # ecPublicKey, prime256v1
    name = der(0x30, der(0x31, der(0x30, oid("550403"), der(0x0C, AUTHORITY_NAME.encode()))))  # commonName
    validity = der(0x30, der(0x17, b"500101000000Z"), der(0x18, b"99991231235959Z"))
    extensions = der(
        0xA3,
        der(
            0x30,
            extension("551d13", der(0x30, der(0x01, b"\xff")), is_critical=True),  # basicConstraints: an authority
            extension("551d0f", der(0x03, b"\x02\x04"), is_critical=True),  # keyUsage: it signs certificates
            extension("551d0e", der(0x04, key_id(point))),  # subjectKeyIdentifier
        ),
    )
    number, version = der(0x02, b"\x01"), der(0xA0, der(0x02, b"\x02"))
    public_key = der(0x30, curve, der(0x03, b"\0", point))
    content = der(0x30, version, number, signature_kind, name, validity, name, public_key, extensions)
    no_signature = der(0x03, b"\0", der(0x30, number, number))
    return pem(der(0x30, content, signature_kind, no_signature))


def der(tag: int, *parts: bytes) -> bytes:
    """A value in ASN.1's distinguished encoding (ITU-T X.690), below 64 KiB."""
    content = b"".join(parts)
    size = len(content)
    length = bytes([size]) if size < 0x80 else bytes([0x81, size]) if size < 0x100 else bytes([0x82, size >> 8, size & 0xFF])
    return bytes([tag]) + length + content


def oid(digits: str) -> bytes:
    """The name of a thing, from its encoding in hexadecimal."""
    return der(0x06, bytes.fromhex(digits))


def extension(name: str, value: bytes, is_critical: bool = False) -> bytes:
    """An extension of a certificate."""
    return der(0x30, oid(name), der(0x01, b"\xff") if is_critical else b"", der(0x04, value))


def pem(content: bytes) -> bytes:
    """A certificate as gRPC takes it (RFC 7468)."""
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(content) + b"-----END CERTIFICATE-----\n"


def without_tokens(text: str) -> str:
    """`text` that someone else wrote, for a log or a screen: no token in it can be read."""
    return re.sub(rf"{PREFIX}[\w-]*|[\w-]{{64,}}", f"{PREFIX}…", text)
