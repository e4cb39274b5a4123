"""Shards written side by side: a worker does a whole shard, so that neither order nor bytes depend on their number."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitlight.data.decode import DecodeError
from vitlight.data.importers.convert import Conversion, convert, convert_pixels
from vitlight.data.importers.split import ImagePlace
from vitlight.data.parent import end_with_parent
from vitlight.data.shards import Sample, write_shard
from vitlight.errors import InputError

__all__ = ["ImageTask", "ShardTask", "run_shards"]


@dataclass(frozen=True)
class ImageTask:
    """One image to be read, converted and written."""

    key: str
    label: int
    place: ImagePlace


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written."""

    path: Path
    images: list[ImageTask]
    conversion: Conversion
    max_undecodable: int


def run_shards(tasks: Iterator[ShardTask], processes: int, advance: Callable[[int], None]) -> Iterator[list[str]]:
    """Writes the shards; yields, in their order, what could not be decoded of each, one line an image.

    One process is this one; more are spawned, with at most two shards a process under way. `advance(n)` is told of images
    done. Raises InputError for a shard with more than `max_undecodable` of these, naming the last.
    """
    if processes == 1:
        for task in tasks:
            yield _write(task, advance)
        return
    with ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
    ) as pool:
        waiting: list[tuple[int, Future[list[str]]]] = []
        try:
            for task in tasks:
                waiting.append((len(task.images), pool.submit(_write, task)))
                if len(waiting) == 2 * processes:
                    yield _take(waiting, advance)
            while waiting:
                yield _take(waiting, advance)
        finally:
            pool.shutdown(cancel_futures=True)


def _take(waiting: list[tuple[int, Future[list[str]]]], advance: Callable[[int], None]) -> list[str]:
    count, future = waiting.pop(0)
    undecodable = future.result()
    advance(count)
    return undecodable


def _write(task: ShardTask, advance: Callable[[int], None] = lambda count: None) -> list[str]:
    undecodable: list[str] = []

    def samples() -> Iterator[Sample]:
        for each in task.images:
            data = each.place.read()
            try:
                if each.place.shape is None:
                    image, extension = convert(data, task.conversion)
                else:
                    pixels = np.frombuffer(data, np.uint8).reshape(each.place.shape)
                    image, extension = convert_pixels(pixels, task.conversion)
            except DecodeError as error:
                undecodable.append(f"{each.place.name} can't be decoded: {error}")
                if len(undecodable) > task.max_undecodable:
                    raise InputError(
                        f"{undecodable[-1]}; mend it or remove it, or raise max_undecodable={task.max_undecodable}"
                    ) from error
            else:
                yield Sample(each.key, image, extension, each.label)
            advance(1)

    write_shard(samples(), task.path)
    return undecodable
