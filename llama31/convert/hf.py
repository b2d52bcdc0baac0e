"""Hugging Face folders: config.json, safetensors written tensor by tensor, and what a tokenizer consists of.

config.json is written for three readers: transformers 4 and vLLM look for `rope_theta` and `rope_scaling`,
transformers 5 for `rope_parameters`. Other converters lost the RoPE scaling in silence; here both forms are written,
both are read, and whatever is not Llama 3.1's scaling is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Buffer, Mapping
from io import BufferedWriter
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open

from llama31 import config

Shape = tuple[int, ...]
ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FORMATS = {torch.bfloat16: ("BF16", "bfloat16"), torch.float32: ("F32", "float32")}  # safetensors', transformers' name
STORED = {dtype: name for dtype, (name, _) in FORMATS.items()} | {torch.float8_e4m3fn: "F8_E4M3"}
FBGEMM = "fbgemm_fp8"  # the one form of quantised weights that is written and read (`fp8`)
ARCHITECTURES = {"tokens": "LlamaForCausalLM", "reward": "LlamaForSequenceClassification"}  # by `model.head`
VERSION = "4.43.0"  # the first transformers to know Llama 3.1; 4.57 warns of a wrong tokenizer where there is none
UNQUANTISED = (
    "take the BF16 weights that it was made from (transformers 5 also turns a folder into BF16: from_pretrained, then "
    "save_pretrained with save_original_format=False)"
)
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. ValueError names the file."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give a folder that holds a valid {path.name}") from error


def read_model(folder: Path) -> config.Model:
    """The shape in `folder`/config.json. One ValueError names every key that is not Llama 3.1's."""
    raw, problems = read_json(folder / "config.json"), []
    expected = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    heads = {name: head for head, name in ARCHITECTURES.items()}
    head = heads.get(" ".join(raw.get("architectures") or [ARCHITECTURES["tokens"]]))
    if head is None or raw.get("model_type") != "llama":
        problems.append(
            f"architectures={raw.get('architectures')}, model_type={raw.get('model_type')}: "
            f"only {' and '.join(heads)} fit"
        )
    if (method := _method(raw)) not in (None, FBGEMM):
        problems.append(f"quantization_config: {method} weights are not read; {UNQUANTISED}")
    for key, value in expected.items():
        if raw.get(key, value) != value:
            problems.append(f"{key}={raw[key]}: has to be {value}, this model has no such parts")
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    problems += [f"{key} is missing: take the weights' own config.json" for key in sizes if key not in raw]
    theta, factor, rope_problems = _read_rope(raw)
    if problems := problems + rope_problems:
        raise ValueError(f"{folder / 'config.json'}: " + "; ".join(problems))
    model = config.Model(
        name=folder.resolve().name,
        layers=raw["num_hidden_layers"],
        hidden_size=raw["hidden_size"],
        ffn_hidden_size=raw["intermediate_size"],
        heads=raw["num_attention_heads"],
        kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        vocab_size=raw["vocab_size"],
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_positions=raw.get("max_position_embeddings", 131072),
        rope_theta=theta,
        rope_factor=factor,
        norm_eps=raw.get("rms_norm_eps", 1e-6),  # transformers' default where the key is missing
        init_std=raw.get("initializer_range", 0.02),
        head=head or "tokens",
    )
    if (head_dim := raw.get("head_dim") or model.head_dim) != model.head_dim:
        raise ValueError(f"{folder}/config.json: head_dim={head_dim}: has to be hidden_size / heads = {model.head_dim}")
    return model


def is_quantised(folder: Path) -> bool:
    """Whether config.json says that weights are quantised."""
    return _method(read_json(folder / "config.json")) is not None


def _method(raw: dict[str, Any]) -> Any:
    """How weights are quantised, by the name that libraries know it by; None where they are not."""
    given = raw.get("quantization_config")
    return (given.get("quant_method", given) if isinstance(given, dict) else given) or None


def _read_rope(raw: dict[str, Any]) -> tuple[float, float, list[str]]:
    """(theta, factor or 0, problems) of either form of config.json."""
    forms = {key: raw[key] for key in ("rope_parameters", "rope_scaling") if raw.get(key)}
    theta = float(forms.get("rope_parameters", {}).get("rope_theta", raw.get("rope_theta", 10000.0)))
    factors, problems = set(), []
    for key, form in forms.items():
        kind = form.get("rope_type", form.get("type", "default"))
        if kind == "default":
            factors.add(0.0)
        elif kind != "llama3":
            problems.append(f"{key}.rope_type={kind}: only default and llama3 are implemented")
        else:
            factors.add(float(form["factor"]))
            problems += [
                f"{key}.{name}={form.get(name)}: Llama 3.1 has {value:g}, and Megatron has it fixed"
                for name, value in ROPE.items()
                if form.get(name) != value
            ]
    if len(factors) > 1:
        problems.append(f"rope_scaling and rope_parameters disagree (factors {sorted(factors)}): remove the wrong one")
    return theta, max(factors, default=0.0), problems


