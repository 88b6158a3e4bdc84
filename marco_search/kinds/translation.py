"""Translation jobs: colloquial or plain, between any two known languages.

The user's turn is word for word what the shipped model was trained on. Do not reword it.
"""

from __future__ import annotations

from marco_search.jobs import TranslationJob
from marco_search.jobs.languages import NAMES
from marco_search.kinds.answers.fold import text_key
from marco_search.kinds.base import ExtractedAnswer, Kind


class Translation(Kind[TranslationJob]):
    """A translation's answer is its whole Output; case, quotes and punctuation don't count."""

    name = "translation"

    def user_turn(self, job: TranslationJob) -> str:
        """For example "Translate this Chinese text into English: ..."."""
        source, target = NAMES[job.source], NAMES[job.target]
        if job.style == "colloquial":
            return f"Translate this colloquial {source} text into natural {target}: {job.text}"
        return f"Translate this {source} text into {target}: {job.text}"

    def read(self, output: str) -> ExtractedAnswer | None:
        """The whole output. Display keeps it as it is."""
        key = text_key(output)
        return ExtractedAnswer(key, output.strip()) if key else None
