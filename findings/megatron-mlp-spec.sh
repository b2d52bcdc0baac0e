#!/bin/bash
# megatron-core 0.19.2, torch 2.14.1 (28 November 2026): in the layer specs of GPT the MLP is a functools.partial, where
# earlier releases had a ModuleSpec with `module` and `submodules`. Code written for those, `spec.submodules.mlp.module =
# Mine`, still runs, for a partial takes any attribute; the layer is built with Megatron's MLP, without a word.
# Expected: a layer with `Mine`, as with megatron-core 0.16.1, or an AttributeError.
# Remedy: replace the whole: `spec.submodules.mlp = functools.partial(Mine.as_mlp_submodule, submodules=...)`.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
"${PYTHON:-python3}" -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check megatron-core==0.19.2 torch==2.14.1
cd "$at"
RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=0 "$at/venv/bin/python" -W ignore - 2>"$at/errors" <<'P' || { cat "$at/errors" >&2; exit 1; }
import functools

import megatron.core
import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig, build_module
from megatron.core.transformer.mlp import MLP, MLPSubmodules


class Mine(MLP):
    pass


torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel()
config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2, use_cpu_initialization=True)
print("megatron-core", megatron.core.__version__, "torch", torch.__version__)


def built(spec):
    return type(build_module(spec, config=config, layer_number=1).mlp).__name__


assigned = get_gpt_layer_local_spec()
print("the MLP of the spec is a", type(assigned.submodules.mlp).__name__)
assigned.submodules.mlp.module = Mine
replaced = get_gpt_layer_local_spec()
parts = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
replaced.submodules.mlp = functools.partial(Mine.as_mlp_submodule, submodules=parts)
found = built(assigned), built(replaced)
print(f"mlp.module = Mine builds {found[0]}; mlp = partial(Mine.as_mlp_submodule, ...) builds {found[1]}")
assert found == ("MLP", "Mine"), "the behaviour has changed"
P
