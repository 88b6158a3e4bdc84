"""`marco replay`: generate a stored job again, or score stored trees under another reward."""

from __future__ import annotations

from pathlib import Path

import click

from marco_search.cli.output import echo, json_option, print_json


@click.command(short_help="Generate a job again and compare, or score a file of trees anew.")
@click.argument("target", metavar="JOB|TRACES")
@click.option("--set", "data_set", metavar="SET", help="TRACES: where the labels are.")
@click.option("--language", metavar="LANG", help="TRACES: which file of a folder, or of MGSM.")
@click.option(
    "--reward",
    "rewards",
    multiple=True,
    metavar="NAME",
    help="Score by this reward instead of generating; several may be given.",
)
@click.option(
    "--vote",
    "votes",
    multiple=True,
    metavar="NAME",
    help="And by this vote: vote, weighted, best, borda or tree.",
)
@click.option(
    "--sharpness",
    type=float,
    multiple=True,
    metavar="P",
    help="And by weights to this power.",
)
@json_option
def replay(
    target: str, data_set: str | None, language: str | None, rewards: tuple[str, ...],
    votes: tuple[str, ...], sharpness: tuple[float, ...], as_json: bool,
) -> None:  # fmt: skip
    """Generate JOB again from its stored seed, prompt, configuration and model, and compare.

    Says whether the tree is the same, node by node; with the embedded engine it is, bit for
    bit. Other engines may round otherwise: then it says how much agrees and where the first
    difference is. Another model or revision is refused. Nothing is stored. Exits with 9 if the
    text is another; with the embedded engine, if a single bit is. If the job was searched on
    another engine or kind of processor, which may round otherwise, it exits with 10 instead.

    With --reward, --vote or --sharpness nothing is generated: says what the job's stored tree
    answers under them (by default with the job's own vote). With a file, TRACES of
    `marco eval --trees`, the same for all its trees: how many are right.
    """
    path = Path(target)
    if path.is_file():
        from marco_search.cli.rescored import rescore_file

        if data_set is None:
            raise click.UsageError("a file of traces needs --set SET, which has the labels")
        rescore_file(
            path,
            data_set,
            language=language,
            rewards=rewards,
            votes=votes,
            sharpness=sharpness,
            as_json=as_json,
        )
        return
    if data_set is not None or language:
        raise click.UsageError(f"{target}: no such file; --set and --language are for one")
    if rewards or votes or sharpness:
        from marco_search.cli.rescored import rescore_job

        rescore_job(target, rewards=rewards, votes=votes, sharpness=sharpness, as_json=as_json)
        return
    from marco_search.cli.replayed import replay_job

    outcome = replay_job(target, quiet=as_json)
    if as_json:
        print_json(outcome.to_json())
    else:
        echo("\n".join(outcome.lines()))
    if outcome.exit_code:
        click.get_current_context().exit(outcome.exit_code)
