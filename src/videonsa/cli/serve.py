"""`videonsa serve`: an OpenAI-compatible endpoint for questions about videos."""

import shutil
import signal
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from videonsa.cli import values
from videonsa.cli.answering import add_answering_options, load_model
from videonsa.cli.common import (
    Commands,
    LineParser,
    add_command,
    add_sampling_options,
    quiet_libraries,
    report,
    sampling_options,
)
from videonsa.errors import UsageError, missing_package

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA
    from videonsa.server.media import MediaPolicy
    from videonsa.server.settings import KeepSettings, ServeSettings
    from videonsa.server.state import StateFolder


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "serve",
        run=run,
        summary="Answer questions about videos over HTTP, as OpenAI's chat completions do: point "
        "an OpenAI client at http://HOST:PORT/v1. SIGTERM stops it once it has answered what it "
        "accepted.",
        examples=(
            "videonsa serve --media videos/",
            "videonsa serve --model Enxin/VideoNSA --host 0.0.0.0 --api-key-file key.txt",
        ),
    )
    add_answering_options(parser)
    add_sampling_options(parser)
    where = parser.add_argument_group("where it listens, and who may ask")
    where.add_argument(
        "--host",
        type=values.name,
        default="127.0.0.1",
        metavar="NAME",
        help="address to listen on; 0.0.0.0 is all of this machine (default: %(default)s)",
    )
    where.add_argument(
        "--port",
        type=values.whole_number(0, 65535),
        default=8000,
        metavar="N",
        help="0 takes a free one, which is told (default: %(default)s)",
    )
    where.add_argument(
        "--api-key-file",
        type=values.path,
        metavar="FILE",
        help="its first line is the key that requests under /v1 have to bring",
    )
    _add_media(parser)
    _add_limits(parser)
    _add_keeping(parser)


def _add_media(parser: LineParser) -> None:
    media = parser.add_argument_group("media")
    media.add_argument(
        "--media",
        type=values.path,
        metavar="DIR",
        help="folder whose files requests may name as file:// (default: none)",
    )
    media.add_argument(
        "--allow-fetch",
        type=values.name,
        nargs="+",
        default=[],
        metavar="HOST",
        help="hosts, NAME or NAME:PORT, from which http(s) addresses are fetched, unless a name "
        "leads to an address that is not public (default: none)",
    )
    media.add_argument(
        "--state",
        type=values.path,
        metavar="DIR",
        help="folder for uploads, which outlive the server there (default: one that ends with it)",
    )
    media.add_argument(
        "--max-upload",
        default="1GiB",
        metavar="SIZE",
        help="of an upload, or of all that a request has downloaded, such as 500MB (default: "
        "%(default)s)",
    )
    media.add_argument(
        "--max-stored",
        default="10GiB",
        metavar="SIZE",
        help="of all uploads together (default: %(default)s)",
    )
    media.add_argument(
        "--max-duration",
        type=values.positive_number,
        default=4 * 3600.0,
        metavar="S",
        help="seconds of a video (default: %(default)g)",
    )


def _add_keeping(parser: LineParser) -> None:
    keeping = parser.add_argument_group(
        "keeping",
        "What was read is kept for further questions; what was used least recently makes room.",
    )
    keeping.add_argument(
        "--keep",
        type=values.size,
        metavar="SIZE",
        help="in the memory of the model's device, such as 20GB (default: half of what the "
        "weights leave)",
    )
    keeping.add_argument(
        "--keep-host",
        type=values.size,
        metavar="SIZE",
        help="then in main memory, as files of /dev/shm (default: none)",
    )
    keeping.add_argument(
        "--keep-disk",
        type=values.size,
        metavar="SIZE",
        help="then on disk, in the folder of --state (default: none)",
    )


