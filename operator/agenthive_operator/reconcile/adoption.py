"""The servers that a hive of an older operator, which kept no book, has in force: those that its agents use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agenthive.bus.access import user_name
from agenthive.store import schema_name
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.backends.certificates import CertificateFolder
from agenthive_operator.backends.kube import secret_data
from agenthive_operator.backends.logins import generations_of, login_in
from agenthive_operator.plan.agent import POSTGRES_URL, REDIS_URL
from agenthive_operator.plan.book import SERVERS, Book, Held
from agenthive_operator.plan.cutover import leads_to, url_of
from agenthive_operator.plan.external import Server, Ways, mounted_files, without_files
from agenthive_operator.plan.names import agent_secret_name, server_name
from agenthive_operator.reconcile.cache import Key
from agenthive_operator.reconcile.children import is_labelled
from agenthive_operator.reconcile.context import Context
from agenthive_operator.reconcile.stores import Connection, scope_of

URLS: Mapping[Server, str] = {"redis": REDIS_URL, "postgres": POSTGRES_URL}


async def book_of_agents(context: Context, key: Key, hive: AgentHive, wanted: Callable[[Server], Connection]) -> Book:
    """What the Secrets of the hive's agents say, the first that tells. Raises ``ApiError``."""
    book, scope = Book(), scope_of(hive)
    for agent in context.cache.agents_of(key.namespace, key.name):
        name = agent["metadata"]["name"]
        secret = context.cache.get("Secret", key.namespace, agent_secret_name(name))
        if secret is None or not is_labelled(secret):
            continue
        known = secret_data(secret)
        own: dict[Server, set[str]] = {
            "redis": {user_name(scope, name)}, "postgres": set(generations_of(schema_name(scope), name)),
        }  # fmt: skip
        for server in SERVERS:
            url = known.get(URLS[server])
            if not url or book.held(server) is not None:
                continue
            found = wanted(server)
            login = login_in(url)
            minted = login is not None and login.role in own[server]
            held = found.server if leads_alike(url, context.certificates, found, minted=minted) else None
            held = held or await _left(context, key, server, url)
            if held is None and not minted:  # what is the agent's own is of no use to others
                held = as_used(server, url, known)
            if held is not None:
                book = book.with_held(server, held)
    return book


async def _left(context: Context, key: Key, server: Server, url: str) -> Held | None:
    """The operator's own server, where the spec names it no more and agents use it."""
    secret = await context.children.live("Secret", key.namespace, server_name(key.name, server))
    own = secret_data(secret).get("url") if secret is not None and is_labelled(secret) else None
    if own is None or not leads_to(url, own):
        return None
    return Held.of(Ways(server, {"url": own, "admin": own}), managed=True)


def leads_alike(url: str, certificates: CertificateFolder, wanted: Connection, *, minted: bool) -> bool:
    """Whether an agent's URL is what the spec leads to; of one with a login of its own that is not asked."""
    shown = certificates.mounted(wanted.url) if wanted.url else None
    if shown is None or wanted.server is None:
        return False
    return leads_to(url, url_of(wanted.server)) if minted else url == shown[0]


def as_used(server: Server, url: str, known: Mapping[str, str]) -> Held:
    """The server that an agent uses, by what its Secret holds. Pure."""
    files = {name: known[name] for name in mounted_files(url) if name in known and name.startswith(server)}
    return Held.of(Ways(server, {"url": without_files(url, files)}, files), managed=False)
