"""`videonsa data show`: one sample as it is trained on."""

import io
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.common import (
    Commands,
    add_command,
    emit,
    emit_json,
    quiet_libraries,
    write_output,
)
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.data.manifest import MediaFacts
    from videonsa.data.media import Frames
    from videonsa.data.records import Media


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "show",
        run=run,
        summary="Show a row of a manifest: its frames on one sheet, and its tokens as they are "
        "trained on. Tokens with loss are green, or in [[ ]] where there is no colour.",
        examples=("videonsa data show ./data 0", "videonsa data show ./data 17 --out sheet.png"),
    )
    parser.add_argument("folder", type=values.path, metavar="DIR", help="the folder of a build")
    parser.add_argument("row", type=values.integer, metavar="N", help="number of the row, from 0")
    parser.add_argument(
        "--out", type=values.path, metavar="FILE", help="the sheet (default: DIR/show/N.png)"
    )
    parser.add_argument(
        "--frames",
        type=values.whole_number(1),
        default=48,
        metavar="N",
        help="most frames of a video on the sheet (default: %(default)s)",
    )
    parser.add_argument(
        "--loss",
        choices=("all", "last"),
        default="all",
        help="which turns of the assistant carry loss (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        metavar="ID_OR_PATH",
        help="model with its tokenizer (default: the one of the build)",
    )


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.cli.data.tokenizer import load_counting_tokenizer
        from videonsa.data.manifest import read_manifest
        from videonsa.data.media import read_media
        from videonsa.data.show import contact_sheet, marked_text, spans_of
        from videonsa.data.tokens import conversation_tokens

        manifest = read_manifest(args.folder)
        if not 0 <= args.row < len(manifest):
            raise UsageError(f"row {args.row}: want 0 to {len(manifest) - 1}")
        row, facts = manifest[args.row], manifest.facts
        tokenizer, _ = load_counting_tokenizer(args.model or facts.model)
        tokens = conversation_tokens(
            row.record,
            tokenizer=tokenizer,
            vision_token_counts=row.vision_token_counts,
            max_tokens=facts.max_tokens,
            loss=args.loss,
            system=facts.system,
        )
        kept = list(zip(row.record.media, row.media, strict=True))[: row.num_media]
        videos = [(media, stated, read_media(media, facts.sampling)) for media, stated in kept]
        spans = spans_of(tokens.ids, tokens.labels, tokenizer)
    sheet = args.out or args.folder / "show" / f"{args.row}.png"
    titles = [_title(*video) for video in videos]
    if videos:
        frames = [(title, video[2]) for title, video in zip(titles, videos, strict=True)]
        picture = io.BytesIO()
        contact_sheet(frames, most_frames=args.frames).save(picture, format="png")
        write_output(sheet, picture.getvalue())
    learned = sum(span.num_tokens for span in spans if span.learned)
    if args.json:
        found: dict[str, Any] = {"id": row.record.id, "source": row.record.source}
        found |= {"tokens": len(tokens.ids), "tokens_with_loss": learned, "media": titles}
        emit_json(found | {"spans": [span._asdict() for span in spans], "sheet": str(sheet)})
        return 0
    emit(f"id         {row.record.id}\n")
    for title in titles:
        emit(f"shows      {title}\n")
    cut = len(row.record.turns) - row.num_turns
    emit(f"tokens     {len(tokens.ids):,}, of which {learned:,} carry loss")
    emit(f"; {cut} turns are cut\n" if cut else "\n")
    emit(f"sheet      {sheet}\n\n")
    emit(marked_text(spans, colour=sys.stdout.isatty()))
    return 0


def _title(media: "Media", stated: "MediaFacts", frames: "Frames") -> str:
    from videonsa.data.media import name_of

    lost = stated.num_frames - len(frames.pixels)
    return (
        f"{name_of(media)}: {stated.num_frames} frames of {stated.width}x{stated.height} over "
        f"{stated.duration:.1f} s, {stated.num_tokens:,} tokens"
        f"{f', {lost} frames do not decode' if lost else ''}"
    )
