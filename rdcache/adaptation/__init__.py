"""Fine-tuning a live teacher, in part or whole; it then goes through the two phases as another."""

from rdcache.adaptation.config import AdaptConfig
from rdcache.adaptation.run import AdaptRun
from rdcache.adaptation.session import adapt, adapt_seeds, run_folder

__all__ = ["AdaptConfig", "AdaptRun", "adapt", "adapt_seeds", "run_folder"]
