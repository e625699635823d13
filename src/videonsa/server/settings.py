"""How a server is run."""

from dataclasses import dataclass
from pathlib import Path

from videonsa.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """What `videonsa serve` was told."""

    model_name: str
    """By which clients ask for the model."""
    system: str
    """The system message of requests without one."""
    names: frozenset[str] | None = None
    """By which clients may call the server, in the Host header; None: any."""
    api_key: str | None = None
    """That every request under /v1 has to bring; None: none has to."""
    most_requests: int = 64
    """Requests under way, those that wait included."""
    most_together: int = 16
    """Questions about the same videos that are answered side by side."""
    timeout: float = 600.0
    """Seconds from a request to the end of its answer."""
    most_body: int = 64 * 2**20
    """Bytes of a request, videos in it included."""

    def __post_init__(self) -> None:
        """Refuse values outside the domain: UsageError."""
        for name in ("most_requests", "most_together", "most_body"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: want an int of at least 1")
        if not 0 < self.timeout < 1e6:
            raise UsageError(f"timeout={self.timeout}: want seconds above 0, at most 999,999")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip()):
            raise UsageError("the API key is empty or not ASCII: want letters and digits")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepSettings:
    """How many bytes of keys and values are kept for further questions."""

    device_bytes: int
    """In the memory of the model's device; the session used last is kept whatever its size."""
    host_bytes: int = 0
    """In main memory, as files."""
    host_folder: Path | None = None
    disk_bytes: int = 0
    disk_folder: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a tier without a folder: UsageError."""
        if self.host_bytes and self.host_folder is None:
            raise UsageError("--keep-host: no files can be made in /dev/shm: use --keep-disk")
        if self.disk_bytes and self.disk_folder is None:
            raise UsageError("sessions on disk and no folder for them: name one")
