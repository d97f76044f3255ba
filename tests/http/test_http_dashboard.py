"""The dashboard: the page as it is served, and in a real browser where there is one."""

import base64
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page, browser
from cloud_world import OPERATOR_KEY, World
from served import served

from flsys_ray.http.dashboard import page

EIGHT = {"pacing": {"name": "rounds", "cohort": 4, "deadline_s": 60}, "selection": "first_come"}
in_a_browser = pytest.mark.skipif(
    browser() is None, reason="no chromium on this machine: apt-get install chromium, or name one in FLSYS_CHROMIUM"
)


# The page as it is served ----------------------------------------------------------------------------------------


def test_the_page_is_served_to_anybody_and_lets_only_its_own_script_run(world: World):
    reply = world.http.get("/dashboard")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for kind in ("script", "style"):
        [text] = re.findall(rf"<{kind}>(.*?)</{kind}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in reply.headers["content-security-policy"]


def test_the_page_needs_nothing_from_elsewhere():
    html, _ = page()
    assert set(re.findall(r"https?://[^\"'\s]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe|script)\b[^>]*\b(src|href)=", html)
    assert not re.search(r"\son\w+=|\sstyle=|innerHTML|localStorage|document\.cookie|eval\(", html)
    assert len(html.splitlines()) <= 400


def test_the_script_names_only_elements_that_are_there():
    html, _ = page()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'\$\("([^"]+)"\)', html))
    charts = set(re.findall(r'chart\("(\w+)"', html))
    assert used | charts | {f"{name}-at" for name in charts} <= set(ids)
    assert len(used) > 15
    referred = re.findall(r'(?:for|aria-labelledby|aria-describedby)="([^"]+)"', html)
    assert set(referred) <= set(ids)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_the_script_parses(tmp_path: Path):
    html, _ = page()
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    (tmp_path / "page.js").write_text(script)
    done = subprocess.run(["node", "--check", str(tmp_path / "page.js")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Page]:
    with Page(tmp_path / "profile") as made:
        yield made


def give(chromium: Page, key: str) -> None:
    """Type a key and press the button."""
    chromium.until("!document.getElementById('ask').hidden")
    chromium.run(f"document.getElementById('key').value = {key!r}")
    chromium.run("document.querySelector('form button').click()")


def rows(chromium: Page, table: str) -> list[list[str]]:
    script = f"[...document.querySelectorAll('#{table} tr')].map(row => [...row.children].map(cell => cell.innerText))"
    return chromium.run(script)


def train(world: World, key: str, rounds: int) -> None:
    for number in range(rounds):
        for name in ("one", "two", "three", "four"):
            token = world.device(key, name)
            work = world.work(token)
            world.evaluate(token, work, loss_sum=1.0, correct=number, count=4)
            assert world.upload(token, work).status_code == 200
        world.clock.advance(1)


@in_a_browser
def test_a_developer_sees_models_curves_cohort_devices_and_bytes_and_they_move(world: World, key: str, chromium: Page):
    world.training(key, plan=EIGHT)
    world.draft(key, "later")
    train(world, key, 3)
    token = world.device(key, "one")
    world.upload(token, world.work(token))
    given_back = world.device(key, "two")
    world.give_back(given_back, world.work(given_back))
    world.work(world.device(key, "three"))
    with served(world.http.app) as url:
        chromium.open(f"{url}/dashboard")
        give(chromium, key)
        chromium.until("document.querySelectorAll('#rounds tr').length === 3")
        models = rows(chromium, "models")
        assert models[0][:3] == ["later", "acme", "draft"]
        assert models[1] == ["tiny", "acme", "training", "3", "3", "1 of 3", "0.500", "1.000"]
        assert [row[2] for row in rows(chromium, "rounds")] == ["version 3", "version 2", "version 1"]
        funnel = chromium.run("document.getElementById('funnel').innerText")
        assert " ".join(funnel.split()) == "assigned 3 counted 1 at work 1 given back 1 late 0"
        states = chromium.run("document.getElementById('devices').getAttribute('aria-label')")
        assert states == "1 counted, 1 at work, 1 gave back, 1 waiting"
        size = len(world.body())
        assert f"{size} B" in chromium.text()
        curve = "document.querySelector('#accuracy svg').getAttribute('aria-label')"
        assert chromium.run(curve) == "accuracy from 0.000 to 0.500 at version 2"
        widths = "[...document.querySelectorAll('#funnel .fill')].map(bar => bar.getBoundingClientRect().width > 0)"
        assert chromium.run(widths) == [True, True, True, True, False]

        for name in ("three", "four", "five"):  # the page moves by itself
            token = world.device(key, name)
            world.upload(token, world.work(token))
        chromium.until("document.querySelectorAll('#rounds tr').length === 4")

        chromium.run("document.querySelector('button[data-model=\"acme/later\"]').click()")
        chromium.until("document.getElementById('name').innerText.startsWith('later draft')")
        assert chromium.complaints() == []
        assert all(address.startswith(f"{url}/") and key not in address for address in chromium.asked())
        kept = chromium.run("[Object.values(sessionStorage), localStorage.length, document.cookie, location.href]")
        assert kept == [[key], 0, "", f"{url}/dashboard#acme/later"]
        chromium.run("document.getElementById('forget').click()")
        assert chromium.run("sessionStorage.length") == 0
        assert "acme" not in chromium.text()


@in_a_browser
def test_the_operator_sees_every_app_and_a_wrong_key_is_told(world: World, key: str, chromium: Page):
    world.training(key, plan=EIGHT)
    other = world.app("other")
    world.training(other, "theirs")
    with served(world.http.app) as url:
        chromium.open(f"{url}/dashboard")
        give(chromium, "flsys_app_acme_wrong")
        chromium.until("document.getElementById('trouble').innerText.includes('opens nothing here')")
        assert chromium.run("sessionStorage.length") == 0
        give(chromium, "a kéy")
        chromium.until("document.getElementById('trouble').innerText.includes('ASCII')")
        give(chromium, OPERATOR_KEY)
        chromium.until("document.querySelectorAll('#models tr').length === 2")
        assert [row[:2] for row in rows(chromium, "models")] == [["tiny", "acme"], ["theirs", "other"]]
        assert "operator" in chromium.run("document.getElementById('whose').innerText")
        chromium.open(f"{url}/dashboard?again")  # the tab still has it
        chromium.until("document.querySelectorAll('#models tr').length === 2")


@in_a_browser
def test_a_cloud_that_goes_away_is_told_and_found_again(world: World, key: str, chromium: Page):
    world.training(key, plan=EIGHT)
    train(world, key, 1)
    with served(world.http.app) as url:
        chromium.open(f"{url}/dashboard")
        give(chromium, key)
        chromium.until("document.querySelectorAll('#rounds tr').length === 1")
    chromium.until("document.getElementById('trouble').innerText.includes('no answer')")
    assert rows(chromium, "models")[0][0] == "tiny"  # what was seen stays
    train(world, key, 1)
    with served(world.http.app, int(url.rpartition(":")[2])):
        chromium.until("document.querySelectorAll('#rounds tr').length === 2")
        assert chromium.run("document.getElementById('trouble').hidden")


@in_a_browser
def test_names_are_text_and_foreign_script_does_not_run(world: World, key: str, chromium: Page):
    with served(world.http.app) as url:
        chromium.open(f"{url}/dashboard")
        chromium.run("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
        assert chromium.run("window.ran") is None
        assert any("Content Security Policy" in text for text in chromium.complaints())
