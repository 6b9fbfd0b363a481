"""Where a server listens: found, checked and ours before anything is loaded."""

import errno
import socket
import stat
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from pllm.runtime.errors import UserInputError

if TYPE_CHECKING:
    import ssl

__all__ = ["Address"]


@dataclass(frozen=True, slots=True)
class Address:
    """A bound socket, and how clients call it. ``uds``: the path of a UNIX socket, None for TCP."""

    listener: socket.socket
    uds: Path | None = None
    tls: "ssl.SSLContext | None" = None

    @classmethod
    def bind(
        cls, *, host: str, port: int, uds: str | None, ssl_certfile: str | None, ssl_keyfile: str | None
    ) -> "Address":
        """Binds, does not listen yet. Raises UserInputError for an address or a certificate that cannot be used."""
        tls = _tls_context(ssl_certfile, ssl_keyfile)
        if uds is not None:
            return cls(_bind_unix(Path(uds)), Path(uds), tls)
        return cls(_bind_tcp(host, port), None, tls)

    def listen(self) -> None:
        """From here on the kernel keeps connections for us. Linux lets two sockets bind one address until one of them
        listens, so it may have been taken meanwhile: UserInputError."""
        try:
            self.listener.listen(socket.SOMAXCONN)
        except OSError as error:
            text = f"the port was taken meanwhile ({error.strerror}): give another with --port."
            raise UserInputError(text) from None

    def close(self) -> None:
        """Gives it back; a UNIX socket's file goes."""
        self.listener.close()
        if self.uds is not None:
            self.uds.unlink(missing_ok=True)

    @property
    def url(self) -> str:
        """As clients write it."""
        scheme = "http" if self.tls is None else "https"
        if self.uds is not None:
            return f"{scheme}+unix://{self.uds}"
        host, port = self.listener.getsockname()[:2]
        where = f"[{host}]" if ":" in host else host
        return f"{scheme}://{where}:{port}"

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it."""
        if self.uds is not None:
            return True
        return ip_address(str(self.listener.getsockname()[0]).partition("%")[0]).is_loopback

    @property
    def host(self) -> str:
        """The address that it is bound to."""
        return str(self.uds or self.listener.getsockname()[0])


def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserInputError(f"--host {host}: {error.strerror}. Give an address of this machine.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        remedy = {
            errno.EADDRINUSE: f"port {port} is in use: end the other server, or give another with --port",
            errno.EACCES: f"port {port} needs privileges: give one above 1023 with --port",
            errno.EADDRNOTAVAIL: f"{host} is no address of this machine: give another with --host",
        }.get(error.errno or 0, str(error))
        raise UserInputError(f"{remedy}.") from None
    return listener


def _bind_unix(path: Path) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise UserInputError(f"--uds {path}: {error.strerror or error}.") from None
    return listener


def _remove_stale(path: Path) -> None:
    """A server that was killed leaves its socket behind: one that nobody answers is removed."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return
    if not is_socket:
        raise UserInputError(f"--uds {path}: there is a file of this name that is no socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise UserInputError(f"--uds {path}: {error.strerror}.") from None
    raise UserInputError(f"--uds {path}: another server listens there: end it, or give another path.")


def _tls_context(certfile: str | None, keyfile: str | None) -> "ssl.SSLContext | None":
    if certfile is None:
        if keyfile is not None:
            raise UserInputError("--ssl-keyfile needs --ssl-certfile.")
        return None
    import ssl  # noqa: PLC0415  (a start without TLS does not wait for it)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A key with a password would ask for it at the terminal; a server has none.
        context.load_cert_chain(certfile, keyfile, password="")
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise UserInputError(f"--ssl-certfile {certfile}: no usable certificate and key (PEM): {reason}.") from None
    except OSError as error:
        raise UserInputError(f"--ssl-certfile {certfile}: {error.strerror or error}.") from None
    return context
