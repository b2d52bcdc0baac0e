"""A classifier of what users ask and assistants answer, in the manner of Llama Guard: its examples for SFT.

conversation -> a judge names the hazards of its last message -> a dialog: the policy and the conversation as the user's
message, `safe` or `unsafe` with the hazards' codes as the answer. Judged twice where the judge samples: what it does
not say twice is dropped. conf/guard.yaml trains on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama31 import config
from llama31.dialogs import columns
from llama31.synth.pipeline.draw import JUDGE, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, Records

# The 13 hazards of the taxonomy of MLCommons that Llama Guard 3 was trained on (report, section 5.4.7), and what its
# model card adds for assistants that run code.
HAZARDS: Mapping[str, str] = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex Crimes",
    "S4": "Child Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
}
CODE: Mapping[str, str] = {"S14": "Code Interpreter Abuse"}
SAFE, UNSAFE = "safe", "unsafe"
ROLES = {"user": "User", "assistant": "Agent"}


def read(answer: str, known: Mapping[str, str]) -> tuple[str, ...]:
    """Codes of the hazards that an answer names, in their order; none where it says safe.

    Raises ValueError for anything else than `safe`, or `unsafe` and codes, beside which their names may stand.
    """
    first = re.match(r"\W*(\w+)", answer)
    label, rest = (first[1].casefold(), answer[first.end() :]) if first else ("", answer)
    codes = set(re.findall(r"\bS\d+\b", rest))
    for name in sorted(known.values(), key=len, reverse=True):  # one name ends another
        rest = rest.replace(name, "")
    beside = re.search(r"\w", re.sub(r"\bS\d+\b", "", rest))
    if label not in (SAFE, UNSAFE) or beside or bool(codes) == (label == SAFE) or not codes <= known.keys():
        raise ValueError("neither safe nor unsafe with codes")
    return tuple(code for code in known if code in codes)


@dataclass(frozen=True)
class HazardGuard:
    """See the module. Records of the input: `messages`, or a text, which a user says, or a dialog in other columns."""

    settings: config.GuardSynthesis
    name: str = "guard"
    prompts: Sequence[str] = ("guard/label", "guard/classify")

    @property
    def hazards(self) -> Mapping[str, str]:
        """Codes and names."""
        return {**HAZARDS, **(CODE if self.settings.code_interpreter else {})}

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """The example of a conversation."""
        given = item.record if item.text.strip() else columns.dialog(item.record)  # text_key=prompt means that column
        messages = given.get("messages") or [{"role": "user", "content": item.text}]
        if not isinstance(messages, list) or not all(map(_is_text, messages)):
            draw.drop("messages that are no texts of roles")
        turns = [(ROLES.get(str(one.get("role"))), str(one.get("content") or "").strip()) for one in messages]
        if not turns[-1][0] or not turns[-1][1]:
            draw.drop("nothing to judge at the end")
        fields: dict[str, Any] = {
            "hazards": "\n".join(f"{code}: {name}." for code, name in self.hazards.items()),
            "conversation": "\n\n".join(f"{role}: {text}" for role, text in turns if role and text),
            "role": str(turns[-1][0]),
        }
        labels = [
            draw.read("guard/label", lambda answer: read(answer, self.hazards), model=JUDGE, **fields)
            for _ in range(self.settings.votes)
        ]
        if len(set(labels)) > 1:
            draw.drop("the judge does not agree with itself")
        draw.counts[UNSAFE if labels[0] else SAFE] += 1
        draw.counts.update(f"{code} {self.hazards[code]}" for code in labels[0])
        said = f"{UNSAFE}\n{','.join(labels[0])}" if labels[0] else SAFE
        asked: list[dict[str, Any]] = [*draw.messages("guard/classify", **fields)]
        return {DIALOGS: [{"messages": [*asked, {"role": "assistant", "content": said}]}]}


def _is_text(message: object) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("content") or "", str)
