"""What proves the server: its own key, or the certificate files of the user. `cryptography` is imported where it is used: a server
that is open has no need of it.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import ipaddress
import os
import pathlib
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from edge.credentials import AUTHORITY_NAME, SECRET_BYTES, SERVER_NAME, Role, key_id, point_of
from edge.program import Failure, time_stamp
from edge.state_folder import NotPrivate, check_folder, locked, read_private, state_folder, write_private

if TYPE_CHECKING:
    import ssl

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, GeneralName

KEY_FILE, TOKENS_FILE = "server-key.pem", "tokens.json"
ANEW = "new ones are made at the next start, and each node needs a new token"
MAX_FILE_BYTES = 2**20  # of a certificate's file; one with all authorities of the world has 200 KB
MAX_WAY = 8  # certificates from a node's to its authority
ANOTHER = "give the node a new one (--tls-cert)"
NO_AUTHORITY = f"the certificate is of no authority that this server knows now (--client-ca): {ANOTHER}"
Stamp = tuple[int, ...]  # of files as they are now; another one when something has changed


class Told(NamedTuple):
    """What the log should say of files that people change."""

    kind: str  # of event
    text: str


class Pair(NamedTuple):
    """What a server presents, in PEM both."""

    key: bytes
    certificate: bytes  # and those that lead to its authority


def chosen_folder(given: pathlib.Path | None) -> pathlib.Path:
    """The state folder: the one of --state, else this user's. Raises Failure."""
    try:
        return given or state_folder()
    except OSError as error:
        raise Failure(f"{error}: give --state a folder") from error


@contextlib.contextmanager
def errors_as_failure() -> Iterator[None]:
    """Makes Failure of what is wrong with a file of the state folder."""
    try:
        yield
    except (NotPrivate, BlockingIOError) as error:  # they say themselves what to do
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"{error}: give --state a folder that this user can read and write") from error


def stamp_of(*paths: pathlib.Path) -> Stamp:
    """Tells whether files have changed: what they hold, or whose they are. Empty where one is not there."""
    try:
        found = [path.stat() for path in paths]
    except OSError:
        return ()
    return tuple(value for one in found for value in (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns))


def port_credentials(
    first: grpc.ServerCertificateConfiguration,
    newer: Callable[[], grpc.ServerCertificateConfiguration | None],
    wants_certificates: bool = False,
) -> grpc.ServerCredentials:
    """What gRPC asks at each handshake. `newer`: None where nothing has changed, which gRPC takes and its stubs do not know."""
    return grpc.dynamic_ssl_server_credentials(first, newer, wants_certificates)  # type: ignore[arg-type]


