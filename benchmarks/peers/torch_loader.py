"""A torch DataLoader over an indexed map of the tars' members, as a careful user writes it by hand."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from peers import torch_crop
from peers.case import BATCH_SIZE, WORKERS, Case, read_range, seconds_each

SETTINGS = "positioned reads, simplejpeg, torch bicubic on uint8, default flags, default collate, random sampler"
DISTRIBUTIONS = ("torch", "simplejpeg", "pillow")
ENDLESS = 10**8


class Images(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, case: Case, fast: bool) -> None:
        self.fast = fast
        self.members = case.members()
        self.transform = torch_crop.CropResizeFlip(case.output_size)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        member = self.members[i]
        return self.transform(torch_crop.decode(read_range(member), self.fast)), member[3]


def batches(case: Case, fast: bool = False) -> Iterator[torch.Tensor]:
    images = Images(case, fast)
    sampler = RandomSampler(images, replacement=True, num_samples=ENDLESS)
    for image, _ in DataLoader(images, BATCH_SIZE, sampler=sampler, num_workers=WORKERS):
        yield image


def stage_seconds(case: Case, fast: bool = False) -> dict[str, float]:
    return {"read": seconds_each(read_range, case.members()[:512]), **torch_crop.stage_seconds(case, fast)}
