"""The status page in a real browser, against the real binary.

Screenshots are left in target/page-shots. What the page says is tested in Rust; here it is what only
a browser knows: that nothing is blocked or fetched from elsewhere, that it fits, updates itself,
works without scripts, and can be used by keyboard and screen reader.
"""

import contextlib
import time

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from browser import AXE, Browser
from pod import Pod, until

FITS = "return [document.documentElement.scrollWidth, window.innerWidth]"


def verdict(browser):
    return browser.text("#verdict .word").strip().lower()


@contextlib.contextmanager
def nothing_else(browser, pod):
    """Nothing is complained about, and nothing asked for but the shim's own port."""
    # The page of the test before still asks its own pod, which is gone.
    browser.open("about:blank")
    browser.complaints(), browser.requested()
    yield
    assert browser.complaints() == []
    elsewhere = [u for u in browser.requested() if not u.startswith((pod.url, "data:", "about:"))]
    assert elsewhere == []


def settle(browser):
    """Two updates by the page's own clock, so that what they change is seen too."""
    for _ in range(2):
        before = browser.run("return performance.getEntriesByType('resource').length")
        until(
            "an update",
            lambda: browser.run("return performance.getEntriesByType('resource').length") > before,
        )


@pytest.mark.parametrize("state", ["ready", "degraded", "down"])
def test_each_state_in_light_dark_and_on_a_phone(browser, pod, state):
    pod.become(state)
    browser.scheme("light")
    browser.size(1280)
    with nothing_else(browser, pod):
        browser.open(pod.url)
        until(f"the verdict to be {state}", lambda: verdict(browser).startswith(state))
        settle(browser)
        assert browser.run("return document.title") == f"{state} · agent-shim"
        # The picture that is shown is the one that fits.
        shown = "return getComputedStyle(document.querySelector(arguments[0])).display !== 'none'"
        assert (browser.run(shown, "#chain .lying"), browser.run(shown, "#chain .standing")) == (True, False)
        violations = []
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            browser.shot(f"{state}-{scheme}")
            if AXE.exists():
                violations += [f"{scheme}: {v}" for v in browser.axe()]
        assert violations == []
        for width in (360, 768):
            browser.size(width)
            scroll, window = browser.run(FITS)
            assert (scroll, window) == (width, width), "the page scrolls sideways"
            if width == 360:
                assert (browser.run(shown, "#chain .lying"), browser.run(shown, "#chain .standing")) == (False, True)
                browser.scheme("light")
                browser.shot(f"{state}-phone")
                if AXE.exists():
                    assert browser.axe() == []


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core: npm is not here, or could not fetch it")
def test_the_accessibility_check_can_fail(browser, pod):
    browser.size(1280)
    browser.open(pod.url)
    browser.run("document.querySelector('#fresh').style.color = 'transparent'; document.documentElement.removeAttribute('lang')")
    assert any("html-has-lang" in v for v in browser.axe())


def test_it_follows_the_server_by_itself_and_keeps_what_the_reader_did(browser, pod):
    pod.become("ready")
    browser.size(1280, 500)
    browser.open(pod.url)
    # The reader folds something open, selects a name, focuses a link and scrolls.
    browser.run("""
        document.querySelector('#capacity details').open = true;
        document.querySelector('footer a').focus({preventScroll: true});
        getSelection().selectAllChildren(document.querySelector('#models tbody th'));
        scrollTo(0, 400);
        window.marked = document.querySelector('#capacity details');
    """)
    selected = browser.run("return getSelection().toString()")
    assert selected
    pod.tell("stop-grpc")
    until("the page to say degraded", lambda: verdict(browser).startswith("degraded"))
    kept = browser.run("""return {
        open: window.marked.isConnected && window.marked.open,
        focus: document.activeElement === document.querySelector('footer a'),
        selection: getSelection().toString(),
        scroll: scrollY,
        title: document.title,
    }""")
    assert kept["open"] and kept["focus"] and kept["selection"] == selected
    # Content above grew; the browser anchors what is read, so only a jump to the top is a fault.
    assert kept["scroll"] >= 400 and kept["title"].startswith("degraded")
    # What is selected in the timeline stays although newer changes come before it.
    browser.run("""
        const old = document.querySelector('#transitions li strong');
        getSelection().selectAllChildren(old);
        window.marked = old;""")
    selected = browser.run("return getSelection().toString()")
    assert selected
    pod.tell("stop")
    until("the page to say down", lambda: verdict(browser).startswith("down"))
    settle(browser)
    moved = browser.run("return [window.marked.isConnected, window.marked.innerText, getSelection().toString()]")
    assert moved == [True, selected, selected]
    pod.tell("restart")
    until("the page to say ready", lambda: verdict(browser).startswith("ready"))


