"""Datasets: what there is, decoded, checked, split; views; and the student's inputs.

Knows no teacher. Adding a dataset is adding one adapter file; see `docs/datasets.md`.
"""

from rdcache.data import (  # noqa: F401  (they register)
    acdc,
    btc,
    btcv,
    busi,
    chestxray,
    covid,
    fives,
    isic,
    isic_masks,
    kvasir,
    medmnist,
    medmnist_volumes,
    msd,
    phantom,
    phantom_volumes,
)
from rdcache.data.decoding import UnreadableImageError, decode_image
from rdcache.data.device_inputs import DeviceInputs, inputs_for
from rdcache.data.leaks import LeakReport
from rdcache.data.loading import dataset_names, list_datasets, load_dataset
from rdcache.data.photometry import Jitter
from rdcache.data.problems import describe_masks, describe_problems, describe_volumes
from rdcache.data.registry import DatasetCard, default_data_dir
from rdcache.data.salting import salt_as_recorded, salt_of_environment
from rdcache.data.samples import (
    DatasetSpec,
    ImageDataset,
    Sample,
    Skipped,
    Task,
    portable_name,
)
from rdcache.data.splits import strata_of
from rdcache.data.student_inputs import StudentInputs
from rdcache.data.views import (
    CLEAN_VIEW,
    VIEW_COLUMNS,
    ViewSpec,
    cut_mask,
    cut_view,
    view_columns,
    view_parameters,
)
from rdcache.data.volume_dataset import VolumeDataset, require_volumes
from rdcache.data.volume_inputs import VolumeInputs
from rdcache.data.volume_resampling import labels_at_original_spacing
from rdcache.data.volume_views import VOLUME_VIEW_COLUMNS, cut_volume, cut_volume_mask
from rdcache.data.volume_writing import write_on_original_grid
from rdcache.data.volumes import Grid, Volume, unit_range
from rdcache.data.working_volumes import WorkingVolumes

__all__ = [
    "CLEAN_VIEW",
    "VIEW_COLUMNS",
    "VOLUME_VIEW_COLUMNS",
    "DatasetCard",
    "DatasetSpec",
    "DeviceInputs",
    "Grid",
    "ImageDataset",
    "Jitter",
    "LeakReport",
    "Sample",
    "Skipped",
    "StudentInputs",
    "Task",
    "UnreadableImageError",
    "ViewSpec",
    "Volume",
    "VolumeDataset",
    "VolumeInputs",
    "WorkingVolumes",
    "cut_mask",
    "cut_view",
    "cut_volume",
    "cut_volume_mask",
    "dataset_names",
    "decode_image",
    "default_data_dir",
    "describe_masks",
    "describe_problems",
    "describe_volumes",
    "inputs_for",
    "labels_at_original_spacing",
    "list_datasets",
    "load_dataset",
    "portable_name",
    "require_volumes",
    "salt_as_recorded",
    "salt_of_environment",
    "strata_of",
    "unit_range",
    "view_columns",
    "view_parameters",
    "write_on_original_grid",
]
