"""The obvious path is itself compared with transformers, so that parity with it means something."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llama31 import config
from tests import plain_trainer

pytestmark = pytest.mark.torch

MODEL = config.Model(
    name="t", layers=2, hidden_size=64, ffn_hidden_size=160, heads=4, kv_heads=2, vocab_size=320, rope_theta=500000.0
)


@dataclass
class Rows:
    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    documents: Tensor


def transformers_llama(model: config.Model) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    scaling = {
        "rope_type": "llama3",
        "rope_theta": model.rope_theta,
        "factor": model.rope_factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    torch.manual_seed(0)
    built = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_hidden_size,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            max_position_embeddings=131072,
            rms_norm_eps=model.norm_eps,
            rope_parameters=scaling if model.rope_factor else {"rope_type": "default", "rope_theta": model.rope_theta},
            tie_word_embeddings=model.tied_embeddings,
            attn_implementation="eager",
            initializer_range=0.1,  # large enough that a wrong head order or angle moves the logits
        )
    ).float()
    for name, parameter in built.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    return built


def named(hf: Any, model: config.Model) -> dict[str, Tensor]:
    """Weights of transformers under Megatron's global names, written out row by row."""
    hd, per_group = model.head_dim, model.heads // model.kv_heads
    weights = {
        "embedding.word_embeddings.weight": hf.model.embed_tokens.weight,
        "decoder.final_layernorm.weight": hf.model.norm.weight,
    }
    if not model.tied_embeddings:
        weights["output_layer.weight"] = hf.lm_head.weight
    for i, layer in enumerate(hf.model.layers):
        q, k, v = (getattr(layer.self_attn, f"{x}_proj").weight for x in "qkv")
        rows = [
            part
            for g in range(model.kv_heads)
            for part in (
                q[g * per_group * hd : (g + 1) * per_group * hd],
                k[g * hd : (g + 1) * hd],
                v[g * hd : (g + 1) * hd],
            )
        ]
        here = {
            "input_layernorm": layer.input_layernorm.weight,
            "self_attention.linear_qkv": torch.cat(rows),
            "self_attention.linear_proj": layer.self_attn.o_proj.weight,
            "pre_mlp_layernorm": layer.post_attention_layernorm.weight,
            "mlp.linear_fc1": torch.cat((layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight)),
            "mlp.linear_fc2": layer.mlp.down_proj.weight,
        }
        weights |= {f"decoder.layers.{i}.{name}.weight": weight for name, weight in here.items()}
    return {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.mark.parametrize(
    "change", [{}, {"tied_embeddings": True, "rope_factor": 32.0}, {"rope_factor": 0.0, "kv_heads": 4}]
)
def test_logits_equal_those_of_transformers(change: dict[str, Any]) -> None:
    model = replace(MODEL, **change)
    hf = transformers_llama(model)
    tokens = torch.randint(model.vocab_size, (2, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = hf(tokens).logits
        result = plain_trainer.logits(named(hf, model), model, tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_scaled_angles_matter_where_the_context_is_long() -> None:
    scaled, unscaled = (plain_trainer.rotary_angles(replace(MODEL, rope_factor=f), 2) for f in (8.0, 0.0))
    ratio = (scaled / unscaled)[1]
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / 8) and ((ratio < 1) & (ratio > 1 / 8)).any()


def test_documents_of_a_row_do_not_see_each_other() -> None:
    weights = named(transformers_llama(MODEL), MODEL)
    tokens = torch.randint(MODEL.vocab_size, (1, 40), generator=torch.Generator().manual_seed(2))
    documents = torch.tensor([[0] * 15 + [1] * 25])
    packed = plain_trainer.logits(weights, MODEL, tokens, documents)
    alone = torch.cat([plain_trainer.logits(weights, MODEL, part) for part in (tokens[:, :15], tokens[:, 15:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)  # rotary positions differ by a shift alone
    assert (packed - plain_trainer.logits(weights, MODEL, tokens))[:, 15:].abs().max() > 0.1


def test_a_step_is_clipped_masked_and_spares_vectors_from_decay() -> None:
    weights = named(transformers_llama(MODEL), MODEL)
    tokens = torch.randint(MODEL.vocab_size, (2, 33), generator=torch.Generator().manual_seed(3))
    rows = Rows(tokens[:, :-1], tokens[:, 1:], torch.ones(2, 32), torch.zeros(2, 32, dtype=torch.long))
    half = replace(rows, loss_mask=torch.tensor([[1.0], [0.0]]).expand(2, 32))
    first = plain_trainer.loss_of(weights, MODEL, half)
    only = Rows(*(x[:1] for x in (rows.tokens, rows.labels, rows.loss_mask, rows.documents)))
    assert first.item() == pytest.approx(plain_trainer.loss_of(weights, MODEL, only).item(), rel=1e-6)
    losses, norms = plain_trainer.train(weights, MODEL, [rows] * 6, [3e-3] * 6, config.Optimizer())
    assert losses[-1] < losses[0] - 0.3 and all(math.isfinite(x) and x > 0 for x in norms)
    # With no gradient at all, decay is the only thing that moves a weight, and it moves matrices alone.
    still = {name: weight.detach().clone() for name, weight in weights.items()}
    frozen = {name: weight.detach().clone() for name, weight in still.items()}
    nothing = replace(rows, loss_mask=torch.full((2, 32), 1e-30))
    plain_trainer.train(frozen, MODEL, [nothing], [0.1], config.Optimizer(weight_decay=0.5, eps=1e30, clip_norm=0))
    for name, weight in frozen.items():
        torch.testing.assert_close(weight.detach(), still[name] * (0.95 if weight.ndim >= 2 else 1.0))
