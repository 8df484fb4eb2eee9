"""A lab of simulated machines that take one blob together: simulated time, real worlds, real decisions.

Links are queues that pieces of a transfer pass one after the other, so that transfers share them evenly, as TCP does
about. Messages take a fixed time. What is not modelled: processors, disks, lost packets.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from edgecdn.digest import Digest, DigestKind
from edgecdn_agent.ingest.deciding import (
    Ask,
    Policy,
    Run,
    Wait,
    coordinator_of,
    next_pull,
    next_run,
    overdue,
    streams_of,
)
from edgecdn_agent.ingest.world import Lease, Presence, UnitMap, World
from tests.agent.ingest_links import Clock, Flow, Link

UNIT = 1 << 20
MBIT = 1e6 / 8
"""Bytes/s."""

_LAN_S = 0.001
"""One way, with what the programs at both ends need."""
_HUB_S = 0.06
"""From asking the hub for a run to its first byte."""
_BATCH_S = 0.005
_SILENCE_S = 3.0
"""After it a stream's end is thought of as silent."""
_PULL_SILENCE_S = 15.0
"""Longer than the real one, since pieces are larger than packets and come less often."""
_HUB_SILENCE_S = 15.0
_HUB_AGAIN_S = 5.0


@dataclass
class Lab:
    """What there is besides the machines."""

    line: Link
    units: int
    policy: Policy = field(default_factory=Policy)
    is_holder: bool = False
    seed: int = 1
    pieces: int = 4
    """In how many pieces a unit goes over links."""
    clock: Clock = field(default_factory=Clock)
    machines: dict[str, Machine] = field(default_factory=dict)
    apart: set[frozenset[str]] = field(default_factory=set)
    messages: int = 0
    read_units: int = 0

    def __post_init__(self) -> None:
        self.digest = Digest(DigestKind.SHA256, f"{self.seed:064x}")
        self.nodes = [unit.to_bytes(32) for unit in range(self.units)]

    def machine(self, lan: float = 100.0, own: float = 0.0, up: float = 0.0, join_s: float = 0.0) -> Machine:
        """Add one: its links in Mbit/s, `own`: its own part of the line; it begins at `join_s`."""
        made = Machine(self, f"m{len(self.machines):03}", Link((up or lan) * MBIT), Link(lan * MBIT), own * MBIT)
        self.machines[made.id] = made
        made.join_s = join_s
        self.clock.after(join_s, made.begin)
        return made

    def connected(self, one: str, other: str) -> bool:
        return not self.apart or frozenset((one, other)) not in self.apart

    def cut(self, some: set[str], others: set[str]) -> None:
        """A switch breaks: two groups hear nothing of each other any more."""
        self.apart = {frozenset((one, other)) for one in some for other in others}
        for machine in self.machines.values():
            for flow, giver in machine.pulling.values():
                if not self.connected(machine.id, giver):
                    flow.stalled_until_s = 1e12
        for pair in self.apart:
            one, other = sorted(pair)
            self.clock.after(_SILENCE_S, self._silent, one, other)
            self.clock.after(_SILENCE_S, self._silent, other, one)

    def heal(self) -> None:
        pairs, self.apart = self.apart, set()
        for pair in pairs:
            one, other = sorted(pair)
            self.clock.after(_LAN_S, self.machines[one].meet, self.machines[other])
            self.clock.after(_LAN_S, self.machines[other].meet, self.machines[one])

    def _silent(self, one: str, other: str) -> None:
        if not self.connected(one, other):
            self.machines[one].hears_no_more(other, Presence.SILENT)

    def coordinator(self) -> Machine:
        """The one that all agree on once they know each other."""
        alive = [machine for machine in self.machines.values() if machine.is_alive and machine.is_here]
        return min(alive, key=lambda machine: machine.world.my_rank)

    def run(self, limit_s: float = 2000.0) -> Outcome:
        self.clock.run(lambda: all(m.done_s or not m.is_alive for m in self.machines.values()), limit_s)
        done = {m.id: m.done_s for m in self.machines.values() if m.is_alive}
        return Outcome(done, self.line.passed / (self.units * UNIT), self.messages, self.read_units)


@dataclass(frozen=True)
class Outcome:
    """When each that lived had all (0: never), the copies that came over the line, the messages of all."""

    done: dict[str, float]
    copies: float
    messages: int
    read_units: int

    @property
    def all_ended(self) -> bool:
        return all(self.done.values())

    @property
    def makespan(self) -> float:
        return max(self.done.values()) if self.all_ended else float("inf")


@dataclass(slots=True, eq=False)
class Reading:
    """A lease that is being read."""

    lease: Lease
    flow: Flow | None = None
    unit_s: float = 0.0


