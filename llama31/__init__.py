"""Llama 3.1 training on Megatron-Core and DeepSpeed. Modules are imported by name; nothing is loaded here."""

import warnings

# What libraries say about themselves on every start, and what nobody who runs a recipe can act on: Megatron that its
# optional kernels are absent (docs/verified.md), torch that it renamed two collectives.
for _message in ("Transformer Engine and Apex are not", "Apex is not", "full scope is deprecated"):
    warnings.filterwarnings("ignore", message=_message)
for _name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
    warnings.filterwarnings("ignore", message=f".torch.distributed.{_name}. is deprecated")
