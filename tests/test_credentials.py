"""Tokens, and the certificate that a node makes of one. What a handshake does with it, tests of both programs show."""

from __future__ import annotations

import random
import string

import pytest

from edge.credentials import NO_KEY, PREFIX, TOKEN_CHARACTERS, Role, Token, authority_of, parse_token

# Of the P-256 example in RFC 5903, 8.1: gix, giy is odd
KEY = bytes([3]) + bytes.fromhex("DAD0B65394221CF9B051E1FECA5787D098DFE637FC90B9EF945D0C3772581180")
TOKEN = Token(KEY, Role.NODE, "0a1b2c", bytes(range(15)))


@pytest.mark.parametrize("key", [KEY, NO_KEY])
@pytest.mark.parametrize("role", Role)
def test_a_token_is_what_was_written(role: Role, key: bytes) -> None:
    token = TOKEN._replace(role=role, key=key)
    assert parse_token(f"  {token.text()}\n") == token
    assert len(token.text()) == TOKEN_CHARACTERS == 78


def test_every_changed_character_is_refused_with_a_sentence() -> None:
    text = TOKEN.text()
    for place in range(len(text)):
        for other in string.printable.strip() + "\0é":
            if other != text[place]:
                with pytest.raises(ValueError, match="token"):
                    parse_token(text[:place] + other + text[place + 1 :])


def test_random_tokens_survive_and_their_cuts_do_not() -> None:
    source = random.Random(1)
    for _ in range(100):
        token = TOKEN._replace(id=source.randbytes(3).hex(), secret=source.randbytes(15), role=source.choice(list(Role)))
        text = token.text()
        assert parse_token(text) == token
        cut = source.randrange(len(PREFIX) + 1, len(text))
        with pytest.raises(ValueError, match=f"cut off: it has {cut} characters instead of 78; copy it again"):
            parse_token(text[:cut])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("hello", "no token: one begins with edge1-"),
        (TOKEN.text() + "x", "something after its end"),
        (TOKEN.text()[:-1] + "/", "characters that no token has"),
        (Token(bytes([2]) + b"\xff" * 32, Role.NODE, "000000", bytes(15)).text(), "names no server"),
        (Token(bytes([4]) + KEY[1:], Role.NODE, "000000", bytes(15)).text(), "names no server"),
    ],
)
def test_what_is_no_token_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_token(text)


def test_no_error_and_no_repr_has_the_secret() -> None:
    text = TOKEN.text()
    for wrong in (text[:-2], text[:-1] + ("A" if text[-1] != "A" else "B"), text + text, text.replace("-", "+")):
        with pytest.raises(ValueError, match="token") as caught:
            parse_token(wrong)
        assert text[40:60] not in str(caught.value)
        assert not caught.value.__cause__
    assert "secret" not in repr(TOKEN)
    assert repr(TOKEN) == "Token(node 0a1b2c)" == str(TOKEN)


def test_the_authority_of_a_key_is_the_one_that_openssl_reads() -> None:
    cryptography = pytest.importorskip("cryptography.x509")
    certificate = cryptography.load_pem_x509_certificate(authority_of(KEY))
    numbers = certificate.public_key().public_numbers()
    assert numbers.x.to_bytes(32, "big") == KEY[1:]
    assert numbers.y.to_bytes(32, "big").hex().upper() == "5271A0461CDB8252D61F1C456FA3E59AB1F45B33ACCF5F58389E0577B8990BB3"
    assert (certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year) == (1950, 9999)
    assert certificate.extensions.get_extension_for_class(cryptography.BasicConstraints).value.ca
