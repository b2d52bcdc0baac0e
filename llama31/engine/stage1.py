"""ZeRO-1: masters and moments are shared out; gradients and weights travel in buckets, beside what is computed.

DeepSpeed partitions each parameter group evenly by itself, so a bucket is a group: matrices in the order in which the
backward pass completes their gradients, whole, and all vectors (which weight decay leaves alone) in one more. A bucket
is reduce-scattered in FP32 as soon as its last gradient of the last micro-batch is there, while the backward pass goes
on, under pipelines in the cool-down. Then comes the verdict: nothing is updated before the norm of all is known. After
it the buckets are updated in the order of the forward pass, and each one's weights are gathered while the next is
updated and the next step begins; the first module that reads them waits. All of it in place: no second copy.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llama31 import config
from llama31.engine import partition
from llama31.model.llama import Llama, ParameterShard, fuse_accumulation
from llama31.parallel.mesh import Grid, Mpu
from llama31.plan import exposure

IN_LAYER = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")  # the matrices of a layer, in forward order
EMBEDDING = "embedding.word_embeddings.weight"


def place(name: str) -> tuple[float, int]:
    """Sorts parameters, by their global names, in the order in which a forward pass reads them."""
    match = re.match(r"decoder\.layers\.(\d+)\.", name)
    if match is None:
        return (-1, 0) if name == EMBEDDING else (float("inf"), 0)
    return int(match[1]), next((i for i, part in enumerate(IN_LAYER) if part in name), -1)


def buckets_of(
    shards: Sequence[ParameterShard], bucket_bytes: int, last: Sequence[ParameterShard] = ()
) -> list[list[ParameterShard]]:
    """Parameters by bucket, in the order of the backward pass; `last` in a bucket behind all others.

    Whole matrices until a bucket's FP32 gradients have at least `bucket_bytes`, then all vectors, whose gradients are
    complete when the backward pass is.
    """
    matrices = [shard for shard in shards if shard.parameter.ndim > 1 and shard not in last]
    matrices.sort(key=lambda shard: place(shard.name), reverse=True)
    parts = exposure.buckets([shard.parameter.numel() for shard in matrices], bucket_bytes)
    result = [[matrices[number] for number in part] for part in parts]
    vectors = [shard for shard in shards if shard.parameter.ndim == 1]
    return [bucket for bucket in (*result, vectors, list(last)) if bucket]


class Lane:
    """Where messages travel beside what is computed: a stream on a GPU, gloo's threads on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def after_computed(self) -> Iterator[None]:
        """What is issued within it follows what was issued to the device before, and holds up nothing after it."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield

    def sent(self, work: dist.Work | None) -> Callable[[], object]:
        """What waits for a message that was issued in `after_computed`: on a GPU what is computed next, on a CPU we."""
        assert work is not None, "this rank is in the group"
        if self.stream is None:
            return work.wait
        work.wait()  # the lane's stream waits, not we
        arrived = self.stream.record_event()
        return lambda: torch.cuda.current_stream().wait_event(arrived)


@dataclass(eq=False)
class GradientBucket:
    """A parameter group of DeepSpeed: its flat gradients and weights, and this rank's part of both and the master."""

    number: int
    parameters: list[nn.Parameter]
    gradients: Tensor
    own_gradients: Tensor
    weights: Tensor
    own_weights: Tensor
    master: Tensor
    in_norm: list[Tensor]  # views of own_gradients: what this rank adds to the norm
    squares: Tensor  # FP32 []: their sum of squares
    missing: int = 0  # gradients that are still to come
    reduced: Callable[[], object] | None = None  # waits for its own gradients
    gathered: Callable[[], object] | None = None  # waits for its weights


