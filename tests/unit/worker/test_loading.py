"""An epoch's batches: all processes together take each global batch once, in an order that seed and epoch decide."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from forebay.worker.trainer.loading import Batch, Position, Ragged, Rows, TrainingBatches, ValidationBatches, step_seed


def rows(count: int, ragged: bool = False) -> Rows:
    numbers = torch.arange(count)
    if not ragged:
        return Rows((numbers[:, None].float(),), numbers, numbers % 3 + 1.0)
    lengths = np.array([1 + 7 * i % 11 for i in range(count)])
    texts = Ragged([np.full(length, i) for i, length in enumerate(lengths)])
    return Rows((texts,), numbers, numbers % 3 + 1.0, lengths)


def taken(batch: Batch) -> list[int]:
    return batch.targets[batch.weights > 0].tolist()


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_processes_share_what_one_would_take(count: int, size: int, world: int, epoch: int, ragged: bool) -> None:
    def batches(rank: int, world: int) -> list[Batch]:
        return list(TrainingBatches(rows(count, ragged), size, 7, Position(epoch), rank, world))

    whole = batches(0, 1)
    shares = [batches(rank, world) for rank in range(world)]
    assert sorted(row for batch in whole for row in taken(batch)) == list(range(count))
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert sorted(row for part in parts for row in taken(part)) == sorted(taken(batch))
        assert len({len(part.targets) for part in parts}) == 1
        assert {part.total for part in parts} == {batch.total} == {float(batch.weights.sum())}


@given(st.integers(1, 40), st.integers(1, 10), st.data())
def test_an_epoch_goes_on_where_it_stood(count: int, size: int, data: st.DataObject) -> None:
    whole = [taken(batch) for batch in TrainingBatches(rows(count), size, 1, Position(2), 0, 1)]
    at = data.draw(st.integers(0, len(whole)))
    rest = TrainingBatches(rows(count), size, 1, Position(2, at), 0, 1)
    assert [taken(batch) for batch in rest] == whole[at:]
    assert len(rest) == len(whole)


def test_every_epoch_has_an_order_of_its_own() -> None:
    position = Position()
    batches = TrainingBatches(rows(30), 4, 0, position, 0, 1)
    orders = []
    for position.epoch in range(3):
        orders.append([row for batch in batches for row in taken(batch)])
    assert len({tuple(order) for order in orders}) == 3


def test_rows_of_a_batch_are_of_about_the_same_length_and_padded_to_its_longest() -> None:
    def batches(epoch: int) -> list[Batch]:
        return list(TrainingBatches(rows(110, ragged=True), 10, 0, Position(epoch), 0, 1))

    for batch in batches(0):
        [texts] = batch.inputs
        lengths = 1 + 7 * batch.targets % 11
        assert texts.shape == (10, lengths.max())
        assert lengths.max() - lengths.min() <= 2
        for text, row, length in zip(texts, batch.targets, lengths, strict=True):
            assert text.tolist() == [int(row)] * int(length) + [0] * (texts.shape[1] - int(length))
    assert [taken(batch) for batch in batches(0)] != [taken(batch) for batch in batches(1)]


@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 4))
def test_validation_rows_come_back_in_their_order_when_shares_are_laid_side_by_side(
    count: int, size: int, world: int
) -> None:
    shares = [[part for (part,) in ValidationBatches(rows(count), size, rank, world)] for rank in range(world)]
    if not count:
        assert not any(shares)
        return
    together = torch.stack([torch.cat(share) for share in shares]).transpose(0, 1).flatten(0, 1)
    assert together[:count].flatten().tolist() == list(range(count))


def test_each_step_and_process_begins_its_chances_anew() -> None:
    seeds = {step_seed(0, epoch, batch, rank) for epoch in range(3) for batch in range(3) for rank in range(2)}
    assert len(seeds) == 18
    assert step_seed(0, 1, 2, 1) == step_seed(0, 1, 2, 1)