def config_json(model: config.Model, dtype: torch.dtype, tokens: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json; `tokens` holds bos_token_id, eos_token_id and perhaps pad_token_id."""
    scaling = {"rope_type": "llama3", "factor": model.rope_factor, **ROPE} if model.rope_factor else None
    name = FORMATS[dtype][1]
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}  # how transformers says num_labels=1
    return {
        "architectures": [ARCHITECTURES[model.head]],
        "model_type": "llama",
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_embeddings,
        "max_position_embeddings": model.max_positions,
        "rms_norm_eps": model.norm_eps,
        "initializer_range": model.init_std,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "use_cache": True,
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": model.rope_theta, **(scaling or {"rope_type": "default"})},
        "dtype": name,
        "torch_dtype": name,
        "transformers_version": VERSION,
        **(labels if model.head == "reward" else {}),
        **tokens,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files that are in `source`; returns their names.

    A tokenizer_config.json of transformers 5 is written so that transformers 4, and vLLM on it, read it too.
    """
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)
    if "tokenizer_config.json" in names:
        settings = read_json(target / "tokenizer_config.json")
        if (readable := _for_transformers_4(settings)) != settings:
            write_json(target / "tokenizer_config.json", readable)
    return names


def _for_transformers_4(settings: dict[str, Any]) -> dict[str, Any]:
    """Version 4 knows no class TokenizersBackend, and takes extra_special_tokens for a table; 5 reads both forms."""
    readable = dict(settings)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        readable["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        readable["additional_special_tokens"] = readable.pop("extra_special_tokens")
    return readable


def tokenizer_identity(path: Path) -> str:
    """What of a tokenizer.json decides which ids a text gets, to be compared; empty where there is no file.

    Left out are padding and truncation, which a tokenizer keeps from its last use; the two spellings of merges, and
    settings that are off or not there, are one.
    """
    if not path.is_file():
        return ""
    settings = {key: value for key, value in read_json(path).items() if key not in ("padding", "truncation", "version")}
    model = {key: value for key, value in (settings.get("model") or {}).items() if value not in (None, False)}
    if "merges" in model:
        model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return json.dumps(settings | {"model": model}, sort_keys=True)


class WeightSource(Protocol):
    """Weights under Hugging Face's names and in its layout."""

    def shapes(self) -> dict[str, Shape]: ...

    def read(self, name: str) -> torch.Tensor: ...


class SafetensorsFolder:
    """The tensors of a Hugging Face folder, by name. Reading maps the file: it takes no memory of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        if (folder / INDEX).is_file():
            files = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        elif (folder / "model.safetensors").is_file():
            files = ["model.safetensors"]
        else:
            raise ValueError(
                f"{folder}: neither {INDEX} nor model.safetensors; "
                "give a Hugging Face folder with safetensors (transformers' save_pretrained writes them)"
            )
        self._where: dict[str, Any] = {}
        for name in files:
            try:
                file = safe_open(folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{folder / name} is missing or damaged ({error}): fetch it again") from error
            self._where.update(dict.fromkeys(file.keys(), file))

    def shapes(self) -> dict[str, Shape]:
        """Name -> shape."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._where.items()}

    def read(self, name: str) -> torch.Tensor:
        """One tensor; read-only."""
        return self._where[name].get_tensor(name)

    def dtype(self, name: str) -> torch.dtype:
        """Number format of a tensor."""
        return self.read(name).dtype


def dtype_of(folder: Path, source: WeightSource) -> str:
    """The number format of a folder as transformers takes it: what config.json says, else that of its first tensor."""
    raw = read_json(folder / "config.json")
    first = min(source.shapes(), default="")
    return str(raw.get("dtype") or raw.get("torch_dtype") or source.read(first).dtype).removeprefix("torch.")


class SafetensorsWriter:
    """Writes tensors in the order of `shapes` into files of at most `max_bytes` each, holding none of them.

    Their number format is `dtype`, or what `others` says of them by name.
    """

    def __init__(
        self,
        folder: Path,
        shapes: dict[str, Shape],
        dtype: torch.dtype,
        max_bytes: int,
        others: Mapping[str, torch.dtype] = {},
    ):
        self._folder, self._shapes = folder, shapes
        self._dtypes = {name: others.get(name, dtype) for name in shapes}
        self._sizes = {name: torch.Size(shape).numel() * self._dtypes[name].itemsize for name, shape in shapes.items()}
        groups: list[list[str]] = [[]]
        for name, size in self._sizes.items():
            if groups[-1] and sum(self._sizes[other] for other in groups[-1]) + size > max_bytes:
                groups.append([])
            groups[-1].append(name)
        self._files = {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups)}
        self._first = {group[0]: file for file, group in self._files.items()}
        self._expected = iter(shapes)
        self._open: BufferedWriter | None = None

    @property
    def total_bytes(self) -> int:
        return sum(self._sizes.values())

    def bytes_of(self, name: str) -> int:
        """Bytes of a tensor in its file."""
        return self._sizes[name]

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append `tensor`, converted to its number format; names come in the order given at the start."""
        assert name == next(self._expected) and tuple(tensor.shape) == self._shapes[name], (name, tensor.shape)
        if name in self._first:
            self._begin(self._first[name])
        assert self._open is not None
        data = tensor.to(self._dtypes[name]).contiguous().view(-1).view(torch.uint8)
        self._open.write(cast(Buffer, data.numpy()))

    def _begin(self, file: str) -> None:
        self.close()
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in self._files[file]:
            start, end = end, end + self._sizes[name]
            shape, dtype = list(self._shapes[name]), STORED[self._dtypes[name]]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # the format asks for data aligned to 8 bytes
        self._open = open(self._folder / file, "wb")  # noqa: SIM115 - the file outlives this call
        self._open.write(len(encoded).to_bytes(8, "little") + encoded)

    def finish(self) -> None:
        """Close the last file and write the index."""
        self.close()
        places = {name: file for file, group in self._files.items() for name in group}
        write_json(self._folder / INDEX, {"metadata": {"total_size": self.total_bytes}, "weight_map": places})

    def close(self) -> None:
        """Close the open file; also after an error."""
        if self._open is not None:
            self._open.close()
            self._open = None
