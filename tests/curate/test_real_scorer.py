"""A real encoder, MiniLM: a chat model's labels, training on them, and a stage between raw pages and token files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llama31 import config
from llama31.command import entry, inputs
from llama31.curate.outcome import summary
from llama31.curate.running import folder, local, stages
from llama31.curate.scoring import calibration
from llama31.curate.scoring.encoder import Encoder
from recipes import classify
from tests import minilm
from tests.curate import debian, multilingual
from tests.curate.test_curate_models import Reader, part, selected
from tests.sampling.scripted import serving

pytestmark = [pytest.mark.torch, pytest.mark.slow]

TOKENS = 64


def done(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """What a command of `recipes.classify` prints, checks of keys and files included."""
    run = entry.read(config.Classify, "classify", list(words))[0]
    inputs.check(run)
    classify.main(run)
    out = capsys.readouterr().out  # before it stands what libraries say on their import
    said: dict[str, object] = json.loads(out[out.index("{\n") :])
    return said


def test_a_real_encoder_learns_labels_and_judges_raw_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The chat model holds pages on macros for code and no others; nobody tells the encoder by which rule."""
    base = minilm.folder()
    texts = {name: text for name, text in multilingual.english(220).items() if part(name)}
    sample = tmp_path / "sample.jsonl"
    sample.write_text("".join(json.dumps({"text": text, "id": name}) + "\n" for name, text in texts.items()))
    labels = ["task=label", "criteria=code", f"documents={sample}", f"output={tmp_path}/labels", "characters=300"]
    with serving(Reader(known={text[:200].strip(): part(name) for name, text in texts.items()})) as url:
        assert done(capsys, *labels, f"server.urls=[{url}]", "limit=20")["documents"] == 20
        assert done(capsys, *labels, f"server.urls=[{url}]")["documents"] == len(texts) > 60  # the same folder goes on
    keys = [f"labels={tmp_path}/labels", f"base={base}", f"output={tmp_path}/code", f"encoder.max_tokens={TOKENS}"]
    keys += ["encoder.learning_rate=3e-4", "encoder.batch_size=8", "encoder.share=0.3", "encoder.epochs=2"]
    described = done(capsys, "task=encoder", *keys)
    assert described["held_out"]["auc"] > 0.9 and (tmp_path / "code/reliability.png").is_file()  # type: ignore[index]
    with pytest.raises(ValueError, match=r"it has no weights for classifier\.bias, classifier\.weight"):
        Encoder(base)  # as it comes its scores would be drawn by lot
    assert Encoder(tmp_path / "code").max_tokens == TOKENS  # as it was trained

    (tmp_path / "html").mkdir()
    root = debian.folder("libreoffice-help-en-us") / "usr/share/libreoffice/help/en-US"
    for name in texts:
        shutil.copy2(root / name, tmp_path / "html" / name.replace("/", "_"))
    words = ["name=x", f"folder={tmp_path}/x", f"sources.help.input={tmp_path}/html", "sources.help.format=html"]
    words += [f"{name}.enabled=false" for name in ("repetition", "quality", "c4", "minhash", "lines", "personal")]
    words += [
        "tokenizer.kind=bpe",
        f"tokenizer.path={tmp_path}/bpe",
        "tokenizer.vocab_size=600",
        "tasks=2",
        "workers=1",
    ]
    words += [f"encoders.code.model={tmp_path}/code"]
    run = entry.read(config.Curate, "curate", words)[0]
    inputs.check(run)
    known = stages.stages(run, folder.opened(run).tasks)
    local.execute(run, known, known)
    scores = {name: told["quality_code"] for name, told in selected(tmp_path / "x", "score").items()}
    right = calibration.auc([*scores.values()], ["sbasic" in name for name in scores])
    assert len(scores) == len(texts) and right is not None and right > 0.95
    packed = summary.summary(tmp_path / "x", "x", known, 0)["packed"]
    counts = {name: sum(one[split]["documents"] for split in one) for name, one in packed.items()}
    code = sum(score >= 0.5 for score in scores.values())
    assert counts == {"code-en": code, "general-en": len(scores) - code} and (tmp_path / "x/tokens/code-en").is_dir()
