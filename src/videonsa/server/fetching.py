"""Media from http(s) addresses: of hosts that are allowed, at public addresses, within limits."""

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore

from videonsa.errors import UsageError
from videonsa.parsing import one_line
from videonsa.server.errors import RefusedRequest

PORTS: Mapping[str, int] = {"http": 80, "https": 443}
MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_EMBEDDING = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
"""Networks whose addresses end with the IPv4 address that they stand for (NAT64)."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]


def check_hosts(hosts: Iterable[str]) -> frozenset[str]:
    """Hosts as `Fetcher` compares them, NAME or NAME:PORT.

    Raises:
        UsageError: what is no name of a host.
    """
    found = set()
    for given in hosts:
        name, _, port = given.lower().partition(":")
        letters = name.replace(".", "").replace("-", "")
        if not (letters.isascii() and letters.isalnum() and (not port or port.isdecimal())):
            raise UsageError(
                f"host {given!r}: want a name such as videos.example.org, or NAME:PORT"
            )
        found.add(f"{name}:{port}" if port else name)
    return frozenset(found)


def resolve_name(host: str, port: int) -> list[str]:
    """The addresses of a host. OSError where it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]).partition("%")[0] for one in found))


def is_public(address: str) -> bool:
    """Whether an address is one of the internet: not of this machine, its networks or its links."""
    found: Address = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if any(found in network for network in _EMBEDDING):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if found.is_site_local:  # which later versions of IPv6 took back
            return False
        if inner is not None:
            found = inner
    return found.is_global and not (found.is_multicast or found.is_reserved)


class _Private(Exception):
    """A name leads to an address that is not public."""


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects to the very address that was checked, so that a name cannot change its mind."""

    def __init__(self, network: httpcore.NetworkBackend, resolve: Resolve) -> None:
        self._network, self._resolve = network, resolve

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """As httpcore's; the certificate is checked for the name."""
        try:
            addresses = self._resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"no address is known: {one_line(error)}") from error
        if not addresses or not all(map(is_public, addresses)):
            raise _Private
        return self._network.connect_tcp(addresses[0], port, timeout, local_address, socket_options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetcher:
    """Downloads from hosts that are allowed."""

    hosts: frozenset[str]
    """Of `check_hosts`; without a port, that of the scheme is meant."""
    most_bytes: int
    """Of all that a request has downloaded."""
    seconds: float
    """From the first connection to the last byte."""
    resolve: Resolve = resolve_name
    network: httpcore.NetworkBackend | None = None
    """What makes connections; None is httpcore's own."""

    def fetch(
        self, url: str, path: Path, *, param: str, most_bytes: int, stopped: Callable[[], bool]
    ) -> None:
        """Download into a file.

        Args:
            url: with http or https; redirects are followed, and checked like it.
            path: of the file, which is there.
            param: the field of the request, for refusals.
            most_bytes: that it may have.
            stopped: whether nobody waits any more.

        Raises:
            RefusedRequest: 403 what is not allowed, 413 too large, 400 what cannot be had.
        """
        into = _Download(path, most_bytes, time.monotonic() + self.seconds, stopped)
        network = _CheckedNetwork(self.network or httpcore.SyncBackend(), self.resolve)
        try:
            with httpcore.ConnectionPool(network_backend=network) as pool:
                for _ in range(MOST_REDIRECTS + 1):
                    self._check(url, param)
                    following = self._get(pool, url, into)
                    if following is None:
                        return
                    url = urljoin(url, following)
        except _Private as error:
            raise RefusedRequest(
                403,
                f"{_host(url)} leads to an address that is not public: want one of the internet",
                param=param,
                code="address_not_allowed",
            ) from error
        except (*_FAILURES, OSError, ValueError) as error:
            raise _unreachable(url, one_line(error), param) from error
        except RefusedRequest as error:
            error.param = param
            raise
        raise _unreachable(url, f"more than {MOST_REDIRECTS} redirects", param)

    def _check(self, url: str, param: str) -> None:
        """Refuse an address whose host is not allowed; also that of a redirect."""
        parts = split_address(url, param)
        port = parts.port or PORTS[parts.scheme]
        host = parts.hostname or ""
        usual = port == PORTS[parts.scheme] and host in self.hosts
        if not (usual or f"{host}:{port}" in self.hosts):
            allowed = "none" if not self.hosts else ", ".join(sorted(self.hosts))
            raise RefusedRequest(
                403,
                f"nothing is fetched from {host[:200]}:{port}: the hosts that --allow-fetch names "
                f"are {allowed}; upload the file, or send it as a data: URL",
                param=param,
                code="host_not_allowed",
            )

    def _get(self, pool: httpcore.ConnectionPool, url: str, into: "_Download") -> str | None:
        """Download, or say where a redirect leads."""
        left = max(0.001, into.deadline - time.monotonic())
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), left)
        # What is sent packed would be small on the wire and large here: it is asked for plain.
        headers = [("Accept", "video/*, image/*"), ("Accept-Encoding", "identity")]
        with pool.stream("GET", url, headers=headers, extensions={"timeout": timeout}) as response:
            given = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in response.headers
            }
            if response.status in _REDIRECTS and "location" in given:
                return given["location"]
            if response.status != 200:
                raise ValueError(f"it answers with status {response.status}")
            if given.get("content-encoding", "identity") != "identity":
                raise ValueError(f"it is sent as {given['content-encoding'][:20]}, want it plain")
            if (stated := given.get("content-length", "0")).isdecimal():
                _check_size(int(stated), into, url)
            self._write(response, into, url)
        return None

    def _write(self, response: httpcore.Response, into: "_Download", url: str) -> None:
        written = 0
        with into.path.open("wb") as file:
            for piece in response.iter_stream():
                written += len(piece)
                _check_size(written, into, url)
                if into.stopped():
                    raise ValueError("the client went away")
                if time.monotonic() > into.deadline:
                    raise ValueError(f"not there after {self.seconds:g} s")
                file.write(piece)
        if not written:
            raise ValueError("it is empty")


class _Download(NamedTuple):
    path: Path
    most_bytes: int
    deadline: float
    """Of the monotonic clock."""
    stopped: Callable[[], bool]


def _check_size(size: int, into: _Download, url: str) -> None:
    if size > into.most_bytes:
        raise RefusedRequest(
            413,
            f"what is at {_host(url)} is larger than {into.most_bytes} bytes, which is what a "
            "request may have downloaded beside its other files: want smaller or fewer files, or "
            "begin the server with a larger --max-upload",
            code="media_too_large",
        )


_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)


def split_address(url: str, param: str) -> SplitResult:
    """The parts of an http(s) address.

    Raises:
        RefusedRequest: 400, it is none, or brings a user's name and password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    fine = parts.scheme in PORTS and host and host.isascii() and "%" not in host and port != 0
    if not fine or parts.username is not None or not _is_plain(url):
        raise RefusedRequest(
            400,
            f"{url[:200]!r} is no address: want http(s)://HOST/PATH in ASCII, without a user's "
            "name, spaces or control characters",
            param=param,
            code="invalid_url",
        )
    return parts


def _is_plain(url: str) -> bool:
    """Whether it has no characters that would begin another line of a request."""
    return url.isascii() and url.isprintable() and " " not in url and "\\" not in url


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "")[:200]


def _unreachable(url: str, why: str, param: str) -> RefusedRequest:
    return RefusedRequest(
        400,
        f"{_host(url)} does not give the file: {why}; upload it, or send it as a data: URL",
        param=param,
        code="unreachable_media",
    )
