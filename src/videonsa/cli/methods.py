"""`videonsa methods`: the attention methods, their options, and what each can and cannot."""

from argparse import Namespace
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from videonsa.cli import search_patterns
from videonsa.cli.common import Commands, add_command, emit, emit_json

if TYPE_CHECKING:
    from videonsa.models.methods.registry import MethodEntry

_WIDTH = 100


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "methods",
        run=run,
        summary="List the attention methods that --method takes: their options with the published "
        "defaults, where they come from, and what each can and cannot.",
        examples=(
            "videonsa methods",
            "videonsa methods --json",
            "videonsa ask clip.mp4 'What happens?' --method nsa:num_selected_blocks=16",
        ),
    )
    what: Commands = parser.add_subparsers(title="what else to do", metavar="WHAT")
    search_patterns.add_parser(what)


def run(args: Namespace) -> int:
    """Run the command."""
    from videonsa.models.methods import METHODS

    found = {name: _facts(name, entry) for name, entry in METHODS.items()}
    if args.json:
        emit_json({"methods": found})
    else:
        emit("\n".join(_text(name, facts) for name, facts in found.items()))
    return 0


def _facts(name: str, entry: "MethodEntry") -> dict[str, Any]:
    from videonsa.models.chunks import why_reread
    from videonsa.models.methods import parse_method
    from videonsa.models.methods.compression import why_whole_clips
    from videonsa.models.methods.options import describe_kind, options_of
    from videonsa.models.methods.registry import has_behind

    method = parse_method(name)
    reread = why_reread(method)
    return {
        "what": entry.what,
        "options": {
            option.name: {"default": option.default, "kind": describe_kind(option.kind)}
            for option in options_of(entry.load())
        },
        "paper": entry.paper,
        "code": entry.code or None,
        "images": entry.images,
        "videos": entry.videos,
        "live": reread is None and why_whole_clips(method) is None,
        "session": "read once" if reread is None else f"read again for each question: {reread}",
        "method_behind": has_behind(entry.load()),
        "gates": method.uses_gates,
        "trains": entry.trains,
        "limits": entry.limits or None,
    }


def _text(name: str, facts: dict[str, Any]) -> str:
    from videonsa.models.methods.options import value_text

    options = ", ".join(
        f"{key}={value_text(option['default'])}" for key, option in facts["options"].items()
    )
    can = {
        "images": facts["images"],
        "videos": facts["videos"],
        "live video": facts["live"],
        "training": facts["trains"],
        "+nsa behind it": facts["method_behind"],
    }
    source = "; ".join(filter(None, (facts["paper"], facts["code"])))
    told = {
        "options": options,
        "source": source,
        "can": ", ".join(f"{what}: {'yes' if yes else 'no'}" for what, yes in can.items()),
        "session": facts["session"],
        "limits": facts["limits"],
    }
    lines = [f"{name}: {facts['what']}"]
    for title, text in told.items():
        lines += wrap(f"  {title:<10}{text}", _WIDTH, subsequent_indent=" " * 12) if text else []
    return "\n".join(lines) + "\n"
