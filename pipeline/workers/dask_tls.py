"""Keys for the connections between Dask's scheduler, workers and client.

They are a person's files, or made for one run. Without TLS, a scheduler runs any code that anybody
sends to its port; on loopback that is every user of the machine.
"""

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory


@dataclass(frozen=True)
class TlsFiles:
    """PEM files for encrypted connections with certificates on both sides.

    Attributes:
        ca: certificate of the authority.
        cert: certificate of this side.
        key: private key of this side, without a password.
    """

    ca: Path
    cert: Path
    key: Path

    def security(self):
        """Build Dask's `Security`, the same for scheduler, workers and client.

        Raises:
            ValueError: a file is missing, or is not what its name says.
        """
        from distributed.security import Security

        for name in ("ca", "cert", "key"):
            path = getattr(self, name)
            if not path.is_file():
                raise ValueError(f"--tls-{name}: expected a PEM file, there is none at {path}")

        context = ssl.create_default_context()
        _try_load(
            f"--tls-ca: {self.ca}: expected a certificate (PEM)",
            lambda: context.load_verify_locations(self.ca),
        )
        # The empty password: without one, OpenSSL would ask for it on the terminal.
        _try_load(
            f"--tls-cert, --tls-key: expected {self.cert} to be a certificate, {self.key} its key "
            f"without a password (PEM)",
            lambda: context.load_cert_chain(self.cert, self.key, password=""),
        )

        files = {}
        for role in ("client", "worker", "scheduler"):
            files[f"tls_{role}_cert"] = str(self.cert)
            files[f"tls_{role}_key"] = str(self.key)
        return Security(tls_ca_file=str(self.ca), require_encryption=True, **files)


def _try_load(expected: str, load: Callable[[], None]) -> None:
    """Call `load`, turning an SSLError into a ValueError that says what was expected."""
    try:
        load()
    except ssl.SSLError as error:
        raise ValueError(f"{expected}, got something else ({error.reason or error})") from None


def security_of_this_run():
    """Make a new key and certificate, in memory only.

    Dask passes them through pipes to the processes that it starts.
    """
    from distributed.security import Security

    return Security.temporary()


@contextmanager
def files_of_this_run(folder: str) -> Iterator[TlsFiles]:
    """Make a new key and certificate as files, and remove them at the end of the context.

    They are for workers on other machines that share the folder. Job scripts and command lines hold
    only the names of the files.

    Args:
        folder: an existing folder. The files lie in a new folder below it, of mode 0700.
    """
    security = security_of_this_run()
    with TemporaryDirectory(prefix=".tls-", dir=folder, ignore_cleanup_errors=True) as private:
        cert, key = Path(private, "cert.pem"), Path(private, "key.pem")
        for path, text in ((cert, security.tls_scheduler_cert), (key, security.tls_scheduler_key)):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(file, "w", encoding="ascii") as stream:
                stream.write(text)
        yield TlsFiles(cert, cert, key)
