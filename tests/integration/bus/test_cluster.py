"""The bus on a Redis Cluster of three masters: what it does on one server, and what only a cluster can do to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio.cluster
from tests.integration.bus.servers import RedisCluster, ask, running_cluster
from tests.integration.bus.test_delivery import (  # noqa: F401 - run here once more
    test_a_message_goes_from_pending_to_delivered,
    test_delayed_messages_come_in_time_and_wake_an_idle_consumer,
    test_figures_of_queues,
    test_lanes_share_by_weight_and_none_starves,
    test_released_messages_come_back_at_once_and_uncounted,
    test_two_consumers_share_the_load_without_overlap,
)
from tests.integration.bus.test_every import (  # noqa: F401
    test_a_slot_may_be_skipped_while_the_last_message_is_pending,
    test_each_slot_is_fired_once_however_many_ask,
)
from tests.integration.bus.test_failures import (  # noqa: F401
    test_a_failed_message_is_tried_again_and_then_given_up,
    test_a_retry_waits_for_its_time,
)
from tests.integration.bus.test_in_order import (  # noqa: F401
    test_behind_a_refused_one_no_other_is_sent,
    test_order_among_many,
    test_topics_keep_the_order,
    test_what_was_sent_before_is_not_accepted_again,
)
from tests.integration.bus.test_leases import (  # noqa: F401
    child,
    test_a_frozen_process_loses_its_lease_and_what_it_says_is_refused,
    test_a_robbed_owner_is_refused_whatever_it_says,
    test_many_orphans_are_returned_in_several_calls,
    test_others_get_a_killed_pods_messages_when_its_lease_ends,
    test_the_next_incarnation_of_a_killed_pod_has_its_messages_at_once,
)
from tests.integration.bus.test_requests import (  # noqa: F401
    test_a_reply_goes_to_the_process_that_asked,
    test_a_reply_whose_word_was_lost_is_found,
    test_many_requests_share_one_reader,
    test_whoever_asked_learns_of_the_final_failure,
)
from tests.integration.bus.test_topics import (  # noqa: F401
    test_an_agent_that_was_away_gets_what_it_missed,
    test_each_of_two_agents_handles_each_message_once,
    test_publishing_to_a_topic_nobody_listens_to_is_kept_for_who_begins_there,
    test_replicas_with_different_topics_copy_each_what_they_know,
)

import agenthive.testing
from agenthive import Agent, AgentMessage, Context
from agenthive.bus import Bus, BusUnavailable, LetterFilter
from agenthive.bus.cluster import slot_of
from agenthive.bus.keys import AgentKeys
from agenthive.settings import HiveScope, Messaging


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def redis_url(cluster) -> str:
    """In the place of the single server's."""
    return cluster.url


@pytest.fixture
async def raw(cluster) -> AsyncIterator[redis.asyncio.cluster.RedisCluster]:
    port, password = cluster.nodes[0].port, cluster.password
    async with redis.asyncio.cluster.RedisCluster(
        host="127.0.0.1", port=port, password=password, protocol=2, decode_responses=False
    ) as client:
        yield client


def test_slots_are_the_servers(cluster) -> None:
    for key in ("foo", "{}foo", "a{foo", "a{foo}{bar}", "ah:{i/n/h/a}:gate", ""):
        assert ask(cluster.nodes[0], "CLUSTER", "KEYSLOT", key) == slot_of(key)


def agents_of_every_master(cluster: RedisCluster, scope: HiveScope, each: int = 2) -> list[str]:
    """Names of agents, ``each`` on every master."""
    found: dict[int, list[str]] = {node.port: [] for node in cluster.masters}
    n = 0
    while any(len(names) < each for names in found.values()):
        owned = found[cluster.owner(AgentKeys.of(scope, f"agent-{n}").gate).port]
        if len(owned) < each:
            owned.append(f"agent-{n}")
        n += 1
    return [name for names in found.values() for name in names]


