"""Seconds of a step by cause, from the layout and physical constants alone. Arithmetic, no torch.

A layer's products go by their shapes, attention by its length, everything else by the bytes that it moves; of messages
the share counts that nothing covers. Stages, micro-batches and ranks then make a step of layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from llama31.config import Device, Stack
from llama31.planner import products
from llama31.planner.workloads import StepJob, layer_parameters, split, widths

KERNELS = 60  # of a layer, forward and backward, in BF16: 4,256 for 8 layers and 8 micro-batches, measured
FP8_KERNELS = 2.0  # times as many calls: scales, casts and transposes
FORWARD = 1 / 3  # of the host's work
MERGED_GRADIENTS = 24  # bytes per number of Q's gradient and of K's and V's: cast, read, added, written
TP_ENDS = 6  # messages of embedding and head per micro-batch: its states gathered and scattered, two of the loss
GATHERED_BESIDE = 3  # what ZeRO-3 gathers beside layers: embedding, last norm and head
GIGA, TERA = 1e9, 1e12


def step(job: StepJob, device: Device, stack: Stack) -> dict[str, float]:
    """Seconds by cause. Their sum is the step."""
    layer = _Layer(job, device, stack)
    forward, backward = layer.forward(), layer.backward()
    one = _sum(forward, backward)
    middle, last = split(job.model, job.pp, job.vpp)
    head = layer.head()
    each = {"host": 1e-6 * (stack.micro_batch_us + GATHERED_BESIDE * stack.gather_us * job.fsdp)}
    full, end = _sum(_times(one, middle), each), _sum(_times(one, last), head, each)
    stage = end if job.pp == 1 or total(end) > total(full) else full
    busy = full if job.pp > 1 else stage
    result = _times(stage, job.micro_batches)
    result["bubble"] = (job.pp - 1) * total(busy) / job.vpp
    result["p2p"] = layer.between_stages()
    result.update(_replicas(job, device, stack, middle, total(result)))
    result["fixed"] = stack.fixed_s
    nodes = max(job.gpus / device.per_node, 1.0)
    result["jitter"] = stack.jitter * math.log2(nodes) * total(result)
    return {cause: value for cause, value in result.items() if value > 0}


class LayerSeconds(NamedTuple):
    """Seconds of a micro-batch on a rank."""

    forward: float  # of a layer
    backward: float  # of a layer, with what is computed again
    head: float  # both ways
    message: float  # between two stages, one way
    waited: float  # of that, what the passes of a stage wait for while they have others to compute


def layer(job: StepJob, device: Device, stack: Stack) -> LayerSeconds:
    """What the passes of a step consist of."""
    one = _Layer(job, device, stack)
    message = one.message()
    passes = (total(one.forward()), total(one.backward()), total(one.head()))
    return LayerSeconds(*passes, message, one.exposed_p2p() * message)


def total(seconds: Mapping[str, float]) -> float:
    """Of all causes together."""
    return sum(seconds.values())


def products_rate(job: StepJob, device: Device, stack: Stack, fp8: bool) -> products.Rate:
    """Of large products in FP8, or where `fp8` is false in BF16, or FP32 where the job computes in that."""
    if job.number_bytes == 4:
        flops = (stack.products_fp32 or stack.products_bf16) * device.fp32_tflops
        return products.Rate(flops * device.power * TERA, stack.lead_fp32, device.multiprocessors)
    if fp8 and device.fp8_tflops:
        flops = stack.products_fp8 * device.fp8_tflops
        return products.Rate(flops * device.power * TERA, stack.lead_fp8, device.multiprocessors)
    flops = stack.products_bf16 * device.bf16_tflops
    return products.Rate(flops * device.power * TERA, stack.lead_bf16, device.multiprocessors)


def _times(seconds: Mapping[str, float], factor: float) -> dict[str, float]:
    return {cause: factor * value for cause, value in seconds.items()}


def _sum(*parts: Mapping[str, float]) -> dict[str, float]:
    result: dict[str, float] = {}
    for part in parts:
        for cause, value in part.items():
            result[cause] = result.get(cause, 0.0) + value
    return result


class _Layer:
    """Seconds of one layer, or of the head, for a micro-batch on a rank, by cause."""

    def __init__(self, job: StepJob, device: Device, stack: Stack) -> None:
        self.job, self.device, self.stack = job, device, stack
        self.hidden = job.model.hidden_size
        self.queries, self.keys, self.ffn = widths(job.model, job.tp)
        self.rate = products_rate(job, device, stack, job.fp8)
        self.linears = (
            (self.queries + self.keys, self.hidden),
            (self.hidden, self.queries),
            (2 * self.ffn, self.hidden),
            (self.hidden, self.ffn),
        )
        self.bytes_per_s = (stack.copy_eager if job.eager else stack.copy) * device.copy_tb_s * TERA
        self.nvlink = device.nvlink_gb_s * GIGA
        inside = job.tp * job.cp <= device.per_node
        self.cp_bytes_per_s = self.nvlink if inside else device.network_gb_s * GIGA
        self.start = device.message_us * 1e-6
        self.waited = 0.0 if device.launches_ahead else self.start  # where a message is launched ahead, nobody waits
        message = job.number_bytes * job.tokens * self.hidden * (job.tp - 1) / job.tp
        self.gathered = message * (0.5 if job.fp8 else 1.0) / self.nvlink  # what products read in one byte
        self.scattered = stack.scatter * message / self.nvlink

    def forward(self) -> dict[str, float]:
        """Of the forward pass."""
        tp = 2 * (self.gathered + self.scattered) + 4 * self.start * (self.job.tp > 1)
        return self._with_host(
            {
                "products": sum(products.forward(self.job.tokens, linear, self.rate) for linear in self.linears),
                "attention": self._attention(),
                "elementwise": self._moved(12 * self.hidden + 4 * self.job.model.ffn_hidden_size)
                + self._merged(self.stack.merge_bytes),
                "quantise": self._quantised(2 * self.hidden / self.job.tp + self.queries + self.ffn),
                "tp": self._tp_exposed() * tp,
                "cp": self.stack.cp_exposed * self._keys_sent() + self.waited * (self.job.cp > 1),
            },
            FORWARD,
        )

    def backward(self) -> dict[str, float]:
        """Of the backward pass, with what it computes again."""
        tp = 4 * self.gathered + 2 * self.scattered + 6 * self.start * (self.job.tp > 1)
        gradient = self.stack.accumulate * layer_parameters(self.job.model, self.job.tp)
        outputs = 2 * self.hidden / self.job.tp + self.queries + self.keys + 2 * self.ffn
        causes = {
            "products": sum(products.backward(self.job.tokens, linear, self.rate) for linear in self.linears),
            "attention": self._attention(backward=True),
            "elementwise": self._moved(25 * self.hidden + 6 * self.job.model.ffn_hidden_size)
            + self._merged(MERGED_GRADIENTS),
            "accumulate": gradient * 2 * self.stack.gradient_bytes / self.bytes_per_s,
            "quantise": self._quantised(outputs),
            "tp": self._tp_exposed() * tp,
            "cp": 2 * (self.stack.cp_exposed * self._keys_sent() + self.waited * (self.job.cp > 1)),
        }
        return _sum(self._with_host(causes, 1 - FORWARD), {"recompute": self._again()})

    def head(self) -> dict[str, float]:
        """Of the output layer, which stays in BF16, and the loss, forward and backward."""
        rows = self.job.model.vocab_size / self.job.tp
        rate = products_rate(self.job, self.device, self.stack, fp8=False)
        linear = (rows, float(self.hidden))
        seconds = products.forward(self.job.tokens, linear, rate) + products.backward(self.job.tokens, linear, rate)
        return {
            "head": seconds + self.stack.loss_bytes * self.job.tokens * rows / self.bytes_per_s,
            "tp": 2 * self._tp_exposed() * self.scattered + TP_ENDS * self.waited * (self.job.tp > 1),
        }

    def between_stages(self) -> float:
        """Of messages between pipeline stages that a step waits for, all micro-batches together."""
        waited = self.exposed_p2p() * self.job.vpp * self.job.micro_batches
        return 2 * self.message() * (waited + self.job.pp - 1)

    def message(self) -> float:
        """Of a micro-batch's states from a stage to the next."""
        if self.job.pp == 1:
            return 0.0
        inside = self.job.tp * self.job.cp * self.job.pp <= self.device.per_node
        rate = self.device.p2p_gb_s * GIGA or (self.nvlink if inside else self.device.network_gb_s * GIGA)
        return self.waited + self.job.number_bytes * self.job.tokens * self.hidden / self.job.tp / rate

    def exposed_p2p(self) -> float:
        """Share of such messages that a stage waits for between its passes."""
        return self.stack.p2p_exposed if self.job.vpp > 1 else self.stack.p2p_exposed_whole

    def _attention(self, backward: bool = False) -> float:
        """2 s h FLOPs per token forward, half of the square, and 2.5 times that backward."""
        flops = 2.0 * self.job.sequence_length * self.job.tokens * self.queries
        rate, half = self.stack.attention_forward, self.stack.attention_half_forward
        if backward:
            flops, rate, half = 2.5 * flops, self.stack.attention_backward, self.stack.attention_half_backward
        reached = rate * self.stack.attention / (1 + half / self.job.sequence_length)
        sheet = self.device.fp32_tflops if self.job.number_bytes == 4 else self.device.bf16_tflops
        peak = self.device.power * sheet / self.stack.attention_peak
        return flops / (reached * peak * TERA)

    def _moved(self, columns: float) -> float:
        """Reads and writes of numbers, `columns` per token of the whole layer."""
        return self.job.number_bytes * columns * self.job.tokens / self.job.tp / self.bytes_per_s

    def _merged(self, each: float) -> float:
        """Under context parallelism every further step of the ring merges what it gives into FP32 sums."""
        return each * (self.job.cp - 1) * self.job.tokens * self.queries / self.bytes_per_s

    def _quantised(self, columns: float) -> float:
        """BF16 read, FP8 written twice: as it is, and transposed for the other product."""
        return self.stack.quantise * 4 * columns * self.job.tokens / self.bytes_per_s if self.job.fp8 else 0.0

    def _keys_sent(self) -> float:
        """K and V of the other ranks of CP."""
        return self.job.number_bytes * self.keys * self.job.tokens * (self.job.cp - 1) / self.cp_bytes_per_s

    def _tp_exposed(self) -> float:
        return self.stack.tp_exposed_async if self.job.tp_async else self.stack.tp_exposed

    def _again(self) -> float:
        """What the backward pass computes a second time."""
        if not self.job.recompute:
            return 0.0
        forward, parts = self.forward(), self.job.recompute
        if "full" in parts:
            return total(forward)
        seconds = forward["attention"] * ("attention" in parts)
        if "mlp" in parts:
            seconds += sum(products.forward(self.job.tokens, linear, self.rate) for linear in self.linears[2:])
            seconds += self._moved(4 * self.job.model.ffn_hidden_size) + forward["tp"] / 2 + 0.6 * forward["quantise"]
        seconds += self._moved(3 * self.job.model.ffn_hidden_size) * ("swiglu" in parts)
        seconds += self._moved(4 * self.hidden) * ("norms" in parts)
        if "half" in parts:
            seconds += 0.5 * (forward["products"] + forward["quantise"]) + forward["elementwise"]
        return seconds

    def _with_host(self, causes: dict[str, float], share: float) -> dict[str, float]:
        """A pass is never over before the host has launched its kernels; who computes himself, does it on top."""
        kernels = KERNELS * (FP8_KERNELS if self.job.fp8 else 1.0)
        kernels *= 1 + self.stack.tp_kernels * (self.job.tp > 1) + self.stack.cp_kernels * (self.job.cp > 1)
        host = share * kernels * self.stack.host_us * 1e-6
        gathering = share * self.stack.gather_us * 1e-6 * self.job.fsdp
        waits = host if not self.device.launches_ahead else max(0.0, host - total(causes))
        return {**causes, "host": waits + gathering}


