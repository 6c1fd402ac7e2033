"""Row 19: TLS of the page and the API, with certificates that are right, wrong and past."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness.processes import PATIENCE_S
from tests.harness.site import Site
from tests.web.http import Web, read_all, serve

OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs openssl: apt install openssl")


class Certificate(NamedTuple):
    """Files with a certificate, which signs itself, and its private key."""

    certificate: Path
    key: Path


AUTHORITY = """
[ca]
default_ca = own
[own]
database = index
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = IP:127.0.0.1
"""


def made(path: Path, name: str) -> Certificate:
    """One that is good today."""
    found = Certificate(path / f"{name}.pem", path / f"{name}.key")
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(found.key), "-out", str(found.certificate)]
    about = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [str(OPENSSL), *words, *files, *about, "-days", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    return found


def made_long_ago(path: Path) -> Certificate:
    """One that was good for a day."""
    found = Certificate(path / "past.pem", path / "past.key")
    (path / "authority.cnf").write_text(AUTHORITY)
    (path / "index").touch()
    words = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    asked = [*words, "-keyout", "past.key", "-subj", "/CN=localhost", "-out", "past.csr"]
    days = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"]
    files = ["-keyfile", "past.key", "-in", "past.csr", "-out", "past.pem", "-notext"]
    signed = ["ca", "-batch", "-selfsign", "-config", "authority.cnf", "-outdir", ".", *days]
    for command in (asked, [*signed, *files]):
        done = subprocess.run(
            [str(OPENSSL), *command], cwd=path, capture_output=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
    return found


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return made(tmp_path_factory.mktemp("tls"), "good")


@pytest.fixture
def served(site: Site) -> Callable[[Certificate], Web]:
    def start(pair: Certificate) -> Web:
        site.set(http__certificate=pair.certificate, http__certificate_key=pair.key)
        return serve(site)

    return start


def get(web: Web, context: ssl.SSLContext) -> bytes:
    """What a client with that context is answered; the handshake's error if there is none."""
    head = f"GET /v1/nodes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {web.key('read')}\r\n"
    with web.socket() as sock, context.wrap_socket(sock, server_hostname="127.0.0.1") as tls:
        tls.sendall(f"{head}Connection: close\r\n\r\n".encode())
        return read_all(tls)


def test_row_19_right_certificate(served: Callable[[Certificate], Web], good: Certificate) -> None:
    """Host and issuer are checked, and everything is as without TLS."""
    web = served(good)
    assert web.url.startswith("https://")
    answer = get(web, ssl.create_default_context(cafile=str(good.certificate)))
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_row_19_wrong_ca(
    served: Callable[[Certificate], Web], good: Certificate, tmp_path: Path
) -> None:
    web = served(good)
    other = made(tmp_path, "other")
    for context in (
        ssl.create_default_context(cafile=str(other.certificate)),
        ssl.create_default_context(),
    ):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|unable to get"):
            get(web, context)
    assert get(web, ssl.create_default_context(cafile=str(good.certificate))).startswith(b"HTTP")


def test_row_19_expired_certificate(served: Callable[[Certificate], Web], tmp_path: Path) -> None:
    past = made_long_ago(tmp_path)
    web = served(past)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        get(web, ssl.create_default_context(cafile=str(past.certificate)))


def test_row_19_no_certificate(site: Site, good: Certificate, tmp_path: Path) -> None:
    """Where others could listen, plain HTTP is refused at the start; so are halves of a pair."""
    readable = Certificate(good.certificate, tmp_path / "readable.key")
    shutil.copy(good.key, readable.key)
    readable.key.chmod(0o644)
    other = made(tmp_path, "other")
    for settings, text in (
        ({"http__address": "*:0"}, "http.certificate"),
        ({"http__certificate": good.certificate}, "go together, one is missing"),
        (
            {"http__certificate": good.certificate, "http__certificate_key": readable.key},
            "others may read it",
        ),
        (
            {"http__certificate": good.certificate, "http__certificate_key": other.key},
            "are no certificate and its key",
        ),
        (
            {"http__certificate": tmp_path / "none", "http__certificate_key": tmp_path / "none"},
            "none",
        ),
    ):
        site.set(http__address="127.0.0.1:0", http__certificate="", http__certificate_key="")
        site.set(**settings)
        child = site.start_unready("resource-manager")
        assert child.wait() == 78, child.stderr  # EX_CONFIG
        assert text in child.stderr


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_row_19_plain_http_to_the_port_of_tls(
    served: Callable[[Certificate], Web], good: Certificate
) -> None:
    """It is told nothing, and TLS that is older than 1.2 is not spoken."""
    web = served(good)
    with web.socket() as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in read_all(sock)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(good.certificate)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        get(web, old)
    answer = get(web, ssl.create_default_context(cafile=str(good.certificate)))
    assert answer.startswith(b"HTTP/1.1 200 "), "others are served"
    assert "Traceback" not in web.manager.stderr


def test_row_18_tls_to_the_port_of_plain_http(shared: Web) -> None:
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version|record"):
        get(shared, context)
    assert shared.ask("/healthz", role="").status == 200


def test_the_port_is_taken(site: Site) -> None:
    """It is said, leases go on, and the page comes up when the port is free."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        site.set(http__address=f"127.0.0.1:{port}")
        manager = site.start_unready("resource-manager")
        line = manager.lines.until("resource manager ready")
        assert "http" not in line
        assert f"cannot listen on 127.0.0.1:{port}: EADDRINUSE" in manager.stderr
        assert "leases go on without it" in manager.stderr
