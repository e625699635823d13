"""Two methods that compress tokens, for tests: by each frame alone, and by all of them."""

from dataclasses import dataclass

import torch

from videonsa.models.methods.compression import Kept, TokenCompression


@dataclass(frozen=True)
class EverySecond(TokenCompression):
    """Every second token of a frame, its features halved."""

    name = "every second"

    def compress(self, frames):
        places = torch.arange(len(frames.features)).unflatten(0, (frames.grid[0], -1))
        places = places[:, ::2].flatten()
        return Kept(frames.features[places] / 2, places)

    def kept_tokens(self, num_frames, tokens_per_frame):
        return num_frames * -(-tokens_per_frame // 2)


@dataclass(frozen=True)
class SomeFrames(TokenCompression):
    """The first token and three in five of the others, of every third frame alone."""

    name = "some frames"
    compares_frames = True

    def compress(self, frames):
        places = torch.arange(len(frames.features))
        stays = (places // frames.tokens_per_frame % 3 == 1) & (places % 5 > 1)
        stays[0] = True
        return Kept(frames.features[stays], places[stays])

    def kept_tokens(self, num_frames, tokens_per_frame):
        return num_frames * tokens_per_frame
