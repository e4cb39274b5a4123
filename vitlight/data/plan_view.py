"""What `vitlight data plan` shows of a plan: its numbers, and the draws of one rank."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vitlight.data.sources import shown
from vitlight.data.training_set import TrainingSet

__all__ = ["list_draws", "summarise"]


def list_draws(
    training: TrainingSet,
    start_step: int,
    num_steps: int,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    num_micro: int = 1,
    epoch: int | None = None,
) -> Iterator[dict[str, Any]]:
    """What a rank draws in the steps start_step <= s < num_steps, as it gets them; with `epoch` only the draws of that one.

    label: a number, or a list of them where samples may have several.
    """
    first_id = np.cumsum([0, *(len(index) for index in training.indexes)])
    for request in training.plan.micro_batches(start_step, num_steps, rank, num_ranks, num_micro):
        sources = (np.searchsorted(first_id, request.ids, side="right") - 1).tolist()
        for i, s, drawn in zip(request.ids.tolist(), sources, request.epochs.tolist(), strict=True):
            if epoch is not None and drawn != epoch:
                continue
            index, row = training.indexes[s], np.array([i - first_id[s]])
            labels = index.labels_of(row)[0].tolist()
            yield {
                "step": request.step,
                "epoch": drawn,
                "shard": shown(index.shards[int(index.shard_of(row)[0])]),
                "label": labels if index.is_multi_label else labels[0],
                "key": index.key(int(row[0])).encode(errors="surrogateescape").decode(errors="backslashreplace"),
            }


def summarise(
    training: TrainingSet, num_steps: int, *, num_ranks: int = 1, num_micro: int = 1, num_workers: int = 0
) -> dict[str, Any]:
    """The numbers of a run of so many steps.

    epochs: samples seen over training samples. batches_per_worker: least and most; with no workers those of the rank's own
    process. mean_image_bytes_per_rank: of the encoded images drawn, each time they are.
    """
    plan, indexes = training.plan, training.indexes
    samples_seen = num_steps * plan.global_batch_size
    num_bytes = [_num_bytes(training, s) for s in range(len(indexes))]
    drawn_bytes = sum(
        samples * total / order.num_samples
        for samples, total, order in zip(plan.samples_of_sources(num_steps), num_bytes, plan.orders, strict=True)
    )
    at_once = [o.shards_at_once * float(i.num_bytes.mean()) for o, i in zip(plan.orders, indexes, strict=True)]
    workers, num_batches = max(num_workers, 1), num_steps * num_micro
    return {
        "num_samples": sum(len(index) for index in indexes),
        "num_shards": sum(len(index.shards) for index in indexes),
        "num_classes": max(index.num_classes for index in indexes),
        "num_val_samples": len(training.val_ids),
        "num_train_samples": plan.num_samples,
        "epochs": samples_seen / plan.num_samples,
        "steps": num_steps,
        "samples_seen": samples_seen,
        "unique_samples_seen": plan.unique_samples_seen(samples_seen),
        "global_batch_size": plan.global_batch_size,
        "num_ranks": num_ranks,
        "samples_per_rank": samples_seen // num_ranks,
        "rank_batch_size": plan.micro_batch_size(num_ranks, num_micro),
        "num_workers": num_workers,
        "batches_per_worker": [num_batches // workers, -(-num_batches // workers)],
        "image_bytes": sum(num_bytes),
        "mean_image_bytes_per_rank": round(drawn_bytes / num_ranks),
        "shards_read_at_once": sum(order.shards_at_once for order in plan.orders),
        "bytes_of_shards_read_at_once": round(sum(at_once)),
        "seed": plan.seed,
        "plan_digest": plan.digest,
        "data_digest": training.digest,
    }


def _num_bytes(training: TrainingSet, s: int) -> int:
    """Bytes of the images that source s is trained on."""
    index, rows = training.indexes[s], training.plan.sources[s].rows
    if int(rows.counts.sum()) == len(index):
        return int(index.size.sum(dtype=np.uint64))
    shards = np.flatnonzero(rows.counts).tolist()
    return sum(int(index.size[rows.of_shard(shard)].sum(dtype=np.uint64)) for shard in shards)
