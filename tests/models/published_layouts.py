"""Names and shapes of the published weight files, written down independently of the loaders."""

from __future__ import annotations

import torch

Layout = dict[str, tuple[int, ...]]


def batch_norm(name: str, width: int) -> Layout:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in vectors} | {f"{name}.num_batches_tracked": ()}


def pmc_clip() -> Layout:
    """`image_encoder(resnet50).pth`: OpenCLIP's ModifiedResNet with an attention pool."""
    layout: Layout = {
        "conv1.weight": (32, 3, 3, 3),
        "conv2.weight": (32, 32, 3, 3),
        "conv3.weight": (64, 32, 3, 3),
        **batch_norm("bn1", 32),
        **batch_norm("bn2", 32),
        **batch_norm("bn3", 64),
    }
    layout |= bottlenecks("layer1", 3, 64, 64)
    layout |= bottlenecks("layer2", 4, 256, 128)
    layout |= bottlenecks("layer3", 6, 512, 256)
    layout |= bottlenecks("layer4", 3, 1024, 512)
    layout["attnpool.positional_embedding"] = (50, 2048)
    for name, outputs in (("q", 2048), ("k", 2048), ("v", 2048), ("c", 768)):
        layout[f"attnpool.{name}_proj.weight"] = (outputs, 2048)
        layout[f"attnpool.{name}_proj.bias"] = (outputs,)
    return layout


def bottlenecks(layer: str, depth: int, inputs: int, width: int) -> Layout:
    layout: Layout = {}
    for block in range(depth):
        name = f"{layer}.{block}"
        layout |= {
            f"{name}.conv1.weight": (width, inputs, 1, 1),
            f"{name}.conv2.weight": (width, width, 3, 3),
            f"{name}.conv3.weight": (4 * width, width, 1, 1),
            **batch_norm(f"{name}.bn1", width),
            **batch_norm(f"{name}.bn2", width),
            **batch_norm(f"{name}.bn3", 4 * width),
        }
        if block == 0:
            layout[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
            layout |= batch_norm(f"{name}.downsample.1", 4 * width)
        inputs = 4 * width
    return layout


def resnet50(stem: str, norm: str, layers: tuple[str, str, str, str]) -> Layout:
    """torchvision's ResNet-50 without classifier, its children under the given names."""
    layout: Layout = {f"{stem}.weight": (64, 3, 7, 7), **batch_norm(norm, 64)}
    sizes = ((3, 64, 64), (4, 256, 128), (6, 512, 256), (3, 1024, 512))
    for name, size in zip(layers, sizes, strict=True):
        layout |= bottlenecks(name, *size)
    return layout


def rad_resnet50() -> Layout:
    """`ResNet50.pt`: nn.Sequential of the children, under `backbone.`."""
    layers = ("backbone.4", "backbone.5", "backbone.6", "backbone.7")
    return resnet50("backbone.0", "backbone.1", layers)


def lvm_med_resnet50() -> Layout:
    """`lvmmed_resnet.torch`: torchvision's names."""
    return resnet50("conv1", "bn1", ("layer1", "layer2", "layer3", "layer4"))


def rad_densenet() -> Layout:
    """`DenseNet121.pt`: growth 32, bottlenecks of 128, four dense blocks."""
    root = "backbone.0"
    layout: Layout = {f"{root}.conv0.weight": (64, 3, 7, 7), **batch_norm(f"{root}.norm0", 64)}
    width = 64
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, layers + 1):
            name = f"{root}.denseblock{block}.denselayer{layer}"
            layout |= batch_norm(f"{name}.norm1", width)
            layout[f"{name}.conv1.weight"] = (128, width, 1, 1)
            layout |= batch_norm(f"{name}.norm2", 128)
            layout[f"{name}.conv2.weight"] = (32, 128, 3, 3)
            width += 32
        if block < 4:
            layout |= batch_norm(f"{root}.transition{block}.norm", width)
            layout[f"{root}.transition{block}.conv.weight"] = (width // 2, width, 1, 1)
            width //= 2
    return layout | batch_norm(f"{root}.norm5", width)


def lvm_med() -> Layout:
    """`lvmmed_vit.pth`: SAM's ViT-B encoder with neck, without absolute positions."""
    layout: Layout = {"patch_embed.proj.weight": (768, 3, 16, 16), "patch_embed.proj.bias": (768,)}
    linears = {
        "attn.qkv": (2304, 768),
        "attn.proj": (768, 768),
        "mlp.lin1": (3072, 768),
        "mlp.lin2": (768, 3072),
    }
    for block in range(12):
        offsets = 127 if block in (2, 5, 8, 11) else 27
        name = f"blocks.{block}"
        for norm in ("norm1", "norm2"):
            layout |= {f"{name}.{norm}.weight": (768,), f"{name}.{norm}.bias": (768,)}
        layout |= {f"{name}.attn.rel_pos_{axis}": (offsets, 64) for axis in "hw"}
        for linear, shape in linears.items():
            layout |= {f"{name}.{linear}.weight": shape, f"{name}.{linear}.bias": shape[:1]}
    layout |= {"neck.0.weight": (256, 768, 1, 1), "neck.2.weight": (256, 256, 3, 3)}
    for norm in ("neck.1", "neck.3"):
        layout |= {f"{norm}.weight": (256,), f"{norm}.bias": (256,)}
    return layout


def tensors_of(layout: Layout, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors that keep activations within range: scaled to fan-in, variances near 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in layout.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(1000)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            tensors[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            fan_in = max(1, int(torch.Size(shape[1:]).numel())) if len(shape) > 1 else 100
            tensors[name] = torch.randn(shape, generator=generator) / fan_in**0.5
    return tensors