def _replicas(job: StepJob, device: Device, stack: Stack, layers: float, computing: float) -> dict[str, float]:
    """Gradients and weights between replicas as far as nothing covers them, and the optimizer."""
    model = job.model
    ends = model.vocab_size * model.hidden_size / job.tp
    if job.pp == 1 and not model.tied_embeddings:
        ends *= 2
    own = layers * (layer_parameters(model, job.tp) + 2 * model.hidden_size) + ends
    inside = job.gpus <= device.per_node
    rate = (device.nvlink_gb_s if inside else device.network_gb_s) * GIGA
    sent = own * (job.shards - 1) / job.shards / rate
    gradients, weights = stack.gradient_bytes * stack.scatter * sent, job.number_bytes * sent
    messages = (gradients + 2 * weights) * stack.gather_times if job.fsdp else gradients + weights
    waited = stack.dp_exposed * messages
    if job.fsdp and job.pp == 1:  # each micro-batch gathers and reduces
        waited += max(0.0, job.micro_batches * messages - (computing if device.launches_ahead else waited))
    if job.reduce_each:  # reduced whole, which sends twice as much
        each = stack.gradient_bytes * (1 + stack.scatter) * sent * stack.reduce_times
        waited = stack.dp_exposed * (job.micro_batches * each + weights) + job.micro_batches * stack.reduce_us * 1e-6
    return {"dp": waited, "optimizer": stack.optimizer_bytes * own / job.shards / (device.copy_tb_s * TERA)}
