"""`task=templates`: parallel text and tasks that people made, as dialogs, by templates in files; no model is asked.

A template is a file as a prompt is, with messages of [user] and [assistant] (and [system]); its fields are keys of the
records. A record takes one of those whose fields it has, drawn by chance. The report does so with exams-qa, Conic10k,
GlobalVoices and Wikimedia, and filters by language identification and Blaser 2.0 (section 4.3.2). The former is here;
a score that was made elsewhere, as Blaser's, is read from the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.synth.multilingual import languages
from llama31.synth.multilingual.languages import LanguageMatch
from llama31.synth.pipeline import prompt_files
from llama31.synth.pipeline.draw import ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.prompt_files import PromptFile
from llama31.synth.pipeline.shard import DIALOGS, Records

OURS = prompt_files.OURS.parent / "dialog_templates"
NAMES = "names"  # a field of every template: names of the languages that `languages` of a record has by field


def read(folder: str | None) -> list[PromptFile]:
    """The templates of a folder, or ours. Raises ValueError (key `templates.folder`) for none, or without an answer."""
    root = Path(folder) if folder else OURS
    found = [prompt_files.read(path.relative_to(root).as_posix(), path) for path in sorted(root.rglob("*.txt"))]
    if not found:
        raise ValueError(f"templates.folder={root}: there is no .txt file in it; give a folder of templates")
    for one in found:
        if [role for role, _ in one.parts][-1] != "assistant":
            raise ValueError(f"templates.folder: {one.path} does not end with [assistant]; say there what is learned")
    return found


@dataclass(frozen=True)
class TemplateDialogs:
    """See the module. Records may say {"languages": {FIELD: CODE}}, and then these fields have to be in them."""

    settings: config.TemplatesSynthesis
    templates: Sequence[PromptFile]
    match: LanguageMatch
    name: str = "templates"
    prompts: Sequence[str] = ()

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """Dialogs of a record."""
        self._scored(item, draw)
        given = item.record.get("languages") or {}
        if not isinstance(given, Mapping) or not all(isinstance(code, str) for code in given.values()):
            raise ValueError(f'input: {item.place}: languages: give {{"FIELD": "de", ...}}, or leave it out')
        for field, code in given.items():
            if not self.match.is_in(str(item.record.get(field) or ""), {code}):
                draw.drop(f"{field} is not in {code}")
        said = {key: value for key, value in item.record.items() if not _blank(value)}
        said[NAMES] = {field: languages.name(code) for field, code in given.items()}
        fitting = [one for one in self.templates if one.fields <= said.keys() and self._named(one, said[NAMES])]
        if not fitting:
            draw.drop("no template for its fields")
        chosen = draw.random.sample(fitting, min(self.settings.each, len(fitting)))
        dialogs = [self._dialog(one, said, item.place) for one in chosen]
        if not all(message["content"] for dialog in dialogs for message in dialog["messages"]):
            draw.drop("an empty message")
        for one in chosen:
            draw.counts[f"template {one.name}"] += 1
        return {DIALOGS: dialogs}

    def _named(self, template: PromptFile, names: Mapping[str, str]) -> bool:
        """Whether a template that names languages has them."""
        return NAMES not in template.fields or bool(names)

    def _scored(self, item: SynthesisItem, draw: ItemDraw) -> None:
        key = self.settings.score_key
        if key is None:
            return
        score = item.record.get(key)
        if not isinstance(score, int | float) or isinstance(score, bool):
            raise ValueError(f"input: {item.place}: {key} is no number; give the name of one in templates.score_key")
        if score < self.settings.least_score:
            draw.drop("score too low")

    def _dialog(self, template: PromptFile, said: Mapping[str, Any], place: str) -> dict[str, Any]:
        try:
            messages = template.messages({field: said[field] for field in template.fields})
        except prompt_files.TemplateError as error:
            raise ValueError(f"input: {place}: {template.name} cannot be filled: {error}") from error
        return {"messages": messages, "provenance": {"template": {template.name: template.fingerprint}}}


def _blank(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())
