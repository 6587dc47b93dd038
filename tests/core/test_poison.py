"""R6: one request that kills its replicas costs at most three of them and fails no neighbour."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.world import World, kills
from tideserve.server.core.outcomes import BatchDone
from tideserve.server.core.request import Request
from tideserve.server.core.settings import BatchSettings, ModelSettings


def run(
    picks: list[int], *, replicas: int, batch_rows: int, good: int, at: int, outcome_races: bool
) -> tuple[World, Request, int]:
    """Replicas with one lease prefetched, each dying when it runs the poison. With
    `outcome_races` the outcome of the batch before is lost with the process."""
    world = World({"m": ModelSettings(batch=BatchSettings(max_batch_rows=batch_rows))})
    poison = None
    for number in range(good + 1):
        request = world.arrive("m")
        assert isinstance(request, Request)
        if number == at % (good + 1):
            poison = request
    assert poison is not None
    deaths = started = 0
    for step in range(5_000):
        if world.scheduler.is_idle("m"):
            return world, poison, deaths
        while len(world.players) < replicas:
            started += 1
            world.start(f"r{started}", "m")
        ids = sorted(world.players)
        # Every other step goes round, so that each replica has its turn some time.
        turn = step // 2 if step % 2 else picks[step // 2 % len(picks)]
        player = world.players[ids[turn % len(ids)]]
        if len(player.leases) < 2 and player.call_id is None:
            world.exchange(player.replica_id)  # prefetch
        elif player.leases:
            running = [0, 1] if outcome_races else [0]
            doomed = [
                index
                for index in running
                if index < len(player.leases) and poison in player.leases[index].requests
            ]
            if doomed:
                deaths += 1
                world.close_life_line(player.replica_id)
            else:
                world.exchange(
                    player.replica_id, [BatchDone(player.leases[0].lease_id, 0.0)], want=True
                )
    raise AssertionError("the run never ends")


shapes = {
    "picks": st.lists(st.integers(0, 100), min_size=1, max_size=30),
    "replicas": st.integers(1, 5),
    "batch_rows": st.integers(1, 16),
    "good": st.integers(0, 60),
    "at": st.integers(0, 60),
}


@settings(max_examples=60, deadline=None)
@given(**shapes)
def test_a_poisoned_request_costs_three_replicas_at_most_and_no_neighbour_fails(
    picks: list[int], replicas: int, batch_rows: int, good: int, at: int
) -> None:
    world, poison, deaths = run(
        picks, replicas=replicas, batch_rows=batch_rows, good=good, at=at, outcome_races=False
    )
    assert deaths <= 3
    assert kills(world.outcomes) == [poison.request_id]
    assert sorted(world.outcomes.values()).count("answered") == good
    assert world.deaths_laid_to_requests == 1


@settings(max_examples=60, deadline=None)
@given(**shapes)
def test_an_outcome_lost_with_its_replica_costs_one_more_and_no_neighbour_fails(
    picks: list[int], replicas: int, batch_rows: int, good: int, at: int
) -> None:
    world, poison, deaths = run(
        picks, replicas=replicas, batch_rows=batch_rows, good=good, at=at, outcome_races=True
    )
    assert deaths <= 4
    assert kills(world.outcomes) == [poison.request_id]
    assert sorted(world.outcomes.values()).count("answered") == good