class Machine:
    """One machine: a world, and the hands that do what is decided."""

    def __init__(self, lab: Lab, name: str, up: Link, down: Link, own: float) -> None:
        self.lab, self.id, self.up, self.down, self.clock = lab, name, up, down, lab.clock
        self.own = Link(own) if own else None
        self.world = World(lab.digest, UnitMap(lab.units * UNIT), name, 0.0)
        self.chance = random.Random(f"{lab.seed}/{name}")
        self.is_alive, self.is_here, self.join_s, self.done_s = True, False, 0.0, 0.0
        self.reading: list[Reading] = []
        self.pulling: dict[int, tuple[Flow, str]] = {}
        self.giving: list[Flow] = []
        self.refused = 0
        self.rate = 0.0
        self.hub_stalled_until_s = 0.0
        self.disk_full_at = 10**9
        self._outbox: list[tuple[int, bytes, bool]] = []
        self._leases_changed = self._flushing = self._pumping = self._asking = False
        self._ask_turn = 0
        self._not_there: dict[str, float] = {}

    # Meeting

    def begin(self) -> None:
        if not self.is_alive:
            return
        self.is_here = True
        self.world.began_s = self.clock.now
        for other in list(self.lab.machines.values()):
            if other is not self and other.is_here and other.is_alive:
                self.clock.after(_LAN_S, self.meet, other)
                self.clock.after(_LAN_S, other.meet, self)
        self.ask_soon(0.0)
        self._tick()

    def meet(self, other: Machine) -> None:
        """Open a stream to it: it says all at once."""
        if not (self.is_alive and other.is_alive and self.lab.connected(self.id, other.id)):
            return
        self.world.join(other.id, self.clock.now)
        self._count(1)
        self.clock.after(2 * _LAN_S, self._first, other)

    def _first(self, other: Machine) -> None:
        if other.id not in self.world.members or not other.is_alive:
            return
        self._count(1)
        self.world.members[other.id].is_preparing = False
        read = other.world.readers
        items = [(unit, self.lab.nodes[unit], read.get(unit) == other.id) for unit in other.world.mine]
        self.hear(other, items, other._runs())

    def hears_no_more(self, other: str, how: Presence) -> None:
        if not self.is_alive or other not in self.world.members:
            return
        if self.world.members[other].presence is Presence.HERE:
            self.world.leave(other, how, self.clock.now)
        if how is not Presence.SILENT:
            for unit, (flow, giver) in list(self.pulling.items()):
                if giver == other:
                    self._pull_failed(unit, flow)
        self.ask_soon(0.0)
        self.pump_soon()

    def die(self, *, silently: bool = False) -> None:
        """Killed, or cut off for good."""
        self.is_alive = False
        for reading in self.reading:
            if reading.flow:
                reading.flow.is_cut = True
        for flow, _ in self.pulling.values():
            flow.is_cut = True
        for other in self.lab.machines.values():
            for flow, giver in other.pulling.values():
                if giver == self.id:
                    flow.stalled_until_s = 1e12
            how = Presence.SILENT if silently else Presence.GONE
            self.clock.after(_SILENCE_S if silently else _LAN_S, other.hears_no_more, self.id, how)

    def hear(self, other: Machine, items: list[tuple[int, bytes, bool]], runs: list[tuple[int, int]] | None) -> None:
        world, now, name = self.world, self.clock.now, other.id
        if runs is not None:
            world.told_leases(name, runs, now)
        for unit, node, read in items:
            world.has(name, unit, node, read=read, now_s=now)
        known = world.members[name]
        known.rate, known.is_done = other.rate, bool(other.done_s)
        for reading in self.reading[:] if items else ():
            lease = reading.lease
            if any(unit == lease.position for unit, _, _ in items):  # somebody was faster
                self._stop_reading(reading)
                self.ask_soon(0.0)
        self.pump_soon()

    def _tick(self) -> None:
        """Twice a second: what nobody's message brings about."""
        if not self.is_alive:
            return
        now, world = self.clock.now, self.world
        if world.leases:
            for lease in overdue(world, self.lab.policy, now):
                world.end(lease)
        for unit, (flow, _) in list(self.pulling.items()):
            if now - flow.moved_s > _PULL_SILENCE_S:
                self._pull_failed(unit, flow)
        for reading in self.reading[:]:
            if reading.flow and now - reading.flow.moved_s > _HUB_SILENCE_S:
                self.rate = 0.0
                self._stop_reading(reading)
                self.ask_soon(_HUB_AGAIN_S)
        self.pump_soon()
        if not self.done_s:
            self.clock.after(0.25, self._tick)

    # Telling

    def _runs(self) -> list[tuple[int, int]]:
        return [(reading.lease.position, reading.lease.stop) for reading in self.reading]

    def _count(self, messages: int) -> None:
        self.lab.messages += messages

    def _got(self, unit: int, *, read: bool) -> None:
        if unit in self.world.mine:
            return
        self.world.got(unit, self.lab.nodes[unit], read=read, now_s=self.clock.now)
        if len(self.world.mine) >= self.disk_full_at:
            self.die()
            return
        self._outbox.append((unit, self.lab.nodes[unit], read))
        self._flush_soon()
        if self.world.is_complete and not self.done_s:
            self.done_s = self.clock.now

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.clock.after(_BATCH_S, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not self.is_alive:
            return
        items, self._outbox = self._outbox, []
        runs = self._runs() if self._leases_changed else None
        self._leases_changed = False
        to = [self.lab.machines[member.id] for member in self.world.here()]
        self._count(len(to))
        self.clock.after(_LAN_S, self._deliver, to, items, runs)

    def _deliver(
        self, to: list[Machine], items: list[tuple[int, bytes, bool]], runs: list[tuple[int, int]] | None
    ) -> None:
        for other in to:
            if other.is_alive and self.id in other.world.members and self.lab.connected(self.id, other.id):
                other.hear(self, items, runs)

    # Reading from the line

    def ask_soon(self, seconds: float) -> None:
        self._ask_turn += 1
        self.clock.after(seconds, self._ask, self._ask_turn)

    def _ask(self, turn: int) -> None:
        if turn != self._ask_turn or self._asking or not self.is_alive or self.done_s:
            return
        world, now = self.world, self.clock.now
        if len(self.reading) >= streams_of(world, self.lab.policy):
            return
        skip = frozenset(name for name, until_s in self._not_there.items() if until_s > now)
        whom = coordinator_of(world, skip)
        ask = Ask(self.id, len(world.offered), self.rate, len(self.reading), self.lab.is_holder)
        if whom == self.id:
            self._answered(self.grant(ask))
            return
        self._asking = True
        self._count(1)
        self.clock.after(_LAN_S, self._asked, self.lab.machines[whom], ask)

    def _asked(self, whom: Machine, ask: Ask) -> None:
        reached = self.lab.connected(self.id, whom.id)
        if whom.is_alive and reached:
            whom._count(1)
            self.clock.after(_LAN_S, self._answered, whom.grant(ask))
        else:
            self.clock.after(_LAN_S if reached else 2.0, self._refused, whom.id)

    def _refused(self, whom: str) -> None:
        self._not_there[whom] = self.clock.now + 1.0
        self._asking = False
        self.ask_soon(0.0)

    def grant(self, ask: Ask) -> Run | Wait | None:
        """As coordinator; None: another is."""
        if coordinator_of(self.world) != self.id:
            return None
        answer = next_run(self.world, ask, self.lab.policy, self.clock.now)
        if isinstance(answer, Run):
            self.world.lease(ask.member, answer.start, answer.stop, self.clock.now)
        return answer

    def _answered(self, answer: Run | Wait | None) -> None:
        self._asking = False
        if not self.is_alive or self.done_s:
            return
        if answer is None:
            self.ask_soon(0.05)
        elif isinstance(answer, Wait):
            self.ask_soon(answer.seconds)
        else:
            self._read(answer)

    def _read(self, run: Run) -> None:
        world, now = self.world, self.clock.now
        for lease in world.leases:
            if lease.member == self.id and lease.stop == run.stop:
                break
        else:
            lease = world.lease(self.id, run.start, run.stop, now)
        reading = Reading(lease)
        self.reading.append(reading)
        world.fetching.update(range(run.start, run.stop))
        self._leases_changed = True
        self._flush_soon()
        self.clock.after(_LAN_S if self.lab.is_holder else _HUB_S, self._read_now, reading)
        self.ask_soon(0.0)

    def _read_now(self, reading: Reading) -> None:
        if reading not in self.reading or not self.is_alive:
            return
        path = (self.lab.line, self.own, self.down) if self.own else (self.lab.line, self.down)
        per = self.lab.pieces
        count = reading.lease.stop - reading.lease.start
        reading.flow = Flow(self.clock, path, UNIT / per, count * per, lambda flow: self._came(reading, flow))
        reading.flow.stalled_until_s = self.hub_stalled_until_s
        reading.unit_s = self.clock.now
        reading.flow.start()

    def stall_hub(self, seconds: float) -> None:
        """The hub sends it nothing for a time."""
        self.hub_stalled_until_s = self.clock.now + seconds
        for reading in self.reading:
            if reading.flow:
                reading.flow.stalled_until_s = self.hub_stalled_until_s

    def _came(self, reading: Reading, flow: Flow) -> None:
        if flow.arrived % self.lab.pieces or reading not in self.reading:
            return
        now, lease = self.clock.now, reading.lease
        unit = lease.start + flow.arrived // self.lab.pieces - 1
        rate = UNIT / (now - reading.unit_s)
        self.rate = (self.rate + rate) / 2 if self.rate else rate
        reading.unit_s = now
        self.lab.read_units += 1
        self._got(unit, read=True)
        lease.position = unit + 1
        if unit + 1 == lease.stop or unit + 1 in self.world.holders or unit + 1 in self.world.mine:
            self._stop_reading(reading)
            self.ask_soon(0.0)

    def _stop_reading(self, reading: Reading) -> None:
        """It is read, or the rest is for others."""
        self.reading.remove(reading)
        lease = reading.lease
        if reading.flow:
            reading.flow.is_cut = True
            if lease.position == lease.start and not self.rate:  # not one unit: it says how little came
                came = UNIT * reading.flow.arrived / self.lab.pieces
                self.rate = max(1.0, came / max(0.1, self.clock.now - reading.unit_s))
        self.world.fetching.difference_update(range(lease.position, lease.stop))
        self.world.end(lease)
        self._leases_changed = True
        self._flush_soon()
        if lease.position < lease.stop and coordinator_of(self.world) != self.id:
            self._count(1)
            self.clock.after(_LAN_S, self.lab.machines[coordinator_of(self.world)].given_back, self.id, lease.stop)

    def given_back(self, member: str, stop: int) -> None:
        for lease in [lease for lease in self.world.leases if (lease.member, lease.stop) == (member, stop)]:
            self.world.end(lease)

    # Taking from others

    def pump_soon(self) -> None:
        if not self._pumping and self.is_alive and self.world.offered:
            self._pumping = True
            self.clock.after(min(0.04, len(self.lab.machines) / 4000), self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if not self.is_alive:
            return
        while pull := next_pull(self.world, self.lab.policy, self.clock.now, self.chance):
            self.world.fetching.add(pull.unit)
            self.world.members[pull.member].pulls += 1
            giver = self.lab.machines[pull.member]
            flow = Flow(
                self.clock, (giver.up, self.down), UNIT / self.lab.pieces, self.lab.pieces, self._pulled_some(pull.unit)
            )
            flow.moved_s = self.clock.now
            if not (giver.is_alive and self.lab.connected(self.id, giver.id)):
                flow.stalled_until_s = 1e12
            self.pulling[pull.unit] = flow, pull.member
            self._count(1)
            self.clock.after(_LAN_S, self._asked_unit, pull.unit, flow, giver)

    def _asked_unit(self, unit: int, flow: Flow, giver: Machine) -> None:
        """Its answer: the bytes, or that it gives enough now."""
        giver.giving = [one for one in giver.giving if not (one.is_cut or one.arrived == one.pieces)]
        if giver.is_alive and len(giver.giving) >= self.lab.policy.gives:
            self.refused += 1
            self.clock.after(_LAN_S, self._busy, unit, flow)
            return
        giver.giving.append(flow)
        self.clock.after(_LAN_S, flow.start)

    def _busy(self, unit: int, flow: Flow) -> None:
        if self.pulling.get(unit, (None, ""))[0] is not flow:
            return
        _, giver = self.pulling.pop(unit)
        member = self.world.members[giver]
        member.pulls -= 1
        member.blocked_until_s = self.clock.now + self.lab.policy.busy_s * (0.5 + self.chance.random())
        self.world.fetching.discard(unit)
        self.pump_soon()

    def _pulled_some(self, unit: int) -> Callable[[Flow], None]:
        def came(flow: Flow) -> None:
            if flow.arrived < flow.pieces or unit not in self.pulling:
                return
            _, giver = self.pulling.pop(unit)
            member = self.world.members[giver]
            member.pulls -= 1
            member.failures = 0
            member.pace = (member.pace + UNIT / max(1e-3, self.clock.now - flow.began_s)) / (2 if member.pace else 1)
            self._got(unit, read=False)
            self.pump_soon()

        return came

    def _pull_failed(self, unit: int, flow: Flow) -> None:
        flow.is_cut = True
        _, giver = self.pulling.pop(unit)
        member = self.world.members[giver]
        member.pulls -= 1
        member.failures += 1
        member.blocked_until_s = self.clock.now + 0.5 * 2 ** min(member.failures, 5)
        self.world.fetching.discard(unit)
        self.pump_soon()
