"""The ids of bos, eos and pad in an export's config.json: what was imported, or what the tokenizer means."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.checkpoint import publish
from llama31.tokens import tokenizers
from llama31.tokens.template import stops

log = logging.getLogger(__name__)


def stated(content: dict[str, Any]) -> dict[str, Any]:
    """Those of a config.json, or of what a checkpoint keeps of one."""
    return {key: content[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in content}


def of_export(given: str | None, meta: publish.Meta, folder: Path) -> dict[str, Any]:
    """bos, eos and pad ids for config.json: those of the imported config, or else of the tokenizer.

    What ends an answer: every ending of a turn (`endings`), as in Meta's Instruct releases, unless the checkpoint says
    that its run read packed text: a base model has never seen a turn end, and gets <|end_of_text|> alone, as Meta's do.
    So a model whose past is not known stops as an aligned one has to.
    """
    imported = stated(meta.extra)
    if imported and not given:
        return imported
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"tokenizer={given}: no tokenizer.json in {folder}; give a folder that has one")
    loaded = tokenizers.load(config.Tokenizer(kind="huggingface", path=str(folder)))
    if loaded.vocab_size > meta.model["vocab_size"]:
        raise ValueError(
            f"tokenizer={folder} has {loaded.vocab_size} ids, the model {meta.model['vocab_size']}: "
            "give the tokenizer that the model was trained with"
        )
    if loaded.pad_id >= meta.model["vocab_size"]:
        log.warning(
            "%s: the pad token's id %d has no row in the model, as it had none in training; to pad batches with "
            "transformers, set tokenizer.pad_token to another one, for example the end of text",
            folder, loaded.pad_id,
        )  # fmt: skip
    ids = of_tokenizer(loaded, [loaded.eos_id] if "packing" in meta.extra else endings(loaded))
    apart = loaded.pad_id < meta.model["vocab_size"] and loaded.pad_id not in (loaded.eos_id, loaded.eot_id)
    if meta.model.get("head") == "reward" and apart:
        ids["pad_token_id"] = loaded.pad_id  # transformers scores the last token that is none of these
    return ids


def endings(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Ids that end an answer, as far as the tokenizer has them: of <|end_of_text|>, <|eom_id|>, <|eot_id|>, its own."""
    return list(dict.fromkeys(stops(tokenizer).values()))


def of_tokenizer(tokenizer: tokenizers.Tokenizer, ends: list[int]) -> dict[str, Any]:
    """Those of a tokenizer, `ends` being what ends an answer."""
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends if len(ends) > 1 else ends[0]}
