"""Serve the Optuna dashboard: notes, plots and images of our studies are in the database it reads.

Optuna's dashboard has no login, checks neither Host nor Origin, and runs an uploaded HTML file as one of its
own pages. So it reads through a connection that can't write, and what a browser may do is checked in front.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

import optuna_dashboard
from bottle import HTTPError  # type: ignore[import-untyped]
from waitress.server import create_server

from study.dashboard.board import images_folder
from study.store.locations import Location
from study.store.names import require_name
from study.store.store import Store
from vae.errors import FailureError, UserError
from vae.files import write_bytes

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Requests that are answered at once: a page asks for several, and importances take seconds.
THREADS = 8
#: No other page may show one of ours in a frame and have its buttons clicked unseen.
_FRAMELESS = [("Content-Security-Policy", "frame-ancestors 'none'"), ("X-Frame-Options", "DENY")]
#: What a file of the artifact store may do when a browser opens it: nothing.
_INERT = [
    ("Content-Security-Policy", "sandbox; default-src 'none'; frame-ancestors 'none'"),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
]
#: RFC 3986's host and port, without what no browser sends: a user's name, a zone, escapes.
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]{1,5})?")
_IMPORTANCES = re.compile(r"/api/studies/([0-9]{1,18})/param_importances/*")


@dataclass(frozen=True)
class Listening:
    """A dashboard that has its port and answers once `serve` is called."""

    database: str
    host: str
    port: int
    local: bool
    """Only this machine reaches it, so that its buttons may work."""
    serve: Callable[[], None]
    """Answer requests until Ctrl-C."""

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"


@contextmanager
def listen(
    storage: str, artifacts: Location, host: str, port: int, say: Callable[[str], None]
) -> Iterator[Listening]:
    """The dashboard of the database at `storage`, listening on `host`; port 0 is any that is free. `say` gets a line
    when a button can't do what it should. Ctrl-C within the block ends it quietly.

    Raises UserError for a database that isn't there and for a host or port that can't be had, FailureError
    for a database that can't be read.
    """
    with Store.open(storage, read_only=True) as store:
        family, address = _resolve(host, port)
        local = ipaddress.ip_address(address).is_loopback
        # Its warnings are for a site's administrator: a full queue, a browser that went away.
        logging.getLogger("waitress").setLevel(logging.ERROR)
        with (
            Dashboard(store, artifacts, local=local, say=say) as dashboard,
            _bound(family, address, host, port) as listener,
            closing(_server(dashboard, listener)) as server,
        ):
            try:
                yield Listening(store.database.name, host, listener.getsockname()[1], local, server.run)
            except KeyboardInterrupt:
                return


def _server(dashboard: WSGIApplication, listener: socket.socket) -> Any:
    options = {"threads": THREADS, "asyncore_use_poll": True, "log_socket_errors": False, "ident": None}
    return create_server(dashboard, sockets=[listener], **options)


class Dashboard:
    """The dashboard as a WSGI application; a context manager, for the connections of its buttons.

    `local` says that it listens on loopback only. Then its buttons work (notes, deleting a study), for pages
    of its own: not for another site's page in the same browser, nor for a name that such a site points at this
    machine. Elsewhere it shows and changes nothing.
    """

    def __init__(self, store: Store, artifacts: Location, *, local: bool, say: Callable[[str], None]) -> None:
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
            return _answer(start_response, refusal[0], {"reason": refusal[1]})
        path = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            if path.startswith("/artifacts/"):
                return self._reader(environ, _with(start_response, _INERT))
            importances = _IMPORTANCES.fullmatch(path)
            if importances and self._has_no_parameters(int(importances[1])):
                return _answer(start_response, "200 OK", {"param_importances": [[]]})
            return self._reader(environ, _with(start_response, _FRAMELESS))
        try:
            writer = self._open_writer()
        except UserError as error:
            self._say(f"Not changed: {error}")
            return _answer(start_response, "503 Service Unavailable", {"reason": str(error)})
        return writer(environ, _with(start_response, _FRAMELESS))

    def _refusal(self, environ: WSGIEnvironment) -> tuple[str, str] | None:
        """Status and reason why this request isn't served; None where it is."""
        host = environ.get("HTTP_HOST", "")
        named = _HOST.fullmatch(host)
        if host and named is None:
            return "400 Bad Request", "The Host header is no host and port."
        if self._local and named and not _is_loopback_name((named["v6"] or named["name"]).lower()):
            way_out = "Open http://127.0.0.1 with the same port."
            return "403 Forbidden", f"{host} is no name of this machine's loopback. {way_out}"
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return None
        if not self._local:
            reason = "This dashboard only shows. Serve it on --host 127.0.0.1 to change something."
            return "403 Forbidden", reason
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin.partition("://")[2] != host:
            return "403 Forbidden", f"A page of {origin} may not change studies here."
        # Browsers leave Origin out where a page asks them to, this never; a program sends neither.
        if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("same-origin", "none"):
            return "403 Forbidden", "A page of another site may not change studies here."
        return None

    def _has_no_parameters(self, study_id: int) -> bool:
        """Whether no trial of one of our kind of studies (one objective) was asked for a parameter, as where an arm's
        recipe is given. Optuna's dashboard divides by their number."""
        try:
            if len(self._store.optuna.get_study_directions(study_id)) != 1:
                return False
            trials = self._store.optuna.get_all_trials(study_id, deepcopy=False)
        except KeyError:
            return False
        return not any(trial.params for trial in trials)

    def _open_writer(self) -> WSGIApplication:
        # Of its own and only when asked for: a writer's transactions take SQLite's only write lock, and
        # pages that read every few seconds would make trials wait for it.
        with self._lock:
            if self._writer is None:
                self._writing = Store.open(self._store.url)
                self._writer = optuna_dashboard.wsgi(self._writing.optuna, self._files)
            return self._writer


