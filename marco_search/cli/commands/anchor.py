"""`marco anchor`: the head of the chain of hashes, to keep elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from marco_search.cli.output import echo, json_option, print_json

_file = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Print the head of the chain, to keep elsewhere.")
@click.option("--key", type=_file, metavar="FILE", help="Ed25519 key (PEM) to sign it with.")
@click.option(
    "--new-key", type=_file, metavar="FILE", help="Only make a key, and print its public part."
)
@json_option
def anchor(key: Path | None, new_key: Path | None, as_json: bool) -> None:
    """Print an anchor: the head of the chain, how many links and jobs it covers, and when.

    Keep it where those who hold the database can't change it: `marco verify --anchor FILE`
    then finds a chain that was cut short or written anew.

    \b
    marco anchor > anchor-2026-11-22.json
    """
    from marco_search.audit import anchors as anchor_files
    from marco_search.cli.session import session
    from marco_search.store.db import require_tables
    from marco_search.store.seal import anchors

    if new_key is not None:
        public = anchor_files.new_key(new_key)
        if as_json:
            print_json({"key": str(new_key), "public_key": public})
        else:
            echo(f"Private key: {new_key}. Give others the public key:\n{public}")
        return
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        require_tables(conn, "`marco anchor`")
        taken = anchors.take(conn, key=key)
    print_json(taken.to_json())
