"""Keys for the connections between Dask's scheduler, workers and client: a person's files, or keys
made for one run.

Without TLS, a scheduler runs any code that anybody sends to its port; on loopback that is every
user of the machine.
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
    """PEM files for encrypted connections with certificates on both sides: authority, certificate,
    private key.
    """

    ca: Path
    cert: Path
    key: Path

    def security(self):
        """Dask's Security, the same for scheduler, workers and client. ValueError if a file is
        missing or of another kind.
        """
        from distributed.security import Security

        for name in ("ca", "cert", "key"):
            if not getattr(self, name).is_file():
                raise ValueError(
                    f"--tls-{name}: expected a PEM file, there is none at {getattr(self, name)}"
                )
        context = ssl.create_default_context()
        _loads(
            f"--tls-ca: {self.ca}: expected a certificate (PEM)",
            lambda: context.load_verify_locations(self.ca),
        )
        pair = f"--tls-cert, --tls-key: expected {self.cert} to be a certificate, {self.key} its key without a password (PEM)"
        _loads(
            pair, lambda: context.load_cert_chain(self.cert, self.key, password="")
        )  # else OpenSSL would ask for one
        roles = {
            f"tls_{role}_{part}": str(getattr(self, part))
            for role in ("client", "worker", "scheduler")
            for part in ("cert", "key")
        }
        return Security(tls_ca_file=str(self.ca), require_encryption=True, **roles)


def _loads(expected: str, load: Callable[[], None]) -> None:
    """Runs `load`; its SSLError becomes a ValueError that says what was expected."""
    try:
        load()
    except ssl.SSLError as error:
        raise ValueError(f"{expected}, got something else ({error.reason or error})") from None


def security_of_this_run():
    """A new key and certificate, in memory only. Dask passes them to the processes that it starts
    through pipes.
    """
    from distributed.security import Security

    return Security.temporary()


@contextmanager
def files_of_this_run(folder: str) -> Iterator[TlsFiles]:
    """A new key and certificate as files below `folder` that only this user may read; removed at
    the end of the context.

    For workers on other machines that share this folder. Job scripts and command lines hold only
    the names of the files.
    """
    security = security_of_this_run()
    with TemporaryDirectory(
        prefix=".tls-", dir=folder, ignore_cleanup_errors=True
    ) as private:  # of mode 0700
        cert, key = Path(private, "cert.pem"), Path(private, "key.pem")
        for path, text in ((cert, security.tls_scheduler_cert), (key, security.tls_scheduler_key)):
            with open(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii"
            ) as file:
                file.write(text)
        yield TlsFiles(cert, cert, key)
