"""`VideoEncoder`: what a video-language model makes of pixels and ids before its layers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videonsa.models.config import VideoNSAConfig
from videonsa.models.features import encode_frames, encode_patches, place_features
from videonsa.models.methods.compression import Kept, TokenCompression, compress_clip
from videonsa.models.methods.protocol import AttentionMethod
from videonsa.models.rope import Grid, TokenType
from videonsa.models.tower_probe import EncodedFrames, TowerProbe


class VideoEncoder:
    """The part of `SparseVideoModel` that comes before the layers."""

    config: VideoNSAConfig
    method: AttentionMethod
    """How calls attend that say nothing else."""
    get_input_embeddings: Callable[[], nn.Module]

    @property
    def _tower(self) -> Any:
        """The vision tower."""
        raise NotImplementedError

    def encode_vision(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Features of the merged tokens of images or videos, `[M, hidden]`.

        Args:
            pixels: `[P, channels * temporal * patch * patch]` patches, those of a merged token
                together, images and videos one after the other; on the tower's device or the CPU.
            grids: (t, h, w) of each, in patches.

        Raises:
            UsageError: patches and grids that do not match.
        """
        return encode_patches(self._tower, self.config.vision_config, pixels, grids)

    def encode_frames(self, parts: Iterable[Tensor]) -> Tensor:
        """Features of the merged tokens of one video, `[M, hidden]`, while its frames come.

        Each part is cut into patches and encoded before the next is asked for: pixels never pile
        up. The features are `encode_vision`'s; where the parts end changes no more than rounding.

        Args:
            parts: uint8 `[n, 3, H, W]`, RGB, in order and of one size, multiples of
                patch_size * merge_size; all but the last hold whole temporal patches.

        Raises:
            UsageError: no frames, frames of another type or size, or a temporal patch cut in two.
        """
        encoded = encode_frames(self._tower, self.config.vision_config, parts)
        return torch.cat([part.features for part in encoded])

    def encode_kept(
        self, parts: Iterable[Tensor], *, method: AttentionMethod | None = None
    ) -> Kept:
        """The tokens of one image or video that the layers will read, while its frames come.

        Args:
            parts: as for `encode_frames`.
            method: how they will attend; None is as the model does. It may keep some of them.

        Raises:
            UsageError: as `encode_frames`.
            ModelError: a vision tower that cannot tell what the method asks of it.
        """
        method = method or self.method
        if not isinstance(method, TokenCompression):
            return Kept(self.encode_frames(parts))
        return compress_clip(method, self.probe_frames(parts, method.tower_probe))

    def probe_frames(
        self, parts: Iterable[Tensor], probe: TowerProbe | None
    ) -> Iterator[EncodedFrames]:
        """Whole frames of one image or video, with what a method asks of the vision tower.

        Args:
            parts: as for `encode_frames`.
            probe: what is asked; None: features alone.

        Raises:
            UsageError: as `encode_frames`.
            ModelError: a vision tower that cannot tell it.
        """
        return encode_frames(self._tower, self.config.vision_config, parts, probe=probe)

    def embed_prompt(
        self,
        input_ids: Tensor,
        *,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
    ) -> Tensor:
        """Embedded ids with features at the image and video tokens: `inputs_embeds` of `forward`.

        Args:
            input_ids: int64 `[B, T]`.
            image_features: `[M, hidden]`, a row for each image token of the batch, in order.
            video_features: the same for its video tokens.

        Raises:
            UsageError: not as many features as tokens.
        """
        types = self._token_types(input_ids)
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        none = embeds.new_empty(0, embeds.shape[-1])
        for kind, features in (
            (TokenType.IMAGE, image_features),
            (TokenType.VIDEO, video_features),
        ):
            given = none if features is None else features
            embeds = place_features(given, embeds, types, kind)
        return embeds

    def _token_types(self, input_ids: Tensor) -> Tensor:
        types = torch.where(input_ids == self.config.video_token_id, TokenType.VIDEO, 0)
        return types + torch.where(input_ids == self.config.image_token_id, TokenType.IMAGE, 0)
