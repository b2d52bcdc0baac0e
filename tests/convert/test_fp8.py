"""FP8 folders: their layout, their size to the byte, what rounding may cost, the way back, a live model's rounding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llama31 import config
from llama31.command import inputs
from llama31.convert import average, checkpoints, fp8, hf, pretrained
from llama31.model import llama
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid
from llama31.plan import shapes
from tests.convert.test_convert import MODEL, read_hf, settings, weights_of, write_hf
from tests.model.test_model import FP32, ONE, logits_of

pytestmark = pytest.mark.torch

DEEP = replace(MODEL, layers=4)
MIDDLE = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in (1, 2) for part in ("gate", "up", "down")]
BIG = replace(DEEP, layers=126, hidden_size=16384, ffn_hidden_size=53248, heads=128, kv_heads=8, vocab_size=128256)


def exported(folder: Path, model: config.Model = DEEP) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of BF16 weights at folder/run and its export in FP8, and the weights."""
    weights = weights_of(model, torch.bfloat16)
    checkpoints.run(settings("from_hf", write_hf(folder / "plain", model, weights), folder / "run"))
    checkpoints.run(settings("to_hf", folder / "fp8", folder / "run", fp8=True, max_shard_bytes=10_000))
    return folder / "fp8", weights


def test_the_layout_is_that_of_metas_405b(tmp_path: Path) -> None:
    """Names, formats and shapes; every linear layer that stays BF16 is named whole, as vLLM looks for it."""
    folder, weights = exported(tmp_path)
    written = read_hf(folder)
    assert written.keys() == weights.keys() | {f"{name}_scale" for name in MIDDLE}
    for name, tensor in weights.items():
        if name not in MIDDLE:
            assert torch.equal(written[name], tensor), name
            continue
        scale = written[f"{name}_scale"]
        assert written[name].dtype == torch.float8_e4m3fn and written[name].shape == tensor.shape
        assert scale.dtype == torch.float32 and scale.shape == (tensor.shape[0], 1)
        assert torch.equal(scale[:, 0], tensor.float().abs().amax(1) / 448)
        error = (fp8.dequantise(written[name], scale) - tensor.float()).abs()
        assert (error <= tensor.float().abs() / 16 + scale / 512).all(), "half a step of 3 bits, or of the smallest"
    raw = json.loads((folder / "config.json").read_text())
    stated = raw.pop("quantization_config")
    assert raw == json.loads((tmp_path / "plain/config.json").read_text())
    assert (stated["quant_method"], stated["activation_scale_ub"]) == ("fbgemm_fp8", 1200.0)
    kept = {name.removesuffix(".weight") for name in weights if weights[name].ndim == 2} - {"model.embed_tokens"}
    assert set(stated["modules_to_not_convert"]) == kept - {name.removesuffix(".weight") for name in MIDDLE}


def test_the_size_is_known_to_the_byte(tmp_path: Path) -> None:
    """The report's 405B: 487.23 GB, as the release lists it."""
    model = replace(DEEP, tied_embeddings=True)
    assert sum(tensor.nbytes for tensor in read_hf(exported(tmp_path, model)[0]).values()) == shapes.fp8_bytes(model)
    stored = fp8.with_scales(checkpoints.hf_shapes(BIG), formats := fp8.number_formats(BIG))
    writer = hf.SafetensorsWriter(tmp_path, stored, torch.bfloat16, 5_000_000_000, formats)
    assert writer.total_bytes == shapes.fp8_bytes(BIG) == 487_229_259_776
    assert sum(torch.Size(stored[name]).numel() for name in fp8.quantised(BIG)) == 124 * 3 * 16384 * 53248


def quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (_, values), (_, scale) = fp8.quantise(weight, "w")
    return values, scale


def test_rows_that_are_hard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros, one outlier, the ends of BF16; rows are cut into blocks that do not come out even."""
    rows = torch.zeros(5, 8)
    rows[1] = torch.tensor([1e30, 1.0, 0, 0, 0, 0, 0, -1e30])
    rows[2] = 3.3e38
    rows[3] = 1e-30  # as good as zero
    rows[4] = torch.linspace(-1, 1, 8)
    values, scale = quantised(rows)
    back = fp8.dequantise(values, scale)
    assert back.isfinite().all() and (scale > 0).all() and back[0].abs().max() == back[3].abs().max() == 0
    assert back[1, 0] == -back[1, 7] == pytest.approx(1e30, rel=1e-6)
    assert back[2, 0] == pytest.approx(3.3e38, rel=1e-6) and back[4, 0] == -1
    monkeypatch.setattr(fp8, "BLOCK", 20)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(quantised(rows), (values, scale), strict=True))


@pytest.mark.parametrize("broken", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_refused_by_name(broken: float, tmp_path: Path) -> None:
    """torch's cast makes 448 of infinity, and of anything too large: a broken model would look whole."""
    assert torch.tensor([torch.inf, 1e9, -1e9]).to(torch.float8_e4m3fn).tolist() == [448, 448, -448]
    weights = weights_of(DEEP, torch.bfloat16)
    weights[MIDDLE[2]][7, 3] = broken
    checkpoints.run(settings("from_hf", write_hf(tmp_path / "plain", DEEP, weights), tmp_path / "run"))
    with pytest.raises(ValueError, match=r"layers.1.mlp.down_proj.weight: row 7 holds numbers that are not finite"):
        checkpoints.run(settings("to_hf", tmp_path / "fp8", tmp_path / "run", fp8=True))
    assert not (tmp_path / "fp8").exists()