async def test_agents_of_every_master_work_and_answer(cluster, bus, consume, make, scope) -> None:
    agents = agents_of_every_master(cluster, scope)
    consumers = [await consume(agent) for agent in agents]

    async def echo(consumer) -> None:
        while True:
            for delivery in await consumer.claim(20):
                consumer.ack(delivery, delivery.message.reply(delivery.message.body))

    tasks = [asyncio.create_task(echo(consumer)) for consumer in consumers]
    requests = [bus.request(make(n, to=agents[n % len(agents)]), 20) for n in range(600)]
    replies = await asyncio.gather(*requests)
    assert [reply.body["result"]["n"] for reply in replies] == list(range(600))
    assert await bus.agents() == sorted(agents)
    stats = await bus.queues(agents)
    assert {stats[agent].backlog + stats[agent].in_flight for agent in agents} == {0}
    assert (
        {stats[agent].replies_dropped for agent in agents}
        == {consumer.replies_dropped for consumer in consumers}
        == {0}
    )
    assert len(bus._sender._shards) == 3, "what goes to one master travels together"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_dead_letters_of_every_master(cluster, bus, consume, make, scope) -> None:
    agents = agents_of_every_master(cluster, scope, each=1)
    for agent in agents:
        consumer = await consume(agent)
        message_id = await bus.send(make(1, to=agent))
        (delivery,) = await consumer.claim(1)
        await consumer.reject(delivery, "no")
        assert [status.error async for status in bus.watch(agent, message_id, 20)] == ["rejected: no"]
        assert (await bus.dead_letter(agent, message_id)).reason == "rejected"
        assert (await bus.redrive(agent, message_id)).done == 1
        (delivery,) = await consumer.claim(1)
        await consumer.reject(delivery, "no")
    first, second, third = agents
    report = await bus.redrive(first, LetterFilter(), to=second)
    assert (report.done, report.refused) == (1, 0)
    assert (await bus.purge(third, LetterFilter())).done == 1
    found = await bus.queues(agents)
    assert [found[agent].dead_letters for agent in agents] == [0, 1, 0]
    assert found[second].backlog == 1


async def test_ordering_and_deduplication_keys_on_every_master(cluster, bus, consume, make, scope) -> None:
    for agent in agents_of_every_master(cluster, scope, each=1):
        keyed = {"ordering_key": "k", "on_fail": "halt"}
        first = await bus.send(make(0, to=agent, delivery_options={**keyed, "deduplication_key": "once"}))
        assert await bus.send(make(9, to=agent, delivery_options={**keyed, "deduplication_key": "once"})) == first
        await bus.send(make(1, to=agent, delivery_options=keyed))
        consumer = await consume(agent)
        (delivery,) = await consumer.claim(10)
        await consumer.reject(delivery, "no")
        (halted,) = await bus.halted(agent)
        assert (halted.key, halted.waiting) == ("k", 1)
        assert (await bus.redrive(agent, halted.letter)).done == 1
        for n in range(2):
            (delivery,) = await consumer.claim(10)
            assert delivery.message.body["n"] == n
            await consumer.ack(delivery)
        queue = await bus.queue(agent)
        assert (queue.backlog, queue.halted, queue.bytes) == (0, 0, 0)


async def test_functions_that_a_master_has_lost_are_loaded_again(cluster, bus, consume, make, scope) -> None:
    agents = agents_of_every_master(cluster, scope, each=1)
    consumers = [await consume(agent) for agent in agents]
    for node in cluster.masters:
        ask(node, "FUNCTION", "FLUSH")
    for agent, consumer in zip(agents, consumers, strict=True):
        await bus.send(make(1, to=agent))
        (delivery,) = await consumer.claim(1)
        await consumer.ack(delivery)


