"""PMC-CLIP's image encoder: OpenCLIP's ModifiedResNet-50 with attention pooling to 768 numbers.

The modules bear the names of the published file, so that its tensors load as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from rdcache.models.cards import TeacherEntry
from rdcache.models.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from rdcache.models.taps import TapNetwork
from rdcache.models.weight_files import Tensors, without_prefix

EXPANSION = 4


class Bottleneck(nn.Module):
    """Residual block whose stride is an average pooling after the 3×3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            # Published under these names: the pooling "-1" has no tensors.
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(inputs, outputs, 1, bias=False)),
                        ("1", nn.BatchNorm2d(outputs)),
                    ]
                )
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) → (B, 4·width, H/stride, W/stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.avgpool(F.relu(self.bn2(self.conv2(y))))
        return F.relu(self.bn3(self.conv3(y)) + identity)


class AttentionPool(nn.Module):
    """One attention query, the mean of the map, over the map's positions and itself.

    Args:
        side: height and width of the map; the position embedding is made for it.
    """

    def __init__(self, side: int, width: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, width, side, side) → (B, outputs)."""
        tokens = x.flatten(2).transpose(1, 2)  # (B, side², width)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + self.positional_embedding
        query = self._split(self.q_proj(tokens[:, :1]))
        attended = F.scaled_dot_product_attention(
            query, self._split(self.k_proj(tokens)), self._split(self.v_proj(tokens))
        )  # (B, heads, 1, width/heads)
        return self.c_proj(attended.flatten(1))

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, width) → (B, heads, L, width/heads)."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ModifiedResNet(TapNetwork):
    """CLIP's ResNet: a stem of three convolutions, anti-aliased strides, attention pooling."""

    def __init__(
        self,
        layers: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
        heads: int = 8,
        outputs: int = 768,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        inputs = width
        for number, depth in enumerate(layers):
            block_width = width * 2**number
            blocks = [Bottleneck(inputs, block_width, stride=1 if number == 0 else 2)]
            inputs = EXPANSION * block_width
            blocks += [Bottleneck(inputs, block_width, stride=1) for _ in range(depth - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(image_size // 32, inputs, heads, outputs)

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.avg_pool2d(x, 2)
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
            yield f"s{number}", x
        yield "pooled", self.attnpool(x)


def rename(tensors: Tensors) -> Tensors:
    """Take either published file to the bare names of the image encoder.

    `image_encoder(resnet50).pth` has them already; in a full checkpoint the encoder is the
    `visual.` part, after the `module.` of parallel training.
    """
    tensors = without_prefix(tensors, "module.")
    visual = {name: value for name, value in tensors.items() if name.startswith("visual.")}
    return without_prefix(visual or tensors, "visual.")


def foreign(tensors: Tensors) -> str:
    """Recognise the other image tower that the authors have published."""
    names = rename(tensors)
    if any(name.startswith("head.") for name in names) and "attnpool.c_proj.weight" not in names:
        return "PMC-CLIP's plain ResNet (head.* instead of attnpool.*), another architecture"
    return ""


ENTRIES = (
    TeacherEntry(
        name="pmc-clip",
        title="PMC-CLIP image encoder, ResNet-50 on figures of PubMed Central",
        architecture="openclip/modified-resnet50-attnpool8-768",
        build=ModifiedResNet,
        rename=rename,
        foreign=foreign,
        shapes={
            "s1": (256, 56, 56),
            "s2": (512, 28, 28),
            "s3": (1024, 14, 14),
            "s4": (2048, 7, 7),
            "pooled": (768,),
        },
        preprocessing=Preprocessing(mean=CLIP_MEAN, std=CLIP_STD, interpolation="bicubic"),
        licence="unclear: code MIT, weights see their card",
        source="the Hugging Face dataset axiong/pmc_oa",
        file="image_encoder(resnet50).pth",
        corpora=frozenset({"pmc-oa"}),
    ),
)
