"""`marco dataset`: data sets for training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from marco_search.cli import options, output
from marco_search.cli.output import Column, number
from marco_search.cli.session import session
from marco_search.learning import NEAR_DUPLICATE

_share = options.Finite(0, 1)
_folder_argument = click.argument("folder", type=options.FOLDER)
_files = click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path)
)
_near = click.option(
    "--near-duplicate", type=_share, default=NEAR_DUPLICATE, metavar="X",
    help="Leave out samples sharing this part of their word n-grams with another; 1: equal texts.",
)  # fmt: skip
_held_out = click.option(
    "--held-out", "held_out", multiple=True, metavar="SET",
    help="Leave out samples with problems of this set, named as in `marco eval`; repeatable.",
)  # fmt: skip
_limits = click.option(
    "--set", "limits", type=options.PAIR, multiple=True, metavar="NAME=NUMBER",
    help="Change a limit, such as most_response=20000; see docs/datasets.md.",
)  # fmt: skip
_all_tenants = click.option("--all-tenants", is_flag=True, help="Mix rows of several tenants.")
_of_files = options.together(_folder_argument, _files, _limits, _near, _held_out, _all_tenants)
_COLUMNS = (
    Column("id", lambda d: str(d.dataset_id), drop=1),
    Column("name", lambda d: d.name, flexible=True),
    Column("kind", lambda d: d.kind),
    number("lines", lambda d: f"{d.samples:,}"),
    Column("tenant", lambda d: d.tenant or "(all)"),
    Column("made", lambda d: f"{d.created_at:%Y-%m-%d %H:%M}"),
    Column("manifest", lambda d: d.manifest_sha256[:16], drop=2),
)


@options.group()
def dataset() -> None:
    """Data sets for training: made from stored trees and files, filtered, mixed, traced back."""


@dataset.command("from-traces")
@_folder_argument
@click.option("--name", metavar="TEXT", help="What it is called (default: the folder's name).")
@click.option(
    "--pairs",
    is_flag=True,
    help="Preference pairs instead: a winning and a losing path of one tree.",
)
@click.option(
    "--pairs-per-job", type=options.count(least=1), default=1, metavar="N",
    help="Maximum number of pairs of one tree, each with a different losing path.",
)  # fmt: skip
@options.which_jobs
@click.option("--strategy", metavar="NAME", help="Only jobs searched with this strategy.")
@click.option("--model", metavar="NAME", help="Only jobs that were searched with this model.")
@click.option("--revision", metavar="HEX", help="Only with this revision, or a prefix of it.")
@click.option(
    "--min-share", "least_share", type=_share, default=0.5, metavar="X",
    help="Minimum share of the vote of the answer.",
)  # fmt: skip
@click.option(
    "--min-confidence", "least_confidence", type=_share, default=0.0, metavar="X",
    help="Minimum confidence of the answer.",
)  # fmt: skip
@click.option(
    "--verified", is_flag=True,
    help="Only answers that a label or a verifier says are right. Wrong ones never count.",
)  # fmt: skip
@click.option(
    "--reflection", type=click.Choice(["mended", "kept", "redo"]), default="mended",
    help="Paths with a reflection: only if it mended the answer; all; all, without what was "
    "before it.",
)  # fmt: skip
@click.option(
    "--answer", type=click.Choice(["voted", "expected"]), default="voted",
    help="Paths to which answer: the job's, or where there is a label the right one, even if it "
    "lost the vote.",
)  # fmt: skip
@click.option(
    "--path", type=click.Choice(["best", "any"]), default="best",
    help="Which path to the answer: the best, or one at random.",
)  # fmt: skip
@_near
@_held_out
@click.option("--seed", type=int, default=0, metavar="N", help="Of --path any.")
def from_traces(
    folder: Path, name: str | None, pairs: bool, near_duplicate: float,
    held_out: tuple[str, ...], **values: Any,
) -> None:  # fmt: skip
    """Make a data set of jobs that succeeded: of each the best path to its answer.

    FOLDER appears whole or not at all, with a manifest of the rules, counts and hashes, and
    dropped.json: what was left out by which rule. Every job is verified first. Jobs of other
    tenants are not read without --all-tenants.

    \b
    marco dataset from-traces traces --batch 0199... --verified
    marco dataset from-traces pairs --pairs --since 2026-11-01
    """
    from marco_search.learning import build, traces

    if pairs and values["path"] != "best":
        raise click.UsageError("--path goes without --pairs: of pairs the best is taken")
    if not pairs and values["pairs_per_job"] != 1:
        raise click.UsageError("--pairs-per-job goes with --pairs")
    wanted = {field: values.pop(field) for field in traces.Rules.__dataclass_fields__}
    with session(needs_redis=False) as here, _row_rules(near_duplicate, held_out) as rules:
        manifest = build.from_traces(
            here.database, folder, here.chosen(**values), traces.Rules(**wanted), rules=rules,
            kind="preference" if pairs else "sft", name=name,
        )  # fmt: skip
    _report(folder, manifest)


@dataset.command("list")
@options.tenants
def list_data_sets() -> None:
    """List the data sets that were made from stored trees, newest first."""
    from marco_search.store.reads import lineage

    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = lineage.data_sets(conn, here.tenant)
    none = "No data sets: `marco dataset from-traces` makes one."
    output.report_table({"datasets": found}, _COLUMNS, found, none)


@dataset.command("trace")
@click.argument("sample", metavar="SAMPLE")
@click.option(
    "--folder", type=options.FOLDER, help="Check the files of the data set in this folder as well."
)
@options.tenants
def trace_sample(sample: str, folder: Path | None) -> None:
    """Show the job, rollout and nodes that a line of a data set came from.

    SAMPLE is the line's id, or its beginning. The job is verified, the line built again from its
    tree, and hashes compared: exits with 9 if something no longer matches.
    """
    from marco_search.learning import origins
    from marco_search.learning.manifest import FILE

    with session(needs_redis=False) as here, here.database.snapshot() as conn:
        found = origins.trace(conn, sample, here.tenant)
        changed = origins.changed_files(folder, found) if folder else []
    holds = not changed and all(origin.holds for origin in found)
    lines = [line for origin in found for line in origins.lines(origin)]
    wrong = {FILE: "not that of a data set with this line"}
    lines += [f"{folder}: {f} is {wrong.get(f, 'not as the manifest says')}" for f in changed]
    output.report({"origins": found, "changed_files": changed, "holds": holds}, *map(Text, lines))
    if not holds:
        click.get_current_context().exit(output.DOES_NOT_FIT)


@dataset.command("filter")
@_of_files
@click.option(
    "--profile", default="marco-o1", metavar="NAME|FILE",
    help="Profile whose tags a thought and an output have.",
)  # fmt: skip
@click.option(
    "--tags", nargs=2, metavar="THOUGHT OUTPUT", help="These instead, as <think> <answer>."
)
def filter_command(
    profile: str, tags: tuple[str, str] | None, limits: options.Pairs, **given: Any
) -> None:
    """Make a data set of the good samples of thought in FILE: the recipe of Open-O1.

    FILE is JSON Lines or a JSON array, in the shapes that `instructions` reads, or a data set's
    folder. A sample stays if its tags are whole, it has a thought and an answer, is neither too
    long nor a loop, is in one language and no character of it was lost. What is left out is
    counted in dropped.json and listed in dropped.jsonl.

    \b
    marco dataset filter open-o1 OpenO1-SFT.jsonl --held-out mgsm:en
    """
    from marco_search import settings
    from marco_search.learning import filters
    from marco_search.profiles import load

    turn = load(profile, settings.load().profiles).turn("en")
    if tags:
        turn = filters.turn_of(*tags)
    _convert("filter", filters.thoughts(turn, _given(limits)), **given)


@dataset.command("instructions")
@_of_files
def instructions(limits: options.Pairs, **given: Any) -> None:
    """Make a data set of conversations: messages, ShareGPT, Alpaca, prompt and completion.

    FILE is JSON Lines or a JSON array. Rows that are unreadable, empty, repetitive or have lost
    characters are left out: counted in dropped.json, listed in dropped.jsonl.

    \b
    marco dataset instructions chat alpaca.json sharegpt.jsonl
    """
    from marco_search.learning import filters

    _convert("instructions", filters.instructions(_given(limits)), **given)


@dataset.command("mix")
@_folder_argument
@click.argument("sets", nargs=-1, required=True, metavar="SET[=WEIGHT]...")
@click.option(
    "--validation", type=options.Finite(0, 1, max_open=True), default=0.0, metavar="X",
    help="Fraction of the prompts to hold out, in validation.jsonl.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, metavar="N", help="Of the order.")
@_all_tenants
@_held_out
def mix(
    folder: Path, sets: tuple[str, ...], validation: float, seed: int, all_tenants: bool,
    held_out: tuple[str, ...],
) -> None:  # fmt: skip
    """Combine data sets into one: WEIGHT times the rows of each, shuffled by the seed.

    With weight 0.5 half of the rows are taken, with 2 each twice. Duplicates are dropped, and rows
    with the same prompt are on the same side of the split. Equal inputs give equal files.

    \b
    marco dataset mix all traces open-o1=0.5 chat --validation 0.02
    """
    from marco_search.learning import mixing

    inputs = dict(map(_weighted, sets))
    if len(inputs) < len(sets):
        raise click.UsageError("a set is given twice; SET=2 takes each of its rows twice")
    with _row_rules(1, held_out) as rules:
        made = mixing.mix(
            inputs, folder, rules, validation=validation, seed=seed, all_tenants=all_tenants
        )
    _report(folder, made)


def _weighted(text: str) -> tuple[Path, float]:
    path, separator, weight = text.rpartition("=")
    try:
        number = float(weight) if separator else 1.0
    except ValueError:
        path, number = text, 1.0  # the name has an =
    if not 0 < number < 1000:
        raise click.UsageError(f"{text}: a weight must be more than 0 and less than 1000")
    return Path(path or text), number


def _given(limits: options.Pairs) -> Any:
    """The limits of --set."""
    from marco_search.learning.filters import Limits

    known: dict[str, Any] = dict(Limits.__dataclass_fields__)
    given: dict[str, Any] = {}
    for name, value in limits:
        try:
            given[name] = (int if isinstance(known[name].default, int) else float)(value)
            if not 0 <= given[name] < math.inf:
                raise ValueError
        except (KeyError, ValueError):
            raise click.UsageError(
                f"--set {name}={value}: needs NAME=NUMBER, not negative; "
                f"the names are {', '.join(known)}"
            ) from None
    return Limits(**given)


def _convert(
    name: str, rules: dict[str, Any], *, folder: Path, files: tuple[Path, ...],
    near_duplicate: float, held_out: tuple[str, ...], all_tenants: bool,
) -> None:  # fmt: skip
    from marco_search.learning import conversations

    with _row_rules(near_duplicate, held_out) as more:
        made = conversations.build(
            files, folder, {**rules, **more}, command=f"marco dataset {name}",
            all_tenants=all_tenants,
        )  # fmt: skip
    _report(folder, made)


@contextmanager
def _row_rules(near_duplicate: float, held_out: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rules for finished rows: held-out problems and duplicates."""
    from marco_search.learning import duplicates

    with duplicates.rules(near_duplicate if near_duplicate < 1 else None) as found:
        yield duplicates.contamination(held_out) | found


def _report(folder: Path, manifest: dict[str, Any]) -> None:
    """What was made, and how many each rule left out."""
    counts = manifest["counts"]
    what = "pairs" if manifest["kind"] == "preference" else "samples"
    read = ", ".join(
        f"{n:,} {name}" for name, n in counts.items() if name not in ("out", "dropped")
    )
    lines = [f"{folder}: {counts['out']:,} {what}; read: {read}"]
    lines += [f"  left out, {rule}: {n:,}" for rule, n in counts["dropped"].items()]
    lines.append(f"manifest {manifest['manifest_sha256']}")
    output.report({"folder": str(folder), **manifest}, *lines)
    if not counts["out"]:
        output.notice(f"{folder} is empty: nothing that was read passed the rules above")
