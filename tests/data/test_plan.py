"""The laws of the data plan, tested as pure arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.fake_index import columns
from vitlight.data.plan import DataPlan, EvalPlan, PlanSource
from vitlight.data.subset import AllRows, SubsetRule, choose_rows
from vitlight.errors import InputError


def source(sizes, **changes) -> PlanSource:
    start = np.concatenate(([0], np.cumsum(sizes)))
    return PlanSource(AllRows(start), int(start[-1]), **changes)


def make_plan(num_samples=1000, num_shards=7, seed=0, global_batch_size=48, window_shards=3, **changes) -> DataPlan:
    sizes = np.random.default_rng(1).multinomial(num_samples, np.ones(num_shards) / num_shards)
    settings = {"seed": seed, "global_batch_size": global_batch_size, "window_shards": window_shards, "num_streams": 2}
    return DataPlan(source(sizes), **{**settings, **changes})


def steps_of(plan: DataPlan, num_steps: int, start=0, num_ranks=1, num_micro=1) -> list[list[tuple[int, int, int]]]:
    """(id, epoch, repeat) of each row of each global batch, put together from what the ranks and micro-batches hold."""
    steps: list[list] = [[] for _ in range(start, num_steps)]
    for rank in range(num_ranks):
        for i, request in enumerate(plan.micro_batches(start, num_steps, rank, num_ranks, num_micro)):
            assert request.step == start + i // num_micro
            parts = (request.ids, request.epochs, request.repeats)
            steps[i // num_micro] += zip(*(part.tolist() for part in parts), strict=True)
        assert len({len(step) for step in steps}) <= 1  # every rank takes every step
    return steps


@st.composite
def layouts(draw):
    """A plan over shards of any sizes, and a number of ranks and accumulated batches that divide its batch."""
    num_ranks, num_micro, micro, num_repeats = (draw(st.integers(1, limit)) for limit in (6, 3, 5, 3))
    sources = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        sizes = draw(st.lists(st.integers(0, 23), min_size=1, max_size=14).filter(any))
        sources.append(source(sizes, weight=draw(st.sampled_from([1, 0.5, 3]))))
    window_shards = draw(st.integers(1, 8))
    plan = DataPlan(
        sources,
        seed=draw(st.integers(0, 3)),
        global_batch_size=num_ranks * num_micro * micro * num_repeats * (12 if len(sources) > 1 else 1),
        window_shards=window_shards,
        num_streams=draw(st.integers(1, 8)),
        num_repeats=num_repeats,
    )
    return plan, num_ranks, num_micro


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(layouts(), st.data())
def test_laws_of_the_stream(layout, data):
    plan, num_ranks, num_micro = layout
    num_steps = data.draw(st.integers(1, 6))
    whole = steps_of(plan, num_steps)
    # Every step is full, and for each source the draws of an epoch are a permutation: nothing twice, nothing left out.
    assert {len(step) for step in whole} == {plan.global_batch_size}
    draws = [row for step in whole for row in step]
    assert len(set(draws)) == len(draws)
    first_ids = np.cumsum([0, *(s.num_rows for s in plan.sources)])
    for s, order in enumerate(plan.orders):
        mine = [epoch for i, epoch, repeat in draws if first_ids[s] <= i < first_ids[s + 1] and repeat == 0]
        full, rest = divmod(len(mine), order.num_samples)
        assert np.bincount(mine).tolist() == [order.num_samples] * full + [rest] * bool(rest)
    for repeat in range(1, plan.num_repeats):
        assert sorted(d[:2] for d in draws if d[2] == repeat) == sorted(d[:2] for d in draws if d[2] == 0)
    # Ranks and accumulation cut the same sequence; so does a resumed run, at any step, on other ranks.
    assert steps_of(plan, num_steps, num_ranks=num_ranks, num_micro=num_micro) == whole
    kill = data.draw(st.integers(0, num_steps))
    assert steps_of(plan, num_steps, start=kill, num_ranks=num_ranks) == whole[kill:]
    # Counts.
    samples = kill * plan.global_batch_size
    assert plan.unique_samples_seen(samples) == len({i for i, _, _ in draws[:samples]})
    # Every shard that is read is named, from the first step to the last.
    if data.draw(st.booleans()):
        check_shard_uses(plan, whole, kill)


def check_shard_uses(plan: DataPlan, whole, start: int) -> None:
    uses = list(plan.shard_uses(start, len(whole)))
    assert [use.first_step for use in uses] == sorted(use.first_step for use in uses)
    named = {(use.source, use.shard, step) for use in uses for step in range(use.first_step, use.last_step + 1)}
    first_ids = np.cumsum([0, *(s.num_rows for s in plan.sources)])
    for step in range(start, len(whole)):
        ids = np.array([i for i, _, _ in whole[step]])
        sources = np.searchsorted(first_ids, ids, side="right") - 1
        for s in np.unique(sources).tolist():
            rows = ids[sources == s] - first_ids[s]
            ends = np.cumsum(plan.sources[s].rows.counts)
            for shard in np.unique(np.searchsorted(ends, rows, side="right")).tolist():
                assert (s, shard, step) in named


def test_one_two_four_three_ranks_in_mid_epoch_are_one_sequence():
    plan = make_plan()
    whole = steps_of(plan, 40)
    parts = [(0, 5, 1), (5, 11, 2), (11, 12, 4), (12, 40, 3)]
    assert [step for start, stop, ranks in parts for step in steps_of(plan, stop, start, ranks)] == whole


@pytest.mark.parametrize("num_streams", [1, 3])
def test_epochs_and_seeds_have_orders_of_their_own(num_streams):
    plan = make_plan(num_streams=num_streams)
    draws = plan.orders[0].draws(0, 3000).rows if num_streams == 1 else None
    whole = [row for step in steps_of(plan, 125) for row in step]  # 6000 draws: six epochs
    epochs = [[i for i, epoch, _ in whole if epoch == e] for e in range(6)]
    assert all(sorted(epoch) == list(range(1000)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert draws is None or draws.tolist() == [i for i, _, _ in whole[:3000]]
    assert steps_of(make_plan(num_streams=num_streams, seed=1), 1) != steps_of(plan, 1)


def test_samples_move_far_between_epochs():
    for window_shards, num_streams in ((4, 1), (4, 4), (64, 64)):
        plan = make_plan(
            num_samples=5000, num_shards=20, window_shards=window_shards, num_streams=num_streams, global_batch_size=50
        )
        batches = np.array([[i for i, _, _ in step] for step in steps_of(plan, 200)])
        where = [np.argsort(epoch.ravel()) // 50 for epoch in batches.reshape(2, -1)]  # the batch of each sample
        assert np.abs(where[0] - where[1]).mean() > 20  # a third of 100 batches is what independent orders give


def test_a_batch_holds_all_streams_equally_and_a_rank_needs_only_its_own():
    plan = DataPlan(source([100] * 64), seed=0, global_batch_size=64, window_shards=16, num_streams=8)
    shards_of = [
        {i // 100 for request in plan.micro_batches(0, 100, rank, 4) for i in request.ids.tolist()} for rank in range(4)
    ]  # one epoch
    assert [len(shards) for shards in shards_of] == [16] * 4
    assert len(set().union(*shards_of)) == 64
    assert [{use.shard for use in plan.shard_uses(0, 100, rank, 4)} for rank in range(4)] == shards_of
    # In flight at once: window_shards of them on all ranks together.
    at_once = [sum(use.first_step <= step <= use.last_step for use in plan.shard_uses(0, 100)) for step in range(100)]
    assert max(at_once) == 16
    # Over the ends of epochs, where batches don't fit, a rank reads at most a few shards of its neighbours.
    uneven = DataPlan(source([99] * 65), seed=0, global_batch_size=64, window_shards=16, num_streams=8)
    for rank in range(4):
        named = {use.shard for use in uneven.shard_uses(0, 101, rank, 4)}
        read = {i // 99 for request in uneven.micro_batches(0, 101, rank, 4) for i in request.ids.tolist()}
        assert len(read - named) <= 4


def test_steps_have_the_global_batch_across_epoch_ends():
    plan = make_plan(num_samples=100, global_batch_size=48)
    seen = [row for step in steps_of(plan, 25) for row in step]  # 1200 images: exactly 12 epochs
    assert len(seen) == len(set(seen)) == 1200
    assert plan.unique_samples_seen(48) == 48
    assert plan.unique_samples_seen(1200) == 100


def test_more_ranks_than_shards_and_empty_shards_keep_steps_equal():
    plan = DataPlan(source([0, 5, 0, 1, 0, 0, 2]), seed=0, global_batch_size=16, window_shards=2)
    assert {len(list(plan.micro_batches(0, 10, rank, 8))) for rank in range(8)} == {10}
    assert sorted(plan.batch(0, 0, 16).ids.tolist()) == sorted(list(range(8)) * 2)


def test_a_chosen_subset_is_all_that_is_drawn():
    index = columns([300, 500, 7])
    chosen = choose_rows(index, SubsetRule(val_fraction=0.1, num_samples=96))
    plan = DataPlan(PlanSource(chosen.train, len(index)), seed=0, global_batch_size=32)
    drawn = {i for step in steps_of(plan, 3) for i, _, _ in step}
    assert len(drawn) == 96
    assert not drawn & set(chosen.val_rows.tolist())


def test_mixtures_keep_their_weights_at_every_step():
    plan = DataPlan(
        [source([50, 50], weight=0.7), source([1000], weight=0.2), source([10], weight=0.1)],
        seed=0,
        global_batch_size=32,
    )
    counts = np.zeros(3)
    for number, step in enumerate(steps_of(plan, 50), start=1):
        ids = np.array([i for i, _, _ in step])
        counts += [(ids < 100).sum(), ((ids >= 100) & (ids < 1100)).sum(), (ids >= 1100).sum()]
        assert np.abs(counts - 32 * number * np.array([0.7, 0.2, 0.1])).max() < 2
    halves = [(ids[:16] < 100).sum(), (ids[16:] < 100).sum()]
    assert abs(halves[0] - halves[1]) <= 2  # every rank gets its part of each source
    with pytest.raises(InputError, match=r"weights of data\.train \(1, -1\)"):
        DataPlan([source([5]), source([5], weight=-1)], seed=0, global_batch_size=8)


def test_repeated_draws_of_an_image_fall_to_different_ranks():
    plan = make_plan(global_batch_size=48, num_repeats=3)
    rows = steps_of(plan, 1)[0]
    assert sorted(rows) == sorted((i, 0, r) for i in {i for i, _, _ in rows} for r in range(3))
    for rank in range(3):
        ids = plan.batch(0, rank * 16, (rank + 1) * 16).ids.tolist()
        assert len(set(ids)) == 16
    assert plan.unique_samples_seen(48) == 16
    with pytest.raises(InputError, match=r"data\.global_batch_size=48 is not a multiple of data\.num_repeats=5"):
        make_plan(num_repeats=5)


def test_a_global_batch_that_ranks_do_not_divide_is_refused():
    with pytest.raises(InputError, match=r"data\.global_batch_size=48 is not a multiple of 5 .*use 45 or 50"):
        make_plan().micro_batch_size(5, 1)


def test_digest_names_everything_the_order_depends_on():
    base = source([5, 5], digest="x")
    settings = {"seed": 0, "global_batch_size": 4}
    digests = {
        DataPlan(base, **settings).digest,
        DataPlan(replace(base, digest="y"), **settings).digest,
        DataPlan([base, base], **settings).digest,
        DataPlan([base, replace(base, weight=2)], **settings).digest,
        *(DataPlan(base, **{**settings, name: 2}).digest for name in ("seed", "global_batch_size", "window_shards")),
        *(DataPlan(base, **{**settings, name: 2}).digest for name in ("num_streams", "num_repeats")),
    }
    assert len(digests) == 9
    assert DataPlan(base, **settings).digest in digests


@pytest.mark.parametrize("name", ["global_batch_size", "window_shards", "num_streams", "num_repeats"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(InputError, match=rf"data\.{name}=0 is not at least 1"):
        make_plan(**{name: 0})
    with pytest.raises(InputError, match="empty"):
        DataPlan(source([0]), seed=0, global_batch_size=1)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_counts_every_image_once_on_any_world(num_ranks, batch_size):
    plan = EvalPlan(np.arange(100, 230), batch_size)
    seen = []
    for rank in range(num_ranks):
        batches = list(plan.batches(rank, num_ranks))
        assert len(batches) == plan.num_batches(num_ranks)
        assert {len(batch.ids) for batch in batches} == {batch_size}
        seen += [i for batch in batches for i in batch.ids.tolist() if i >= 0]
    assert sorted(seen) == list(range(100, 230))
