"""`python -m faults.copy_store SOURCE ROOT`: a copy in a process that may be killed."""

from __future__ import annotations

import sys

from rdcache.store import as_location
from rdcache.store.transfer import copy_store

if __name__ == "__main__":
    copied = copy_store(as_location(sys.argv[1]), as_location(sys.argv[2]))
    print(copied.status)
