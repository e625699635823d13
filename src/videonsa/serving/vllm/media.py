"""Images and videos of a request, sampled and resized as everywhere in this package."""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from vllm.logger import init_logger
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from videonsa.errors import UsageError
from videonsa.models.shape import shape_of_config
from videonsa.planning.defaults import change_sampling, default_sampling
from videonsa.serving.vllm.loader import NAME, check_sampling
from videonsa.serving.vllm.marks import MOST_TOKENS
from videonsa.video.decode import VideoClip, read_video
from videonsa.video.framelist import FrameList
from videonsa.video.sampling import SamplingSpec

KINDS = ("image", "video")
_logger = init_logger(f"vllm.{NAME}")
"""Under vLLM's own: others are not shown."""
_SIDE = 56
"""Pixels a side of the pictures with which vLLM measures memory."""


class VideoNSAProcessingInfo(BaseProcessingInfo):  # type: ignore[misc]  # vLLM is not typed
    """What vLLM asks about the media of a model."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of images and videos."""
        return dict.fromkeys(KINDS)

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None is routed to a processor of transformers: there is none."""
        return {}

    def get_data_parser(self) -> MultiModalDataParser:
        """Videos come with what their loader says of them."""
        return MultiModalDataParser(video_needs_metadata=True)

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """At most the context."""
        return {kind: seq_len for kind in KINDS if mm_counts.get(kind)}

    def sampling(self) -> SamplingSpec:
        """What the files of the model ask for."""
        config = self.get_hf_config()
        return default_sampling(self.model_id, shape_of_config(config.to_dict()))


class VideoNSADummyInputs(BaseDummyInputsBuilder[VideoNSAProcessingInfo]):  # type: ignore[misc]
    """Pictures with which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """The placeholders."""
        return "".join(f"<|{kind}_pad|>" * mm_counts.get(kind, 0) for kind in KINDS)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any
    ) -> dict[str, Any]:
        """Small ones, two frames in a video."""
        frames = np.zeros((2, _SIDE, _SIDE, 3), np.uint8)
        times = {"times": [0.0, 0.5]}
        return {
            "image": self._get_dummy_images(
                width=_SIDE, height=_SIDE, num_images=mm_counts.get("image", 0)
            ),
            "video": [(frames, times)] * mm_counts.get("video", 0),
        }


class VideoNSAMediaProcessor(BaseMultiModalProcessor[VideoNSAProcessingInfo]):  # type: ignore[misc]
    """Frames uint8 `[N, 3, H, W]`, grids and seconds, in place of a processor of transformers."""

    def _call_hf_processor(
        self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, Any]
    ) -> BatchFeature:
        spec = change_sampling(self.info.sampling(), **check_sampling(dict(hf_kwargs)))
        clips = {
            "image": [read_video(image, sampling=spec) for image in hf_data.get("images") or []],
            "video": [_clip_of(video, spec) for video in hf_data.get("videos") or []],
        }
        for kind, some in clips.items():
            for clip in some:
                _tell(kind, clip)
        vision = self.info.get_hf_config().vision_config
        fields: dict[str, Any] = {}
        for kind in (kind for kind in KINDS if clips[kind]):
            fields[f"{kind}_frames"] = [clip.frames for clip in clips[kind]]
            fields[f"{kind}_grid"] = torch.tensor([_grid(clip, vision) for clip in clips[kind]])
            fields[f"{kind}_seconds"] = [_seconds(clip, vision) for clip in clips[kind]]
        return BatchFeature(fields)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            name: MultiModalFieldConfig.batched(
                name.partition("_")[0], keep_on_cpu=not name.endswith("_frames")
            )
            for name in hf_inputs
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        vocabulary = self.info.get_tokenizer().get_vocab()
        merged = self.info.get_hf_config().vision_config.spatial_merge_size ** 2

        def replacement(kind: str) -> PromptReplacement:
            token = vocabulary[f"<|{kind}_pad|>"]

            def tokens(item: int) -> list[int]:
                grid = out_mm_kwargs[kind][item][f"{kind}_grid"].data
                return [token] * (int(grid.prod()) // merged)

            return PromptReplacement(modality=kind, target=[token], replacement=tokens)

        return [replacement(kind) for kind in KINDS]


def _clip_of(video: tuple[Any, Mapping[str, Any]], spec: SamplingSpec) -> VideoClip:
    """Of a file that our loader handed on, or of frames with their seconds.

    Raises:
        UsageError: frames of another loader, which chose them by rules of its own.
    """
    content, facts = video
    if "sampling" in facts:
        with tempfile.NamedTemporaryFile(prefix="videonsa-") as file:
            file.write(content)
            file.flush()
            return read_video(file.name, sampling=change_sampling(spec, **facts["sampling"]))
    if "times" in facts:
        return read_video(FrameList(content, times=facts["times"]), sampling=spec)
    raise UsageError(
        f"a video read by {facts.get('video_backend', 'another loader')}, whose frames have no "
        f'seconds: want --media-io-kwargs \'{{"video": {{"video_backend": "{NAME}"}}}}\''
    )


def _tell(kind: str, clip: VideoClip) -> None:
    count, _, height, width = clip.frames.shape
    seconds = f", {clip.times[0]:.2f} to {clip.times[-1]:.2f} s" if kind == "video" else ""
    more = "".join(f"; {line}" for line in (*clip.notes, *clip.warnings))
    _logger.info("%s: %d of %dx%d%s%s", kind, count, width, height, seconds, more)


def _grid(clip: VideoClip, vision: Any) -> tuple[int, int, int]:
    height, width = clip.frames.shape[-2:]
    patches = -(-len(clip.frames) // vision.temporal_patch_size)
    grid = patches, height // vision.patch_size, width // vision.patch_size
    tokens = grid[1] * grid[2] // vision.spatial_merge_size**2
    if tokens > MOST_TOKENS:
        raise UsageError(
            f"a frame of {tokens} tokens: want at most {MOST_TOKENS}, lower max_pixels"
        )
    return grid


def _seconds(clip: VideoClip, vision: Any) -> torch.Tensor:
    return torch.tensor(clip.position_times[:: vision.temporal_patch_size], dtype=torch.float64)