class Stage1:
    """DeepSpeed's BF16_Optimizer partitions, for FP32 parameters too; when what is sent and updated is ours.

    Its own reduction would all-reduce, at twice the bytes, when all is computed; its `step` and `update_lp_params` act
    on all groups at once.
    """

    loss_scale = 1.0

    def __init__(
        self,
        chunks: list[Llama],
        shards: list[ParameterShard],
        optimizer: config.Optimizer,
        bucket_bytes: int,
        grid: Grid,
    ) -> None:
        self.grid, self.clip_norm, self.group = grid, optimizer.clip_norm, grid.dp_cp_group
        self.alone = dist.get_world_size(self.group) == 1
        self.forward_chunks: list[Any] = list(chunks)
        tied = [s for s in shards if chunks[0].tied and grid.pp > 1 and s.name == EMBEDDING]
        self.tied = [shard.parameter for shard in tied]
        parts = buckets_of(shards, bucket_bytes, tied)
        groups = [
            {
                "params": [shard.parameter for shard in part],
                "weight_decay": optimizer.weight_decay if part[0].parameter.ndim > 1 else 0.0,
            }
            for part in parts
        ]
        self.adam = partition.AdamW(groups, optimizer)
        names = {shard.parameter: shard.name for shard in shards}
        self.zero = partition.partitioned(self.adam, names, Mpu(grid), self.group)
        self._share_fp32_storage()
        self.lane = Lane(grid.device)
        self.buckets = [self._bucket(number) for number in range(len(parts))]
        self._next = len(self.buckets)  # the bucket to be reduced next; none outside of `begin` and `reduce`
        self._attach_gradients(chunks)
        if not self.alone:
            self._wait_before_reading(chunks)
        partition.create_moments(self.adam, [bucket.master for bucket in self.buckets])
        self.zero._lazy_init_hp_params_optimizer_state()

    def _share_fp32_storage(self) -> None:
        """FP32 parameters are their own masters: no second copy, and nothing to copy back after a step."""
        for index, parts in enumerate(self.zero.bf16_partitioned_groups):
            mine = parts[dist.get_rank(self.group)]
            if mine.dtype == torch.float32:
                self.zero.fp32_groups_flat_partition[index].data = mine
        self.zero._link_all_hp_params()

    def _bucket(self, number: int) -> GradientBucket:
        own_gradients = self.zero.fp32_groups_gradient_flat_partition[number]
        parameters = self.zero.bf16_groups[number]
        mapped = [p._hp_mapping for p in parameters if partition.counts_in_norm(p, self.grid)]
        addresses = [mapping.get_hp_fragment_address() for mapping in mapped if mapping is not None]
        return GradientBucket(
            number,
            parameters,
            self.zero.fp32_groups_gradients_flat[number],
            own_gradients,
            self.zero.bf16_groups_flat[number],
            self.zero.bf16_partitioned_groups[number][dist.get_rank(self.group)],
            self.zero.fp32_groups_flat_partition[number],
            [own_gradients.narrow(0, address.start, address.numel) for address in addresses],
            torch.zeros((), device=self.grid.device),
        )

    def _attach_gradients(self, chunks: list[Llama]) -> None:
        """Gradients are summed where they are made: `main_grad` is the parameter's part of the flat FP32 buffer.

        Head and embedding add to it, and Transformer Engine's linear layers: their product accumulates in FP32 and
        overwrites what the step before left (see `model.Llama.set_is_first_microbatch`), so theirs is never cleared.
        What is left is summed by autograd (FP32), or added here in BF16 and freed (norms).
        """
        self.gradients: dict[nn.Parameter, Tensor] = {}
        overwritten = {parameter for chunk in chunks for parameter in fuse_accumulation(chunk)}
        self._to_clear: list[Tensor] = []
        for bucket, flats in zip(self.buckets, self.zero.fp32_groups_gradients, strict=True):
            for parameter, flat in zip(bucket.parameters, flats, strict=True):
                gradient = flat.view(parameter.shape)
                self.gradients[parameter] = parameter.main_grad = gradient  # type: ignore[attr-defined]
                if parameter not in overwritten:
                    self._to_clear.append(gradient)
                if parameter.dtype == torch.float32:
                    parameter.grad = gradient
                elif parameter not in overwritten:
                    parameter.register_post_accumulate_grad_hook(_adder(gradient))
                if not self.alone:
                    parameter.register_post_accumulate_grad_hook(self._counter(bucket))

    def _wait_before_reading(self, chunks: list[Llama]) -> None:
        """The module that reads a weight first waits for its bucket; the head's is read behind the last norm."""
        bucket_of = {parameter: bucket for bucket in self.buckets for parameter in bucket.parameters}
        for chunk in chunks:
            for module in chunk.modules():
                reader = chunk.decoder.final_layernorm if module is chunk.output_layer else module
                for parameter in module.parameters(recurse=False):
                    reader.register_forward_pre_hook(_waiter(bucket_of[parameter]))

    def after_backward(self) -> None:
        return None

    def begin(self, micro_batches: int) -> None:
        """A step begins, of so many micro-batches: each adds one gradient to each parameter."""
        self._next = 0
        for bucket in self.buckets:
            bucket.missing = micro_batches * len(bucket.parameters)

    def _counter(self, bucket: GradientBucket) -> Callable[[Tensor], None]:
        """A hook that does not keep us alive: Python's collector of circles does not look into a tensor's hooks."""
        this, number = weakref.ref(self), bucket.number

        def count(_: Tensor) -> None:
            stage = this()
            if stage is not None:
                stage.buckets[number].missing -= 1
                stage._send_complete()

        return count

    def _send_complete(self) -> None:
        """Send buckets that are complete, in their order; a tied end's waits for the other end: see `reduce`."""
        ready = len(self.buckets) - len(self.tied)
        while self._next < ready and self.buckets[self._next].missing == 0:
            self._start_reduction()

    def _start_reduction(self) -> None:
        """Send the next bucket; all ranks of the group do it in the same order, that of the list."""
        bucket = self.buckets[self._next]
        self._next += 1
        with torch.no_grad(), self.lane.after_computed():
            work = dist.reduce_scatter_tensor(bucket.own_gradients, bucket.gradients, group=self.group, async_op=True)
            bucket.reduced = self.lane.sent(work)
            if self.lane.stream is not None:
                _add_squares(bucket)

    @torch.no_grad()
    def reduce(self) -> Tensor:
        """Sum gradients over data x context parallel ranks: what was not sent during the backward pass goes now.

        Returns this rank's share of the squared norm, FP64 [].
        """
        if not self.alone:
            while self._next < len(self.buckets):
                if self._next == len(self.buckets) - len(self.tied):
                    self._sum_tied_embedding()
                self._start_reduction()
        elif self.tied:
            self._sum_tied_embedding()
        for bucket in self.buckets:
            _wait(bucket, "reduced")
            if self.lane.stream is None or self.alone:
                _add_squares(bucket)
            if bucket.gathered is not None:
                raise RuntimeError(f"weights of bucket {bucket.number} were read before they had been gathered")
        return torch.stack([bucket.squares for bucket in self.buckets]).double().sum()

    def _sum_tied_embedding(self) -> None:
        for parameter in self.tied:
            dist.all_reduce(self.gradients[parameter], group=self.grid.embedding_group)

    @torch.no_grad()
    def apply(self, lr: float, norm: float) -> None:
        """Clip, update the masters of this rank and send the new weights, bucket by bucket; clear the gradients."""
        clipped = self.clip_norm > 0 and norm + 1e-6 > self.clip_norm
        divisor = torch.full((), (norm + 1e-6) / self.clip_norm, device=self.grid.device) if clipped else None
        for bucket in self._forward_order():
            bucket.master.grad = bucket.own_gradients
            self.adam.step_group(bucket.number, lr, divisor)
            self._publish(bucket)
        self.discard()

    def _forward_order(self) -> list[GradientBucket]:
        """Vectors first, which the first layer reads, then matrices as a forward pass reads them."""
        tied = self.buckets[-1:] if self.tied else []  # the embedding, or on the last stage the head
        others = self.buckets[: len(self.buckets) - len(tied)]
        order = sorted(others, key=lambda bucket: (bucket.parameters[0].ndim, -bucket.number))
        return [*tied, *order] if self.grid.first_stage else [*order, *tied]

    def _publish(self, bucket: GradientBucket) -> None:
        """Begin to give all ranks what this one has of the weights."""
        if bucket.own_weights.data_ptr() != bucket.master.data_ptr():
            bucket.own_weights.copy_(bucket.master)
        if self.alone:
            return
        with self.lane.after_computed():
            work = dist.all_gather_into_tensor(bucket.weights, bucket.own_weights, group=self.group, async_op=True)
            bucket.gathered = self.lane.sent(work)

    def settle(self) -> None:
        """Wait for all weights: for who reads them otherwise than by a forward pass."""
        for bucket in self.buckets:
            _wait(bucket, "gathered")

    def discard(self) -> None:
        """Forget the gradients of this step; weights and moments stay as they are."""
        torch._foreach_zero_(self._to_clear)

    def fragment(self, parameter: nn.Parameter, key: str) -> tuple[int, Tensor] | None:
        """This rank's part of a tensor of KEYS: where it starts in the flat TP shard, and the live memory itself."""
        return partition.mapped_fragment(parameter, key)

    def steps_applied(self) -> int:
        """Updates applied so far, as Adam's bias correction counts them."""
        return int(self.adam.state[self.buckets[0].master]["step"].item())

    @torch.no_grad()
    def finish_load(self, step: int) -> None:
        """After filling the fragments: the step of Adam, weights from masters, no gradients. Collective."""
        for bucket in self.buckets:
            self.adam.state[bucket.master]["step"].fill_(step)
            self._publish(bucket)
        self.settle()
        self.discard()


def _wait(bucket: GradientBucket, message: str) -> None:
    wait = getattr(bucket, message)
    if wait is not None:
        wait()
        setattr(bucket, message, None)


def _waiter(bucket: GradientBucket) -> Callable[..., None]:
    return lambda *_: _wait(bucket, "gathered")


def _add_squares(bucket: GradientBucket) -> None:
    """This rank's share of the squared norm."""
    if bucket.in_norm:
        bucket.squares.copy_(torch.stack(torch._foreach_norm(bucket.in_norm)).square_().sum())


def _adder(total: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        if parameter.grad is not None:  # who adds to `main_grad` leaves none
            total.add_(parameter.grad)
            parameter.grad = None

    return add
