"""`make stack`: the containers in the background, with passwords of their own, and where to go.

Makes .env with random passwords unless there is one. Needs nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECRETS = (
    "POSTGRES_PASSWORD",
    "OWNER_PASSWORD",
    "APP_PASSWORD",
    "AUDITOR_PASSWORD",
    "REDIS_PASSWORD",
    "MARCO_CONSOLE_TOKEN",
    "GRAFANA_PASSWORD",
)


def main() -> None:
    """Start the stack and wait until it is healthy; exits with a sentence if it does not start."""
    os.chdir(ROOT)
    write_env(ROOT / ".env")
    try:
        started = subprocess.run(
            ["docker", "compose", "up", "-d", "--build", "--wait"], check=False
        )
    except FileNotFoundError:
        sys.exit("docker is not installed: see https://docs.docker.com/engine/install/")
    if started.returncode:
        sys.exit("The stack did not start: see above; of a service, see `docker compose logs`")
    config = ["docker", "compose", "config", "--format", "json"]
    services = json.loads(subprocess.run(config, capture_output=True, check=True).stdout)
    print(where_to_go(services["services"]))


def write_env(path: Path) -> None:
    """Random passwords, readable by the caller only. A file that is there stays as it is."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return
    lines = [f"{name}={secrets.token_hex(24)}" for name in SECRETS]
    lines.append(f"CLI_USER={os.getuid()}:{os.getgid()}")
    with os.fdopen(file, "w") as env:
        env.write("# Made by `make stack`. .env.example says what else can be set.\n")
        env.write("\n".join(lines) + "\n")
    print(f"Passwords: {path} (keep it; docs/containers.md says how to change them)")


def where_to_go(services: dict[str, Any]) -> str:
    """The addresses on this machine, of the services as `docker compose config` prints them."""
    ports = {name: service["ports"][0]["published"] for name, service in services.items()
             if "ports" in service}  # fmt: skip
    logins = services["scheduler"]["environment"]  # the same as the command line's
    return "\n".join(
        (
            "",
            f"Console:  http://127.0.0.1:{ports['console']}/",
            f"Token:    {services['console']['environment']['MARCO_CONSOLE_TOKEN']}",
            f"API:      http://127.0.0.1:{ports['api']}/v1",
            "Its key:  docker compose run --rm cli keys create",
            "Submit:   docker compose run --rm -T cli submit - < examples/demo.jsonl",
            "or with `marco` on this machine, after",
            "",
            "export DATABASE_URL="
            + logins["DATABASE_URL"].replace("@postgres:5432", f"@127.0.0.1:{ports['postgres']}"),
            "export REDIS_URL="
            + logins["REDIS_URL"].replace("@redis:6379", f"@127.0.0.1:{ports['redis']}"),
        )
    )


if __name__ == "__main__":
    main()