def test_only_the_verdict_is_read_out_and_only_when_it_changes(browser, pod):
    pod.become("ready")
    browser.open(pod.url)
    live = browser.run("return [...document.querySelectorAll('[aria-live]')].map(e => e.className)")
    assert live == ["word"]
    browser.run("""
        window.heard = [];
        new MutationObserver(all => window.heard.push(...all.map(m => m.target.data ?? m.target.nodeName)))
            .observe(document.querySelector('#verdict .word'), {subtree: true, childList: true, characterData: true});
    """)
    settle(browser)
    assert browser.run("return window.heard") == []
    pod.tell("stop-grpc")
    until("the change to be read out", lambda: "degraded" in browser.run("return window.heard"))


def test_it_says_that_it_is_stale_and_recovers(browser, pod):
    pod.become("ready")
    browser.size(1280)
    browser.open(pod.url)
    assert browser.text("#stale") == ""
    admin = pod.url.rsplit(":", 1)[1].rstrip("/")
    pod.stop_shim()
    until("the page to say stale", lambda: "Stale since" in browser.text("#stale"))
    assert "UTC: the shim does not answer" in browser.text("#stale")
    assert browser.run("return document.title") == "stale · agent-shim"
    browser.shot("stale-light")
    if AXE.exists():
        assert browser.axe() == []
    pod.start_shim(admin)
    until("the page to recover", lambda: browser.text("#stale") == "" and verdict(browser))
    browser.complaints()


