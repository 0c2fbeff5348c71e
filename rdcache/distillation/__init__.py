"""Phase 2: the loop, evaluation, checkpoints, run folders."""

from rdcache.distillation.config import DistillConfig
from rdcache.distillation.diverged import Diverged
from rdcache.distillation.metrics import classification_metrics
from rdcache.distillation.predicting import FilePrediction, predict_files
from rdcache.distillation.reevaluation import evaluate_run
from rdcache.distillation.run import Run, load_run, summarise
from rdcache.distillation.session import (
    distill,
    distill_each,
    distill_many,
    distill_seeds,
    run_folder,
)
from rdcache.distillation.source import choose_store

__all__ = [
    "DistillConfig",
    "Diverged",
    "FilePrediction",
    "Run",
    "choose_store",
    "classification_metrics",
    "distill",
    "distill_each",
    "distill_many",
    "distill_seeds",
    "evaluate_run",
    "load_run",
    "predict_files",
    "run_folder",
    "summarise",
]
