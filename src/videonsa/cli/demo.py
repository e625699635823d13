"""`videonsa demo`: render a clip, ask a question of each type, show where the model looked."""

from argparse import Namespace

from videonsa.cli.common import Commands, add_command
from videonsa.errors import UsageError


def add_parser(commands: Commands) -> None:
    """Register the command."""
    add_command(
        commands,
        "demo",
        run=run,
        summary="Render a clip, ask the embedded model about it and save a picture of where "
        "it looked.",
        examples=("videonsa demo",),
    )


def run(args: Namespace) -> int:
    """Run the command."""
    raise UsageError("the demo is not part of this build: use 'videonsa ask VIDEO QUESTION'")
