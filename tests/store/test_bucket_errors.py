"""What keeps a bucket from being used is one sentence that says what to set, and a server that is
down for a while is waited for.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from s3_server import S3Server

from rdcache.cli import run_command_line
from rdcache.errors import BucketError, StoreWriteError, UsageError
from rdcache.store import RemotePath, as_location, list_stores, open_store
from rdcache.store.housekeeping import delete_garbage, find_garbage
from rdcache.store.objects import objects_at

from .conftest import begin, fill


@pytest.mark.parametrize("value", ["abc", "nan", "inf", "-1", "0", "1e9"])
def test_a_patience_that_is_none_is_one_sentence(
    bucket: RemotePath, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RDCACHE_PATIENCE", value)
    with pytest.raises(UsageError, match="RDCACHE_PATIENCE"):
        objects_at(bucket)


def test_an_endpoint_without_a_scheme_is_one_sentence(
    bucket: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "storage.example.org")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL begins with https://"):
        objects_at(bucket)


def test_a_bucket_that_does_not_exist_is_told_from_a_store_that_does_not(
    bucket: RemotePath, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["info", "s3://no-such-bucket-at-all/x"]) == 1
    assert "bucket does not exist" in capsys.readouterr().err
    assert run_command_line(["info", f"{bucket}/x"]) == 1
    assert "there is no rdcache store here" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["az://container/x", "gs://bucket/x"])
def test_clouds_that_nothing_is_set_for_say_what_to_set(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RDCACHE_PATIENCE", "0.5")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with pytest.raises((UsageError, BucketError)) as caught:
        open_store(as_location(address))
    assert {"az": "AZURE_STORAGE_ACCOUNT_NAME", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}[
        address[:2]
    ] in caught.value.facts["next"]
    assert "\n" not in caught.value.facts["why"]


def test_a_server_that_is_down_for_a_while_is_waited_for(bucket: RemotePath, s3: S3Server) -> None:
    objects = objects_at(bucket)
    objects.put("a", b"1")

    def recover() -> None:
        time.sleep(4)
        s3.faults = {}

    s3.faults = {"error": 1.0}
    threading.Thread(target=recover).start()
    began = time.monotonic()
    assert objects.read("a") == b"1"
    assert time.monotonic() - began > 3


def test_a_large_object_is_written_though_the_last_answer_is_lost(
    bucket: RemotePath, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, data = objects_at(bucket), os.urandom(20 * 2**20)
    lost = 0
    answer = s3._answer

    def lose_one_answer(environ: dict[str, object], start_response: object) -> object:
        nonlocal lost
        completes = environ["REQUEST_METHOD"] == "POST" and "uploadId=" in str(
            environ["QUERY_STRING"]
        )
        s3.faults = {"lost answer": 1.0} if completes and not lost else {}
        lost += bool(s3.faults)
        return answer(environ, start_response)

    monkeypatch.setattr(s3._server, "app", lose_one_answer)
    objects.put("large", data)
    assert lost == 1
    mapped = objects.mapped("large")
    assert mapped is not None
    assert mapped.tobytes() == data


def test_who_may_not_write_is_told_at_once(bucket: RemotePath, s3: S3Server) -> None:
    with pytest.raises(StoreWriteError) as caught:
        objects_at(RemotePath("s3://no-such-bucket-at-all/x")).put("a", b"")
    assert caught.value.facts["why"].startswith("NoSuchBucket")


def test_a_path_that_was_an_address_is_one_again() -> None:
    assert as_location(Path("s3://team/x")) == RemotePath("s3://team/x")


def test_gc_touches_nothing_in_a_bucket_that_is_not_ours(bucket: RemotePath) -> None:
    writer = begin(bucket / "isic" / "pmc" / "0123456789ab")
    fill(writer)
    writer.commit({})
    others = objects_at(bucket)
    others.put("photos/2024/january/a.jpg", b"precious")
    above = RemotePath(str(bucket).rpartition("/")[0])
    for root in (bucket, above):
        for garbage in find_garbage(root, incomplete=True):
            delete_garbage(garbage)
    assert others.read("photos/2024/january/a.jpg") == b"precious"
    assert len(list_stores(bucket)) == 1
