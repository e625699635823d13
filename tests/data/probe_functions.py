"""What the processes of a test do with a file; they import it from here."""

import os
import time

from videonsa.data.media import Frames, name_of, read_media
from videonsa.data.probe import probe_file
from videonsa.data.probe_journal import Probed
from videonsa.data.records import Media
from videonsa.video.sampling import SamplingSpec
from videonsa.video.source import VideoPath


def hang_or_die(path: VideoPath) -> Probed:
    """Hang on a file called hang, end the process on one called die, probe all others."""
    name = os.path.basename(str(path))
    if name.startswith("hang"):
        time.sleep(60)
    if name.startswith("die"):
        os.abort()
    return probe_file(path)


def read_or_hang(media: Media, sampling: SamplingSpec) -> Frames:
    """Hang on a video called hangs, read all others."""
    if os.path.basename(name_of(media)) == "hangs":
        time.sleep(60)
    return read_media(media, sampling)
