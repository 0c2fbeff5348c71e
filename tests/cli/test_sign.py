"""`rdcache sign`, and `--require-signature` of the commands that use stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_inputs import Pooling
from torch import nn

from rdcache.cli import run_command_line
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.store import open_store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: object) -> tuple[int, str, str]:
        status = run_command_line([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run_command


@pytest.fixture
def teacher(script: Callable[[nn.Module], str]) -> str:
    return script(Pooling(1.0))


@pytest.fixture
def store(teacher: str, folder: Path) -> Path:
    config = ExtractConfig(teacher=teacher, dataset=f"folder:{folder}", views="clean")
    return run_extraction(plan_extraction(config)).store.location


def test_sign_then_require(run: Run, store: Path, tmp_path: Path) -> None:
    status, text, _ = run("sign", "--new-key", tmp_path / "ada", "--json")
    made = json.loads(text)
    assert status == 0
    key = ("--require-signature", made["public"])
    for command in (("info",), ("verify",), ("export", tmp_path / "out.h5")):
        arguments = (command[0], store, *command[1:], *key)
        status, out, err = run(*arguments)
        assert status == 1, arguments
        assert "not signed" in out + err

    status, text, _ = run("sign", store, "--key", made["private"])
    assert status == 0
    assert made["fingerprint"] in text
    for command in (("info",), ("verify",), ("export", tmp_path / "out.h5")):
        assert run(command[0], store, *command[1:], *key)[0] == 0
    assert made["fingerprint"] in run("info", store)[1]


def test_the_environment_asks_for_signatures_too(
    run: Run, store: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("sign", "--new-key", tmp_path / "ada")
    monkeypatch.setenv("RDCACHE_REQUIRE_SIGNATURE", str(tmp_path / "ada.pub.pem"))
    distill = ("distill", "--dataset", f"folder:{folder}", "--method", "none", "--epochs", 1)
    distill += (
        "--batch-size",
        4,
        "--image-size",
        32,
        "--student",
        "shufflenet-x0.5",
        "--out",
        tmp_path / "runs",
    )
    for arguments in (("info", store), ("verify", store), distill):
        status, out, err = run(*arguments)
        assert status == 1, arguments
        assert "not signed" in out + err
    run("sign", store, "--key", tmp_path / "ada.pem")
    status, _, err = run(*distill)
    assert status == 0, err


def test_tensors_of_unsigned_stores_are_not_copied_where_signatures_are_required(
    run: Run, store: Path, teacher: str, folder: Path, tmp_path: Path
) -> None:
    run("sign", "--new-key", tmp_path / "ada")

    def copied(views: str) -> int:
        config = ExtractConfig(
            teacher=teacher,
            dataset=f"folder:{folder}",
            views=views,
            require_signature=tmp_path / "ada.pub.pem",
        )
        return run_extraction(plan_extraction(config)).copied

    assert copied("flip") == 0
    run("sign", store, "--key", tmp_path / "ada.pem")
    assert copied("d4") == open_store(store).samples


@pytest.mark.parametrize(
    "arguments", [(), ("STORE",), ("--key", "x"), ("STORE", "--new-key", "x", "--key", "y")]
)
def test_wrong_usage_says_how_it_is_meant(run: Run, arguments: tuple[str, ...]) -> None:
    status, _, err = run("sign", *arguments)
    assert status == 2
    assert err.startswith("Error: ")


def test_the_key_does_not_decide_what_comes_out_of_a_run(tmp_path: Path) -> None:
    from rdcache.distillation import DistillConfig

    digests = {
        DistillConfig(require_signature=key).resolved().digest("x") for key in (None, tmp_path)
    }
    assert len(digests) == 1
