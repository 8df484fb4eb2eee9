"""Who reads what from the line, and who gives it to whom: rules over a `World` and a time. They change nothing.

The line is the hub, or the peer that has the whole blob. One member, the coordinator, grants runs of units to be
read from it, so that each comes over it once; everybody takes the rest from whoever has it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from edgecdn_agent.ingest.world import Lease, Member, Presence, World

__all__ = [
    "Ask",
    "Policy",
    "Pull",
    "Run",
    "Wait",
    "coordinator_of",
    "is_idle",
    "next_pull",
    "next_run",
    "overdue",
    "streams_of",
]


@dataclass(frozen=True, slots=True)
class Policy:
    """What can be tuned, found by simulation (`tests/agent/ingest_sim.py`)."""

    hub_connections: int = 8
    """Leases at a time, for all blobs of the lab together: more do not make a line faster, and hubs block crowds."""
    run_units: int = 4
    """A run of it costs one request for so many units; longer ones only keep low units waiting."""
    run_s: float = 2.0
    """What a fast line brings in it may be one run, so that requests do not cost it time."""
    settle_s: float = 0.3
    """A new coordinator first hears what the others are reading."""
    prepare_s: float = 3.0
    """How long a member may keep all waiting that does not say what it has."""
    backlog_units: int = 32
    """Who has so many to take from others has no room for more on its link."""
    ask_again_s: float = 0.5
    """To wait when there is nothing to read just now."""
    asks_a_second: float = 50.0
    """So many that wait may ask a coordinator again: each costs it a request."""
    silent_lease_s: float = 10.0
    """What a silent member was to read comes from it if it is heard again; after this we read it ourselves."""
    apart_s: float = 60.0
    """How long two halves of a lab that lost each other read from different ends."""
    overdue_s: float = 2.0
    """No lease is overdue before it: a line may be held up so long and go on."""
    overdue_times: float = 4.0
    """A lease is overdue when a unit of it takes so many times the usual."""
    overdue_unknown_s: float = 10.0
    """When there is no usual: a first request, a line that nobody has measured."""
    rate_times: float = 16.0
    """A rate that is so many times the usual one is taken for no more: it is a word, and others' shares hang on it."""
    slow_times: float = 2.0
    tail_units: float = 1.25
    """A member so much slower than others gets none that could read less than this before they end all the rest."""
    pulls: int = 12
    """Units on their way from others: enough to fill a link, few enough that each is soon whole, to be given on."""
    pulls_a_member: int = 2
    """One is on the wire while the next is asked."""
    slow_giver_times: float = 8.0
    """A member that gives so much slower than the fastest is asked only for what no other has."""
    gives: int = 8
    """Units that one gives at a time, others are told to come again: the first shall soon be there to be given on."""
    busy_s: float = 0.2
    """About how long a member is left alone that said so."""
    window_units: int = 64
    """The lowest so many that others have are chosen from."""
    takers_a_holder: float = 3.0
    """So many begin to take a unit for each that has it: a crowd at the one that just read it would hold all up."""
    draw_s: float = 0.5
    """After it others are drawn to be the first takers of a unit."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a member says when it asks for a lease.

    `backlog`: units that it could take from others. `rate`: what one of its streams brings, bytes/s, 0 unknown.
    `reading`: leases that it has now. `from_holder`: the line is a peer that has the blob.
    """

    member: str
    backlog: int = 0
    rate: float = 0.0
    reading: int = 0
    from_holder: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """Units to be read from the line, in order."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to read: ask again after so many seconds, or when the coordinator is another."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Pull:
    """A unit to be taken from a member."""

    unit: int
    member: str


# The coordinator


def coordinator_of(world: World, skip: frozenset[str] = frozenset()) -> str:
    """Who grants: the least in rank of those that are here and lack something; who has all listens to nobody any more.

    `skip`: members that just failed to answer.
    """
    able = (member for member in world.here() if not (member.is_done or member.is_preparing or member.id in skip))
    ranks = [(member.rank, member.id) for member in able]
    return min([*ranks, (world.my_rank, world.me)])[1]


def is_idle(world: World, policy: Policy, now_s: float) -> bool:
    """Whether there is something to read and nobody is known to read anything: then a coordinator has to grant."""
    return not any(_is_live(world, lease) for lease in world.leases) and bool(_free(world, policy, now_s))


def streams_of(world: World, policy: Policy, *, blobs: int = 1) -> int:
    """How many leases one member may have at a time."""
    return max(1, _leases_in_all(policy, blobs) // (1 + len(world.here())))


def next_run(world: World, ask: Ask, policy: Policy, now_s: float, *, blobs: int = 1) -> Run | Wait:
    """What a member may read from the line; to be called where we are the coordinator.

    `blobs`: how many are taken in the lab now; they share the connections to the hub.
    """
    unsettled = _unsettled_s(world, policy, now_s)
    if unsettled > 0:
        return Wait(unsettled)
    members = world.here()
    crowd = 1 + len(members)
    again = Wait(max(policy.ask_again_s, crowd / policy.asks_a_second))
    asker = world.members.get(ask.member)
    if ask.backlog > policy.backlog_units or (asker is not None and not asker.reads):
        return again
    others = [lease for lease in world.leases if lease.member != ask.member and _is_live(world, lease)]
    in_all = _leases_in_all(policy, blobs)  # of its own leases its word counts: the end of one may not be heard yet
    if len(others) + ask.reading >= in_all or ask.reading >= max(1, in_all // crowd):
        return again
    free = _free(world, policy, now_s)
    if not free:
        return again
    length = _run_length(world, ask, policy, len(free), others, in_all)
    return _cut_run(free, length, from_top=_is_other_half(world, policy, now_s)) if length else again


def overdue(world: World, policy: Policy, now_s: float) -> list[Lease]:
    """Leases to be taken away: what is left of them may be read by others."""
    return [lease for lease in world.leases if now_s - lease.moved_s > _patience_s(world, lease, policy)]


def _leases_in_all(policy: Policy, blobs: int) -> int:
    return max(1, policy.hub_connections // max(1, blobs))


def _unsettled_s(world: World, policy: Policy, now_s: float) -> float:
    """How long nothing may be granted yet, because others may be reading what we would grant."""
    before_us = [member.left_s for member in world.members.values() if _went(member) and member.rank < world.my_rank]
    since_s = max([world.began_s, *before_us])
    preparing = [member.met_s + policy.prepare_s for member in world.here() if member.is_preparing]
    left_s = since_s + policy.settle_s - now_s
    if any(until_s > now_s for until_s in preparing):
        left_s = max(left_s, min(0.05, max(preparing) - now_s))  # asked again soon: it says it at any moment
    return left_s


def _went(member: Member) -> bool:
    return member.presence is not Presence.HERE


def _is_live(world: World, lease: Lease) -> bool:
    member = world.members.get(lease.member)
    return member is None or member.presence is Presence.HERE  # None: our own


def _is_other_half(world: World, policy: Policy, now_s: float) -> bool:
    """Whether a coordinator before us fell silent: if it lives, behind a broken switch, it goes on with the lowest."""
    return any(
        member.presence is Presence.SILENT
        and member.rank < world.my_rank
        and now_s - member.left_s < policy.apart_s
        and not member.is_done
        for member in world.members.values()
    )


def _free(world: World, policy: Policy, now_s: float) -> list[int]:
    """The units that nobody has and nobody reads, in order."""
    taken: set[int] = set()
    for lease in world.leases:
        if _is_live(world, lease) or now_s - world.members[lease.member].left_s < policy.silent_lease_s:
            taken.update(range(lease.start, lease.stop))
    mine, holders = world.mine, world.holders
    missing = (unit for unit in range(world.front, world.cut.count) if unit not in mine and unit not in holders)
    return [unit for unit in missing if unit not in taken]


def _cut_run(free: list[int], length: int, *, from_top: bool) -> Run:
    """The first units of `free`, or the last, that follow each other."""
    if from_top:
        stop = free[-1] + 1
        low = next((at for at in range(1, length) if at >= len(free) or free[-1 - at] != stop - 1 - at), length)
        return Run(stop - low, stop)
    start = free[0]
    high = next((at for at in range(1, length) if at >= len(free) or free[at] != start + at), length)
    return Run(start, start + high)


def _run_length(world: World, ask: Ask, policy: Policy, free: int, others: list[Lease], in_all: int) -> int:
    """How many units: what it reads in half the time in which all read the rest; 0: none."""
    unit = world.cut.unit
    rates = sorted(_rates_of_others(world, ask), reverse=True)[: in_all - 1]
    known = sorted(rate for rate in [*rates, ask.rate] if rate > 0)
    most_rate = policy.rate_times * known[(len(known) - 1) // 2] if known else 0.0
    rates = [min(rate, most_rate) for rate in rates]
    usual = sum(min(rate, most_rate) for rate in known) / len(known) if known else 1.0
    own = min(ask.rate, most_rate) or usual
    share = own / (own + sum(rate or usual for rate in rates))
    streams = max(1, in_all // (1 + len(world.here())))
    share /= streams  # of one of its streams
    remaining = free + sum(lease.stop - lease.position for lease in others)
    if others and own * policy.slow_times < usual and remaining * share < policy.tail_units:
        return 0  # 1. too slow to end even one before the others end the rest
    most = max(policy.run_units, int(own * policy.run_s / unit) if ask.rate else 0)
    if others and _alone(world, ask.member) > most:
        return 0  # 2. what it read does not get away from it: let others read that can give
    if ask.from_holder or not ask.rate:
        return 1  # 3. a holder gives on each at once; and nobody knows yet how slow its line is
    return max(1, min(most, int(free * share / 2)))


def _alone(world: World, member: str) -> int:
    """How many units only this member has."""
    if member == world.me:
        return sum(unit not in world.holders for unit in world.mine) if world.here() else 0
    units = world.members[member].units if member in world.members else set()
    return sum(len(world.holders[unit]) == 1 and unit not in world.mine for unit in units)


def _rates_of_others(world: World, ask: Ask) -> list[float]:
    others = (member for member in world.here() if member.id != ask.member)
    rates = [member.rate for member in others if member.reads and not member.is_done]
    return rates if ask.member == world.me or world.is_complete else [*rates, 0.0]  # 0: we too, as fast as is usual


def _patience_s(world: World, lease: Lease, policy: Policy) -> float:
    """How long a lease may go without a new unit."""
    member = world.members.get(lease.member)
    if member is not None and member.presence is not Presence.HERE:
        return policy.silent_lease_s
    usual_s = 0.0
    if lease.position > lease.start:
        usual_s = (lease.moved_s - lease.granted_s) / (lease.position - lease.start)
    if member is not None and member.rate > 0:
        usual_s = max(usual_s, world.cut.unit / member.rate)
    rates = [other.rate for other in world.here() if other.rate > 0 and other.reads]
    if rates:
        usual_s = max(usual_s, world.cut.unit * len(rates) / sum(rates))
    if not usual_s:
        return policy.overdue_unknown_s
    return max(policy.overdue_s, policy.overdue_times * usual_s)


# Taking units from others


def next_pull(world: World, policy: Policy, now_s: float, chance: random.Random) -> Pull | None:
    """The next unit to take, and from whom; None: nothing to take, or enough is on its way."""
    members = world.here()
    if not world.offered or sum([member.pulls for member in members]) >= policy.pulls:
        return None
    crowd, holders = 1 + len(members), world.holders
    rarest_first = sorted((len(holders[unit]), chance.random(), unit) for unit in _offered(world, policy.window_units))
    slow = max(member.pace for member in members) / policy.slow_giver_times
    for count, _, unit in rarest_first:
        is_slow = count <= 2 and all(0 < world.members[name].pace < slow for name in holders[unit])
        if _is_drawn(world, policy, unit, count, crowd, now_s, is_slow=is_slow):
            giver = _giver(world, policy, unit, now_s, slow, chance)
            if giver is not None:
                return Pull(unit, giver)
    return None


def _giver(world: World, policy: Policy, unit: int, now_s: float, slow: float, chance: random.Random) -> str | None:
    """Who is to give a unit: of those that answer well, the one that we ask least of now."""
    known = [world.members[name] for name in sorted(world.holders[unit])]
    swift = [member for member in known if not 0 < member.pace < slow]
    able = [
        (member.failures, member.pulls, chance.random(), member.id)
        for member in swift or known  # a slow one only where no other has it
        if member.pulls < policy.pulls_a_member and member.blocked_until_s <= now_s
    ]
    return min(able)[3] if able else None


def _offered(world: World, most: int) -> Iterator[int]:
    """The lowest units that others have and we lack, none that is on its way."""
    found = 0
    if len(world.offered) <= most * 4:
        units: Iterator[int] = iter(sorted(world.offered))
    else:
        units = (unit for unit in range(world.front, world.cut.count) if unit in world.offered)
    for unit in units:
        if unit in world.fetching:
            continue
        yield unit
        found += 1
        if found == most:
            return


def _is_drawn(
    world: World, policy: Policy, unit: int, holders: int, crowd: int, now_s: float, *, is_slow: bool
) -> bool:
    """Whether we are of those that may take a unit now: a few for each that has it, others after a while."""
    wanting = crowd - holders
    allowed = holders if is_slow else policy.takers_a_holder * holders  # of a slow one only one, that gives it on
    if allowed >= wanting:
        return True
    draw_s = policy.draw_s * (policy.slow_giver_times if is_slow else 1)
    lot = hash((int.from_bytes(world.my_rank[:7]), unit, int(now_s / draw_s)))
    return (lot & 0xFFFF) * wanting < allowed * 0x10000