def tls_context(certificate: pathlib.Path, key: pathlib.Path) -> ssl.SSLContext:
    """What HTTP presents. Raises Failure."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, lambda: "")  # a password: else it would ask the terminal for one
    except OSError as error:
        raise Failure(f"HTTP can't use the certificate in {certificate} with the key in {key}: {error}") from error
    return context


# ---- The server's own ----


class OwnKey:
    """The server's own key, in the state folder. All that a node knows of the server is this key, so it is never made twice."""

    def __init__(self, folder: pathlib.Path, makes: bool = True) -> None:
        """Reads it; `makes` it where there is none. Raises Failure."""
        path = folder / KEY_FILE
        with errors_as_failure():
            try:
                check_folder(folder)
                text = read_private(path)
            except FileNotFoundError:
                if not makes:
                    raise Failure(
                        f"no secure server was started with the state folder {folder}: start it with python3 server.pyz --secure, "
                        f"or name its folder with --state"
                    ) from None
                text = made_key(folder)
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._path = path
        key = None
        with contextlib.suppress(ValueError):
            key = parsed_key(text.encode())
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != ec.SECP256R1.name:
            raise Failure(f"{path} is damaged: put back a copy of it. Without one, remove it and {TOKENS_FILE}: {ANEW}")
        self._key: EllipticCurvePrivateKey = key
        self.public = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)  # 33 bytes
        self.pin = base64.b64encode(hashlib.sha256(public_part(key)).digest()).decode()  # as curl's --pinnedpubkey has it
        number = key.private_numbers().private_value
        self._secret = hmac.digest(number.to_bytes(32, "big"), b"secrets of tokens", "sha256")

    def secret_of(self, role: Role, token_id: str) -> bytes:
        """The secret of a token: it follows from the key, so it lies in no file and can be shown again."""
        return hmac.digest(self._secret, f"{role.value} {token_id}".encode(), "sha256")[:SECRET_BYTES]

    def server_credentials(self, came: Callable[[], None]) -> grpc.ServerCredentials:
        """For one port. `came`: called at each connection, by any thread."""
        return port_credentials(grpc.ssl_server_certificate_configuration([self.own_certificate()]), came)

    def tls_context(self) -> ssl.SSLContext:
        """The same for HTTP: Python takes it from files alone, and the key lies in one already. Raises Failure."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                certificate = pathlib.Path(folder, "certificate.pem")
                certificate.write_bytes(self.own_certificate().certificate)
                return tls_context(certificate, self._path)
        except OSError as error:
            raise Failure(f"--http with --secure needs a folder for a small file: {error}; give TMPDIR one") from error

    def own_certificate(self) -> Pair:
        """The key, and a certificate by it for itself, as the authority that nodes make of it (edge/credentials.py). Takes 4 ms."""
        from cryptography import x509
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import Encoding

        names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("server.pyz", AUTHORITY_NAME)]
        number = key_id(point_of(self.public))
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        certificate = (
            x509.CertificateBuilder(names[1], names[0], self._key.public_key(), serial_number=2)
            .not_valid_before(datetime.datetime(1950, 1, 1, tzinfo=datetime.timezone.utc))  # boards without a clock start in 1970
            .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.timezone.utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier(number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier(number, None, None), critical=False)
            .sign(self._key, SHA256())
        )
        return Pair(key_pem(self._key), certificate.public_bytes(Encoding.PEM))


def made_key(folder: pathlib.Path) -> str:
    """A new key, in its file; the one that another process has made meanwhile. Raises OSError, Failure."""
    from cryptography.hazmat.primitives.asymmetric import ec

    with locked(folder):
        with contextlib.suppress(FileNotFoundError):
            return read_private(folder / KEY_FILE)
        if (folder / TOKENS_FILE).exists():
            raise Failure(
                f"{folder} has tokens, and the key that they are of is gone: put back a copy of {KEY_FILE}. Without one, remove "
                f"{TOKENS_FILE}, too: {ANEW}"
            )
        text = key_pem(ec.generate_private_key(ec.SECP256R1())).decode()
        write_private(folder / KEY_FILE, text)
        return text


def key_pem(key: Any) -> bytes:
    """A private key as gRPC takes it."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def parsed_key(content: bytes) -> object:
    """A private key from PEM. Raises ValueError, with what is to be said of its file."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(content, None)
    except TypeError as error:
        raise ValueError("has a password: openssl pkey -in FILE -out NEW takes it away") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("has no private key in PEM that can be read") from error


# ---- The user's ----


class Client(NamedTuple):
    """What counts of a node's certificate."""

    names: tuple[str, ...]  # of its subject and its DNS names: of no other kind
    ends: float  # unix seconds: when it, or one of those above it, expires
    authority: Certificate  # that of --client-ca to which it leads


class Loaded(NamedTuple):
    """What was read of the user's files, and fits together."""

    pair: Pair
    authorities: Sequence[Certificate]  # of nodes; none: --client-ca was not given
    begins: float  # of the certificate's validity, unix seconds
    ends: float
    open_to_all: str  # the key's file, where everyone on this machine can read it
    name: str  # that nodes find in the certificate, and can be told to go to; empty: it has none
    names: Sequence[str]  # all that it is for, wildcards among them

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """As gRPC takes it."""
        from cryptography.hazmat.primitives.serialization import Encoding

        authorities = b"".join(one.public_bytes(Encoding.PEM) for one in self.authorities)
        return grpc.ssl_server_certificate_configuration([self.pair], authorities or None)


