"""Run the server until it is told to stop."""

import math
import socket

import uvicorn

from videonsa.errors import UsageError
from videonsa.server.app import build_app
from videonsa.server.front import Front


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UsageError: it cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host} port {port}: {reason}: name another") from error


def make_server(front: Front, *, stop_timeout: float) -> uvicorn.Server:
    """What answers requests until SIGTERM or SIGINT; those accepted by then are answered first.

    Args:
        front: what answers.
        stop_timeout: seconds after which a stop does not wait for answers any more.
    """
    return uvicorn.Server(
        uvicorn.Config(
            build_app(front),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(stop_timeout),
        )
    )
