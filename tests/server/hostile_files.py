"""Files that are small and state that they are large."""

import io
import struct
import zipfile
import zlib

import av
import numpy as np


def png(width, height):
    """Without its pixels: of a size that it only states, nobody may ask for them."""

    def chunk(kind, data):
        sum_of = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + sum_of

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def avi(num_frames):
    """Three frames, and a header that states others."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p"
        for level in (0, 60, 120):
            picture = np.full((32, 32, 3), level, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    content = bytearray(file.getvalue())
    for name, place in ((b"avih", 24), (b"strh", 40)):
        begin = content.find(name) + place
        content[begin : begin + 4] = struct.pack("<I", num_frames)
    return bytes(content)


def zip_bomb():
    """A thousandth of what it unpacks to."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.mp4", bytes(10**7))
    return file.getvalue()
