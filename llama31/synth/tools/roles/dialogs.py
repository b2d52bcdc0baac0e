"""Function calling over several turns by agents in roles (report, section 4.3.5).

domain -> subdomains -> for each: functions, defined by a designer -> turns: a user asks, an assistant calls or replies,
an API returns -> a judge sees the whole. A call has to keep to its definition, a result to its schema; the same call
returns the same. Where a message has a fault that a program finds, the assistant mends it, and a call that broke its
definition is the worse one of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama31 import config
from llama31.synth import grounding
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, Dropped, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, PREFERENCES, Records
from llama31.synth.tools import definitions
from llama31.synth.tools.function_calls import FunctionCall
from llama31.synth.tools.roles import apis, domains, messages, talk
from llama31.synth.tools.roles.messages import AssistantMessage
from llama31.synth.tools.roles.talk import MISSING, NESTED, NONE, PARALLEL, SIMPLE, FunctionTalk

SUBDOMAINS, DESIGNER, USER, ASSISTANT, REPAIR, API, JUDGED = (
    f"function_dialogs/{name}" for name in ("subdomains", "designer", "user", "assistant", "repair", "api", "judge")
)
KINDS = (SIMPLE, PARALLEL, NESTED, MISSING, NONE)
LEAST = {SIMPLE: 1, PARALLEL: 2, NESTED: 2, MISSING: 1, NONE: 0}  # calls of a turn
ANSWER = "answer"  # of a user to what the assistant has asked
CALL, ASK, REPLY, EITHER = "call", "ask", "reply", "either"  # what is due
BROKEN = "a call that breaks its definition"
MANNERS = (
    "brief, in half sentences", "polite and complete", "in a hurry", "chatty, with a detail that does not matter",
    "matter-of-fact, as to a colleague", "unsure of the right words", "informal, without capitals",
    "careful, with exact values",
)  # fmt: skip


@dataclass(frozen=True)
class FunctionDialogs:
    """See the module."""

    settings: config.FunctionDialogsSynthesis
    name: str = "function_dialogs"
    prompts: Sequence[str] = (SUBDOMAINS, DESIGNER, USER, ASSISTANT, REPAIR, API, JUDGED)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """Dialogs of a domain, and pairs of their messages; those that fail are counted. Dropped where all do."""
        domain, why = item.text.strip(), ""
        if not domain or len(domain) > domains.LONGEST:
            draw.drop("empty" if not domain else f"domain of more than {domains.LONGEST} characters")
        if "near" in item.beside:
            draw.drop("a domain near to one before it")
        made: list[dict[str, Any]] = []
        pairs: list[dict[str, Any]] = []
        taken: set[str] = set()
        for subdomain in self._subdomains(item, draw, domain):
            for _ in range(self.settings.dialogs):
                try:
                    told = self._dialog(draw, domain, subdomain, taken)
                except Dropped as error:
                    why = str(error)
                    draw.counts[f"dialogs dropped: {why}"] += 1
                    continue
                about = {"domain": domain, "subdomain": subdomain}
                returns = {one.name: dict(one.returns) for one in told.functions}
                made.append(
                    {"messages": told.messages, "tools": told.tools, **about, "turns": told.kinds, "returns": returns}
                )
                pairs += [{**pair, **about} for pair in told.preferences]
        if not made:
            draw.drop(why)
        return {DIALOGS: made, PREFERENCES: pairs}

    def _subdomains(self, item: SynthesisItem, draw: ItemDraw, domain: str) -> list[str]:
        """Subdomains, no two alike and none like another domain."""
        others = [name for name in item.beside.get("others", ()) if name != domain]
        count = self.settings.subdomains
        listed = draw.read(SUBDOMAINS, domains.listed, domain=domain, count=count)
        found = domains.distinct(listed, others)
        draw.counts["subdomains near to others"] += len(listed) - len(found)
        if not found:
            draw.drop("no subdomain that is not near to others")
        return found[:count]

    def _dialog(self, draw: ItemDraw, domain: str, subdomain: str, taken: set[str]) -> FunctionTalk:
        """A whole dialog that a judge finds right. `taken`: names of functions of the dialogs before; gets its own."""
        keys = self.settings
        about: dict[str, Any] = {"domain": domain, "subdomain": subdomain}

        def functions(answer: str) -> list[apis.ApiFunction]:
            return apis.read(answer, keys.least_functions, keys.functions, taken)

        told = FunctionTalk(draw.read(
            DESIGNER, functions, **about, least=keys.least_functions, most=keys.functions, taken=sorted(taken),
        ))  # fmt: skip
        taken |= {one.name for one in told.functions}
        manner = draw.random.choice(MANNERS)
        kinds = [draw.random.choice(KINDS) for _ in range(draw.random.randint(keys.least_turns, keys.most_turns))]
        if {*kinds} == {NONE}:
            kinds[0] = SIMPLE
        for kind in kinds:
            self._turn(draw, told, kind, manner, about)
        listed = "\n".join(one.told() for one in told.functions)
        fields: dict[str, Any] = {"functions": listed, "transcript": told.whole()}
        if draw.read(JUDGED, parsing.choice(("yes", "no")), model=JUDGE, temperature=0, **fields) == "no":
            draw.drop("dialog judged wrong")
        for kind in told.kinds:
            draw.counts[f"turns: {kind}"] += 1
        return told

    def _turn(self, draw: ItemDraw, told: FunctionTalk, kind: str, manner: str, about: dict[str, Any]) -> None:
        """A user's message, and what follows on it until the reply."""
        self._ask(draw, told, kind, manner, about)
        if kind == MISSING:
            told.said(self._message(draw, told, ASK, []))
            self._ask(draw, told, ANSWER, manner, about)
        made: list[tuple[FunctionCall, str]] = []
        most = self.settings.most_calls if LEAST[kind] else 0
        while True:
            due = CALL if len(made) < LEAST[kind] else REPLY if len(made) >= most else EITHER
            message = self._message(draw, told, due, [call for call, _ in made], figures=kind != NONE)
            told.said(message)
            if message.call is None:
                break
            result = self._returned(draw, told, message.call)
            told.returned(message.call, result)
            made.append((message.call, result))
        said = " ".join(one["content"] for one in told.messages if one["role"] == "user")
        told.kinds.append(MISSING if kind == MISSING else talk.shape(made, said))

    def _ask(self, draw: ItemDraw, told: FunctionTalk, kind: str, manner: str, about: dict[str, Any]) -> None:
        """What the user says, who knows no functions."""

        def read(answer: str) -> str:
            text = parsing.said(answer)
            if any("_" in one.name and one.name in text for one in told.functions):
                raise ValueError("a user who names functions")
            return text

        purposes = "\n".join(one.purpose() for one in told.functions)
        fields: dict[str, Any] = {"purposes": purposes, "transcript": told.seen_by_user(), "kind": kind}
        told.user(draw.read(USER, read, manner=manner, **about, **fields))

    def _message(
        self, draw: ItemDraw, told: FunctionTalk, due: str, made: Sequence[FunctionCall], figures: bool = True
    ) -> AssistantMessage:
        """What the assistant writes next, mended where a program finds a fault; a broken call is kept as worse."""
        fields: dict[str, Any] = {"functions": "\n".join(one.told() for one in told.functions), "due": due}
        fields["transcript"] = told.whole()
        broken, message = None, draw.read(ASSISTANT, messages.read, **fields)
        for attempt in range(self.settings.repairs + 1):
            fault, why = self._fault(told, due, made, message, figures)
            if fault is None:
                break
            draw.counts[f"messages: {fault}"] += 1
            broken = broken or (message if fault == BROKEN else None)
            if attempt == self.settings.repairs:
                draw.drop(f"nothing but {fault}")
            message = draw.read(REPAIR, messages.read, message=message.written(), fault=why, **fields)
        if broken:
            told.prefer(message, broken)
        return message

    def _fault(
        self, told: FunctionTalk, due: str, made: Sequence[FunctionCall], message: AssistantMessage, figures: bool
    ) -> tuple[str | None, str]:
        """What is wrong with a message, if anything, and the same for who mends it."""
        if (call := message.call) is not None:
            wrong = definitions.problems(call.name, call.arguments, [one.definition for one in told.functions])
            if wrong:
                return BROKEN, "; ".join(wrong)
            if due in (ASK, REPLY):
                return "a call that is not needed", "No call is needed now: write a reply."
            if any(talk.key(call) == talk.key(one) for one in made):
                return "a call that was made before", "The same call was made before: its result stands above."
            return None, ""
        if due == CALL:
            return "a reply before the calls that it needs", "A call is needed before the reply."
        if due == ASK and "?" not in message.reply:
            return "no question for what is missing", "The user left out a value that is needed: ask for it."
        sources = [*told.sources(), *(one.told() for one in told.functions)]
        if figures and due != ASK and (strange := grounding.unsupported(message.reply, sources)):
            return "a reply with a figure that nothing says", f"Neither users nor results say {', '.join(strange)}."
        return None, ""

    def _returned(self, draw: ItemDraw, told: FunctionTalk, call: FunctionCall) -> str:
        """What the API returns: to a call that it remembers the same; else what fits schema and earlier results."""
        if (known := told.memory.get(talk.key(call))) is not None:
            draw.counts["calls answered from memory"] += 1
            return known
        function = next(one for one in told.functions if one.name == call.name)
        draw.counts["calls"] += 1
        return draw.read(
            API, lambda answer: apis.response(answer, function.returns), function=function.told(returns=True),
            transcript=told.calls_so_far(),
        )  # fmt: skip
