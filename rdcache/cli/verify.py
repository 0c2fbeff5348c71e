"""`rdcache verify`: is a store what it was when it was written, and what its teacher gives?"""

from __future__ import annotations

from pathlib import Path

import click

from rdcache.cli import options
from rdcache.cli.output import json_option, print_json, print_table, progress
from rdcache.extraction.checking import (
    TapAgreement,
    compare_with_teacher,
    mend_shards,
    plan_again,
)
from rdcache.store import Problem, open_store, read_manifest, verify_store
from rdcache.store.locations import Location


@click.command(epilog="Example:  rdcache verify ~/.cache/rdcache/stores/isic/pmc-clip/3f9c21d0a4b7")
@click.argument("store", type=options.LOCATION)
@click.option(
    "--against-teacher",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also run the teacher again on N random images and views, and compare.",
)
@click.option("--repair", is_flag=True, help="Extract again what is broken, and nothing else.")
@click.option("--teacher", help="Name of the teacher, for torchscript:FILE and onnx:FILE.")
@click.option("--dataset", help="Where the images lie now, as in folder:PATH.")
@options.data_dir
@click.option("--weights", help="Weight file of the teacher, if one was given to extract.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@options.salt_option
@options.signature_option
@json_option
def command(
    store: Location,
    against_teacher: int,
    repair: bool,
    teacher: str | None,
    dataset: str | None,
    data_dir: Path | None,
    weights: str | None,
    device: str,
    uid_salt: str | None,
    require_signature: Path | None,
    as_json: bool,
) -> int:
    """Compare every byte of STORE with its digests and checksums; exit with 1 if any is wrong."""
    with progress("Verifying") as bar:
        problems = verify_store(store, bar, require_signature)
        plan = None
        if against_teacher or (repair and problems):
            plan = plan_again(
                store,
                teacher=teacher,
                dataset=dataset,
                data_dir=data_dir,
                weights=weights,
                device=device,
                salt=uid_salt,
                require_signature=require_signature,
            )
        if plan is not None and repair and any(problem.shard for problem in problems):
            mend_shards(plan, problems, bar)
            problems = verify_store(store, bar, require_signature)
        agreements: list[TapAgreement] = []
        if plan is not None and against_teacher and not problems:
            agreements = compare_with_teacher(
                open_store(store, require_signature=require_signature), plan, against_teacher
            )
    ok = not problems and all(agreement.ok for agreement in agreements)
    if as_json:
        print_json(
            {
                "store": str(store),
                "ok": ok,
                "complete": read_manifest(store).get("complete") is True,
                "problems": [_facts(problem) for problem in problems],
                "against_teacher": [vars(agreement) for agreement in agreements],
            }
        )
    else:
        _print(store, problems, agreements, repair and require_signature is None)
    return 0 if ok else 1


def _facts(problem: Problem) -> dict[str, object]:
    shard = None if problem.shard is None else vars(problem.shard)
    return {"object": problem.name, "what": problem.what, "tap": problem.tap, "shard": shard}


def _print(
    store: Location, problems: list[Problem], agreements: list[TapAgreement], repaired: bool
) -> None:
    complete = read_manifest(store).get("complete") is True
    state = "" if complete else " (its extraction has not finished: only what is there)"
    if not problems:
        click.echo(f"{store}: every byte is as it was written{state}.")
    for problem in problems:
        click.echo(f"{problem.name} {problem.what}")
    if any(problem.shard for problem in problems):
        click.echo(f"Extract the broken shards again:  rdcache verify {store} --repair")
    elif problems and repaired:
        click.echo("What is left cannot be repaired: delete the folder and extract again.")
    if agreements:
        print_table(
            f"Against the teacher, {agreements[0].samples} random images and views",
            ["tap", "smallest cosine", "largest relative error", "tolerance", "ok"],
            [
                (
                    agreement.tap,
                    f"{agreement.cosine:.6f}",
                    f"{agreement.error:.2e}",
                    f"{agreement.tolerance:.0e}",
                    "yes" if agreement.ok else "no",
                )
                for agreement in agreements
            ],
        )