def test_it_rests_while_it_is_hidden_and_while_it_is_paused(browser, pod):
    browser.open(pod.url)
    settle(browser)
    count = "return performance.getEntriesByType('resource').length"
    button = browser.driver.find_element("id", "pause")
    button.click()
    assert button.text == "Resume updates" and browser.text("#fresh").startswith("paused, as of")
    before = browser.run(count)
    time.sleep(3)  # Longer than the page's period: nothing may happen in it.
    assert browser.run(count) == before
    button.click()
    settle(browser)
    browser.run("""
        Object.defineProperty(document, 'hidden', {get: () => window.away, configurable: true});
        window.away = true;
        document.dispatchEvent(new Event('visibilitychange'));
    """)
    before = browser.run(count)
    time.sleep(3)
    assert browser.run(count) <= before + 1, "one may have been under way"
    browser.run("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    settle(browser)


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(browser, pod):
    pod.become("degraded")
    browser.size(1280)
    browser.open(pod.url)
    browser.driver.find_element("id", "pause").click()
    browser.run("document.activeElement.blur(); getSelection().removeAllRanges(); scrollTo(0, 0)")
    wanted = browser.run("""
        window.all = [...document.querySelectorAll('a[href], button, summary, [tabindex="0"]')]
            .filter(e => e.checkVisibility());
        return window.all.length""")
    browser.cdp("Page.bringToFront")
    browser.run("document.body.tabIndex = -1; document.body.focus()")
    reached = []
    for _ in range(wanted):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        at = browser.run("""
            const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
            return [window.all.indexOf(e), s.outlineStyle, parseFloat(s.outlineWidth), r.left >= 0 && r.width > 0]""")
        assert at[1] == "solid" and at[2] >= 2 and at[3], f"no visible focus on the {at[0]}th: {at}"
        reached.append(at[0])
    assert reached == list(range(wanted))
    # The skip link comes first and leads to the content.
    browser.run("document.body.focus()")
    ActionChains(browser.driver).send_keys(Keys.TAB).send_keys(Keys.ENTER).perform()
    assert browser.run("return document.activeElement.id") == "main"
    # A summary opens by keyboard.
    browser.run("document.querySelector('#capacity summary').focus()")
    ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
    assert browser.run("return document.querySelector('#capacity details').open") is True


def test_headings_landmarks_and_table_heads_are_in_order(browser, pod):
    pod.become("ready")
    browser.open(pod.url)
    levels = browser.run("return [...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:])), levels
    assert browser.run("return ['header','main','footer','nav'].map(t => document.querySelectorAll(t).length)") == [1] * 4
    assert browser.run("return document.querySelectorAll('th:not([scope])').length") == 0
    assert browser.run("return document.querySelectorAll('svg[role=img]:not([aria-label])').length") == 0


def test_reduced_motion_is_respected(browser, pod):
    browser.open(pod.url)
    moves = "return getComputedStyle(document.querySelector('main')).transitionDuration"
    browser.scheme("light", "no-preference")
    assert browser.run(moves) == "0.2s"
    browser.scheme("light", "reduce")
    assert browser.run(moves) == "0s"
    browser.scheme("light")


def test_hostile_names_do_nothing_and_fit(browser, pod):
    pod.become("ready")
    pod.tell("models hostile")
    until("the models", lambda: len(pod.status()["models"]) == 8)
    with nothing_else(browser, pod):
        browser.size(360)
        browser.open(pod.url)
        settle(browser)
        assert browser.run(FITS) == [360, 360]
        assert browser.run("return document.title") == "ready · agent-shim"
        assert browser.run("return document.querySelectorAll('main script, main img').length") == 0
        names = browser.text("#models")
        assert "<script>document.title='owned'</script>" in names and "\\u{202e}gpj.elif" in names
        browser.shot("hostile-phone")


def test_two_thousand_models_stay_small(browser, pod):
    pod.become("ready")
    pod.tell("models 2000")
    until("the models", lambda: len(pod.status()["models"]) == 2000)
    browser.size(1280)
    browser.open(pod.url)
    assert "and 1900 more, see /status" in browser.text("#models")
    assert browser.run("return document.documentElement.outerHTML.length") < 100_000


def test_the_policy_stops_what_does_not_belong(browser, pod):
    browser.open(pod.url)
    browser.complaints()
    browser.run("""
        const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s);
        document.body.setAttribute('onclick', 'window.owned = 2'); document.body.click();
        const i = new Image(); i.src = '/status'; document.body.append(i);
        const f = document.createElement('style'); f.textContent = 'body{display:none}'; document.body.append(f);
    """)
    assert browser.run("return window.owned") is None
    assert browser.run("return getComputedStyle(document.body).display") == "block"
    refused = until("the browser to complain", lambda: "\n".join(browser.complaints()))
    assert "Content Security Policy" in refused or "Content-Security-Policy" in refused, refused


def test_without_scripts_it_is_complete_and_reloads():
    with Pod() as pod, Browser(script=False) as browser:
        pod.become("ready")
        browser.open(pod.url)
        assert verdict(browser).startswith("ready")
        for part in ("Endpoints", "Capacity", "Capabilities", "Models", "Conditions", "What changed", "reloads every"):
            assert part in browser.text(), part
        assert not browser.driver.find_element("id", "pause").is_displayed(), "a button that does nothing"
        browser.shot("ready-no-script")
        # A summary opens without a script.
        browser.driver.find_element("css selector", "#capacity summary").click()
        assert browser.driver.find_element("css selector", "#capacity details table").is_displayed()
        pod.tell("stop")
        until("the page to reload and say down", lambda: verdict(browser).startswith("down"))
        assert browser.complaints() == []


def test_a_pod_without_a_scheduler_says_so(browser):
    with Pod(scheduler=False) as pod:
        until("the pod to be ready", pod.is_ready)
        browser.size(1280)
        browser.open(pod.url)
        assert verdict(browser).startswith("ready")
        said = browser.run("return document.querySelector('#chain .lying').getAttribute('aria-label')")
        assert "Scheduler not configured" in said
        until("everything to be probed", lambda: "unknown" not in browser.text("#endpoints"))
        browser.shot("no-scheduler-light")
