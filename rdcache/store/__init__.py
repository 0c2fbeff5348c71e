"""The feature store: one Zarr v3 group for one teacher × one dataset × one set of views.

Knows arrays; knows no model and no image. `docs/store-format.md` describes what lies on disk.
"""

from rdcache.store.catalogue import (
    StoreSummary,
    default_root,
    folder_name,
    list_stores,
    newest_store,
    store_location,
)
from rdcache.store.claims import EXTRACTION, Worker, claims_beside
from rdcache.store.creating import StoreContent, create_store, finished_store
from rdcache.store.joint import JointStore, classes_of_logits, default_taps
from rdcache.store.locations import Location, RemotePath, as_location
from rdcache.store.manifest import read_manifest
from rdcache.store.objects import write_error
from rdcache.store.opening import open_directly, open_store
from rdcache.store.reader import Store
from rdcache.store.spec import (
    NOT_FINITE,
    SPLITS,
    STORED,
    Fingerprint,
    SampleTable,
    ShardRef,
    StoreLayout,
    TapSpec,
)
from rdcache.store.verification import Problem, verify_store
from rdcache.store.writer import StoreWriter

__all__ = [
    "EXTRACTION",
    "NOT_FINITE",
    "SPLITS",
    "STORED",
    "Fingerprint",
    "JointStore",
    "Location",
    "Problem",
    "RemotePath",
    "SampleTable",
    "ShardRef",
    "Store",
    "StoreContent",
    "StoreLayout",
    "StoreSummary",
    "StoreWriter",
    "TapSpec",
    "Worker",
    "as_location",
    "claims_beside",
    "classes_of_logits",
    "create_store",
    "default_root",
    "default_taps",
    "finished_store",
    "folder_name",
    "list_stores",
    "newest_store",
    "open_directly",
    "open_store",
    "read_manifest",
    "store_location",
    "verify_store",
    "write_error",
]
