"""Training of an encoder on labels (the report: DistilRoBERTa on the verdicts of Llama 2), judged on what it never saw.

Of the texts a share is held out, by their hash. One half of it calibrates: it makes probabilities of the network's
outputs. The other judges: its figures and the reliability diagram stand in the folder.

    <folder>/          the network and its tokenizer, as Hugging Face's transformers load them
    <folder>/scorer.json       classes, calibration, figures, settings, counts
    <folder>/reliability.png   of what judged, before and after calibration
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31.curate.scoring import calibration, encoder
from llama31.curate.scoring.kinds import SCORER
from llama31.curate.scoring.labels import Labelled
from llama31.curate.scoring.quality import held_out
from llama31.runs import files

BUCKET = 32  # batches whose texts are sorted by length together


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder is trained. Where not said otherwise, as RoBERTa is finetuned (Liu et al. 2019, appendix C).

    Args:
        epochs: passes over the texts; ours, for labels of a model are many and noisy.
        learning_rate, batch_size, warmup, weight_decay: peak, reached after the share `warmup` of the steps, then
            linearly to 0.
        max_tokens: longest text; the rest of it is not read.
        share: of the texts that is held out; half calibrates, half judges. Ours.
        clip: longest gradient; ours.
        seed: of the network's new layers, of the order and of what is held out.
        threads: torch's on a CPU; with as many and the same seed two trainings give the same bits.
        device: "" for the GPU where there is one.
    """

    epochs: int = 3
    learning_rate: float = 3e-5
    batch_size: int = 32
    warmup: float = 0.06
    weight_decay: float = 0.1
    max_tokens: int = encoder.MAX_TOKENS
    share: float = 0.1
    clip: float = 1.0
    seed: int = 0
    threads: int = 1
    device: str = ""


