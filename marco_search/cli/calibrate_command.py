"""`marco calibrate`: measures a model on a few questions and writes a profile for it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from marco_search import profiles
from marco_search import settings as settings_module
from marco_search.cli import output
from marco_search.cli.evaluation_commands import progress_text
from marco_search.cli.job_input import given_options, profile_options
from marco_search.cli.options import FILE, command, language_option, threads_option
from marco_search.engine import profile_of
from marco_search.errors import InputError
from marco_search.evaluation.calibration import Findings, Setting, findings, recipes, require_enough
from marco_search.evaluation.data_sets import file_stem, load
from marco_search.evaluation.report import percent, require_few_failed, table
from marco_search.evaluation.run import Progress, run
from marco_search.evaluation.statistics import rounded
from marco_search.export.tables import whole
from marco_search.jobs import SearchOptions
from marco_search.runtime import open_runtime


@command("calibrate")
@click.argument("data_set", metavar="SET")
@language_option
@click.option(
    "--limit", type=click.IntRange(1), default=20, metavar="N", help="The first N questions only."
)
@click.option(
    "--rollouts", type=click.IntRange(4), default=8, metavar="N",
    help="Rollouts of each question's tree.",
)  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(2), default=4, metavar="N",
    help="Samples of each question at each temperature.",
)  # fmt: skip
@click.option(
    "--error", type=click.FloatRange(0, 50), default=5, metavar="PERCENT",
    help="Questions whose answer early stopping may change.",
)  # fmt: skip
@threads_option("Searches at once.")
@click.option(
    "--traces", type=FILE, metavar="FILE",
    help="Keep the searches here, and resume from existing ones. "
    "Default: evaluation/calibrate-SET.jsonl under MARCO_HOME.",
)  # fmt: skip
@click.option("--name", metavar="NAME", help="Of the new profile. Default: OLD-calibrated.")
@click.option(
    "--out", type=FILE, metavar="FILE",
    help="Write the profile here. Default: profiles/NAME.toml under MARCO_HOME.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite an existing profile.")
@profile_options
def calibrate(
    data_set: str, language: str | None, limit: int, rollouts: int, samples: int, error: float,
    threads: int, traces: Path | None, name: str | None, out: Path | None, force: bool,
    **values: Any,
) -> None:  # fmt: skip
    """Measure the model on the questions of SET and write a profile for it.

    Some 20 questions like those it will be asked; answers are optional. SET is as for `marco eval`;
    in a .txt file each line is a question. Each is searched once on the configured runtime; a
    second run resumes from existing searches. From these follow the temperature, the vote's
    weights, when to stop, and whether reflection pays off.

    \b
    marco calibrate questions.txt
    marco solve --profile pocket-calibrated "..."
    """
    problems = load(data_set, language=language, limit=limit)
    require_enough(problems)
    settings, options = settings_module.load(), SearchOptions(**given_options(values))
    traces = traces or settings.home / "evaluation" / f"calibrate-{file_stem(data_set)}.jsonl"
    with (
        output.console(stderr=True).status("calibrating") as status,
        closing(open_runtime(settings)) as runtime,
    ):
        info, used = runtime.info, profile_of(options, runtime.info.model)
        name = name or f"{used.name.removesuffix('-calibrated')}-calibrated"
        out = out or settings.profiles / f"{name}.toml"
        profiles.override(used, {"name": name})  # a bad one is refused before hours of searching
        if out.exists() and not force:
            raise InputError(
                f"{out} already exists: overwrite it with --force, or choose another name"
            )
        made, parts = [], recipes(options, rollouts, samples)
        for i, recipe in enumerate(parts, start=1):

            def on_progress(progress: Progress, part: int = i) -> None:
                status.update(f"part {part} of {len(parts)}: {progress_text(progress)}")

            made.append(
                run(problems, recipe, runtime, traces, threads=threads, on_progress=on_progress)
            )
    require_few_failed([t for traces_of_run in made for t in traces_of_run], 0.05)
    found = findings(made[0], made[1:], problems, error / 100)
    about = (
        f"{info.model} {info.revision[:12]}, {found.problems} questions of {Path(data_set).name}, "
        f"{found.rollouts} rollouts, {datetime.now(UTC):%Y-%m-%d}"
    )
    # Named by hand only: it is for this model, and for questions like these.
    fields = {"name": name, "models": (), "measured_on": about}
    profile = profiles.override(used, fields | found.fields())
    with whole(out) as part:  # half a profile would be in the way of all models
        part.write_text(profiles.dumps(profile), encoding="utf-8")
    data = {
        "model": info.model,
        "revision": info.revision,
        "set": data_set,
        "findings": rounded(asdict(found)),
        "fields": found.fields(),
        "profile": name,
        "file": str(out),
        "traces": str(traces),
    }
    words = [part(found) for part in _PARTS]
    path = str(out) if profiles.is_path(str(out)) else f"./{out}"
    how = name if (out.parent, out.stem) == (settings.profiles, name) else path
    use = f"Use it with --profile {how}, or MARCO_PROFILE={how} for all jobs."
    output.report(data, about, "", *words, "", f"Profile: {out}", use)


def _lengths(found: Findings) -> str:
    length = found.length
    if not length.cut_off:
        return f"Length. No rollout was cut off; 95 % ended within {length.usual} tokens."
    share = percent(length.cut_off / length.rollouts)
    text = f"Length. {share} % of the rollouts were cut off at {length.at} tokens; "
    text += f"95 % of the others ended within {length.usual}. "
    if length.suggested:
        return (
            f"{text}Give them room: --set max_new_tokens={length.suggested}, and calibrate again."
        )
    if 10 * length.cut_off > length.rollouts:
        return f"{text}They ramble: more room would not help, a lower temperature may."
    return f"{text}That is little."


def _samplings(found: Findings) -> str:
    head = ("temperature, top_p", "with an answer %", "cut off %", "as most others %",
            "different %", "tokens")  # fmt: skip
    rows = [
        (
            f"{s.temperature:g}, {s.top_p:g}",
            *map(percent, (s.answered, s.cut_off, s.agreement, s.distinct)),
            f"{s.tokens:.0f}",
        )
        for s in found.samplings
    ]
    why = (
        "the most varied of those that end with an answer, and with the usual one, about as "
        "often as any"
    )
    if found.strategy == "vote":
        why = "by the labels"
    said = f"Sampling. Temperature {found.temperature:g}, top_p {found.top_p:g}: {why}."
    return f"{said}\n{table(head, rows)}"


def _votes(found: Findings) -> str:
    votes = found.votes
    where = f"Their logs lie {votes.spread:.2f} apart within a question; in full counts what is "
    where += f"at {votes.reference:.2f} or above."
    if not votes.told:
        said = f"Only {votes.problems} questions have rollouts that agree and others that do not: "
        return f"Votes. {said}too few to tell what the values are worth. Plain majority. {where}"
    chance = f"A rollout that agrees with most others has the greater value {percent(votes.auroc)} "
    chance += f"% of the time ({percent(votes.low)} to {percent(votes.high)}; 50 is chance)."
    how = {0.0: "that tells nothing: plain majority", 1.0: "that is weak: sharpness 1"}
    strength = how.get(votes.sharpness, "that is strong")
    return f"Votes. {chance} {where} Sharpness {votes.sharpness:g} ({strength})."


def _stop(found: Findings) -> str:
    stop = found.stop
    return (
        f"Stop. At a chance of {stop.level:g} that the leader stays ahead, {stop.differing} of "
        f"{stop.problems} questions get another answer than after all {stop.rollouts} rollouts: "
        f"{percent(stop.differing / stop.problems)} % ({percent(stop.low)} to "
        f"{percent(stop.high)}), for {percent(stop.saved)} % fewer tokens."
    )


def _reflection(found: Findings) -> str:
    redo = found.reflection
    verdict = "It stays (branch)" if redo.pays else "It does not pay (never)"
    if not redo.redos:
        return "Reflection. No thought ended, so nothing could be reflected on. It is off (never)."
    return (
        f"Reflection. Of {redo.redos} redos {redo.answered} end with an answer, {redo.changed} "
        f"with another one: {redo.towards} with that of most others, {redo.away} away from it. "
        f"{verdict}."
    )


def _labelled(found: Findings) -> str:
    labels = found.labelled
    if labels is None:
        return "Labels. Too few: all of this is by agreement of the model with itself."
    rows = [
        (_setting(found, s), percent(sum(s.right) / labels.problems), f"{s.tokens:.0f}")
        for s in labels.settings
    ]
    redo, ahead = labels.redo, labels.ahead
    said = "it is taken" if ahead.clear else "that is not clear, so what is above stays"
    gain = (
        f"{100 * ahead.difference:+.1f} points ({100 * ahead.low:+.1f} to {100 * ahead.high:+.1f})"
    )
    return (
        f"Labels ({labels.problems} questions, the same tokens for each setting). Best: "
        f"{_setting(found, labels.best)}, {gain} over the setting above; {said}.\n"
        f"{table(('Setting', 'right %', 'tokens'), rows)}\n"
        f"Redos mended {redo.only_first} answers and broke {redo.only_second}."
    )


_PARTS = (_lengths, _samplings, _votes, _stop, _reflection, _labelled)
"""What was found, in the order in which it is told."""


def _setting(found: Findings, setting: Setting) -> str:
    if setting.sampling is None:
        return f"{setting.strategy}, sharpness {setting.sharpness:g}"
    at = found.samplings[setting.sampling]
    return f"{setting.strategy}, temperature {at.temperature:g}, top_p {at.top_p:g}"
