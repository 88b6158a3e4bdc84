"""Files and folders appear whole or not at all, however the process ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from marco_search.files import whole, whole_folder


@pytest.mark.usefixtures("with_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_told_to_end_leaves_no_part(
    number: signal.Signals, tmp_path: Path
) -> None:
    assert signal.getsignal(number) is signal.SIG_DFL
    with pytest.raises(SystemExit) as ended, whole_folder(tmp_path / "set") as folder:
        with whole(folder / "inner.jsonl") as part:
            part.write_text("{}")
        with whole(tmp_path / "rows.jsonl") as part:
            part.write_text("{}")
            signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is signal.SIG_DFL
