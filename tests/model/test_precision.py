"""Number formats that this machine cannot compute in are refused with the reason."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
def test_fp8_needs_hardware(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from llama31 import config
    from llama31.model import precision

    chosen = config.Precision(fp8=recipe)
    with pytest.raises(
        ValueError, match=f"precision.fp8={recipe}: there is no GPU here.*precision=bf16.*fp8_emulate=true"
    ):
        precision.check(chosen, torch.device("cpu"))
    for params in ("fp32", "bf16"):  # what the remedy names works
        precision.check(config.Precision(params, recipe, fp8_emulate=True), torch.device("cpu"))
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"compute capability .*this GPU has \(8, 0\)"):
        precision.check(chosen, gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    with pytest.raises(ValueError, match="requirements-gpu.txt"):
        precision.check(chosen, gpu)
    monkeypatch.setattr(precision, "have_transformer_engine", lambda: True)
    precision.check(chosen, gpu)
    with pytest.raises(ValueError, match="precision.params=bf16, not fp32"):
        precision.check(config.Precision(params="fp32", fp8=recipe), gpu)


def test_megatron_is_told_of_fp8_that_a_gpu_computes_alone() -> None:
    """E5M2 for gradients where a tensor has one scale; no weights kept where ZeRO-3 keeps none."""
    from llama31 import config
    from llama31.model import precision

    for recipe, form in {"delayed": "hybrid", "tensorwise": "hybrid", "blockwise": "e4m3", "mxfp8": "e4m3"}.items():
        fields = precision.transformer_config(config.Precision(fp8=recipe))
        assert (fields["fp8"], fields["fp8_recipe"]) == (form, recipe)
        assert not fields["disable_parameter_transpose_cache"]
        assert precision.transformer_config(config.Precision(fp8=recipe), zero=3)["disable_parameter_transpose_cache"]
        assert "fp8" not in precision.transformer_config(config.Precision(fp8=recipe, fp8_emulate=True))


def test_bf16_and_fp32_go_anywhere() -> None:
    import torch

    from llama31 import config
    from llama31.model import precision

    for params, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        chosen = config.Precision(params=params)
        precision.check(chosen, torch.device("cpu"))
        assert precision.dtype(chosen) == dtype
        assert precision.transformer_config(chosen)["params_dtype"] == dtype


@pytest.mark.parametrize(("ratio", "warned"), [(25.4, True), (1.1, False), (0.4, False)])
def test_slow_bf16_is_told_once(
    ratio: float, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from llama31 import config
    from llama31.model import precision

    monkeypatch.setattr(precision, "bf16_ratio", lambda: ratio)
    precision._tell_slow_bf16.cache_clear()
    for _ in range(2):
        precision.check(config.Precision(), torch.device("cpu"))
    said = "precision.params=bf16: on this CPU a product takes 25.4 times as long in BF16 as in FP32; precision=fp32 "
    assert capsys.readouterr().err.startswith(said) if warned else capsys.readouterr().err == ""
    for chosen, device in ((config.Precision(params="fp32"), "cpu"), (config.Precision(), "cuda")):
        precision._tell_slow_bf16.cache_clear()
        precision.check(chosen, torch.device(device))
        assert capsys.readouterr().err == ""
    precision._tell_slow_bf16.cache_clear()
    monkeypatch.setenv("RANK", "1")
    precision.check(config.Precision(), torch.device("cpu"))
    assert capsys.readouterr().err == ""


def test_bf16_is_measured_against_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of products alone: here each of BF16 takes three times as long."""
    import torch

    from llama31.model import precision

    assert precision.bf16_ratio() > 0
    took = {torch.bfloat16: 3e-3, torch.float32: 1e-3}
    monkeypatch.setattr(precision, "_product_s", lambda factor: took[factor.dtype])
    assert precision.bf16_ratio() == pytest.approx(3)


def test_recipes_are_megatrons() -> None:
    from megatron.core.enums import Fp8Recipe

    from llama31.model.precision import FP8_CAPABILITY

    assert set(FP8_CAPABILITY) <= {recipe.value for recipe in Fp8Recipe}


def test_deterministic_is_left_as_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from llama31.model import precision

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "of the caller")
    monkeypatch.delenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", raising=False)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(ZeroDivisionError), precision.deterministic(True):
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        assert {name: os.environ[name] for name in precision.DETERMINISTIC} == precision.DETERMINISTIC
        raise ZeroDivisionError
    with precision.deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == fill
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == "of the caller"
    assert "NVTE_ALLOW_NONDETERMINISTIC_ALGO" not in os.environ
