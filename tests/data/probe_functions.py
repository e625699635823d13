"""What the processes of a test do with a file; they import it from here."""

import os
import time

from videonsa.data.journal import Probed
from videonsa.data.probe import probe_file
from videonsa.video.source import VideoPath


def hang_or_die(path: VideoPath) -> Probed:
    """Hang on a file called hang, end the process on one called die, probe all others."""
    name = os.path.basename(str(path))
    if name.startswith("hang"):
        time.sleep(60)
    if name.startswith("die"):
        os.abort()
    return probe_file(path)
