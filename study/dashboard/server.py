"""Serve the Optuna dashboard: notes, plots and images of our studies are in the database it reads.

Optuna's dashboard has no login, checks neither Host nor Origin, and runs an uploaded HTML file as one of its
own pages. So it reads through a connection that can't write, and what a browser may do is checked in front.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import optuna_dashboard
from bottle import HTTPError  # type: ignore[import-untyped]
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from study.dashboard.board import images_folder
from study.store.store import Store
from vae.errors import FailureError, UserError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: What a file of the artifact store may do when a browser opens it: nothing.
_INERT = [("Content-Security-Policy", "sandbox; default-src 'none'"), ("X-Content-Type-Options", "nosniff")]


def serve(storage: str, artifacts: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the dashboard of the database at `storage` until Ctrl-C; `say` gets a line at a time.

    Raises UserError for a database that isn't there and for a host or port that can't be had, FailureError
    for a database that can't be read.
    """
    with Store.open(storage, read_only=True) as store:
        family, address = _resolve(host, port)
        local = ipaddress.ip_address(address).is_loopback
        dashboard = Dashboard(store, artifacts, local=local, say=say)
        with dashboard, _listen(family, address, host, port, dashboard) as server:
            if not local:
                say(
                    f"Warning: {host} can be reached from other machines, and the dashboard has no login: "
                    f"whoever reaches it can read every study in {store.database.name}. Its buttons are "
                    "switched off; they work on --host 127.0.0.1."
                )
            shown = f"[{host}]" if ":" in host else host
            try:
                say(
                    f"Dashboard of {store.database.name}: http://{shown}:{server.server_port}/ (Ctrl-C ends it)"
                )
                server.serve_forever()
            except KeyboardInterrupt:
                return


class Dashboard:
    """The dashboard as a WSGI application; a context manager, for the connections of its buttons.

    `local` says that it listens on loopback only. Then its buttons work (notes, deleting a study), for pages
    of its own: not for another site's page in the same browser, nor for a name that such a site points at this
    machine. Elsewhere it shows and changes nothing.
    """

    def __init__(self, store: Store, artifacts: Path, *, local: bool, say: Callable[[str], None]) -> None:
        self._store = store
        self._files = _Files(images_folder(artifacts))
        self._local = local
        self._say = say
        self._reader: WSGIApplication = optuna_dashboard.wsgi(store.optuna, self._files)
        self._writing: Store | None = None
        self._writer: WSGIApplication | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writing is not None:
            self._writing.close()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # The dashboard reads this header without asking whether it is there.
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")
        refusal = self._refusal(environ)
        if refusal is not None:
            return _refuse(start_response, "403 Forbidden", refusal)
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            if environ.get("PATH_INFO", "").startswith("/artifacts/"):
                return self._reader(environ, _inert(start_response))
            return self._reader(environ, start_response)
        try:
            writer = self._open_writer()
        except UserError as error:
            self._say(f"Not changed: {error}")
            return _refuse(start_response, "503 Service Unavailable", str(error))
        return writer(environ, start_response)

    def _refusal(self, environ: WSGIEnvironment) -> str | None:
        """Why this request isn't served; None where it is."""
        host = environ.get("HTTP_HOST", "")
        if self._local and host and not _is_loopback_name(urlsplit(f"//{host}").hostname or ""):
            return f"{host} is no name of this machine's loopback. Open http://127.0.0.1 with the same port."
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return None
        if not self._local:
            return "This dashboard only shows. Serve it on --host 127.0.0.1 to change something."
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and urlsplit(origin).netloc != host:
            return f"A page of {origin} may not change studies here."
        return None

    def _open_writer(self) -> WSGIApplication:
        # Of its own and only when asked for: a writer's transactions take SQLite's only write lock, and
        # pages that read every few seconds would make trials wait for it.
        with self._lock:
            if self._writer is None:
                self._writing = Store.open(self._store.url)
                self._writer = optuna_dashboard.wsgi(self._writing.optuna, self._files)
            return self._writer


class _Files(FileSystemArtifactStore):
    """The folder of images, which needn't be there; a file that is missing is no error of the server."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        try:
            return super().open_reader(artifact_id)
        except ArtifactNotFound:
            raise HTTPError(404, f"No file {artifact_id} in {self._folder}: is --artifacts right?") from None

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        super().write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        try:
            super().remove(artifact_id)
        except ArtifactNotFound:
            return  # gone already: the study that it belonged to can be deleted all the same


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks a name server for the full name of the host.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a browser that went away
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """One line a request is noise: pages ask every few seconds."""

    def address_string(self) -> str:
        return str(self.client_address[0])  # no name server


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    """The family and the numeric address of a host. Raises UserError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(
            f"--host {host} is no address of this machine ({error.strerror}). Use --host 127.0.0.1."
        ) from None
    return family, str(address[0]).partition("%")[0]


def _listen(
    family: socket.AddressFamily, address: str, host: str, port: int, application: WSGIApplication
) -> WSGIServer:
    """A server that has its port. Raises UserError."""
    try:
        server = _Server(family, (address, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"Port {port} of {host} is in use. End the program that listens there, or choose another "
                f"with --port, such as --port {port + 1 if port < 65535 else 8080}."
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host} is no address of this machine. Use --host 127.0.0.1.") from None
        if error.errno == errno.EACCES:
            raise UserError(f"Port {port} needs rights that you don't have. Use --port 8080.") from None
        raise FailureError(f"Can't listen on {host}, port {port}: {error.strerror}.") from None
    server.set_app(application)
    return server


def _is_loopback_name(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _refuse(start_response: StartResponse, status: str, reason: str) -> Iterable[bytes]:
    body = json.dumps({"reason": reason}).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _inert(start_response: StartResponse) -> StartResponse:
    """Answer with headers under which no file runs as a page, nor is readable for other sites."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
        kept = [header for header in headers if header[0] != "Access-Control-Allow-Origin"]
        return start_response(status, kept + _INERT, exc_info)

    return start
