"""Which worker is given which cells, and what becomes of those of lost workers."""

import pytest
from scaling_simulation import Costs, laser_sweep, simulate

from lrbench.run.executors.schedule import DEATHS, LOSSES, Group, Queue, cost_of, room_for


class Cell:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name


def groups(blocks, weights=1, ranks=1):
    """A sweep: so many weights of each block, each at so many ranks."""
    return [
        Group(
            tuple(Cell(f"{block}.{weight}.{rank}") for rank in range(ranks)), block,
            ranks * cost_of(block, blocks), (block, weight),
        )
        for block in range(blocks) for weight in range(weights)
    ]  # fmt: skip


def all_cells(share):
    return [cell for group in share for cell in group.cells]


def work_off(queue, workers):
    """Shares as workers ask for them in turn, until nothing waits."""
    shares = []
    while queue:
        shares.append(queue.take(workers))
    return shares


@pytest.mark.parametrize("workers", [1, 2, 7, 100])
def test_every_cell_is_handed_out_once_in_ascending_blocks(workers):
    sweep = groups(12, weights=3, ranks=2)
    shares = work_off(Queue(sweep), workers)
    assert [cell for share in shares for cell in all_cells(share)] == all_cells(sweep)
    blocks = [group.block for share in shares for group in share]
    assert blocks == sorted(blocks)


def test_shares_shrink_so_that_the_last_one_is_small():
    costs = [sum(group.cost for group in share) for share in work_off(Queue(groups(80, weights=7)), 8)]
    total = sum(costs)
    assert costs[0] > total / 20
    assert costs[-1] < total / 500


def test_a_share_ends_between_two_weights_where_that_is_near():
    both = [
        Group((Cell("svd"), Cell("svd")), 0, 20.0, weight) if method == 0 else Group((Cell("cr"),), 0, 10.0, weight)
        for weight in range(4) for method in range(2)
    ]  # fmt: skip
    queue = Queue(both)
    share = queue.take(1)  # a half, 60 of 120: two weights
    assert [group.weights for group in share] == [0, 0, 1, 1]
    assert [group.weights for group in queue.take(1)] == [2, 2]  # 30 of 60


def test_cells_that_edit_the_same_weights_are_divided_where_there_is_nothing_else():
    together = [Group((Cell(f"{method}"),), 4, 5.0, "all") for method in range(6)]
    assert len(work_off(Queue(together), 2)) > 2


def test_what_a_lost_worker_leaves_is_handed_out_first_and_what_it_did_is_not():
    sweep = groups(4, ranks=3)
    queue = Queue(sweep)
    share = queue.take(1)
    done, *rest = all_cells(share)
    assert queue.delivered(done)
    assert not queue.delivered(done)
    assert queue.lost(share, died=False) == []
    again = work_off(queue, 1)
    assert [cell for share in again for cell in all_cells(share)] == rest + all_cells(sweep)[len(rest) + 1 :]
    assert again[0][0].cost == pytest.approx(2 / 3 * sweep[0].cost)


def test_a_cell_on_which_a_worker_died_waits_alone_and_is_given_up_in_the_end():
    sweep = groups(2, ranks=3)
    queue = Queue(sweep)
    suspect = sweep[0].cells[0]
    share = queue.take(1)
    for death in range(1, DEATHS + 1):
        given_up = queue.lost(share, died=True)
        if death < DEATHS:
            assert given_up == []
            share = queue.take(1)
            assert all_cells(share) == [suspect]
    assert given_up == [suspect]
    assert not queue.finished
    rest = [cell for share in work_off(queue, 1) for cell in all_cells(share)]
    assert rest == [cell for cell in all_cells(sweep) if cell is not suspect]
    for cell in rest:
        queue.delivered(cell)
    assert queue.finished


def test_a_suspect_that_is_innocent_costs_nobody_a_row():
    [group] = groups(1, ranks=3)
    queue = Queue([group])
    guilty = group.cells[1]  # it kills while the whole group is reduced, before the first of it is scored
    deaths, given_up = 0, []
    while not queue.finished:
        share = queue.take(1)
        if guilty in all_cells(share):
            deaths += 1
            given_up += queue.lost(share, died=True)
        else:
            for cell in all_cells(share):
                queue.delivered(cell)
    assert given_up == [guilty]
    assert deaths == 1 + DEATHS


def test_a_lost_machine_is_no_ones_fault_unless_it_happens_again_and_again():
    [group] = groups(1)
    queue = Queue([group])
    assert LOSSES > 2 * DEATHS
    for _ in range(LOSSES - 1):
        assert queue.lost(queue.take(1), died=False) == []
    assert queue.lost(queue.take(1), died=False) == [group.cells[0]]
    assert not queue.is_open(group.cells[0])


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers"), [(1, 0, 24), (8, 0, 2), (1, 1, 4), (1, 0.5, 8), (1, 0.3, 12), (8, 0.5, 2), (1, 3, 1)]
)
def test_a_fraction_of_a_gpu_is_on_one_and_several_are_on_one_machine(cpus, gpus, workers):
    assert room_for([{"CPU": 16, "GPU": 4}, {"CPU": 7}, {"CPU": 1, "memory": 1e9}], cpus, gpus) == workers


COSTS = Costs(open=0.0, block=1.0, cell=0.0, reduce=0.0, write=0.0)


def test_one_worker_takes_the_sum_and_several_take_their_part_of_it():
    sweep = laser_sweep(blocks=16, weights=4, ranks=3)
    one = simulate(sweep, 16, 1, COSTS)
    assert one.work == sum(len(group.cells) * (16 - group.block) for group in sweep)
    assert one.makespan == pytest.approx(one.work + one.frontier)
    assert one.frontier == 15  # the last cells begin at the last block
    eight = simulate(sweep, 16, 8, COSTS)
    assert eight.work == one.work
    assert one.work / 8 < eight.makespan < 1.15 * (one.work / 8 + 16)


def test_the_longest_group_is_what_many_workers_wait_for():
    sweep = laser_sweep(blocks=16, weights=4, ranks=3)
    many = simulate(sweep, 16, 1000, COSTS)
    assert many.makespan == 3 * 16  # a weight of the first block at its ranks
    assert many.limit == "longest group"


@pytest.mark.parametrize(
    ("costs", "limit"),
    [(Costs(1e6, 1, 0, 0, 0), "opening the model"), (Costs(0, 1, 0, 0, 100.0), "writing rows")],
)
def test_what_costs_most_is_named_as_the_limit(costs, limit):
    assert simulate(laser_sweep(16, 4, 3), 16, 8, costs).limit == limit