def _add_limits(parser: LineParser) -> None:
    limits = parser.add_argument_group("limits")
    count = values.whole_number(1, 100_000)
    limits.add_argument(
        "--served-name", type=values.name, metavar="NAME", help="of the model (default: --model)"
    )
    limits.add_argument(
        "--queue",
        type=count,
        default=64,
        metavar="N",
        help="requests under way, those that wait included; more get status 429 (default: "
        "%(default)s)",
    )
    limits.add_argument(
        "--together",
        type=count,
        default=16,
        metavar="N",
        help="questions about the same videos that are answered side by side (default: "
        "%(default)s)",
    )
    limits.add_argument(
        "--timeout",
        type=values.positive_number,
        default=600.0,
        metavar="S",
        help="seconds from a request to the end of its answer (default: %(default)g)",
    )
    limits.add_argument(
        "--stop-timeout",
        type=values.positive_number,
        default=60.0,
        metavar="S",
        help="seconds that a stop waits for answers (default: %(default)g)",
    )


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        try:
            from videonsa.server.run import listen, make_server
        except ModuleNotFoundError as error:
            raise missing_package(error.name or "a package", extra="serve") from error
        from videonsa.planning.defaults import change_sampling
        from videonsa.server.decoding import IsolatedReader
        from videonsa.server.front import Front
        from videonsa.server.media import MediaSources
        from videonsa.server.model_thread import ModelThread
        from videonsa.server.state import open_state

        settings, policy = _settings(args), _media_policy(args)
        listening = listen(args.host, args.port)
        with listening, open_state(args.state) as state:
            reader = IsolatedReader()
            reader.start()
            qa = load_model(args)
            qa.sampling = change_sampling(qa.sampling, **sampling_options(args))
            _warm_up(qa)
            sources = MediaSources(policy, state=state, reader=reader)
            keep = _keep_settings(args, qa, state)
            thread = ModelThread(qa, reader, keep, most_together=args.together)
            front = Front(qa, thread, settings, sources=sources)
            server = make_server(front, stop_timeout=args.stop_timeout)
            port = listening.getsockname()[1]
            host = f"[{args.host}]" if ":" in args.host else args.host
            report(f"serving    {settings.model_name} on http://{host}:{port}/v1")
            # uvicorn stops on them and then raises them again, for whoever asked before it.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
            server.run(sockets=[listening])
    return 0


def _warm_up(qa: "VideoQA") -> None:
    """Compile what questions will use: the first one is then as quick as the others."""
    from videonsa.inference.warm_up import can_warm_up, warm_up

    if can_warm_up(qa.model):
        try:
            done = warm_up(qa.model)
        except UsageError as error:  # a GPU without the kernels answers without them
            report(f"note       {error}")
        else:
            report(f"compiled   {done.kernels} kernels in {done.seconds:.1f} s")


def _settings(args: Namespace) -> "ServeSettings":
    from videonsa.server.same_site import LOOPBACK
    from videonsa.server.settings import ServeSettings
    from videonsa.video.chat import DEFAULT_SYSTEM

    is_local = args.host in LOOPBACK
    if not is_local and args.api_key_file is None:
        report(f"warning    whoever reaches {args.host} may ask: --api-key-file FILE sets a key")
    return ServeSettings(
        model_name=args.served_name or args.model,
        system=DEFAULT_SYSTEM if args.system is None else args.system,
        names=LOOPBACK if is_local and args.api_key_file is None else None,
        api_key=None if args.api_key_file is None else _first_line(args.api_key_file),
        most_requests=args.queue,
        most_together=args.together,
        timeout=args.timeout,
    )


def _keep_settings(args: Namespace, qa: "VideoQA", state: "StateFolder") -> "KeepSettings":
    from videonsa.planning.devices import find_machine
    from videonsa.server.settings import KeepSettings

    device_bytes, host_bytes = args.keep, args.keep_host or 0
    if state.memory is not None and (room := shutil.disk_usage(state.memory).total) < host_bytes:
        report(f"warning    --keep-host is more than /dev/shm takes, which is {room} bytes")
    if device_bytes is None:
        memory = find_machine(qa.model.device).memory or 0
        weights = sum(one.nbytes for one in qa.model.parameters())
        device_bytes = max(0, memory - weights) // 2
    return KeepSettings(
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        host_folder=state.memory,
        disk_bytes=args.keep_disk or 0,
        disk_folder=state.sessions,
    )


def _media_policy(args: Namespace) -> "MediaPolicy":
    from videonsa.planning.devices import parse_memory
    from videonsa.server.media import MediaPolicy

    return MediaPolicy(
        folder=args.media,
        hosts=tuple(args.allow_fetch),
        most_bytes=parse_memory(args.max_upload, "--max-upload"),
        most_stored=parse_memory(args.max_stored, "--max-stored"),
        most_seconds=args.max_duration,
    )


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII"
        raise UsageError(
            f"--api-key-file {path}: {reason.lower()}: want a file with a key"
        ) from error
