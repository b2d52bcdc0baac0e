"""Which parameters share a message, and what of the messages a step waits for."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama31.config import Model, Parallel
from llama31.plan import exposure, shapes

BIG = Model(name="405b", layers=126, hidden_size=16384, ffn_hidden_size=53248, heads=128, kv_heads=8)
LAYOUT = Parallel(tp=8, pp=16, dp=128, vpp=8, embedding_as_layer=True, loss_as_layer=True)  # 405b_16k
STEP_S, LINK = 6.46, 0.85 * 50e9  # of the report's 16,384 GPUs; 400 Gb/s a GPU, of which 85 % arrive


@given(st.lists(st.integers(1, 1000)), st.integers(1, 4000))
def test_buckets_hold_everything_once_and_are_large_enough(sizes: list[int], least: int) -> None:
    parts = exposure.buckets(sizes, least)
    assert [number for part in parts for number in part] == list(range(len(sizes)))
    for part in parts[:-1]:
        held = [4 * sizes[number] for number in part]
        assert sum(held) >= least > sum(held[:-1])


def test_the_largest_run_waits_for_less_than_two_percent() -> None:
    result = exposure.exposure(BIG, LAYOUT, 16, STEP_S, LINK)
    assert result.share(STEP_S) <= 0.02
    assert 0.05 <= result.share_without_overlap(STEP_S) <= 0.08


def test_one_bucket_hides_nothing_and_smaller_ones_more() -> None:
    shares = []
    for size in (10**13, 4 * 10**9, 10**9, 2 * 10**8):
        layout = dataclasses.replace(LAYOUT, bucket_bytes=size)
        shares.append(exposure.exposure(BIG, layout, 16, STEP_S, LINK).share(STEP_S))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9 * exposure.exposure(BIG, LAYOUT, 16, STEP_S, LINK).share_without_overlap(STEP_S)


def test_a_link_that_is_slower_than_the_passes_is_seen() -> None:
    slow = exposure.exposure(BIG, LAYOUT, 16, STEP_S, LINK / 100)
    assert slow.exposed_reduce_s > slow.reduce_s - STEP_S > 0
    assert exposure.exposure(BIG, LAYOUT, 16, STEP_S, 1e18).share(STEP_S) < 1e-6


@pytest.mark.parametrize(
    "layout",
    [LAYOUT, Parallel(dp=4), Parallel(tp=8, pp=9, vpp=14, dp=2), Parallel(tp=2, pp=2, cp=2, dp=1)],
    ids=lambda layout: f"pp{layout.pp}-vpp{layout.vpp}",
)
def test_stages_hold_all_matrices_between_them(layout: Parallel) -> None:
    held = sum(
        sum(exposure._matrices(BIG, layout, stage, chunk)) for stage in range(layout.pp) for chunk in range(layout.vpp)
    )
    assert held * layout.tp == shapes.matmul_parameters(BIG) + BIG.vocab_size * BIG.hidden_size


def test_messages_depend_on_the_replicas() -> None:
    with pytest.raises(ValueError, match=r"parallel\.dp=null.*give parallel\.dp"):
        exposure.exposure(BIG, Parallel(tp=8, pp=16), 16, STEP_S, LINK)