def test_the_way_back_gives_the_weights_multiplied_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, weights = exported(tmp_path)
    written = read_hf(folder)
    report = checkpoints.run(settings("from_hf", folder, tmp_path / "again", dtype="fp32"))
    assert "6 weights are in FP8; multiplied out to FP32" in caplog.text and report.written_bytes
    checkpoints.run(settings("to_hf", tmp_path / "out", tmp_path / "again", dtype="fp32"))
    back = read_hf(tmp_path / "out")
    assert back.keys() == weights.keys()
    for name, tensor in back.items():
        expected = fp8.dequantise(written[name], written[f"{name}_scale"]) if name in MIDDLE else weights[name].float()
        assert torch.equal(tensor, expected), name
    raw = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in raw
    checkpoints.run(settings("to_hf", folder, tmp_path / "again", fp8=True, overwrite=True))
    for name, tensor in read_hf(folder).items():
        assert torch.allclose(tensor.float(), written[name].float(), rtol=1e-6, atol=0), name


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path)
    given = settings("to_meta", tmp_path / "x", tmp_path / "run", fp8=True, dtype="fp32")
    with pytest.raises(
        config.ConfigError, match=r"(?s)give direction=to_hf, or fp8=false.*give dtype=bf16, or fp8=fal"
    ):
        inputs.check(given)
    inputs.check(replace(given, direction="to_hf", dtype="bf16"))
    with pytest.raises(ValueError, match="first and the last layer stay BF16, and this model has 2"):
        exported(tmp_path / "shallow", MODEL)
    with pytest.raises(ValueError, match="its weights are in FP8; average the BF16 weights"):
        average.run(config.Average(inputs=[str(folder), str(tmp_path / "plain")], target=str(tmp_path / "mean")))


def test_folders_that_lack_what_fp8_needs_are_refused(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path)
    weights = {name: tensor for name, tensor in read_hf(folder).items() if name != f"{MIDDLE[0]}_scale"}
    for path in (*folder.glob("*.safetensors"), folder / hf.INDEX):
        path.unlink()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"gate_proj.weight is in FP8, but .*_scale with a number for each of its 48"):
        checkpoints.run(settings("from_hf", folder, tmp_path / "x"))
    raw = json.loads((folder / "config.json").read_text())
    hf.write_json(folder / "config.json", {key: raw[key] for key in raw if key != "quantization_config"})
    with pytest.raises(ValueError, match="is torch.float8_e4m3fn, and config.json has no quantization_config"):
        pretrained.find(str(folder))


# --- activations, and a live model ---


def test_activations_are_rounded_by_token_and_bounded() -> None:
    """Without the bound, one huge entry takes all others of its token to zero: what the report saw in dates."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 64)
    x[1, 2, 7] = 1e6
    bounded, free = fp8.rounded(x), fp8.rounded(x, torch.inf)
    assert bounded[1, 2, 7] == 1200 and free[1, 2, 7] == 1e6
    others = torch.arange(64) != 7
    assert (bounded[1, 2, others] != 0).float().mean() > 0.99 and (free[1, 2, others] != 0).float().mean() < 0.3
    assert torch.equal(bounded[0], free[0]) and (bounded[0] - x[0]).abs().max() <= x[0].abs().max() / 28
    for token in (bounded[0, 0], bounded[1, 2]):
        assert torch.allclose(fp8.rounded(token), token, rtol=1e-6, atol=0), "what is rounded stays"
    assert fp8.rounded(torch.zeros(2, 4)).eq(0).all() and fp8.rounded(torch.full((1, 4), torch.nan)).isnan().all()
    assert fp8.rounded(x.bfloat16()).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    yield mesh.create(ONE)
    mesh.close()


def test_a_live_model_computes_as_a_server_does(tmp_path: Path, grid: Grid) -> None:
    """Rounding in the middle layers' SwiGLU alone, before each of its two products, counted and compared."""
    folder, _ = exported(tmp_path)
    found = pretrained.find(str(folder))
    assert found.dtype == "bfloat16" and found.quantised is not None and found.quantised.bound == 1200
    chunks = llama.build(found.shape, FP32, ONE, grid)
    found.load(chunks, grid)
    layers = chunks[0].decoder.layers
    seen: list[tuple[int, torch.Tensor]] = []
    for number, layer in enumerate(layers):
        for part in (layer.mlp.linear_fc1, layer.mlp.linear_fc2):
            part.register_forward_pre_hook(lambda _, inputs, at=number: seen.append((at, inputs[0])))
    logits = logits_of(chunks[0], torch.arange(24).view(2, 12) % 80)
    assert [number for number, _ in seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    for number, x in seen:
        assert torch.allclose(fp8.rounded(x), x, rtol=1e-6, atol=0) == (number in (1, 2))
    checkpoints.run(settings("from_hf", folder, tmp_path / "back", dtype="fp32"))
    plain = pretrained.find(str(tmp_path / "back"))
    multiplied = llama.build(plain.shape, FP32, ONE, grid)
    plain.load(multiplied, grid)
    for mine, theirs in zip(chunks[0].parameters(), multiplied[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.allclose(logits, logits_of(multiplied[0], torch.arange(24).view(2, 12) % 80), atol=1e-4)
