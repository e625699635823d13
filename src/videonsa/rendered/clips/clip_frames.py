"""Draws scenes: one torch program for one clip or a batch, on CPU or GPU, and a video file."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Self

import torch

from videonsa.disk import partial_file
from videonsa.ops.drawing import NOISE_LEVELS
from videonsa.rendered.clips.scene import COLOURS, MAX_OBJECTS, SHAPES, SIZE, Scene, Sprite


class SceneBatch(NamedTuple):
    """Scenes as tensors; K = MAX_OBJECTS + 1 sprites each, unused ones never visible."""

    background: torch.Tensor  # [B, 3] float32 levels
    colour: torch.Tensor  # [B, K, 3] float32 levels
    shape: torch.Tensor  # [B, K] int64 index into SHAPES
    geometry: torch.Tensor  # [B, K, 7] float32: radius, x, y, vx, vy, start, end

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Self:
        """Pack scenes; the flash is drawn last, on top."""
        never = Sprite(colour="red", shape="circle", radius=1, x=0, y=0, vx=0, vy=0, start=0, end=0)
        padding = (never,) * MAX_OBJECTS
        rows = [(*(*scene.objects, *padding)[:MAX_OBJECTS], scene.flash) for scene in scenes]
        return cls(
            background=torch.tensor([scene.background for scene in scenes], dtype=torch.float32),
            colour=torch.tensor([[COLOURS[s.colour] for s in row] for row in rows]).float(),
            shape=torch.tensor([[SHAPES.index(s.shape) for s in row] for row in rows]),
            geometry=torch.tensor(
                [[(s.radius, s.x, s.y, s.vx, s.vy, s.start, s.end) for s in row] for row in rows],
                dtype=torch.float32,
            ),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same scenes on a device."""
        return type(self)(*(tensor.to(device, non_blocking=True) for tensor in self))

    def render(
        self, times: torch.Tensor, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Draw the scenes at `times` ([N] or [B, N], seconds): uint8 [B, N, 3, SIZE, SIZE].

        Pixel noise is added when a generator is given.
        """
        times = times.to(self.geometry.dtype).expand(len(self.background), -1)
        axis = torch.arange(SIZE, device=times.device) + 0.5
        image = self.background[:, None, :, None, None].expand(*times.shape, 3, SIZE, SIZE)
        image = image * torch.linspace(0.8, 1.2, SIZE, device=times.device)[:, None]
        for k in range(self.shape.shape[1]):
            radius, x, y, vx, vy, start, end = self.geometry[:, k, :, None].unbind(1)  # [B, 1]
            age = times - start
            visible = (age >= 0) & (times < end)  # [B, N]
            seen = visible.any(0).nonzero()[:, 0].tolist()
            if not seen:
                continue
            frames = slice(seen[0], seen[-1] + 1)  # n of N; the others stay as they are
            age, visible = age[:, frames], visible[:, frames]
            dx = axis[None, None, None, :] - (x + vx * age)[..., None, None]
            dy = axis[None, None, :, None] - (y + vy * age)[..., None, None]
            distance = edge_distance(
                dx, dy, radius=radius[..., None, None], shape=self.shape[:, k, None, None, None]
            )
            inside = coverage(distance)
            alpha = (inside * visible[..., None, None])[:, :, None]  # [B, n, 1, H, W]
            image[:, frames].lerp_(self.colour[:, k, None, :, None, None], alpha)
        if generator is not None:
            noise = torch.randn(image.shape, generator=generator, device=image.device)
            image = image + NOISE_LEVELS * noise
        return image.round().clamp(0, 255).to(torch.uint8)


def edge_distance(
    dx: torch.Tensor,
    dy: torch.Tensor,
    *,
    radius: torch.Tensor | float,
    shape: torch.Tensor,
) -> torch.Tensor:
    """Pixels from the edge of a shape of SHAPES, negative inside.

    Args:
        dx: Pixels right of the shape's centre.
        dy: Pixels below it.
        radius: Of the shape, in pixels.
        shape: int64 index; all four broadcast.
    """
    ax, ay = dx.abs(), dy.abs()
    square = torch.maximum(ax, ay) - 0.85 * radius
    cross = torch.minimum(
        torch.maximum(ax - radius, ay - 0.35 * radius),
        torch.maximum(ay - radius, ax - 0.35 * radius),
    )
    triangle = torch.maximum(dy - 0.8 * radius, (1.8 * ax - dy - radius) / 2.06)
    distance = torch.hypot(dx, dy) - radius  # SHAPES[0], the circle
    for index, other in enumerate((square, triangle, cross), start=1):
        distance = torch.where(shape == index, other, distance)
    return distance


def coverage(distance: torch.Tensor) -> torch.Tensor:
    """Share of each pixel inside an edge that is one pixel soft."""
    return (0.5 - distance).clamp(0, 1)


def render_scene(scene: Scene, times: Sequence[float], *, noise: bool = True) -> torch.Tensor:
    """Draw one scene at `times` seconds: uint8 [N, 3, SIZE, SIZE]. Its noise follows its seed."""
    generator = torch.Generator().manual_seed(scene.seed) if noise else None
    batch = SceneBatch.of([scene])
    return batch.render(torch.tensor(times, dtype=torch.float32), generator=generator)[0]


def write_video(scene: Scene, path: Path, *, fps: int = 8) -> None:
    """Encode a scene as H.264 at `fps` frames a second, atomically: no file on failure."""
    length = int(scene.duration * fps)
    stretches = (range(first, min(first + 64, length)) for first in range(0, length, 64))
    images = (render_scene(scene, [i / fps for i in part], noise=False) for part in stretches)
    encode_h264(images, path, size=SIZE, fps=fps)


def encode_h264(images: Iterable[torch.Tensor], path: Path, *, size: int, fps: int) -> None:
    """Encode stretches of uint8 [N, 3, size, size] as they come, atomically: no file on failure."""
    import av

    # Without "file:" a name such as a:b/clip.mp4 would be that of a protocol.
    with (
        partial_file(path) as partial,
        av.open(f"file:{partial}", "w", format="mp4") as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "12"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for stretch in images:
            for image in stretch.permute(0, 2, 3, 1).contiguous().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