def train(
    examples: Sequence[Labelled],
    folder: str | Path,
    base: str | Path,
    classes: Sequence[str] = (),
    target: Callable[[str], float] | None = None,
    settings: EncoderSettings | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **also: Any,
) -> dict[str, Any]:
    """Train on labels, write the folder, and return what its scorer.json says.

    Args:
        examples: texts and labels, in any order: they are sorted by their document.
        folder: to be made; one that is there is refused.
        base: folder of an encoder that is taken on; without weights in it the network begins from its config.json.
        classes: labels, each an output of the network, for a model that tells them apart.
        target: label -> 0 to 1, for a model with one output; instead of `classes`.
        progress: is told (done, all) steps.
        also: goes into scorer.json, as the criteria.

    Raises ValueError for labels that are no class, where too few texts are left to train on or to judge by, and where
    there are good ones or bad ones alone.
    """
    chosen, folder = settings or EncoderSettings(), Path(folder)
    if bool(classes) == (target is not None):
        raise ValueError("classes, target: give one of them, names of classes or what a label is worth")
    if folder.exists():
        raise ValueError(f"folder={folder}: it is there already; take it away, or give another")
    parts = split(examples, chosen)
    wanted = {name: _targets(part, classes, target) for name, part in parts.items()}
    _tell_apart(wanted, bool(classes), chosen.share)
    trainer = _Trainer(Path(base), max(1, len(classes)), chosen)
    if classes:
        trainer.network.config.id2label = dict(enumerate(classes))
        trainer.network.config.label2id = {name: place for place, name in enumerate(classes)}
    losses = trainer.fit([one.text for one in parts["train"]], wanted["train"], progress)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    trainer.save(draft)
    counts = {name: dict(sorted(Counter(one.label for one in part).items())) for name, part in parts.items()}
    described = {"classes": list(classes), "settings": asdict(chosen), "counts": counts, "losses": losses, **also}
    described |= _calibrated(draft, {name: (part, wanted[name]) for name, part in parts.items()}, chosen)
    files.write_whole(draft / SCORER, json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    draft.rename(folder)
    return described


def split(examples: Sequence[Labelled], settings: EncoderSettings) -> dict[str, list[Labelled]]:
    """Examples to train on, to calibrate and to judge by, sorted by document, each text in one of them.

    Raises ValueError where one of them is empty.
    """
    parts: dict[str, list[Labelled]] = {"train": [], "calibrate": [], "judge": []}
    for one in sorted(examples, key=lambda one: one.document):
        held = held_out(one.text, settings.share, settings.seed)
        parts["train" if not held else ("calibrate", "judge")[held_out(one.text, 0.5, settings.seed + 1)]].append(one)
    if empty := [name for name, part in parts.items() if not part]:
        raise ValueError(
            f"labels={len(examples)}: none is left to {empty[0]}; give more, or another share={settings.share}"
        )
    return parts


def _targets(
    part: Sequence[Labelled], classes: Sequence[str], target: Callable[[str], float] | None
) -> NDArray[np.float64]:
    if target is not None:
        return np.array([target(one.label) for one in part], np.float64)
    if unknown := {one.label for one in part} - {*classes}:
        raise ValueError(f"classes={', '.join(classes)}: there are labels beside them, {', '.join(sorted(unknown))}")
    return np.array([classes.index(one.label) for one in part], np.float64)


def _tell_apart(wanted: Mapping[str, NDArray[np.float64]], classes: bool, share: float) -> None:
    """ValueError where there is nothing to learn: texts of one class alone, or good or bad ones alone in a part."""
    for name in ("train",) if classes else wanted:
        values = wanted[name] if classes else wanted[name] >= 0.5
        if (values == values[0]).all():
            kind = "of one class" if classes else "good" if values[0] else "bad"
            doing = {"train": "train on", "calibrate": "calibrate by", "judge": "judge by"}[name]
            raise ValueError(
                f"labels={sum(map(len, wanted.values()))}: all {len(values)} to {doing} are {kind}; label other "
                f"documents as well, or give another share={share}"
            )


def _calibrated(
    folder: Path, parts: Mapping[str, tuple[Sequence[Labelled], NDArray[np.float64]]], settings: EncoderSettings
) -> dict[str, Any]:
    """Scale or temperature by one part of what was held out, figures by the other, and the picture."""
    model = encoder.Encoder(folder, settings.max_tokens, threads=settings.threads, device=settings.device)
    logits = {name: model.logits([one.text for one in part]) for name, (part, _) in parts.items() if name != "train"}
    known, judged = parts["calibrate"][1], parts["judge"][1]
    if logits["judge"].shape[1] == 1:
        slope, intercept = calibration.scale(logits["calibrate"][:, 0], known)
        raw = calibration.sigmoid(logits["judge"][:, 0])
        scores, good, result = calibration.sigmoid(slope * logits["judge"][:, 0] + intercept), judged, {}
        result = {"scale": [slope, intercept]}
    else:  # of the likeliest class: how sure, and whether it is the one
        temperature = calibration.temperature(logits["calibrate"], known.astype(int))
        raw, scores = (encoder.softmax(logits["judge"] / one).max(-1) for one in (1.0, temperature))
        good = (logits["judge"].argmax(-1) == judged).astype(float)
        result = {"temperature": temperature}  # type: ignore[dict-item]
    by_name = {"as it comes": calibration.figures(raw, good), "calibrated": calibration.figures(scores, good)}
    calibration.reliability(folder / "reliability.png", folder.name.strip(".").removesuffix(".draft"), by_name)
    accuracy = float(good.mean()) if logits["judge"].shape[1] > 1 else by_name["calibrated"]["accuracy"]
    return {**result, "held_out": by_name["calibrated"], "uncalibrated": by_name["as it comes"], "accuracy": accuracy}


class _Trainer:
    """A network, its tokenizer and its loop: AdamW, a learning rate that rises and falls, batches of like length."""

    def __init__(self, base: Path, outputs: int, settings: EncoderSettings) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        if not (base / "config.json").is_file():
            raise ValueError(f"base={base}: no config.json there; give a folder with an encoder of Hugging Face's")
        self.torch, self.settings = torch, settings
        self.device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cpu":
            torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        if any(base.glob("*.safetensors")) or any(base.glob("pytorch_model*.bin")):
            network, absent = encoder.loaded(
                AutoModelForSequenceClassification, base, num_labels=outputs, ignore_mismatched_sizes=True
            )
            _is_pretrained(base, absent, network.base_model_prefix)
        else:
            described = AutoConfig.from_pretrained(base, num_labels=outputs, local_files_only=True)
            network = AutoModelForSequenceClassification.from_config(described)
        self.network = network.float().to(self.device)
        self.max_tokens = min(settings.max_tokens, encoder.positions(network.config))

    def fit(
        self, texts: Sequence[str], targets: NDArray[np.float64], progress: Callable[[int, int], None]
    ) -> list[float]:
        """Train; returns the mean loss of each epoch."""
        torch, chosen = self.torch, self.settings
        ids = self.tokenizer(
            [encoder.prepared(text, self.max_tokens) for text in texts], truncation=True, max_length=self.max_tokens
        )["input_ids"]
        steps = chosen.epochs * math.ceil(len(texts) / chosen.batch_size)
        optimizer = self._optimizer()
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate(step, steps))
        losses: list[float] = []
        done = 0
        self.network.train()
        for epoch in range(chosen.epochs):
            total = 0.0
            for batch in order([len(one) for one in ids], chosen.batch_size, chosen.seed + epoch):
                loss = self._loss([ids[place] for place in batch], targets[batch])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), chosen.clip)
                optimizer.step()
                rate.step()
                optimizer.zero_grad(set_to_none=True)
                total += float(loss.detach()) * len(batch)
                done += 1
                progress(done, steps)
            losses.append(total / len(ids))
        return losses

    def save(self, folder: Path) -> None:
        """Write network and tokenizer."""
        self.network.eval().cpu().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _rate(self, step: int, steps: int) -> float:
        warmup = max(1, round(self.settings.warmup * steps))
        return (step + 1) / warmup if step < warmup else max(0.0, (steps - step) / max(1, steps - warmup))

    def _optimizer(self) -> Any:
        matrices = [one for one in self.network.parameters() if one.ndim > 1]
        others = [one for one in self.network.parameters() if one.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0},
        ]
        return self.torch.optim.AdamW(groups, lr=self.settings.learning_rate, betas=(0.9, 0.98), eps=1e-6)

    def _loss(self, ids: Sequence[list[int]], targets: NDArray[np.float64]) -> Any:
        torch = self.torch
        padded = self.tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(self.device)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
            logits = self.network(**padded).logits
        wanted = torch.as_tensor(targets, device=self.device)
        if logits.shape[1] == 1:
            return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0].float(), wanted.float())
        return torch.nn.functional.cross_entropy(logits.float(), wanted.long())


def _is_pretrained(base: Path, absent: Sequence[str], prefix: str) -> None:
    """Whether the encoder's own weights are there, but for a pooler's: a new classifier stands on nothing else."""
    if own := [name for name in absent if name.startswith(f"{prefix}.") and ".pooler." not in name]:
        raise ValueError(
            f"base={base}: {len(own)} weights of the encoder are not in it, {own[0]} the first; give a whole model, or "
            "one of a config.json alone to begin from nothing"
        )


def order(lengths: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of an epoch: shuffled texts, sorted by length within 32 batches, and these batches shuffled again."""
    chance, places = random.Random(seed), [*range(len(lengths))]
    chance.shuffle(places)
    for begin in range(0, len(places), BUCKET * batch_size):
        bucket = sorted(places[begin : begin + BUCKET * batch_size], key=lambda place: lengths[place])
        cut = [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        chance.shuffle(cut)
        yield from cut