class UserFiles:
    """--tls-cert, --tls-key, --client-ca: the user's own certificate, key and authority for the certificates of nodes."""

    def __init__(
        self, certificate: pathlib.Path, key: pathlib.Path, client_ca: pathlib.Path | None, wall: Callable[[], float] = time.time
    ) -> None:
        """Reads them. Raises Failure."""
        self._paths = (certificate, key, client_ca)
        self._files = tuple(filter(None, self._paths))
        self._wall = wall
        self._seen = self._read = stamp_of(*self._files)
        try:
            self._loaded = load(*self._paths)
        except ValueError as error:
            raise Failure(str(error)) from error
        self._told = ""  # the last warning
        self._tls: tuple[Loaded, ssl.SSLContext] | None = None  # for HTTP, and of which files

    @property
    def name(self) -> str:
        """What nodes must call this server, by the certificate of now; empty where it names nothing that they can."""
        return self._loaded.name

    @property
    def names(self) -> Sequence[str]:
        """All DNS names that the certificate of now is for."""
        return self._loaded.names

    def refresh(self) -> list[Told]:
        """Read the files again once they have changed, and are at rest: several are not replaced at once.

        Call it each second or so. Returns what should be told: that new ones are in use, or can't be used (the old ones are then),
        that the certificate is out of date; each once.
        """
        seen, self._seen = self._seen, stamp_of(*self._files)
        news = []
        if self._seen == seen != self._read:
            self._read = seen
            try:
                before, self._loaded = self._loaded, load(*self._paths)
            except ValueError as error:
                return [Told("warning", f"{error}; what was read before stays in use")]
            if self._loaded != before:
                until = time_stamp(self._loaded.ends)
                news = [Told("renewed", f"the certificate files are read again: {self._paths[0]} is valid until {until}")]
        warning, self._told = self._told, self._warning()
        return [*news, Told("warning", self._told)] if self._told not in ("", warning) else news

    def _warning(self) -> str:
        """What does not keep the server from starting."""
        name, now = self._paths[0], self._wall()
        if now >= self._loaded.ends:
            return f"the certificate in {name} expired at {time_stamp(self._loaded.ends)}: nodes refuse it; put a new one there"
        if now < self._loaded.begins:
            return f"the certificate in {name} is valid from {time_stamp(self._loaded.begins)} on: nodes refuse it till then"
        if path := self._loaded.open_to_all:
            return f"everyone on this machine can read the key in {path}: chmod o= {path}"
        return ""

    def server_credentials(self, came: Callable[[], None] = lambda: None) -> grpc.ServerCredentials:
        """For one port, which remembers what it was given. `came`: called at each connection, by any thread."""
        given = self._loaded

        def newer() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            came()
            if given is self._loaded:
                return None
            given = self._loaded
            return given.configuration()

        return port_credentials(given.configuration(), newer, bool(given.authorities))

    def tls_context(self) -> ssl.SSLContext:
        """The same for HTTP, for one connection. Raises Failure where none could ever be made of the files."""
        if not self._tls or self._tls[0] is not self._loaded:
            try:
                self._tls = self._loaded, tls_context(*self._paths[:2])
            except Failure:  # the files change just now, and are read again
                if not self._tls:
                    raise
        return self._tls[1]

    def client_of(self, identity: Mapping[str, Iterable[bytes]]) -> Client:
        """What the certificate of a connection, as gRPC tells it, is worth now. Takes 0.1 ms. Raises ValueError.

        gRPC has checked it when the connection came. The connection may be older than the authorities are, or have resumed an
        earlier one's session: then nobody has asked whether the certificate has expired since.
        """
        from cryptography import x509

        told = [pem for field in ("x509_pem_cert", "x509_pem_cert_chain") for pem in identity.get(field, ())]
        try:
            found = x509.load_pem_x509_certificates(b"\n".join(told))
            names = names_of(found[0])
        except (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
            raise ValueError(f"the certificate cannot be read: {ANOTHER}") from error
        way = way_up(found, self._loaded.authorities)
        client = Client(names, min(one.not_valid_after_utc.timestamp() for one in way), way[-1])
        if why := self.why_over(client):
            raise ValueError(why)
        return client

    def why_over(self, client: Client) -> str:
        """Why a certificate that let a node in would do so no longer; empty while it would."""
        if self._wall() >= client.ends:
            return f"the certificate expired at {time_stamp(client.ends)}: {ANOTHER}"
        return "" if client.authority in self._loaded.authorities else NO_AUTHORITY


def names_of(certificate: Certificate) -> tuple[str, ...]:
    """Whose it is. Raises ValueError and others of x509 where that can't be read."""
    from cryptography import x509

    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    with contextlib.suppress(x509.ExtensionNotFound):
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += alternative.get_values_for_type(x509.DNSName)
    return tuple(names)


def way_up(found: Sequence[Certificate], authorities: Sequence[Certificate]) -> list[Certificate]:
    """From the first of these certificates to one of the authorities, by signatures. Raises ValueError."""
    way = [found[0]]
    while way[-1] not in authorities:
        known = (*authorities, *filter(may_sign, found[1:]))
        above = next((one for one in known if is_signed_by(way[-1], one)), None)
        if above is None or len(way) == MAX_WAY:
            raise ValueError(NO_AUTHORITY)
        way.append(above)
    return way


def may_sign(certificate: Certificate) -> bool:
    """Whether it is one for signing others."""
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False


def is_signed_by(certificate: Certificate, above: Certificate) -> bool:
    """Whether its issuer's name and its signature are of that one."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def load(certificate: pathlib.Path, key: pathlib.Path, client_ca: pathlib.Path | None) -> Loaded:
    """Read the user's files. Raises ValueError with a sentence that names the file and the option."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding

    chain, content = certificates_in(certificate, "--tls-cert"), content_of(key, "--tls-key")
    try:
        private = parsed_key(content)
    except ValueError as error:
        raise ValueError(f"{key} (--tls-key) {error}") from error
    is_ec = isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in ("secp256r1", "secp384r1")
    if not (is_ec or isinstance(private, rsa.RSAPrivateKey)):  # BoringSSL offers a node no other
        raise ValueError(f"the key in {key} (--tls-key) is of a kind that gRPC does not take: make one of EC P-256, P-384, or RSA")
    fitting = [public_part(one) == public_part(private) for one in chain]
    if not any(fitting):
        raise ValueError(f"the key in {key} (--tls-key) is not that of the certificate in {certificate} (--tls-cert)")
    if not fitting[0]:
        raise ValueError(f"the server's own certificate is not the first in {certificate} (--tls-cert): put it above the others")
    pair = Pair(key_pem(private), b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    authorities = certificates_in(client_ca, "--client-ca") if client_ca else []
    return Loaded(
        pair,
        authorities,
        chain[0].not_valid_before_utc.timestamp(),
        chain[0].not_valid_after_utc.timestamp(),
        str(key) if is_open_to_all(key) else "",
        first_name(chain[0]),
        dns_names(chain[0]),
    )


def is_open_to_all(path: pathlib.Path) -> bool:
    """Whether everyone on this machine can read a file; no where it is gone meanwhile."""
    with contextlib.suppress(OSError):
        return os.name == "posix" and bool(path.stat().st_mode & 0o004)
    return False


def alternative_names(certificate: Certificate) -> Sequence[GeneralName]:
    """What a certificate is for; nothing where that can't be read."""
    from cryptography import x509

    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return ()


def first_name(certificate: Certificate) -> str:
    """The first name or address that a certificate is for, one of this machine alone last; empty where it has none that a command
    can name: a wildcard is no name."""
    from cryptography import x509

    found: dict[str, bool] = {}
    for one in alternative_names(certificate):
        if isinstance(one, x509.IPAddress) and isinstance(one.value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
            found[str(one.value)] = one.value.is_loopback
        elif isinstance(one, x509.DNSName) and re.fullmatch(r"[\w.-]+", one.value, re.ASCII):
            found[one.value] = one.value == "localhost"
    return min(found, key=lambda name: found[name], default="")


def dns_names(certificate: Certificate) -> Sequence[str]:
    """All that a certificate is for, in lower case, wildcards among them."""
    from cryptography import x509

    return [one.value.lower() for one in alternative_names(certificate) if isinstance(one, x509.DNSName)]


def public_part(holder: Any) -> bytes:
    """The public key of a private one, or of a certificate; empty where it is of a kind that can't be read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        return bytes(holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    except (ValueError, UnsupportedAlgorithm):
        return b""


def certificates_in(path: pathlib.Path, option: str) -> list[Certificate]:
    """All of a file, in their order: at least one. Raises ValueError."""
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

    content = content_of(path, option)
    try:
        return load_pem_x509_certificates(content)
    except (ValueError, InvalidVersion) as error:
        raise ValueError(f"{path} ({option}) has no certificate in PEM that can be read") from error


def content_of(path: pathlib.Path, option: str) -> bytes:
    """What a file of the user holds. Raises ValueError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, and can't be read again
            raise ValueError(f"{path} ({option}) is no file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path} ({option}): {(error.strerror or str(error)).lower()}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{path} ({option}) is too large for a file of certificates")
    return content
