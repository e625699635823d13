"""Capital letters, digits, #, + and - as 5 x 7 pixels."""

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 5, 7
_ROWS = {  # seven rows of five bits, two hexadecimal digits each
    " ": "00000000000000",
    "#": "0a0a1f0a1f0a0a",
    "+": "0004041f040400",
    "-": "0000001f1f0000",
    "0": "0e11131519110e",
    "1": "040c040404040e",
    "2": "0e11010204081f",
    "3": "1f02040201110e",
    "4": "02060a121f0202",
    "5": "1f101e0101110e",
    "6": "0608101e11110e",
    "7": "1f010204080808",
    "8": "0e11110e11110e",
    "9": "0e11110f01020c",
    "A": "0e11111f111111",
    "B": "1e11111e11111e",
    "C": "0e11101010110e",
    "D": "1c12111111121c",
    "E": "1f10101e10101f",
    "F": "1f10101e101010",
    "G": "0e11101711110f",
    "H": "1111111f111111",
    "J": "0702020202120c",
    "K": "11121418141211",
    "L": "1010101010101f",
    "M": "111b1515111111",
    "N": "11191513111111",
    "P": "1e11111e101010",
    "R": "1e11111e141211",
    "S": "0f10100e01011e",
    "T": "1f040404040404",
    "U": "1111111111110e",
    "V": "11111111110a04",
    "W": "1111111515150a",
    "X": "11110a040a1111",
    "Y": "11110a04040404",
    "Z": "1f01020408101f",
}
LETTERS = "".join(char for char in _ROWS if char.isalpha())


def text_mask(text: str, *, scale: int) -> NDArray[np.float32]:
    """Ink of a line of text: 1 where it is, 0 elsewhere; a margin of one font pixel around it.

    A font pixel is `scale` pixels a side.
    """
    mask = np.zeros((HEIGHT + 2, (WIDTH + 1) * len(text) + 1), np.float32)
    for i, char in enumerate(text):
        rows = np.frombuffer(bytes.fromhex(_ROWS[char]), np.uint8)
        bits = rows[:, None] >> np.arange(WIDTH - 1, -1, -1) & 1
        left = 1 + i * (WIDTH + 1)
        mask[1:-1, left : left + WIDTH] = bits
    return mask.repeat(scale, 0).repeat(scale, 1)
