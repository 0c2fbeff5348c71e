"""Teachers of the literature that rdcache does not build, and what to do instead.

Their networks or files are not public in a form that could be checked: a guess at the layout would
load, and give numbers that mean nothing.
"""

from __future__ import annotations

from rdcache.errors import UsageError

_EXPORT = (
    "torch.jit.trace(encoder, example).save(FILE) in the authors' environment, then --teacher "
    "torchscript:FILE (for volumes with encoder.input_size = (D, H, W)); or ONNX and onnx:FILE"
)
EXPLAINED = {
    "medical-sam-adapter": (
        "Medical SAM Adapter (MSA) puts adapters into SAM that differ between its releases, and "
        "publishes no single checkpoint",
        "github.com/SuperMedIntel/Medical-SAM-Adapter",
    ),
    "swin-umamba": (
        "Swin-UMamba needs the package mamba_ssm, which is compiled for a GPU",
        "github.com/JiarunLiu/Swin-UMamba",
    ),
    "sat": (
        "SAT builds its U-Net by an own fork of dynamic-network-architectures",
        "github.com/zhaoziheng/SAT",
    ),
    "medimageinsight": (
        "MedImageInsight is distributed as a service and through forks of its code",
        "the Hugging Face hub, lion-ai/MedImageInsights",
    ),
    "vista3d": (
        "VISTA3D is built by MONAI, but the layout of its published file could not be checked",
        "the Hugging Face hub, MONAI/VISTA3D-HF",
    ),
}


def explain(name: str) -> UsageError:
    """Why there is no such teacher, and how to use it all the same."""
    why, source = EXPLAINED[name]
    return UsageError(
        f"{name} cannot be built by rdcache.",
        because=why,
        get_it_from=source,
        instead=_EXPORT,
    )
