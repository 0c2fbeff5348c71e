"""CT-FM: MONAI's SegResEncoder, trained without labels on 148 000 CT volumes."""

from __future__ import annotations

from rdcache.models.cards import TeacherEntry
from rdcache.models.monai_networks import SegResEncoderTaps
from rdcache.models.taps import TapNetwork
from rdcache.models.volume_networks import Oriented, below
from rdcache.models.volume_preprocessing import VolumePreprocessing
from rdcache.models.weight_files import Tensors, without_prefix


def build() -> TapNetwork:
    """Five levels of 32 to 512 channels; volumes lie along head, back, left."""
    return Oriented(SegResEncoderTaps(), "SPL")


def rename(tensors: Tensors) -> Tensors:
    """The published feature extractor has MONAI's names; a checkpoint has `encoder.` before."""
    return without_prefix(below(tensors), "encoder.")


ENTRIES = (
    TeacherEntry(
        name="ct-fm",
        title="CT-FM, SegResEncoder on CT volumes, self-supervised",
        architecture="monai/segresencoder-32-12244-spl",
        build=build,
        rename=rename,
        shapes={
            "stride1": (32, 32, 128, 128),
            "stride2": (64, 16, 64, 64),
            "s1": (128, 8, 32, 32),
            "s2": (256, 4, 16, 16),
            "s3": (512, 2, 8, 8),
            "pooled": (512,),
        },
        preprocessing=VolumePreprocessing(
            (32, 128, 128), window=(-1024, 2048), divisor=16, spacing=(3.0, 1.0, 1.0)
        ),
        licence="see the card of project-lighter/ct_fm_feature_extractor",
        source="the Hugging Face hub, project-lighter/ct_fm_feature_extractor",
        file="model.safetensors",
        corpora=frozenset({"idc"}),
    ),
)
