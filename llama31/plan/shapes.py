"""What a Llama 3.1 of a given shape costs: parameters, FLOPs per token, bytes. Arithmetic alone, no torch.

Tested against the published totals; metrics (MFU) and planning share these functions, so that both mean the same.
"""

from __future__ import annotations

from llama31.config import Model

BYTES = {"bf16": 2, "fp32": 4}  # by `precision.params`
OPTIMIZER_BYTES = 12  # per parameter: FP32 master and two FP32 Adam moments


def attention_parameters(model: Model) -> int:
    """Weights of one layer's query, key, value and output projections."""
    queries = model.heads * model.head_dim
    keys = model.kv_heads * model.head_dim
    return model.hidden_size * (queries + 2 * keys) + queries * model.hidden_size


def mlp_parameters(model: Model) -> int:
    """Weights of one layer's SwiGLU: gate, up and down."""
    return 3 * model.hidden_size * model.ffn_hidden_size


def parameters_per_layer(model: Model) -> int:
    """Parameters of one transformer layer, its two norms included."""
    return attention_parameters(model) + mlp_parameters(model) + 2 * model.hidden_size


def non_embedding(model: Model) -> int:
    """Parameters of all layers and the final norm."""
    return model.layers * parameters_per_layer(model) + model.hidden_size


def embedding_parameters(model: Model) -> int:
    """Parameters of the embedding and of the output head; tied ones count once."""
    return model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)


def parameters(model: Model) -> int:
    """All parameters, each counted once: 8,030,261,248 for Llama 3.1 8B."""
    return non_embedding(model) + embedding_parameters(model)


def padded(vocabulary: int, tp: int) -> int:
    """Rows of embedding and head where `tp` ranks share them: where that does not come out even, a multiple of 8 each.

    The rows beyond the vocabulary are zeros. No id means them, the loss and sampling leave their logits out, and
    checkpoints and exports hold the vocabulary's rows alone, so that any layout reads what another one wrote.
    """
    return vocabulary if vocabulary % tp == 0 else -(-vocabulary // (8 * tp)) * 8 * tp


def matmul_parameters(model: Model) -> int:
    """Parameters that multiply every token: layers without norms, and the output head (tied or not)."""
    layer = attention_parameters(model) + mlp_parameters(model)
    return model.layers * layer + model.vocab_size * model.hidden_size


def flops_per_token(model: Model, sequence_length: int) -> float:
    """FLOPs that training on one token needs, forward and backward, in a row of `sequence_length` tokens.

    Convention: 6 per matmul parameter (2 forward, 4 backward; the embedding is a look-up and costs nothing), plus
    attention scores and values at 6 x layers x hidden x sequence: half of 12, since a causal row looks at half of
    its positions on average. Document masks and recomputation are not counted: this is the work of the model, not
    of the hardware, and MFU divides it by the peak.
    """
    attention = 6 * model.layers * model.heads * model.head_dim * sequence_length
    return float(6 * matmul_parameters(model) + attention)


def weight_bytes(model: Model, params: str = "bf16") -> int:
    """Bytes of the weights alone. `params` as in `precision.params`."""
    return parameters(model) * BYTES[params]


def fp8_layers(model: Model) -> range:
    """Layers whose SwiGLU an export in FP8 quantises: all but the first and the last (report, section 6.2)."""
    return range(1, model.layers - 1)


def fp8_bytes(model: Model) -> int:
    """Bytes of the weights exported in FP8, the scales of 4 bytes a row included: 487.23 GB of Llama 3.1 405B."""
    layers, scales = len(fp8_layers(model)), 2 * model.ffn_hidden_size + model.hidden_size
    return weight_bytes(model) - layers * mlp_parameters(model) + 4 * layers * scales


def checkpoint_bytes(model: Model, params: str = "bf16") -> int:
    """Bytes of a complete checkpoint: weights, FP32 masters and both Adam moments."""
    return weight_bytes(model, params) + parameters(model) * OPTIMIZER_BYTES
