"""Lists, selectors, tables and watches. The same on both servers."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from .conftest import MERGE, PARTIAL, TABLE, Http, agent, config_map, eventually, pod


@pytest.fixture
def three(http_api: Http, core: str) -> str:
    """Path of a collection of three ConfigMaps."""
    for name, color in (("a", "red"), ("b", "green"), ("c", "red")):
        http_api.ok("POST", f"{core}/configmaps", config_map(name, {"n": name}, labels={"color": color}))
    return f"{core}/configmaps"


def names(listed: dict[str, Any]) -> list[str]:
    return [item["metadata"]["name"] for item in listed["items"]]


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("color%3Dred", ["a", "c"]), ("color%21%3Dred", ["b"]), ("color", ["a", "b", "c"]), ("!color", []),
        ("color+in+(red,blue)", ["a", "c"]), ("color+notin+(red)", ["b"]), ("color%3D%3Dgreen,color", ["b"]),
    ],
)  # fmt: skip
def test_label_selectors(http_api: Http, three: str, selector: str, wanted: list[str]) -> None:
    found = names(http_api.ok("GET", f"{three}?labelSelector={selector}"))
    assert [name for name in found if name in "abc"] == wanted


def test_field_selectors(http_api: Http, three: str, core: str) -> None:
    assert names(http_api.ok("GET", f"{three}?fieldSelector=metadata.name%3Db")) == ["b"]
    assert http_api("GET", f"{three}?fieldSelector=data.n%3Db").code == 400
    http_api.ok("POST", f"{core}/pods", pod("p", nodeName="n1"))
    assert names(http_api.ok("GET", f"{core}/pods?fieldSelector=spec.nodeName%3Dn1,status.phase%3DPending")) == ["p"]
    assert names(http_api.ok("GET", f"{core}/pods?fieldSelector=spec.nodeName%21%3Dn1")) == []


def test_selectors_that_are_none(http_api: Http, three: str) -> None:
    assert http_api("GET", f"{three}?labelSelector=a%20b").code == 400
    assert http_api("GET", f"{three}?fieldSelector=metadata.name").code == 400


def test_lists_in_pages(http_api: Http, three: str) -> None:
    first = http_api.ok("GET", f"{three}?limit=2")
    assert names(first) == ["a", "b"]
    assert first["metadata"]["remainingItemCount"] >= 1
    http_api.ok("DELETE", f"{three}/c")
    more = http_api.ok("GET", f"{three}?limit=2&continue={first['metadata']['continue']}")
    assert "c" in names(more), "a list is of one moment, however many pages it takes"
    assert more["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert http_api("GET", f"{three}?limit=2&continue=nonsense").code == 400


def test_items_of_built_in_lists_do_not_say_what_they_are(http_api: Http, three: str, hives: str) -> None:
    listed = http_api.ok("GET", three)
    assert (listed["kind"], listed["apiVersion"]) == ("ConfigMapList", "v1")
    assert all("kind" not in item for item in listed["items"])
    http_api.ok("POST", f"{hives}/agents", agent("w"))
    assert http_api.ok("GET", f"{hives}/agents")["items"][0]["kind"] == "Agent"


def test_tables(http_api: Http, core: str, hives: str) -> None:
    http_api.ok("POST", f"{core}/pods", pod("p"))
    table = http_api.ok("GET", f"{core}/pods", accept=TABLE)
    heads = [column["name"] for column in table["columnDefinitions"]]
    assert heads[:5] == ["Name", "Ready", "Status", "Restarts", "Age"]
    row = table["rows"][0]
    assert row["cells"][:4] == ["p", "0/1", "Pending", row["cells"][3]]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    assert "object" in http_api.ok("GET", f"{core}/pods/p?includeObject=Object", accept=TABLE)["rows"][0]
    http_api.ok("POST", f"{hives}/agents", agent("w"))
    table = http_api.ok("GET", f"{hives}/agents", accept=TABLE)
    cells = dict(zip((column["name"] for column in table["columnDefinitions"]), table["rows"][0]["cells"], strict=True))
    assert (cells["Name"], cells["Hive"]) == ("w", "demo")


def test_metadata_only(http_api: Http, three: str) -> None:
    listed = http_api.ok("GET", three, accept=PARTIAL)
    assert listed["kind"] == "PartialObjectMetadataList"
    assert all(set(item) <= {"kind", "apiVersion", "metadata"} for item in listed["items"])


def test_a_watch_goes_on_where_a_list_ended(http_api: Http, three: str) -> None:
    version = http_api.ok("GET", three)["metadata"]["resourceVersion"]
    http_api.ok("PATCH", f"{three}/a", {"data": {"n": "2"}}, media=MERGE)
    http_api.ok("DELETE", f"{three}/b")
    http_api.ok("POST", three, config_map("d"))
    events = http_api.watch(three, f"resourceVersion={version}&timeoutSeconds=1")
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in events] == [
        ("MODIFIED", "a"), ("DELETED", "b"), ("ADDED", "d"),
    ]  # fmt: skip
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(versions)
    assert versions[0] > int(version)


def test_selectors_of_watches_see_objects_come_and_go(http_api: Http, three: str) -> None:
    version = http_api.ok("GET", three)["metadata"]["resourceVersion"]
    for color in ("red", "green"):
        http_api.ok("PATCH", f"{three}/b", {"metadata": {"labels": {"color": color}}}, media=MERGE)
    http_api.ok("DELETE", f"{three}/b")
    query = f"labelSelector=color%3Dred&resourceVersion={version}&timeoutSeconds=1"
    found = [(event["type"], event["object"]["metadata"]["name"]) for event in http_api.watch(three, query)]
    assert found == [("ADDED", "b"), ("DELETED", "b")]


def test_a_watch_without_version_starts_with_what_is_there(http_api: Http, three: str) -> None:
    events = http_api.watch(three, "timeoutSeconds=1&fieldSelector=metadata.name%3Da")
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in events] == [("ADDED", "a")]


def test_initial_events_end_with_a_bookmark(http_api: Http, three: str) -> None:
    query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    events = http_api.watch(three, query)
    bookmark = next(event for event in events if event["type"] == "BOOKMARK")
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    before = events[: events.index(bookmark)]
    assert {"a", "b", "c"} <= {event["object"]["metadata"]["name"] for event in before}
    assert http_api("GET", f"{three}?watch=1&sendInitialEvents=true").code == 422


def test_watches_in_other_forms(http_api: Http, three: str) -> None:
    query = "watch=1&resourceVersion=0&timeoutSeconds=1"
    lines = http_api("GET", f"{three}?{query}", accept=TABLE).body.splitlines()
    tables = [json.loads(line)["object"] for line in lines]
    assert tables[0]["columnDefinitions"]
    assert not tables[1].get("columnDefinitions")
    partial = PARTIAL.replace("List", "")
    lines = http_api("GET", f"{three}?{query}", accept=partial).body.splitlines()
    assert {json.loads(line)["object"]["kind"] for line in lines} == {"PartialObjectMetadata"}


def test_a_watch_tells_at_once(http_api: Http, api_server: Any, three: str) -> None:
    version = http_api.ok("GET", three)["metadata"]["resourceVersion"]
    seen: list[dict[str, Any]] = []

    def follow() -> None:
        client = Http(api_server)
        headers = {"Authorization": f"Bearer {api_server.token}"}
        client.connection.request("GET", f"{three}?watch=1&resourceVersion={version}&timeoutSeconds=8", None, headers)
        answer = client.connection.getresponse()
        seen.append(json.loads(answer.readline()))
        client.connection.close()

    watcher = threading.Thread(target=follow)
    watcher.start()
    http_api.ok("PATCH", f"{three}/a", {"data": {"n": "9"}}, media=MERGE)
    eventually(lambda: bool(seen), "the event", seconds=5)
    watcher.join()
    assert seen[0]["object"]["data"] == {"n": "9"}


def test_versions_of_the_future(http_api: Http, three: str) -> None:
    answer = http_api("GET", f"{three}?resourceVersion=999999999")
    assert (answer.code, answer.body["reason"]) == (504, "Timeout")
    assert http_api("GET", f"{three}?resourceVersionMatch=Exact").code == 422
    assert http_api("GET", f"{three}?limit=x").code == 400
