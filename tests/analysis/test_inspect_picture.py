"""The picture of a video along time."""

from base64 import b64encode
from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import Image
from test_inspect_page import MADE

from videonsa.analysis.inspect_picture import draw_timeline

MORE, LESS, EVIDENCE = (194, 80, 10), (28, 98, 184), (204, 233, 224)


def columns_of(image: Image.Image, colour: tuple[int, int, int]) -> set[int]:
    """Slots in which a colour is more than a rounding."""
    found = (np.array(image)[60:, :, :] == colour).all(-1).sum(0) > 2
    return {(int(x) - (16 + 400)) // 64 for x in found.nonzero()[0] if x > 16 + 400}


def test_bars_stand_under_their_frames_on_the_side_of_the_baseline_they_belong_to():
    content = BytesIO()
    Image.new("RGB", (56, 28), "white").save(content, format="JPEG")
    picture = b64encode(content.getvalue()).decode()
    one = replace(MADE, selection=None, thumbnails=(picture,) * 4)
    image = draw_timeline([one], ["this (truth: this)"])
    assert columns_of(image, MORE) == {2}
    assert columns_of(image, LESS) == {0, 1, 3}
    assert columns_of(image, EVIDENCE) == {2}
