"""Certificates for tests, and a front that speaks TLS for a server that does not."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def make_certificate(folder: Path, names: str = "IP:127.0.0.1") -> Path:
    """A certificate for these subjectAltNames, signed by its own key, which is in key.pem."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the test's certificate, is not installed")
    key, file = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=marco-test"
    command += f" -addext subjectAltName={names}"
    subprocess.run(
        [*command.split(), "-keyout", str(key), "-out", str(file)], check=True, capture_output=True
    )
    return file


@contextmanager
def tls_front(certificate: Path, host: str, port: int) -> Iterator[int]:
    """The port of a front to a server; each connection has two threads."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    listening = socket.create_server(("127.0.0.1", 0))
    opened = [listening]

    def pump(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listening.accept()
                with contextlib.suppress(OSError):
                    near = context.wrap_socket(plain, server_side=True)
                    far = socket.create_connection((host, port))
                    opened.extend((near, far))
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        for sock in opened:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        thread.join()
