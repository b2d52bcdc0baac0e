"""Every YAML composes, every impossible layout is refused with one that works, and no default stands twice."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama31 import config
from llama31.command import entry, usage, written
from llama31.command.validate import validate
from llama31.config import ConfigError, Parallel, Ramp
from llama31.plan import layout, schedule

RUN = ["name=x", "model=tiny", "schedule=demo", "data=demo", "tokenizer=demo"]
CHOICES = usage.groups(config.Pretrain, [entry.CONF])
RAMP = '[{"from_tokens":81920,"batch_tokens":512,"sequence_length":256}]'  # no blanks: the table splits at them
LONGER = '[{"from_tokens":81920,"batch_tokens":8192,"sequence_length":512}]'
TINY = {"layers": 8, "hidden_size": 256, "ffn_hidden_size": 768, "heads": 8, "kv_heads": 4, "vocab_size": 8192}


def pretrain(*overrides: str) -> config.Pretrain:
    return entry.compose(config.Pretrain, "pretrain", [*RUN, *overrides])


@functools.cache
def composed(*groups: str) -> config.Pretrain:
    return pretrain(*groups)


def test_one_process_of_a_node_composes_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "attempt_0"
    folder.mkdir()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "0" / "error.json"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    first = entry.load(config.Pretrain, "pretrain", RUN, lambda run: 1)
    with pytest.raises(SystemExit):
        entry.load(config.Pretrain, "pretrain", [*RUN, "model.hedas=3"], lambda run: 1)
    monkeypatch.setattr(entry, "_gather", None)  # who composes once more fails
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert entry.load(config.Pretrain, "pretrain", RUN, lambda run: 1) == first
    with pytest.raises(SystemExit, match="2"):
        entry.load(config.Pretrain, "pretrain", [*RUN, "model.hedas=3"], lambda run: 1)


def varied(*overrides: str) -> config.Pretrain:
    """As `pretrain`, past Hydra where only keys are given: many cases, few compositions."""
    run = copy.deepcopy(composed(*[text for text in overrides if "." not in text.split("=")[0]]))
    for text in overrides:
        key, value = text.split("=", 1)
        section, _, name = key.rpartition(".")
        if section:
            parsed = yaml.safe_load(value)
            target = functools.reduce(
                lambda node, part: getattr(node, part, None) or node[part], section.split("."), run
            )
            setattr(target, name, [Ramp(**item) for item in parsed] if name == "ramp" else parsed)
    return run


def refused(run: Any, world_size: int = 1) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(run, world_size)
    assert all(issue.key and issue.problem and issue.remedy for issue in caught.value.issues)
    return str(caught.value)


# --- every YAML ---

# Choices that do not go with a tiny model; each brings its own.
PARTNERS = {
    "parallel=8b_1node": ["model=8b", "schedule=8b"],
    "parallel=70b": ["model=70b", "schedule=70b"],
    "parallel=405b_8k": ["model=405b", "schedule=405b"],
    "parallel=405b_16k": ["model=405b", "schedule=405b"],
    "parallel=405b_128k": ["model=405b", "schedule=405b"],
    "parallel=405b_len16k": ["model=405b", "schedule=long_1"],
    "parallel=405b_len32k": ["model=405b", "schedule=long_2"],
    "parallel=405b_len48k": ["model=405b", "schedule=long_3"],
    "parallel=405b_len64k": ["model=405b", "schedule=long_4"],
    "parallel=405b_len96k": ["model=405b", "schedule=long_5"],
    "tokenizer=llama3": ["tokenizer.path=x"],
    "tokenizer=huggingface": ["tokenizer.path=x"],
    "data=own": ["data.sources.books.input=x"],
    "data=report": [f"data.sources.{name}.input=x" for name in ("general", "mathematics", "code", "multilingual")],
}
SHARED = ("report_anneal", "code_expert", "multilingual_expert")
PARTNERS |= {f"data={name}": PARTNERS["data=report"] for name in SHARED}
SCHEMAS = {
    "pretrain": (config.Pretrain, RUN),
    "long_context": (config.Pretrain, [*RUN, "init_from=x", "gates.baseline=y"]),
    "anneal": (config.Pretrain, [*RUN, "init_from=x"]),
    "code_expert": (config.Pretrain, [*RUN, "init_from=x"]),
    "multilingual_expert": (config.Pretrain, [*RUN, "init_from=x"]),
    "demo": (config.Pretrain, []),
    "pack": (config.Pack, ["data=demo", "tokenizer=demo"]),
    "evaluate": (config.Evaluate, ["checkpoint=x", "data=demo", "tokenizer=demo"]),
    "convert": (config.Convert, ["direction=to_hf", "hf=x", "checkpoint=x"]),
    "average": (config.Average, ["run=x", "target=y"]),
    "benchmark": (config.Benchmark, []),
    "simulate": (config.Simulate, []),
    "plan": (config.Plan, []),
    "scaling": (config.Scaling, ["task=fit"]),
    "submit": (config.Submit, []),
}


def combinations() -> list[tuple[str, str]]:
    return [
        (root, f"{group}={choice}")
        for root, (schema, _) in SCHEMAS.items()
        if root not in ("demo", "long_context", "anneal", "code_expert", "multilingual_expert")  # the keys of pretrain
        for group, choices in usage.groups(schema, [entry.CONF]).items()
        for choice in choices
    ]


def test_every_root_is_a_recipe() -> None:
    assert {path.stem for path in entry.CONF.glob("*.yaml")} >= {"base", *SCHEMAS}


@pytest.mark.parametrize(("root", "choice"), combinations())
def test_every_choice_composes_and_is_valid(root: str, choice: str) -> None:
    schema, given = SCHEMAS[root]
    sections = [field.name for field in dataclasses.fields(schema)]
    partners = [text for text in PARTNERS.get(choice, []) if re.split(r"[.=]", text)[0] in sections]
    run: Any = entry.compose(schema, root, [*given, choice, *partners])
    if root == "evaluate" and (run.parallel.cp > 1 or run.parallel.vpp > 1):
        assert validate(run, layout.world(run.parallel)) == []
        run.prompts = ["decoded"]
        assert "is loaded onto one without" in refused(run, layout.world(run.parallel))
        return
    processes = layout.world(run.parallel) if hasattr(run, "parallel") else 1
    assert validate(run, processes) == []


@pytest.mark.parametrize(
    ("root", "processes"),
    [
        ("demo", 1),
        ("demo", 2),
        ("long_context", 1),
        ("anneal", 1),
        ("pack", 1),
        ("convert", 1),
        ("average", 1),
        ("benchmark", 1),
        ("simulate", 1),
        ("plan", 1),
        ("scaling", 1),
        ("submit", 1),
    ],
)
def test_roots_without_choices(root: str, processes: int) -> None:
    schema, given = SCHEMAS[root]
    assert validate(entry.compose(schema, root, given), processes) == []


@pytest.mark.parametrize("model", CHOICES["model"])
@pytest.mark.parametrize("chosen", CHOICES["schedule"])
def test_every_model_with_every_schedule(model: str, chosen: str) -> None:
    run = dataclasses.replace(varied(f"model={model}"), schedule=varied(f"schedule={chosen}").schedule)
    if run.schedule.sequence_length > run.model.max_positions:
        assert "longer than model.max_positions" in refused(run)
        return
    validate(run, 1)
    assert schedule.total_steps(run.schedule) > 0


def test_yaml_opens_with_its_command_and_repeats_no_default() -> None:
    defaults = {name: field for name, _, field in usage.keys(config.Pretrain)}
    defaults |= {name: field for name, _, field in usage.keys(config.Evaluate)}
    for path in entry.CONF.glob("**/*.yaml"):
        text = path.read_text()
        assert text.startswith("#"), path
        prefix = "" if path.parent == entry.CONF else f"{path.parent.name}."
        content = {key: value for key, value in (yaml.safe_load(text) or {}).items() if key != "defaults"}
        for key, value in [leaf for name, item in content.items() for leaf in usage.leaves(prefix + name, item)]:
            known = re.sub(r"^data\.sources\.\w+\.", "data.sources.NAME.", key)
            assert known not in defaults or defaults[known].default != value, f"{path} repeats {key}"


@pytest.mark.parametrize(
    ("name", "processes", "micro_batches"), [("405b_8k", 8192, 32), ("405b_16k", 16384, 16), ("405b_128k", 16384, 16)]
)
def test_layouts_of_the_report(name: str, processes: int, micro_batches: int) -> None:
    """Table 4: GPUs, and the batch per replica at 16M tokens per step."""
    run = varied("model=405b", "schedule=405b", f"parallel={name}")
    length = 131_072 if name == "405b_128k" else 8192
    assert layout.world(run.parallel) == processes
    assert layout.micro_batches(run.parallel, 16_777_216, length, processes) == micro_batches
    assert validate(run, processes) == []
    bubble = {32: 15 / 256, 16: 15 / 128}[micro_batches]
    assert layout.bubble(run.parallel, micro_batches) == bubble


def test_layout_taken_up_too_early_is_refused() -> None:
    run = varied("model=405b", "schedule=405b", "parallel=405b_16k", "parallel.from_tokens=2869990000000")
    assert "N=16 is above the M=8" in refused(run, 16384)


# --- keys and values ---


def test_schema_states_help_for_every_key() -> None:
    for schema in [schema for schema, _ in SCHEMAS.values()]:
        for name, _, field in usage.keys(schema):
            assert field.metadata.get("help"), name


def test_types_survive_composition() -> None:
    run = pretrain(
        "schedule.total_tokens=1e6",
        "parallel.dp=2",
        "data.sources.docs.weight=2",
        "schedule.ramp=[{from_tokens: 8192, batch_tokens: 16384, sequence_length: 512}]",
        "name=007",
    )
    assert run.schedule.total_tokens == 1_000_000 and isinstance(run.schedule.total_tokens, int)
    assert run.parallel.dp == 2 and run.data.workers is None
    assert isinstance(run.data.sources["docs"], config.Source) and run.data.sources["docs"].weight == 2.0
    assert run.schedule.ramp == [Ramp(8192, 16384, 512)]
    assert (run.name, run.folder) == ("007", "runs/007")


def test_a_dictionary_on_the_command_line_keeps_its_numbers() -> None:
    run = entry.compose(config.Scaling, "scaling", ["task=mix", "mix.weights={code: 2, web: 0.5}"])
    assert run.mix.weights == {"code": 2.0, "web": 0.5}


def test_new_source_on_the_command_line_reads_commas_as_they_stand() -> None:
    run = pretrain("data.sources.books.input=a/*.txt,b", r"data.sources.books.text_key=a\"b\\")
    assert run.data.sources["books"].input == "a/*.txt,b"
    assert run.data.sources["books"].text_key == r"a\"b\\"
    assert list(run.data.sources) == ["python", "docs", "books"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("parallel.tensor=2", "parallel.tensor=2: no such key"),
        ("paralel.tp=2", "paralel.tp=2: no such key; did you mean parallel.tp?"),
        ("tp=2", "tp=2: no such key; did you mean parallel.tp?"),
        ("modle=8b", "modle=8b: no such key; did you mean model"),
        ("data.sources.docs.wieght=1", "wieght=1: no such key; did you mean data.sources.docs.weight?"),
        ("name.first=x", "name.first=x: no such key"),
        ("parallel.tp=two", "parallel.tp=two: wrong type; give a whole number"),
        ("parallel.tp=1,2", "parallel.tp=1,2: wrong type; give a whole number"),
        ("parallel.tp=null", "parallel.tp=null: wrong type; give a whole number"),
        ("parallel.tp=2.5", "parallel.tp=2.5: wrong type"),
        ("parallel.tp=true", "parallel.tp=true: wrong type"),
        ("optimizer.eps=true", "optimizer.eps=true: wrong type; give a number"),
        ("data.bos=maybe", "data.bos=maybe: wrong type; give true or false"),
        ("parallel.tp=[", "parallel.tp=[: cannot be read"),
        ("schedule.ramp=3", "schedule.ramp=3: wrong type; give a list"),
        ("schedule.ramp=[{from_token: 3}]", "schedule.ramp[0].from_token=3: no such key"),
        ("schedule.ramp=[{from_tokens: x}]", "schedule.ramp[0].from_tokens=x: wrong type"),
        ("schedule.ramp=[{from_tokens: 3}]", "schedule.ramp[0].batch_tokens: is required"),
        ("model=9b", "model=9b: no such choice; give one of 16m, 1b, 3b"),
        ("precision=int4", "precision=int4: no such choice; give one of bf16, fp32"),
        ("+typo=1", "+typo=1: no key can be added"),
        ("++typo=1", "++typo=1: no key can be added"),
        ("+parallel.tp=2", "give parallel.tp=2"),
        ("~name", "~name: no key can be removed"),
        ("~parallel.tp", "~parallel.tp: no key can be removed"),
        ("~model", "~model: no key can be removed"),
        ("hydra.run.dir=x", "hydra.run.dir=x: no such key"),
        ("--verbose", "--verbose: not an override"),
        ("folder=runs/${nam}", "nam"),
        ("parallel.zero=4", "parallel.zero=4: out of range; give at most 3"),
        ("parallel.tp=0", "parallel.tp=0: out of range; give at least 1"),
        ("schedule.peak_lr=0", "give a number above 0"),
        ("optimizer.beta1=1", "optimizer.beta1=1.0: out of range"),
        ("schedule.decay=step", "schedule.decay=step: no such choice; give one of cosine, linear, constant"),
        ("parallel.recompute=all", "parallel.recompute=all: no such choice; give one of norms, swiglu, mlp, full"),
        ("parallel.recompute=[norms,all]", "parallel.recompute=all: no such choice; give one of norms"),
        ("parallel.recompute=selective", "attention keeps nothing that could be computed again: give [], or norms"),
        ("parallel.recompute=none", "parallel.recompute=none: no such choice; give parallel.recompute=[]"),
        ("data.sources.docs.format=pdf", "data.sources.docs.format=pdf: no such choice"),
        ("data.sources.docs.weight=-1", "data.sources.docs.weight=-1.0: out of range"),
        ("schedule.ramp=[{from_tokens: -1, batch_tokens: 5, sequence_length: 5}]", "schedule.ramp[0].from_tokens=-1"),
    ],
)
def test_wrong_override(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pretrain(override)
    assert said in str(caught.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        pretrain("parallel.tp=two", "+typo=1", "~name", "optimizer.clip=1", "parallel.zero=7", "schedule.decay=x")
    assert [issue.key for issue in caught.value.issues] == [
        "+typo=1",
        "~name",
        "optimizer.clip",
        "parallel.tp",
        "parallel.zero",
        "schedule.decay",
    ]


def test_missing_keys_are_named_together() -> None:
    with pytest.raises(ConfigError) as caught:
        entry.compose(config.Pretrain, "pretrain", ["tokenizer=llama3"])
    said = str(caught.value)
    assert [issue.key for issue in caught.value.issues] == ["name", "model", "schedule", "tokenizer.path", "data"]
    for key in ("model.layers", "schedule.total_tokens", "model=16m|1b|3b|405b|70b|8b|tiny", "data=code_expert|demo"):
        assert key in said


def all_said(schema: type, name: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What is said about each key, and under `hint` the layout that would work."""
    with pytest.raises(SystemExit):
        entry.load(schema, name, words)
    *lines, _ = capsys.readouterr().err.splitlines()[1:]
    result: dict[str, str] = {}
    for line in lines:
        key, _, said = line.strip().partition(": ")
        result[key if said else "hint"] = result.get(key, "") + (said or line.strip())
    return {("hint" if key.startswith("nearest") else key): said for key, said in result.items()}