async def test_an_agent_moves_while_messages_flow(cluster, connect, consume, make, scope, until) -> None:
    bus = await connect(retry_delay_seconds=0.05)
    gate = AgentKeys.of(scope, "worker").gate
    target = next(node for node in cluster.masters if node is not cluster.owner(gate))
    seen: Counter[int] = Counter()
    accepted: list[int] = []
    done = asyncio.Event()

    async def handle(consumer) -> None:
        while True:
            for delivery in await consumer.claim(20):
                seen[delivery.message.body["n"]] += 1
                consumer.ack(delivery).add_done_callback(lambda done: done.exception())

    async def send() -> None:
        n = 0
        while not done.is_set():
            await asyncio.gather(*(bus.send(make(i)) for i in range(n, n + 20)))
            accepted.extend(range(n, n + 20))
            n += 20
            await asyncio.sleep(0)

    handlers = [asyncio.create_task(handle(await consume(on=bus))) for _ in range(2)]
    sender = asyncio.create_task(send())
    await asyncio.sleep(0.3)
    paused = len(accepted)
    assert paused > 0
    moved = await asyncio.to_thread(cluster.migrate, slot_of(gate), target)
    assert moved >= 4, "its queues moved"
    assert cluster.owner(gate) is target
    async with asyncio.timeout(20):
        await until(lambda: len(accepted) >= paused + 500, 20)
        done.set()
        await sender
        await until(lambda: len(seen) == len(accepted))
    for handler in handlers:
        handler.cancel()
    await asyncio.gather(*handlers, return_exceptions=True)
    assert set(seen) == set(accepted)
    assert set(seen.values()) == {1}, "a move repeats nothing"
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight, stats.dead_letters) == (0, 0, 0)


async def test_a_plain_url_to_a_node_of_a_cluster_is_refused(cluster, redis_url) -> None:
    node = cluster.nodes[0]
    with pytest.raises(BusUnavailable, match=r"is a node of a Cluster; write redis\+cluster://"):
        await Bus.connect(node.url, HiveScope())
    wrong = redis_url.replace("://:", "://:wrong")
    with pytest.raises(BusUnavailable, match="refuses the user name or password") as caught:
        await Bus.connect(wrong, HiveScope())
    assert cluster.password not in str(caught.value)


async def test_a_cluster_url_to_a_single_server_is_refused(valkey) -> None:
    with pytest.raises(BusUnavailable, match=r"is no node of a Cluster; write redis://"):
        await Bus.connect(valkey.url.replace("redis://", "redis+cluster://"), HiveScope())


async def test_a_replica_takes_over_and_the_others_go_on_meanwhile(scope, make, until) -> None:
    with running_cluster(replica=True) as cluster:
        bus = await Bus.connect(cluster.url, scope, messaging=Messaging(lease_seconds=5))
        agents = agents_of_every_master(cluster, scope, each=1)
        victim = agents[0]
        consumers = []
        try:
            for agent in agents:
                consumers.append(bus.consumer(agent, pod="pod"))
                await consumers[-1].start()
                await bus.send(make(0, to=agent))
            first = cluster.masters[0]
            assert cluster.owner(AgentKeys.of(scope, victim).gate) is first
            await until(lambda: ask(first, "WAIT", 1, 1000))
            first.kill()
            waiting = asyncio.create_task(bus.send(make(1, to=victim), wait=30))
            for agent in agents[1:]:
                async with asyncio.timeout(0.9):  # well before the cluster thinks of a failover
                    await bus.send(make(1, to=agent))
            assert not waiting.done()

            async def sent() -> bool:
                try:
                    await bus.send(make(2, to=victim), wait=30)
                except BusUnavailable:
                    return False
                return True

            await until(sent, 20)
            await asyncio.gather(waiting, return_exceptions=True)
            got = set()
            async with asyncio.timeout(20):
                while not {0, 2} <= got:
                    for delivery in await consumers[0].claim(5):
                        got.add(delivery.message.body["n"])
                        consumers[0].ack(delivery).add_done_callback(lambda done: done.exception())
            await until(lambda: bus.available)
        finally:
            for consumer in consumers:
                await consumer.aclose()
            await bus.aclose()


async def test_agents_of_a_test_run_on_a_cluster_and_leave_nothing(redis_url, raw) -> None:
    front, back = Agent("front"), Agent("back")

    @front.on("ask")
    async def ask_on(message: AgentMessage, ctx: Context) -> int:
        return sum(await ctx.gather("back", "double", [{"n": n} for n in range(20)]))

    back.on("double")(lambda message: 2 * message.body["n"])
    async with agenthive.testing.run(front, back, redis_url=redis_url) as running:
        instance = running.bus.scope.instance
        assert await running.ask("ask") == 380
        await running.idle()
        assert [key async for key in raw.scan_iter(f"ah:{{{instance}/*")]
    assert [key async for key in raw.scan_iter(f"ah:{{{instance}/*")] == []
