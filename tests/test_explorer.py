"""The explorer at /explorer/, clicked through in headless Chromium over the tiny served world: it shows what the service says."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount

from seminar.artifacts import Artifact, Store
from serve.explorer import Site, explorer_routes
from tests.served_world import World

pytest.importorskip("selenium", reason="the browser's driver is in the extra 'dev'")

from selenium.webdriver.common.keys import Keys

from tests.explorer_browser import CHROMIUM, DESKTOP, DRIVER, PHONE, Page, browser, serving

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (Debian: chromium-driver)")

USER = "u17"
"""Has the longest history; some of it under queries."""
Explain = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture(scope="module")
def root(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(world, tmp_path_factory.mktemp("explorer")) as address:
        yield address


@pytest.fixture(scope="module")
def explain(root: str) -> Explain:
    def ask(**request: Any) -> dict[str, Any]:
        return httpx.post(f"{root}/v1/explain", json={"user_id": USER, **request}, timeout=60).raise_for_status().json()

    return ask


@pytest.fixture(scope="module")
def driven(root: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield Page(driver, root)


@pytest.fixture
def page(driven: Page) -> Iterator[Page]:
    """At desktop size; whatever a test did, the page complained of nothing and asked nobody but its own service."""
    driven.size(DESKTOP)
    driven.driver.get("about:blank")
    driven.complaints(), driven.requested()
    yield driven
    assert driven.complaints() == []
    assert {url for url in driven.requested() if not url.startswith((driven.root, "about:", "data:"))} == set()


def kept(page: Page) -> list[tuple[str, str]]:
    """Name and relevance of what the page lists as kept."""
    return [(name, number.replace("−", "-")) for name, number in page.script(KEPT)]


KEPT = """
const text = (row, what) => row.querySelector(what).innerText;
return [...document.querySelectorAll('#kept .kept-row')].map((row) => [text(row, '.name'), text(row, '.relevance .number')]);
"""


def told(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["text"] or f"item {one['item_id']}", f"{one['relevance']:.3f}") for one in answer["kept"]]


def pick(page: Page, label: str, typed: str, option: str) -> None:
    """Type into a field with suggestions, and click the one that begins with `option`."""
    field = page.find(f"input[role=combobox]#{page.script(ID_OF, label)}")
    page.script("arguments[0].focus()", field)
    page.press(typed)
    page.until(partial(page.script, TAKEN, field.get_attribute("id"), option))
    page.settle()


ID_OF = "return [...document.querySelectorAll('label')].find((one) => one.innerText === arguments[0]).htmlFor"
TAKEN = """
const list = document.getElementById(document.getElementById(arguments[0]).getAttribute('aria-controls'));
const option = [...list.querySelectorAll('[role=option]')].find((one) => one.innerText.startsWith(arguments[1]));
if (list.hidden || !option) return false;
option.click();
return true;
"""


def test_from_a_user_to_what_the_search_kept(page: Page, explain: Explain) -> None:
    """The start lists users; a chosen one has a timeline; a target found by its words is explained as the API explains it."""
    page.open()
    assert page.script("return location.pathname") == "/explorer/"
    assert USER in page.texts("#start .user b")
    pick(page, "User", "u1", USER)
    assert page.state == {"user": USER}
    assert not page.find("#start").is_displayed()
    behaviours = httpx.get(f"{page.root}/v1/users/{USER}/history").json()
    assert f"{behaviours['length']} behaviours" in page.text("#timeline .note")
    assert "Choose a target" in page.text("#result")
    pick(page, "Target", "tea number", "tea number 10")
    pick(page, "Query", "tea", "tea")
    assert page.state == {"user": USER, "item": "i10", "qid": "q-tea"}
    answer = explain(target={"item_id": "i10", "query_id": "q-tea"})
    assert len(answer["kept"]) == 5
    assert kept(page) == told(answer)
    assert page.text("#result .big").startswith(f"{answer['score']:.3f}")
    assert f"of {answer['history_used']} behaviours" in page.text("#result")
    gate = page.texts("#result .shares:first-of-type .legend li")
    assert any(f"{100 * answer['gate']['query']:.0f}" in part for part in gate)
    assert len(page.all("#kept .heat i")) == len(answer["kept"]) * answer["heads"]
    page.until(lambda: "Score" in page.text("#live"))


def test_k_and_codec_change_what_is_kept(page: Page, explain: Explain) -> None:
    """By the fields, and by a cell of the table that asks for all of them."""
    page.open(user=USER, item="i10")
    page.choose("Found by", "merged")
    page.find("#ask-how input[type=number]").send_keys("9", Keys.ENTER)
    page.until(lambda: len(kept(page)) == 9)
    answer = explain(target={"item_id": "i10"}, retriever="merged", top_k=9)
    assert kept(page) == told(answer)
    assert "merged" in page.text("#result dl")
    assert page.state["k"] == "9"
    assert page.state["by"] == "merged"
    page.script("document.getElementById('whatif').scrollIntoView()")
    cell = page.find('[data-cell="exact 25"]')
    answer = explain(target={"item_id": "i10"}, retriever="exact", top_k=25)
    page.until(lambda: f"{answer['score']:.3f}" in page.text('[data-cell="exact 25"]'))
    page.settle()
    cell = page.find('[data-cell="exact 25"]')
    cell.click()
    page.settle()
    assert page.state["by"] == "exact"
    assert f"{len(answer['kept'])} of" in page.text("#result .medium")
    assert kept(page) == told(answer)[: len(kept(page))]


def test_two_bundles_stand_side_by_side(page: Page, world: World, explain: Explain) -> None:
    second = world.bundles[1].version
    page.open(user=USER, item="i10")
    page.choose("Beside it", second)
    figures = page.until(lambda: page.texts("#versus .figures tbody tr:first-child td"))
    scores = [explain(target={"item_id": "i10"}, **more)["score"] for more in ({}, {"bundle": second})]
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)
    assert figures[:2] == [f"{score:.3f}" for score in scores]
    names = page.texts("#versus .slopes > div:last-child .name")
    assert names == [name for name, _ in told(explain(target={"item_id": "i10"}, bundle=second))]
    page.driver.back()
    page.until(lambda: "versus" not in page.state)


def test_all_of_it_without_a_mouse(page: Page) -> None:
    """Skip link first; a user, a walk along the timeline, a behaviour as the target, as of the moment before it."""
    page.open()
    page.press(Keys.TAB)
    assert page.focused()["name"] == "Skip to the result"
    while page.focused()["name"] != "User":
        page.press(Keys.TAB)
    page.press(USER)
    page.until(lambda: page.texts(".options:not([hidden]) [role=option]"))
    page.press(Keys.ARROW_DOWN, Keys.ENTER)
    page.settle()
    assert page.state == {"user": USER}
    while page.focused()["role"] != "slider":
        page.press(Keys.TAB)
    page.press(Keys.END, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    behaviours = httpx.get(f"{page.root}/v1/users/{USER}/history").json()["behaviours"]
    assert page.state["row"] == str(len(behaviours) - 3)
    assert behaviours[-3]["text"] in page.script("return document.activeElement.getAttribute('aria-valuetext')")
    page.press(Keys.ENTER)
    page.settle()
    assert page.state["item"] == behaviours[-3]["item_id"]
    assert page.state["at"] == str(behaviours[-3]["time_ms"] - 1)
    assert len(kept(page)) == 5
    page.press("+")
    page.settle()
    assert {"from", "to"} <= page.state.keys()
    outline = page.script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_an_address_holds_all_of_what_is_seen(page: Page, world: World) -> None:
    asked = {"user": USER, "item": "i15", "query": "fresh bread", "k": 7, "by": "merged"}
    page.open(**asked, versus=world.bundles[1].version, row=20)
    assert "under “fresh bread”" in page.text("#result")
    assert len(kept(page)) == 7
    assert "merged" in page.text("#result dl")
    assert page.text("#timeline .readout b")
    assert page.texts("#versus .figures")


def test_a_phone_shows_it_without_scrolling_sideways(page: Page) -> None:
    page.size(PHONE)
    page.open(user=USER, item="i10", qid="q-tea")
    assert page.script("return document.documentElement.scrollWidth") == PHONE[0]
    fields = "[...document.querySelectorAll('button, input, select')]"
    small = f"return {fields}.filter((one) => one.offsetParent && one.offsetHeight < 30).length"
    assert page.script(small) == 0
    assert len(kept(page)) == 5


def test_refusals_are_told_with_what_to_do(page: Page) -> None:
    page.open(user="nobody")
    assert "Not found" in page.text("#problem [role=alert]")
    assert "user 'nobody'" in page.text("#problem")
    assert "POST /v1/events first" in page.text("#problem")
    page.open(user=USER, item="no-such-item")
    assert "target.item_id" in page.text("#problem")
    assert "an id that the bundle knows" in page.text("#problem")
    pick(page, "Target", "tea number", "tea number 10")
    assert page.text("#problem") == ""
    assert len(kept(page)) == 5
    # The browser itself writes down every answer that is an error.
    assert all("the server responded with a status of 4" in message for message in page.complaints())


@pytest.mark.parametrize("address", ["/", "/explorer"])
def test_the_root_leads_to_the_page(root: str, address: str) -> None:
    found = httpx.get(root + address, follow_redirects=True)
    assert found.url.path == "/explorer/"
    assert "SEMINAR Explorer" in found.text


def test_files_are_kept_for_a_year_and_the_page_is_asked_for_again(root: str) -> None:
    page = httpx.get(f"{root}/explorer/")
    assert page.headers["cache-control"] == "no-cache"
    assert "'unsafe" not in page.headers["content-security-policy"]
    assert httpx.get(page.url, headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    script = next(part for part in page.text.split('"') if part.endswith("main.js"))
    file = httpx.get(page.url.join(script))
    assert "immutable" in file.headers["cache-control"]
    assert file.headers["content-type"].startswith("text/javascript")
    assert httpx.get(page.url.join("assets/js/main.js")).headers["cache-control"] == "no-cache"
    assert httpx.get(f"{root}/explorer/assets/../../serve/app.py").status_code == 404
    assert httpx.get(f"{root}/explorer/assets/nothing.js").status_code == 404


def test_users_are_offered_by_length_and_by_date(root: str) -> None:
    """What the start lists; and lanes need the category of every behaviour."""
    everyone = httpx.get(f"{root}/v1/users", params={"limit": 1000}).json()["users"]
    for order, key in (("longest", "length"), ("newest", "newest_ms")):
        users = httpx.get(f"{root}/v1/users", params={"order": order, "limit": 5}).json()["users"]
        assert [user[key] for user in users] == sorted((user[key] or 0 for user in everyone), reverse=True)[:5]
    behaviours = httpx.get(f"{root}/v1/users/{USER}/history").json()["behaviours"]
    assert {one["category"] for one in behaviours} >= {"tea", "bread"}


def test_the_page_is_found_behind_a_prefix() -> None:
    """As Serve runs an application whose route_prefix is not the root."""
    app = FastAPI()
    app.include_router(explorer_routes(Site.read()))
    client = TestClient(Starlette(routes=[Mount("/fused", app)]))
    page = client.get("/fused/", follow_redirects=True)
    assert page.url.path == "/fused/explorer/"
    script = next(part for part in page.text.split('"') if part.endswith("main.js"))
    assert "immutable" in client.get(page.url.join(script)).headers["cache-control"]


def test_a_token_is_asked_for_once(page: Page, world: World, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse-battery-staple")
    with serving(world, tmp_path / "history", token_file=str(token)) as address:
        guarded = Page(page.driver, address)
        guarded.open(user=USER, item="i10")
        for given, title in (("another-horse-battery-staple", "The service wants a token"), (token.read_text(), "")):
            guarded.find("#token").send_keys(given, Keys.ENTER)
            guarded.settle()
            assert guarded.text("#problem h2") == title
        assert len(kept(guarded)) == 5
        guarded.open(user=USER, item="i15")
        assert guarded.text("#problem") == ""
        assert len(kept(guarded)) == 5
        page.complaints(), page.requested()