def test_missing_keys_and_what_is_wrong_beside_them_are_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that does not depend on what is missing; of a group that was not chosen, nothing but that."""
    record = all_said(config.Pretrain, "pretrain", ["model=8b", "parallel.tp=3"], capsys)
    assert list(record) == ["name", "schedule", "tokenizer", "data", "parallel.tp=3", "hint"]
    assert (
        "does not divide this model (heads=32" in record["parallel.tp=3"] and "1 process(es)" in record["parallel.tp=3"]
    )
    assert record["hint"] == "parallel.tp=1 (dp=1)"
    given = ["parallel.pp=2", "schedule.batch_tokens=1000", "schedule.sequence_length=300", "model.layers=3"]
    record = all_said(config.Sft, "sft", [*given, "model.max_positions=200", "tokenizer.kind=bpe", "seed=-1x"], capsys)
    assert {"name", "model.heads", "schedule.total_tokens", "tokenizer.path", "seed=-1x"} < record.keys()
    assert {"schedule.batch_tokens=1000", "schedule.sequence_length=300", "init_from=null"} < record.keys()
    assert {"tokenizer.vocab_size=null", "parallel.pp=2"} < record.keys()
    # what depends on a value that is out of range is not worked out
    record = all_said(config.Pretrain, "pretrain", ["model=8b", "parallel.tp=0"], capsys)
    assert "parallel.tp=0" in record and "hint" not in record


def test_mistyped_required_key_is_not_called_missing_too() -> None:
    with pytest.raises(ConfigError) as caught:
        entry.compose(config.Convert, "convert", ["direction=[1]", "hf=x", "checkpoint=y"])
    assert [issue.key for issue in caught.value.issues] == ["direction"]


def test_own_yaml_beside_conf(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\n" + yaml.safe_dump(TINY | {"layers": 4}))
    (tmp_path / "job.yaml").write_text(
        "defaults: [base, model: mine, schedule: demo, override data: demo, override tokenizer: demo, _self_]\n"
        "name: job\nschedule: {peak_lr: 1e-3}\n"
    )
    run = entry.compose(config.Pretrain, "job", [], tmp_path)
    assert (run.name, run.model.layers, run.schedule.peak_lr) == ("job", 4, 1e-3)
    assert entry.compose(config.Pretrain, "pretrain", [*RUN[2:], "name=x", "model=mine"], tmp_path).model.layers == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nparallel: {tpp: 2}\n", "parallel.tpp=2: no such key; did you mean parallel.tp?"),
        ("name: x\nparallels: {tp: 2}\n", "parallels.tp=2: no such key; did you mean parallel.tp?"),
        ("name: x\nparallel: 2\n", "parallel=2: is a section"),
        ("name: [\n", "conf"),
        ("defaults: [nothing]\n", "nothing"),
    ],
)
def test_wrong_yaml_of_the_user(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        entry.compose(config.Pretrain, "job", [], tmp_path)


def test_group_without_a_place_in_the_users_root(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match=r"model: the root file has no place .* add `- model: null`"):
        entry.compose(config.Pretrain, "job", ["model=8b"], tmp_path)


def test_resolved_yaml_composes_to_itself(tmp_path: Path) -> None:
    run = pretrain("parallel.dp=2", "schedule.ramp=[{from_tokens: 8192, batch_tokens: 16384, sequence_length: 512}]")
    (tmp_path / "again.yaml").write_text(written.to_yaml(run))
    assert entry.compose(config.Pretrain, "again", [], tmp_path) == run


# --- keys that must agree ---


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["schedule.batch_tokens=8000"], "schedule.batch_tokens=8000: not a whole number of sequences of 256"),
        (
            ["model.max_positions=8192", "schedule.sequence_length=16384", "schedule.batch_tokens=16384"],
            "longer than model.max_positions=8192",
        ),
        (["schedule.final_lr=1.0"], "schedule.final_lr=1.0: above schedule.peak_lr"),
        (["schedule.warmup_tokens=9000000"], "warm-up would last beyond the end"),
        (["model.hidden_size=250"], "model.hidden_size=250: 8 heads need an even width each; give a multiple of 16"),
        (["model.kv_heads=3"], "model.kv_heads=3"),
        (["tokenizer.vocab_size=9000"], "more ids than model.vocab_size=8192"),
        (["tokenizer.vocab_size=300"], "give at least 512"),
        (["tokenizer.vocab_size=null"], "tokenizer.vocab_size=null"),
        (["data.sources.docs.weight=0", "data.sources.python.weight=0"], "all weights are 0"),
        (["schedule.ramp=[{from_tokens: 0, batch_tokens: 512, sequence_length: 256}]"], "do not grow"),
        (
            ["schedule.ramp=[{from_tokens: 9, batch_tokens: 500, sequence_length: 256}]"],
            "schedule.ramp[0].batch_tokens=500",
        ),
    ],
)
def test_disagreeing_keys(overrides: list[str], said: str) -> None:
    run = varied(*[text for text in overrides if "." in text.split("=")[0]])
    for text in overrides:
        if "." not in text:
            setattr(run, *text.split("="))
    assert said in refused(run)


def test_sources_have_to_be_named() -> None:
    assert "data.sources={}" in refused(pretrain("data=own"))
    packing = entry.compose(config.Pack, "pack", ["data=demo", "tokenizer=demo", "data.sources.pyhton.weight=2"])
    assert "data.sources.pyhton.input=: nothing to pack" in refused(packing)
    only_prompts = entry.compose(
        config.Evaluate, "evaluate", ["checkpoint=x", "tokenizer=demo", 'prompts=["one, two"]']
    )
    assert validate(only_prompts, 1) == [] and only_prompts.prompts == ["one, two"]


# --- layouts ---


# processes, overrides (of parallel unless they name another section), what is said, the proposal at the end
IMPOSSIBLE = [
    (3, "tp=3 schedule.batch_tokens=7680", "give one of 1, 2, 4, 8", "parallel.tp=1 (dp=3)"),
    (16, "tp=16", "does not divide this model", "parallel.tp=8 (dp=2)"),
    (1, "tp=2", "start a multiple of 2: torchrun --nproc-per-node 2", "parallel.tp=1 (dp=1)"),
    (6, "tp=4 schedule.batch_tokens=7680", "does not divide the 6 process(es)", "parallel.tp=2 (dp=3)"),
    (8, "tp=2 dp=2", "tp x cp x pp x dp = 4, but 8", "parallel.dp=4 (dp=4)"),
    (3, "pp=3 schedule.batch_tokens=7680", "8 layers do not split into pp x vpp = 3", "parallel.pp=1 (dp=3)"),
    (2, "vpp=2", "there is one", "parallel.vpp=1 (dp=2)"),
    (2, "pp=2 zero=3", "deadlocks with pipelines", "parallel.zero=2 (dp=1)"),
    (2, "pp=2 zero=2 model.tied_embeddings=true", "before the tied embedding's gradients", "parallel.pp=1 (dp=2)"),
    (2, "pp=2 vpp=2 microbatch_group=1", "N is below pp=2", "parallel.microbatch_group=null (dp=1)"),
    (2, "pp=2 vpp=2 microbatch_group=40", "N=40 is above the M=32", "parallel.microbatch_group=null (dp=1)"),
    (4, "pp=4 vpp=2 microbatch_group=5", "a last group of 2, below pp=4", "parallel.microbatch_group=null (dp=1)"),
    (4, "cp=4 schedule.sequence_length=252 schedule.batch_tokens=8064", "into 2 x cp = 8", "parallel.cp=2 (dp=2)"),
    (4, "cp=2 tp=2 schedule.sequence_length=250 schedule.batch_tokens=8000", "over cp x tp = 4", "(dp=2)"),
    (64, "dp=64", "32 sequences per step", "(dp=32)"),
    (2, "micro_batch=3", "do not split into micro_batch x dp = 6", "parallel.micro_batch=1 (dp=2)"),
    (2, f"pp=2 vpp=2 micro_batch=2 schedule.ramp={RAMP}", "at 512 tokens per step", "(dp=1)"),
    (2, "overlap_p2p=true", "in its interleaved schedule alone", "parallel.overlap_p2p=false (dp=2)"),
    (2, "tp=2 sequence_parallel=false tp_overlap=true", "messages of sequence", "parallel.tp_overlap=false (dp=1)"),
    (2, f"tp=2 tp_overlap=true schedule.ramp={LONGER}", "rows of one length", "parallel.tp_overlap=false (dp=1)"),
    (1, "recompute=[full,mlp]", "full computes mlp again anyway", "parallel.recompute=[full] (dp=1)"),
    (1, "recompute=[norms,swiglu,mlp]", "mlp computes swiglu again", "parallel.recompute=[norms,mlp] (dp=1)"),
]


@pytest.mark.parametrize(("processes", "given", "said", "proposal"), IMPOSSIBLE)
def test_impossible_layout(processes: int, given: str, said: str, proposal: str) -> None:
    overrides = [text if "." in text.split("=")[0] else f"parallel.{text}" for text in given.split()]
    overrides.insert(0, "schedule.batch_tokens=8192")
    text = refused(varied(*overrides), processes)
    assert said in text
    hint = text.splitlines()[-1]
    assert hint.startswith(f"nearest layout that works with {processes} process(es): ")
    assert hint.endswith(proposal)
    proposed = re.findall(r"parallel\.\w+=[\w\[\],]+", hint)
    validate(varied(*overrides, *proposed), processes)  # what is proposed is accepted


def test_one_part_to_recompute_stands_for_a_list_of_it() -> None:
    """As configs of before have it."""
    assert pretrain("parallel.recompute=full").parallel.recompute == ["full"]
    assert pretrain("parallel.recompute=[norms,swiglu]").parallel.recompute == ["norms", "swiglu"]


def test_no_layout_at_all() -> None:
    text = refused(varied("schedule.batch_tokens=256", "model.layers=7", "schedule.total_tokens=256000"), 13)
    assert "no layout of 13 process(es) works" in text


@pytest.mark.parametrize("processes", [12, 16, 24, 64])
def test_nearest_is_possible(processes: int) -> None:
    """Around many broken layouts: what the search proposes has no problem, and it finds nothing only rarely."""
    run = varied("schedule.batch_tokens=196608")
    stages = schedule.stages(run.schedule)
    for tp, cp, pp, vpp in [(3, 1, 1, 1), (16, 1, 2, 1), (2, 3, 2, 2), (4, 5, 3, 1), (1, 1, 16, 2), (8, 2, 2, 3)]:
        result = layout.nearest(run.model, Parallel(tp=tp, cp=cp, pp=pp, vpp=vpp), stages, processes)
        assert result is not None
        assert layout.problems(run.model, result, stages, processes) == []


def test_replicated_kv_heads_are_possible() -> None:
    run = varied("parallel.tp=8")
    assert run.model.kv_heads == 4 and validate(run, 8) == []


def test_group_of_the_report_is_possible() -> None:
    """Figure 6: four ranks, N = 5, M = 10."""
    overrides = ["parallel.pp=4", "parallel.vpp=2", "parallel.microbatch_group=5", "schedule.batch_tokens=2560"]
    assert validate(varied(*overrides), 4) == []


def test_few_micro_batches_warn_with_the_bubble() -> None:
    run = varied("parallel.pp=4", "schedule.batch_tokens=512")
    (warning,) = validate(run, 4)
    assert "only 2 micro-batches" in warning and "150%" in warning


def test_tp_across_nodes_warns() -> None:
    run = varied("parallel.tp=4", "cluster.processes_per_node=2")
    assert "reaches beyond one node" in validate(run, 4)[0]


def test_replicas_and_micro_batches() -> None:
    parallel = Parallel(tp=2, pp=2, micro_batch=2)
    assert layout.dp(parallel, 16) == 4
    assert layout.micro_batches(parallel, 8192, 256, 16) == 4
    with pytest.raises(ValueError, match="tp x cp x pp = 4 does not divide the 6"):
        layout.dp(parallel, 6)
    with pytest.raises(ValueError, match="batch_tokens=8448"):
        layout.micro_batches(parallel, 8448, 256, 16)


def test_world_size_comes_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert validate(varied("parallel.tp=2")) == []
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigError):
        validate(varied("parallel.tp=2"))


def test_schema_holds_plain_values() -> None:
    """`dataclasses.asdict` of a config is what the run folder and the checkpoint store."""
    run = varied()
    assert config.Model(**dataclasses.asdict(run.model)) == run.model
    assert typing.get_type_hints(config.Pretrain)["model"] is config.Model
