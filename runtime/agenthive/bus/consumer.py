"""One process incarnation's share of an agent's queue: claim, complete, hand back."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agenthive.bus.completions import ROBBED, Argument, Batch, Completions, ignore, refused, resolve, well_ended
from agenthive.bus.connections import Connections
from agenthive.bus.entries import count, held, read
from agenthive.bus.errors import BusError, BusUnavailable, ConsumerStopped, LeaseLost
from agenthive.bus.keys import REPLY_MARK, AgentKeys, agents_key
from agenthive.bus.lease import LeaseKeeper
from agenthive.bus.library import library
from agenthive.bus.model import Delivery, GivenUp, parse_given_up
from agenthive.bus.parking import Parking
from agenthive.bus.policy import LaneWheel, after_failure, to_ms
from agenthive.bus.pump import Pump
from agenthive.bus.wire import Command, ConnectionLost, ReplyError
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope, Messaging

log = logging.getLogger(__name__)

BATCH_CLAIMS = 500
"""Most messages one call claims."""
HALVED_SLOTS = 32
"""From so many slots on they are filled in two halves by turns: Redis fetches one while the other is handled."""
MAX_ERROR_LENGTH = 2000
REST_SECONDS = 1.0
"""How long a consumer that stops waits for the answer to its last question."""
CLOSE_SECONDS = 5.0
"""How long closing waits for completions that Redis has not confirmed."""


@dataclass(slots=True, eq=False)
class _Turn:
    """One call of the function ``turn``."""

    batch: Batch
    wanted: int
    pass_wake: bool


class Consumer:
    """Made by ``Bus.consumer``. ``start`` first; then ``claim`` and complete; ``stop``, complete, ``aclose``."""

    def __init__(
        self, connections: Connections, scope: HiveScope, agent: str, *, pod: str, messaging: Messaging, pump: Pump
    ) -> None:
        self.agent = agent
        self.pod = pod
        self.name = _new_name(pod)
        """This incarnation: the pod and a boot nonce; a new one after it was robbed."""
        self.pump = pump
        """Copies from the agent's topics; idle where there are none."""
        self.on_given_up: Callable[[GivenUp], None] = _nobody
        """Called with each message that Redis gave up in one of our turns: expired, malformed, or crashed too often.
        What a turn whose answer was lost gave up is not told."""
        self.noted_bytes = 0
        """Most bytes of documents that one turn hands on of them; one for which there is no room comes without."""
        self.replies_dropped = 0
        """Replies that found their asker gone. A few may have been fetched later: the queue's figures know."""
        self._connections = connections
        self._agents_key = agents_key(scope)
        self._keys = AgentKeys.of(scope, agent)
        self._messaging = messaging
        self._lane = connections.lane(self._keys.gate)
        self._parking = Parking(connections.lane(self._keys.gate), self._keys.wake, self._woken)
        self._lease = LeaseKeeper(connections.endpoint, self._keys.gate, self.name, messaging.lease_seconds)
        self._wheel = LaneWheel(messaging.priority_weights, random.random())  # noqa: S311 - a place to start
        self._most_slots = 0
        self._completions = Completions()
        self._in_flight = self._completions.take()
        self._answered: tuple[_Turn, list[Any]] | None = None
        """The last answer, as long as it is not worked off."""
        self._held: tuple[set[bytes], ...] = (set(), set(), set(), set(), set())
        """Entries of each lane that are ours to complete."""
        self._clock: tuple[int, float] = (0, 0.0)
        self._claim: asyncio.Future[list[Delivery]] | None = None
        self._slots = 0
        """What the claim that waits asks for."""
        self._free: Callable[[], int] | None = None
        self._handed = 0
        """Messages that the last claim returned: its caller cannot count them before the next one."""
        self._coming = 0
        """Messages of the last answer, as long as it is not worked off."""
        self._lost = 0
        """Connections lost while Redis had something to answer: what was said over them is not to be heard later."""
        self._ready: list[Delivery] = []
        """Fetched ahead of the next claim."""
        self._pass_wake = False
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._closed = False

    # --- life

    async def start(self) -> None:
        """Make the queue, take the lease, free what an earlier incarnation of the pod held. Raises BusUnavailable."""
        await self._connections.execute([library().call("enlist", self._agents_key, self.agent)])
        await self._register()
        await self.pump.subscribe()
        self._lease.start()
        self.pump.start()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"agenthive-consumer-{self.agent}")

    async def _register(self) -> None:
        call = library().call
        lease = int(self._messaging.lease_seconds * 1000)
        await self._connections.execute([call("register", self._keys.gate, self.name, lease)])
        more = True
        while more:
            ((count, again),) = await self._connections.execute([call("reclaim", self._keys.gate, self.name, self.pod)])
            more = again == b"1"
            if count:
                log.warning("returned %d messages of an earlier incarnation of %s to the queue", count, self.pod)

    async def stop(self) -> None:
        """Claim nothing more; ``claim`` raises ConsumerStopped. What is held stays held until ``aclose``."""
        self._stopping = True
        if self._claim is not None and not self._claim.done():
            self._claim.set_exception(ConsumerStopped(f"the consumer of {self.agent} was stopped"))
        self._claim = None
        self._return_ready()
        await self.pump.stop()
        await self._parking.aclose()
        # The wake-up that this consumer may have taken belongs to another one now.
        self._pass_wake = True
        self._idle.clear()
        self._work.set()

    async def rest(self) -> list[Delivery]:
        """After ``stop``: messages that were acknowledged by being claimed and that no ``claim`` has got.

        Handle them, for nobody else ever will.
        """
        try:
            async with asyncio.timeout(REST_SECONDS):
                await self._idle.wait()
        except TimeoutError:
            log.warning("the consumer of %s was stopped while Redis gave no answer", self.agent)
        rest, self._ready = self._ready, []
        return rest

    async def aclose(self) -> None:
        """Confirm what was completed, give the lease and everything still held up, close the connections."""
        if self._closed:
            return
        self._closed = True
        await self.stop()
        if self._task is not None:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("closing the consumer of %s with unconfirmed results", self.agent)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._lease.stop()
            await self._leave()
        closed = BusUnavailable("the consumer was closed before Redis confirmed")
        self._settle()
        self._in_flight.fail(closed)
        while batch := self._completions.take():
            batch.fail(closed)
        await self._lane.aclose()

    async def _leave(self) -> None:
        more = True
        try:
            while more:
                (answer,) = await self._connections.execute([library().call("leave", self._keys.gate, self.name)])
                more = answer == b"1"
        except BusUnavailable as error:
            log.warning("cannot give up the lease of %s, it runs out by itself: %s", self.name, error)

    # --- claiming

    async def claim(self, slots: int, *, free: Callable[[], int] | None = None) -> list[Delivery]:
        """At least one message and at most ``slots``; waits until there is one. One claim at a time.

        With ``free``, which tells at any time how many slots are, messages are fetched for slots that are free before
        the next claim asks for them; it gets those without a wait.

        Raises ConsumerStopped. A cancelled claim loses nothing: what it would have got goes back at once.
        """
        if self._stopping or self._task is None:
            raise ConsumerStopped(f"the consumer of {self.agent} is not running")
        if slots < 1:
            raise ValueError(f"slots is {slots}; claim at least one message")
        if self._claim is not None and not self._claim.done():
            raise RuntimeError("another claim of this consumer is waiting; use one claim at a time")
        self._slots, self._free, self._handed = slots, free, 0
        if self._ready:
            ready, self._ready = self._ready[:slots], self._ready[slots:]
            self._handed = len(ready)
            return ready
        claim: asyncio.Future[list[Delivery]] = asyncio.get_running_loop().create_future()
        self._claim = claim
        self._work.set()
        try:
            return await claim
        except asyncio.CancelledError:
            if self._claim is None or self._claim is claim:
                self._no_claim()
            if claim.done() and not claim.cancelled() and claim.exception() is None:  # both in the same moment
                self._ready += claim.result()
                self._return_ready()
            raise

    # --- completing

    def ack(self, delivery: Delivery, reply: AgentMessage | None = None) -> asyncio.Future[None]:
        """The handling succeeded. Await the result: LeaseLost is raised if the message had been taken away.

        The handler's slot may be given to the next ``claim`` as soon as this was called: both travel in one call.
        ``reply`` (see ``AgentMessage.reply``) is dropped if nobody waits for one.
        """
        message = delivery.message
        address = message.reply_to
        if delivery.acknowledged or (refusal := self._refusal(delivery)) is None:
            if reply is not None and address is not None and address.startswith(REPLY_MARK):
                answered = self._end("p", delivery.key, address[1:], to_ms(message.ttl), reply.to_json())
                if delivery.acknowledged:
                    return answered
                answered.add_done_callback(ignore)  # goes with the acknowledgement, or not at all
            if delivery.acknowledged:
                return well_ended()
            done = self._future()
            if not done.done():
                self._completions.acknowledge(delivery, functools.partial(resolve, done))
                self._wake_up()
            return done
        return refusal

    def acknowledge(self, delivery: Delivery, told: Callable[[BusError | None], None]) -> None:
        """``ack`` without a reply, for the path of every message: no future is made.

        ``told`` is called once Redis has heard, with None, or with the error that awaiting ``ack`` raises; it must not
        raise.
        """
        if delivery.acknowledged:
            told(None)
        elif delivery.completed or delivery.owner != self.name:
            told(refused(delivery))
        elif self._task is None or self._task.done():
            told(self._closed_error())
        else:
            delivery.completed = True
            self._completions.acknowledge(delivery, told)
            if not self._work.is_set():
                self._wake_up()

    def fail(self, delivery: Delivery, error: str, *, retry_after: float | None = None) -> asyncio.Future[None]:
        """The handling failed: retry with back-off (or after ``retry_after`` seconds), or give the message up.

        Await the result; it raises LeaseLost like ``ack``.
        """
        if delivery.acknowledged:
            return self._answer_failure(delivery, f"failed: {error}")
        retry = after_failure(delivery.message, delivery.attempt, self._messaging, random.random, retry_after)
        if retry is None:
            return self._give_up(delivery, "failed", error)
        return self._complete(delivery, "f", max(0, int(retry.delay * 1000)), _shorten(error))

    def reject(self, delivery: Delivery, reason: str) -> asyncio.Future[None]:
        """The message can never be handled: to the dead letters at once. Await the result; raises LeaseLost."""
        if delivery.acknowledged:
            return self._answer_failure(delivery, f"rejected: {reason}")
        return self._give_up(delivery, "rejected", reason)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Hand messages back, to be claimed by anyone at once; it does not count as an attempt.

        What is no longer ours is passed over: somebody else has it already.
        """
        held = [self._hand_back(delivery) for delivery in deliveries if not delivery.acknowledged]
        for result in await asyncio.gather(*held, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, LeaseLost):
                raise result

    def _answer_failure(self, delivery: Delivery, problem: str) -> asyncio.Future[None]:
        """A message that was acknowledged when claimed has no retry; only whoever asked is told."""
        address = delivery.message.reply_to
        if address is None or not address.startswith(REPLY_MARK):
            return well_ended()
        life = to_ms(delivery.message.ttl)
        return self._end("p", delivery.key, address[1:], life, "!" + _shorten(problem))

    def _give_up(self, delivery: Delivery, reason: str, error: str) -> asyncio.Future[None]:
        return self._complete(delivery, "d", reason, _shorten(error))

    def _complete(self, delivery: Delivery, code: str, *details: Argument) -> asyncio.Future[None]:
        refusal = self._refusal(delivery)
        if refusal is not None:
            return refusal
        place = (delivery.lane, delivery.entry, delivery.key, delivery.attempt, delivery.claimed)
        return self._end(code, *place, *details)

    def _hand_back(self, delivery: Delivery) -> asyncio.Future[None]:
        return self._refusal(delivery) or self._end("r", delivery.lane, delivery.entry)

    def _refusal(self, delivery: Delivery) -> asyncio.Future[None] | None:
        """Mark as completed; what cannot be ours any more is refused without asking."""
        if not delivery.completed and delivery.owner == self.name:
            delivery.completed = True
            return None
        refusal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refusal.set_exception(refused(delivery))
        return refusal

    def _end(self, code: str, *details: Argument) -> asyncio.Future[None]:
        done = self._future()
        if not done.done():
            self._completions.end((code, *details), done)
            self._wake_up()
        return done

    def _future(self) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            done.set_exception(self._closed_error())
        return done

    def _closed_error(self) -> BusUnavailable:
        return BusUnavailable(f"the consumer of {self.agent} is closed")

    def _wake_up(self) -> None:
        self._idle.clear()
        self._work.set()

    # --- the task that owns the connection

    def _woken(self) -> None:
        """The wait on the wake list ended, by a wake-up or because the time has come; if nobody asks any more, another
        one is to look.
        """
        if self._claim is None or self._claim.done():
            self._pass_wake = True
        self._work.set()

    async def _run(self) -> None:
        turn: _Turn | None = None
        while True:
            if turn is None:
                # What is ready in this turn of the loop joins: results of handlers, and the next claim of whoever just
                # got messages.
                await asyncio.sleep(0)
                turn = self._next_turn()
            if turn is None:
                self._work.clear()
                self._idle.set()
                await self._work.wait()
                continue
            self._idle.clear()
            try:
                turn = await self._take(turn)
            except Exception as error:
                log.exception("a turn of the consumer of %s failed; going on", self.agent)
                self._in_flight.fail(BusUnavailable(f"the result could not be delivered: {error!r}"))
                turn = None
                await self._lane.pause()

    def _next_turn(self) -> _Turn | None:
        """What there is to say and to ask, if anything."""
        if self._claim is not None and self._claim.done():  # its caller was cancelled
            self._no_claim()
        asking = self._claim is not None and not self._parking.parked and not self._stopping and self._room() > 0
        return self._compose(asking) if self._completions or self._pass_wake or asking else None

    def _compose(self, asking: bool) -> _Turn:
        turn = _Turn(self._completions.take(), self._share(self._room()) if asking else 0, self._pass_wake)
        self._pass_wake = False
        return turn

    def _room(self) -> int:
        """Slots that neither have a message nor are going to have one of those that are here."""
        if self._free is None:
            return self._slots if self._claim is not None else 0
        return self._free() - self._handed - len(self._ready) - self._coming

    async def _take(self, turn: _Turn) -> _Turn | None:
        """Perform ``turn``. Returns the one that follows at once, if there is room for more.

        What the answer says is then worked off while Redis is busy with that one.
        """
        self._in_flight = turn.batch
        answer = await self._ask(turn)
        if answer is None:
            return None
        _, _, groups, wait, state, now, *_ = answer
        self._clock = (now, asyncio.get_running_loop().time())
        self._answered = (turn, answer)
        if self._claim is not None and self._claim.done():
            self._no_claim()
        got = self._coming = count(groups)
        if state == 0 and self._free and 0 < got == turn.wanted and self._room() > 0 and not self._stopping:
            return self._compose(asking=True)
        self._settle()
        if state == 1:
            await self._rejoin("it lost its lease, and others have its messages")
        elif turn.wanted and not groups and state == 0 and self._claim is not None and not self._stopping:
            self._parking.park(None if wait < 0 else wait / 1000)
        return None

    async def _ask(self, turn: _Turn) -> list[Any] | None:
        """The server's answer; None if there is none to go by."""
        again, name = False, self.name
        while self.name == name:
            if self._stopping:
                turn.wanted = 0
            try:
                if self._lane.lost:
                    self._settle()
                    await self._compare()
                    if self.name != name:
                        break
                call = self._command(turn.batch, turn.wanted, again, turn.pass_wake)
                answer = await self._exchange(call, meanwhile=self._settle)
                if not isinstance(answer, ReplyError):
                    return list(answer)
                if not await self._cure(answer):
                    turn.batch.fail(BusUnavailable(f"Redis refused the result of the handling: {answer}"))
                    await self._compare()  # it may have claimed messages before it failed
                    return None
            except (ConnectionLost, BusUnavailable) as error:
                log.warning("consumer of %s: %s", self.agent, error)
                self._settle()
                await self._reconnect()
            again = True
        turn.batch.fail(LeaseLost(ROBBED))
        self._pass_wake = self._pass_wake or turn.pass_wake
        return None

    async def _exchange(self, command: Command, meanwhile: Callable[[], None] | None = None) -> Any:
        """The answer to one command of this consumer's connection. Raises ConnectionLost and BusUnavailable.

        What was asked and not answered may reach Redis at any later time: what is asked next names one loss more.
        """
        try:
            (answer,) = await self._lane.execute([command], meanwhile=meanwhile)
        except (ConnectionLost, BusUnavailable):
            self._lost += 1
            raise
        return answer

    def _no_claim(self) -> None:
        """Nobody asks: what comes without having been asked for goes back."""
        self._claim, self._free = None, None

    def _return_ready(self) -> None:
        for delivery in self._ready:
            if not delivery.acknowledged:
                self._hand_back(delivery).add_done_callback(ignore)
        self._keep_acknowledged()

    def _keep_acknowledged(self) -> None:
        """Of what is ready only what Redis has no more: nobody else can ever get it."""
        self._ready = [delivery for delivery in self._ready if delivery.acknowledged]

    def _share(self, slots: int) -> int:
        """How many of so many free slots one call fills: with many, half of all, so that the other half overlaps."""
        self._most_slots = max(self._most_slots, slots)
        if self._most_slots < HALVED_SLOTS:
            return slots
        return min(slots, (self._most_slots + 1) // 2, BATCH_CLAIMS)

    def _command(self, batch: Batch, wanted: int, again: bool, pass_wake: bool) -> Command:
        messaging = self._messaging
        server, local = self._clock
        now = server + int((asyncio.get_running_loop().time() - local) * 1000)
        return library().call(
            "turn",
            self._keys.gate,
            self.name,
            int(messaging.lease_seconds * 1000),
            to_ms(messaging.status_seconds),
            messaging.max_retries,
            *self._wheel.quotas(wanted),
            f"{int(again)}{self._lost}",
            "1" if pass_wake else "0",
            self.noted_bytes,
            *batch.arguments(now),
        )

    async def _reconnect(self) -> None:
        """Wait for Redis, then hand back what the lost answer may have given us."""
        while True:
            await self._lane.pause()
            try:
                await self._compare()
            except (ConnectionLost, BusUnavailable) as error:
                log.warning("consumer of %s is waiting for Redis: %s", self.agent, error)
                continue
            return

    async def _compare(self) -> None:
        """Look what Redis thinks we hold, after a connection was lost: it may have lost its last second, or be another.

        What it never told us, or has forgotten that we completed, goes back. If it has forgotten a claim of ours, what
        it has in that entry's place may be somebody else's: then all that we hold is given up.
        """
        ending: dict[int, set[bytes]] = {lane: set() for lane in range(5)}
        for lane, entries in self._in_flight.places():
            ending[lane].update(entries)
        forgotten = False
        try:
            for lane in (4, 3, 2, 1):
                known = await self._known_to_redis(lane)
                await self._hand_back_unknown(lane, known - self._held[lane])
                forgotten = forgotten or not self._held[lane] <= known | ending[lane]
            if forgotten:
                former = self.name
                await self._rejoin("Redis has forgotten what this consumer had claimed")
                await self._exchange(library().call("leave", self._keys.gate, former))
        except ReplyError as error:
            await self._cure(error)
            if "NOGROUP" not in str(error):
                raise BusUnavailable(f"Redis does not tell what this consumer holds: {error}") from error

    async def _hand_back_unknown(self, lane: int, unknown: set[bytes]) -> None:
        """At once: a hand-back that waits could meet its entry again, claimed in the meantime and being handled."""
        entries = sorted(unknown)
        for start in range(0, len(entries), BATCH_CLAIMS):
            endings: list[tuple[tuple[Argument, ...], asyncio.Future[None]]] = [
                (("r", lane, entry), well_ended()) for entry in entries[start : start + BATCH_CLAIMS]
            ]
            answer = await self._exchange(self._command(Batch([], endings), 0, False, False))
            if isinstance(answer, ReplyError):
                raise answer

    async def _known_to_redis(self, lane: int) -> set[bytes]:
        known: set[bytes] = set()
        after = "-"
        while True:
            call = library().call("held", self._keys.gate, self.name, str(lane), after, self._lost)
            entries = await self._exchange(call)
            if isinstance(entries, ReplyError):
                raise entries
            if not entries:
                return known
            known.update(entries)
            after = "(" + entries[-1].decode()

    async def _cure(self, error: ReplyError) -> bool:
        """After an error of the server: True if the call may be repeated."""
        if "NOGROUP" in str(error):
            await self._rejoin("the queue is gone")
            return True
        log.error("consumer of %s: Redis refuses the turn: %s", self.agent, error)
        await asyncio.sleep(1.0)
        return error.code in {"OOM", "MISCONF", "NOAUTH", "NOPERM", "WRONGPASS"}

    async def _rejoin(self, reason: str) -> None:
        """Go on under a new name, in a queue made anew if it is gone. All that is held is lost with the old name."""
        log.warning("consumer %s: %s; joining anew", self.name, reason)
        self.name = _new_name(self.pod)
        for entries in self._held:
            entries.clear()
        self._keep_acknowledged()
        lease = int(self._messaging.lease_seconds * 1000)
        register = library().call("register", self._keys.gate, self.name, lease)
        await self._exchange(register)
        self._lease.rename(self.name)
        await self._connections.execute([library().call("enlist", self._agents_key, self.agent)])

    def _settle(self) -> None:
        """Work the last answer off, if that was not done yet: hand out the messages, tell the callers."""
        if self._answered is None:
            return
        (turn, answer), self._answered, self._coming = self._answered, None, 0
        refused_acknowledgements, refused_endings, groups, _, _, now, *notes = answer
        for lane, entries in turn.batch.places():
            self._held[lane].difference_update(entries)
        for lane, entries in held(groups):
            self._held[lane].update(entries)
        self._hand_out(groups, now)
        turn.batch.settle(refused_acknowledgements, refused_endings)
        if notes:
            self._tell(*notes[0])

    def _hand_out(self, groups: list[Any], now: int) -> None:
        deliveries, malformed = read(groups, self.name, now)
        for item in malformed:
            log.warning("a malformed message went to the dead letters of %s: %s", self.agent, item.error)
            if not item.acknowledged:
                self._end("d", *item.place, "malformed", _shorten(item.error)).add_done_callback(ignore)
        if not deliveries:
            return
        self._wheel.advance(len(deliveries))
        claim, self._claim = self._claim, None
        if claim is not None and not claim.done():
            self._handed = len(deliveries)
            claim.set_result(deliveries)
            return
        self._ready += deliveries
        if self._stopping or self._free is None or claim is not None:
            self._return_ready()

    def _tell(self, _: int, replies: int, letters: list[Any]) -> None:
        """What Redis itself gave up in a turn, and the replies that found nobody."""
        self.replies_dropped += replies
        try:
            for letter in letters:
                self.on_given_up(parse_given_up(*letter))
        except Exception:
            log.exception("what was given up could not be noted; going on")


def _nobody(_: GivenUp) -> None:
    """The ``on_given_up`` of who does not care."""


def _new_name(pod: str) -> str:
    return f"{pod}/{secrets.token_hex(5)}"


def _shorten(text: str) -> str:
    text = text.encode(errors="backslashreplace").decode()  # lone surrogates would fail the whole batch
    return text if len(text) <= MAX_ERROR_LENGTH else text[: MAX_ERROR_LENGTH - 1] + "…"
