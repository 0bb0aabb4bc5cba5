"""Cutting a data set into shards: every unit once, in order, whatever the blocks, the sizes and the interruptions."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.requests.batch import TO_THE_END, Piece, Position, Shard
from forebay.datasets.formats.source import Block, Size
from forebay.datasets.planning.shards import shards

FREELY = 1 << 30


@st.composite
def layouts(draw: st.DrawFn) -> list[list[Block]]:
    """Files with up to five blocks each, some of them empty of blocks, some cut freely, some seldom or never."""
    files = []
    for _ in range(draw(st.integers(0, 6))):
        blocks, at = [], 0
        for _ in range(draw(st.integers(0, 5))):
            units = draw(st.integers(1, 300))
            rows = draw(st.integers(0, units))
            cuts = draw(st.sampled_from([1, 2, 8, FREELY]))
            blocks.append(Block(at, at + units, rows, draw(st.integers(1, 10**9)), cuts))
            at += units
        files.append(blocks)
    return files


SIZES = st.builds(Size, st.integers(1, 400), st.integers(1, 10**9))


START = Position()


def plan(files: list[list[Block]], size: Size, position: Position = START) -> list[tuple[Shard, Position]]:
    return list(shards(lambda i, _: files[i], len(files), position, size))


def covered(made: list[Shard]) -> list[tuple[int, int]]:
    """Every unit that the shards cover, in their order."""
    return [(p.file, unit) for shard in made for p in shard.pieces for unit in range(p.first, p.last)]


@given(layouts(), SIZES)
def test_every_unit_is_covered_once_and_in_order(files: list[list[Block]], size: Size) -> None:
    units = [(i, unit) for i, blocks in enumerate(files) for b in blocks for unit in range(b.first, b.last)]
    assert covered([shard for shard, _ in plan(files, size)]) == units


@given(layouts(), st.data())
def test_planning_that_stops_anywhere_and_goes_on_with_another_size_covers_the_same(
    files: list[list[Block]], data: st.DataObject
) -> None:
    made: list[Shard] = []
    position = Position()
    while True:
        step = plan(files, data.draw(SIZES), position)
        if not step:
            break
        taken = step[: data.draw(st.integers(1, len(step)))]
        made += [shard for shard, _ in taken]
        position = taken[-1][1]
    units = [(i, unit) for i, blocks in enumerate(files) for b in blocks for unit in range(b.first, b.last)]
    assert covered(made) == units


@given(layouts(), SIZES)
def test_parts_sort_by_name_in_the_order_of_the_input(files: list[list[Block]], size: Size) -> None:
    names = [shard.part for shard, _ in plan(files, size)]
    assert names == sorted(set(names))


@given(layouts(), SIZES)
def test_a_shard_of_several_pieces_keeps_within_its_size(files: list[list[Block]], size: Size) -> None:
    for shard, _ in plan(files, size):
        if len(shard.pieces) > 1:
            assert shard.rows <= size.rows
            assert shard.bytes <= size.bytes


@given(layouts(), SIZES)
def test_a_block_is_cut_no_more_often_than_it_allows(files: list[list[Block]], size: Size) -> None:
    made = [piece for shard, _ in plan(files, size) for piece in shard.pieces]
    for i, blocks in enumerate(files):
        for block in blocks:
            begun = [p for p in made if p.file == i and block.first <= p.first < block.last]
            assert len(begun) <= block.cuts


def test_a_file_that_can_only_be_read_whole_is_one_piece() -> None:
    files = [[Block(0, TO_THE_END, 10**9, 10**12)], [Block(0, 10, 10, 10, FREELY)]]
    made = [shard for shard, _ in plan(files, Size(5, 100))]
    assert [shard.pieces for shard in made] == [
        (Piece(0, 0, TO_THE_END),), (Piece(1, 0, 5),), (Piece(1, 5, 10),),
    ]  # fmt: skip


def test_small_files_share_a_shard_and_a_large_one_is_cut_evenly() -> None:
    small = [[Block(0, 100, 100, 100, FREELY)] for _ in range(3)]
    large = [[Block(0, 1001, 1001, 1001, FREELY)]]
    made = [shard for shard, _ in plan([*small, *large], Size(300, 10**6))]
    assert [len(shard.pieces) for shard in made] == [3, 1, 1, 1, 1]
    assert [shard.rows for shard in made[1:]] == [251, 250, 250, 250]


def test_nothing_to_read_makes_no_shard() -> None:
    assert plan([[], []], Size(10, 10)) == []