class _Files:
    """The folder of images as an artifact store of Optuna's: it needn't be there, and a file that is missing is no
    error of the server."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        image = self._folder / require_name(artifact_id, "a file")
        try:
            if not image.exists():
                raise HTTPError(404, f"No file {artifact_id} in {self._folder}: is --artifacts right?")
            with image.local() as path:
                return BytesIO(path.read_bytes())
        except FailureError as error:
            raise HTTPError(503, str(error)) from None

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        content = content_body.read()
        image = self._folder / require_name(artifact_id, "a file")
        image.save(lambda path: write_bytes(path, content))

    def remove(self, artifact_id: str) -> None:
        # Where it is gone already, the study that it belonged to can be deleted all the same.
        (self._folder / require_name(artifact_id, "a file")).delete()


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    """The family and the numeric address of a host. Raises UserError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(
            f"--host {host} is no address of this machine ({error.strerror}). Use --host 127.0.0.1."
        ) from None
    return family, str(address[0]).partition("%")[0]


@contextmanager
def _bound(family: socket.AddressFamily, address: str, host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has its port. Raises UserError."""
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # A port whose last owner has just ended can be had at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen()  # the second of two that bound the port fails only here
        except OSError as error:
            raise _explained(error, host, port) from None
        yield listener


def _explained(error: OSError, host: str, port: int) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"Port {port} of {host} is in use. End the program that listens there, or choose another "
            f"with --port, such as --port {port + 1 if port < 65535 else 8080}."
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(f"--host {host} is no address of this machine. Use --host 127.0.0.1.")
    if error.errno == errno.EACCES:
        return UserError(f"Port {port} needs rights that you don't have. Use --port 8080.")
    return FailureError(f"Can't listen on {host}, port {port}: {error.strerror}.")


def _is_loopback_name(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _answer(start_response: StartResponse, status: str, value: Any) -> Iterable[bytes]:
    body = json.dumps(value).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _with(start_response: StartResponse, headers: list[tuple[str, str]]) -> StartResponse:
    """Answer with these headers too, and never with one that lets another site read the answer."""

    def start(status: str, before: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
        kept = [header for header in before if header[0] != "Access-Control-Allow-Origin"]
        return start_response(status, kept + headers, exc_info)

    return start
