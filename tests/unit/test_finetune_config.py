"""The configuration of a fine-tuning; the training itself is tested in tests/finetune."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from marco_search.errors import InvalidDataSet, InvalidSettings
from marco_search.files import whole_folder
from marco_search.learning import manifest, samples
from marco_search.pocket import MODEL_DIR
from ops.finetune.__main__ import main
from ops.finetune.config import Config
from ops.finetune.run import finetune

SHIPPED = sorted(Path(__file__).parents[2].glob("ops/finetune/*.toml"))
GOOD = f'name = "n"\nmodel = "{MODEL_DIR}"\ndata = ["d"]\nout = "o"\n'


def data_set(folder: Path, kind: manifest.Kind = "sft") -> Path:
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    with whole_folder(folder) as part:
        with samples.Writer(part) as writer:
            writer.write(samples.Sample(turns, "made", "en"))
        manifest.write(
            part, name=folder.name, kind=kind, command="made", rules={}, counts={"in": 1, "out": 1},
            dropped=manifest.Dropped(), inputs=[],
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_files_parse(file: Path) -> None:
    assert Config.read(file, {"trainer.max_steps": 1}).trainer["max_steps"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = ", "Invalid value"),
        (GOOD + "sed = 1", "sed"),
        (GOOD + 'method = "ppo"', "method"),
        (GOOD + "[lora]\nrank = 0", "lora.rank"),
        (GOOD + "[trainer]\nseed = 1", "trainer.seed is set by the program"),
        (GOOD.replace('data = ["d"]', "data = []"), "data"),
    ],
)
def test_bad_files_name_the_key(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(InvalidSettings, match=reason):
        Config.read(file)


def test_what_does_not_decide_the_weights_leaves_the_configurations_hash(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(GOOD)
    plain, elsewhere, other = (
        Config.read(file, o) for o in ({}, {"out": "x", "evaluate.sets": ["s"]}, {"seed": 1})
    )
    assert plain.decisive() == elsewhere.decisive() != other.decisive()


def test_data_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(GOOD)

    def run(folder: Path, **more: object) -> None:
        finetune(Config.read(file, {"data": [folder], "out": tmp_path / "out", **more}))

    with pytest.raises(InvalidDataSet, match="no readable manifest"):
        run(tmp_path)
    folder = data_set(tmp_path / "set")
    with pytest.raises(InvalidDataSet, match="preference is needed"):
        run(folder, method="dpo")
    (folder / "samples.jsonl").write_text("")
    with pytest.raises(InvalidDataSet, match=r"changed.*samples\.jsonl"):
        run(folder)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_wrong() -> None:
    run = CliRunner().invoke(main, ["nowhere.toml", "--set", "seed=1"])
    assert run.exit_code == 2 and "nowhere.toml: No such file" in run.output
    assert CliRunner().invoke(main, ["x.toml", "--set", "seed"]).exit_code == 2


def test_the_card_has_what_was_measured_on_a_file_of_questions(tmp_path: Path) -> None:
    file, questions = tmp_path / "config.toml", tmp_path / "some.questions.jsonl"
    questions.write_text('{"question": "Tom has 3 cards and buys 2. How many?", "answer": 5}\n')
    file.write_text(GOOD + f'[evaluate]\nsets = ["{questions}"]')
    config = Config.read(file, {"data": [data_set(tmp_path / "set")], "out": tmp_path / "out"})
    (config.out / config.name).mkdir(parents=True)  # trained before
    counts = ("samples", "too_long", "steps", "parameters", "trained_parameters")
    trained = dict.fromkeys((*counts, "seconds", "peak_memory_bytes"), 1)
    about = {**trained, "losses": {}, "log": [{"loss": 1.0}]}
    (config.out / "report.json").write_text(json.dumps(about))
    card = (finetune(config, evaluate="before") / "README.md").read_text()
    assert "n = 1 | not measured | not measured |" in card
