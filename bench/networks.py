"""The networks of the GPU benchmark and of the trials, written out in torch: random weights cost as much to run as trained ones.

Workers build them by name (`bench.networks:resnet50` on the operator's list). Knows torch only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

SEED = 20240
POISON = -1.0  # as a row's first value


class Bottleneck(nn.Module):
    """ResNet's block: 1x1, 3x3, 1x1 convolutions around a shortcut (He et al., arXiv 1512.03385, figure 5)."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        outside = 4 * width
        self.path = nn.Sequential(
            nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
            nn.Conv2d(width, outside, 1, bias=False), nn.BatchNorm2d(outside),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride > 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inside, h, w) -> (batch, 4 width, h / stride, w / stride)."""
        return torch.relu(self.path(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for 3-channel images of bytes; scaling to 0..1 is part of it."""

    def __init__(self, blocks: Sequence[int], width: int) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
        stages, inside = [], width
        for stage, count in enumerate(blocks):
            for i in range(count):
                stages.append(Bottleneck(inside, width << stage, 2 if stage and not i else 1))
                inside = 4 * (width << stage)
        self.body = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 1000))

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 3, h, w) uint8 -> (batch, 1000)."""
        logits: Tensor = self.body(image.float() / 255)
        return logits


class Encoder(nn.Module):
    """A BERT-shaped encoder: token ids to one vector, the mean over the tokens."""

    def __init__(self, layers: int, width: int, heads: int, words: int = 30522, length: int = 128) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) int64 -> (batch, width)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        vectors: Tensor = self.layers(self.words(ids) + self.places(places)).mean(1)
        return vectors


def resnet50(small: bool = False) -> nn.Module:
    """25.6 million parameters; `small` for a try on the CPU."""
    torch.manual_seed(SEED)
    return ResNet((1, 1), 8) if small else ResNet((3, 4, 6, 3), 64)


class OfFiles(nn.Module):
    """A network for images as their files are decoded: the colors last."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """(batch, h, w, 3) uint8 -> what the network makes of (batch, 3, h, w)."""
        made: Tensor = self.net(image.permute(0, 3, 1, 2))
        return made


def resnet50_of_files(small: bool = False) -> nn.Module:
    """The same for images of (h, w, 3)."""
    return OfFiles(resnet50(small))


def bert_base(small: bool = False) -> nn.Module:
    """12 layers of width 768, about 109 million parameters; `small` for a try on the CPU."""
    torch.manual_seed(SEED)
    return Encoder(2, 32, 4) if small else Encoder(12, 768, 12)


def mlp(small: bool = False) -> nn.Module:  # noqa: ARG001 - built like the others
    """64-128-10; the same when `small`."""
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


class Glance(nn.Module):
    """A small network for images as their files are decoded, that costs less than decoding them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 7, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, 10),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """(batch, h, w, 3) uint8 -> (batch, 10)."""
        scores: Tensor = self.body(image.permute(0, 3, 1, 2).float() / 255)
        return scores


def glance(small: bool = False) -> nn.Module:  # noqa: ARG001 - built like the others
    """About 2,000 parameters; the same when `small`."""
    torch.manual_seed(SEED)
    return Glance()


class Fussy:
    """The 64-128-10 network as a `python` model that raises on a batch with a poisonous row in it."""

    def __init__(self) -> None:
        self._net = mlp().eval()

    @torch.inference_mode()
    def predict(self, rows: Sequence[Any]) -> list[Any]:
        """Rows (64,) -> (10,); ValueError where a row begins with POISON."""
        x = torch.stack([torch.from_numpy(row["x"] if isinstance(row, dict) else row) for row in rows])
        if bool((x[:, 0] == POISON).any()):
            raise ValueError(f"a row begins with {POISON:g}")
        return list(self._net(x).numpy())


class Corners:
    """A `python` model that costs next to nothing: an image (channels, height, width) -> its first pixel (channels,)."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        """Rows as they come."""
        return [(row["image"] if isinstance(row, dict) else row)[:, 0, 0] for row in rows]
