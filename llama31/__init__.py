"""Llama 3.1 training on Megatron-Core and DeepSpeed. Modules are imported by name; nothing is loaded here."""
