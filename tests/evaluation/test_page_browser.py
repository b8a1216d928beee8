"""The page in a real browser: no errors, speed.py's numbers, keyboard, light, dark and narrow.

SCREENSHOTS=FOLDER keeps the pictures that the tests take.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from answer_samples import report_of, run_tool, write
from conftest import make_tokenizer
from page_files import HOSTILE, hostile_files, lines, make_paired_run, make_run, own_meta
from served_files import load_meta, random_lines
from test_report import REPORT, SPEED

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SIZES = ((1280, 900), (400, 800))


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, without a window."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright()
    with playwright as tool:
        running = tool.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(files by name, page) of a small run."""
    folder = tmp_path_factory.mktemp("run")
    files, page = make_run(folder), folder / "page.html"
    args = "--resamples", 500, "--base-path", files["vanilla"], "--output", page
    done = run_tool(REPORT, *files.values(), *args)
    assert done.returncode == 0, done.stderr
    return files, page


class Opened:
    """A page and what the browser says of it."""

    def __init__(self, browser, path, size=SIZES[0], scheme="light"):
        width, height = size
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        self.page, self.said = self.context.new_page(), []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#answers .turn")

    def asked(self, url):
        """Nothing but the page itself may be asked for."""
        if not url.startswith(("file://", "blob:")):
            self.said.append(f"asked for {url}")

    def __enter__(self):
        return self.page

    def __exit__(self, kind, *rest):
        self.context.close()
        if kind is None:
            assert self.said == []


def wait_for_choice(page, name, value):
    """Wait until a menu shows a value; wait_for_function may call eval, which the page forbids."""
    chosen = f"#answers select[name={name}] option[value='{value}']:checked"
    page.wait_for_selector(chosen, state="attached")


def cells(page):
    """{method: cells} of the table behind the first figure."""
    rows = page.eval_on_selector_all(
        "#speedup .numbers tbody tr",
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))",
    )
    return {row[0]: row[1:] for row in rows}


def test_menus_show_the_numbers_of_speed(browser, run):
    files, path = run
    with Opened(browser, path) as page:
        assert page.inner_text("#title").startswith("SpecGauge: mini on bench")
        for base in ("vanilla", "vanilla-compile"):
            page.select_option("select[name=baseline]", label=base)
            methods = [files[name] for name in ("fast", "near", "slow", "typical")]
            args = "--base-path", files[base], "--resamples", 500, "--allow", "runtime"
            results = report_of(run_tool(SPEED, "--file-path", *methods, *args))["results"]
            for task in ("qa", "rag", "overall"):
                page.select_option("select[name=task]", value=task)
                shown = cells(page)
                for result in results:
                    row = next(one for one in result["tasks"] if one["task"] == task)
                    ratio = row["speedup"]["mean_ratio"]
                    text = f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
                    found = shown[result["method"]["label"]]
                    assert found[0] == str(row["questions"]) and found[3] == text
                    assert found[5] == f"{row['mean_accepted']['over_steps']:.3f}"
        page.select_option("select[name=temperature]", value="0.6")
        assert list(cells(page)) == ["fast"] and "temperature 0.6" in page.inner_text("#facts")
        assert page.input_value("select[name=baseline]") == "0"
        page.select_option("select[name=temperature]", value="0")
        assert len(cells(page)) == 5


def test_published_figures_are_grey_lines(browser, run, tmp_path):
    files, path = run
    said = {"method": "eagle2", "target": "T", "bench": "B", "counted": HOSTILE[0]}
    said |= {"speedup": {"Overall": 2.5, "QA": 2.25}, "source": {"arxiv": "1"}}
    (tmp_path / "published.jsonl").write_text(json.dumps(said))
    args = "--published", tmp_path / "published.jsonl", "--output", tmp_path / "page.html"
    done = run_tool(REPORT, files["fast"], files["vanilla"], "--resamples", 100, *args)
    assert done.returncode == 0, done.stderr
    with Opened(browser, tmp_path / "page.html") as page:
        assert page.locator(".published").count() == 0
        page.select_option("select[name=published]", label="T, B")
        assert page.locator(".published").count() == 1
        assert "published, not recomputable: T, B (arxiv 1)" in page.inner_text("#published")
        page.select_option("select[name=task]", value="rag")
        assert page.locator(".published").count() == 0


def test_each_method_with_own_pairs_stands_beside_its_own_bound(browser, tmp_path):
    files, path = make_paired_run(tmp_path), tmp_path / "page.html"
    done = run_tool(REPORT, *files.values(), "--resamples", 100, "--output", path)
    assert done.returncode == 0, done.stderr
    profile = report_of(run_tool(SPEED, "--paired", "--file-path", *files.values()))["results"]
    with Opened(browser, path) as page:
        values = page.locator("#bound .value").all_text_contents()
        names = page.locator("#bound .name").all_text_contents()
        assert page.locator("#bound path.bound").count() == 3
        for result in profile:
            identity = result["time_identity"]
            cost = sum(identity["parts_ms"].values()) / identity["tokens_per_step"]
            ratio = cost / result["roofline"]["bound_ms"]
            shown = values[names.index(result["method"]["label"])]
            assert shown == f"{cost:.2f} = {ratio:.1f} bounds"
        bounds = [result["roofline"]["bound_ms"] for result in profile]
        said = f"bounds (ticks) of {min(bounds):.3f} to {max(bounds):.3f} ms"
        assert said in page.inner_text("#bound .finding")
        places = ["places 1 to 2: not distinguishable from the first", "place 3"]
        for task in ("qa", "rag", "overall"):
            page.select_option("select[name=task]", value=task)
            assert page.locator("#speedup .caption").all_text_contents() == places


@pytest.mark.parametrize("size", SIZES)
def test_a_long_name_keeps_its_beginning(browser, tmp_path, size):
    files, name = [], "WIDE" * 40
    for one in (name, "other"):
        found = lines(one, 3, 0.02, 1), own_meta(one, "pld")
        files.append(write(tmp_path / f"{one}.jsonl", *found))
    base = lines("vanilla", 1, 0.02, 0), own_meta("vanilla", "vanilla")
    files.append(write(tmp_path / "vanilla.jsonl", *base))
    done = run_tool(REPORT, *files, "--resamples", 10, "--output", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    with Opened(browser, tmp_path / "page.html", size) as page:
        for figure in ("#speedup", "#bound", "#phases"):
            drawn = page.locator(f"{figure} .name", has_text="WIDE")
            assert re.fullmatch(r"(WIDE)+W?I?D?\.\.\.", drawn.text_content())
            chart = page.locator(f"{figure} svg[role=group]").bounding_box()
            assert drawn.bounding_box()["x"] >= chart["x"]
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_times_are_of_a_step_or_of_a_token(browser, run):
    with Opened(browser, run[1]) as page:
        name = "#phases .numbers tbody tr:nth-child(2) td:last-child"
        step = float(page.text_content(name))
        accepted = float(cells(page)["fast"][5])
        page.select_option("select[name=per]", value="token")
        assert float(page.text_content(name)) == pytest.approx(step / accepted, rel=1e-3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_can_be_read(browser, run, size, scheme, tmp_path):
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    with Opened(browser, run[1], size, scheme) as page:
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= size[0]
        beyond = page.evaluate(
            "[...document.querySelectorAll('svg text')].filter(node => {"
            " const box = node.getBoundingClientRect();"
            " return box.left < -1 || box.right > innerWidth + 1; }).map(node => node.textContent)"
        )
        assert beyond == []
        assert page.evaluate(CONTRAST) >= 4.5
        shot = folder / f"page-{scheme}-{size[0]}.png"
        page.screenshot(path=shot, full_page=True)
        assert shot.stat().st_size > 20_000


CONTRAST = """() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = rgb => rgb.slice(0, 3).map(c => c / 255).map(
    c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  ).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const back = light(parts(getComputedStyle(document.body).backgroundColor));
  const colours = [...document.querySelectorAll('p, h1, h2, a, td, th, label, li, .warn, .good')]
    .filter(node => node.offsetParent && !node.closest('.skip, .few'))
    .map(node => light(parts(getComputedStyle(node).color)));
  return Math.min(...colours.map(c => (Math.max(c, back) + 0.05) / (Math.min(c, back) + 0.05)));
}"""


def test_a_verdict_leads_to_the_token_that_differs(browser, run):
    with Opened(browser, run[1]) as page:
        summary = page.locator("#verdicts details", has_text="slow").locator("summary").first
        summary.focus()
        page.keyboard.press("Enter")
        link = page.locator("#verdicts .differences a").first
        assert link.inner_text() == "question 3 (rag), turn 0, token 7"
        link.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#answers .here")
        assert page.locator("#answers .here").all_inner_texts() == [" 9", " 90"]
        assert "differ from token 7" in page.inner_text("#answers")
        names = page.locator("#answers h5").all_inner_texts()
        assert names == ["vanilla", "slow"]
        assert page.url.endswith("at=0.0.7")
        page.reload()
        page.wait_for_selector("#answers .here")


def test_steps_can_be_walked_by_keyboard_and_say_what_was_accepted(browser, run):
    with Opened(browser, run[1]) as page:
        page.locator("#answers .steps").first.locator(".token").first.focus()
        assert page.inner_text("#tip").startswith("prefill")
        page.keyboard.press("ArrowRight")
        tip = page.inner_text("#tip")
        found = re.match(r"step 1 of (\d+): (\d) tokens? committed; (\d) of 5 drafted", tip)
        assert found and int(found[3]) == int(found[2]) - 1
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()
        tab_stops = page.locator("#answers .steps [tabindex='0']").count()
        assert tab_stops == 2, "one a side"
        page.locator("#answers button[aria-label='next question']").focus()
        page.keyboard.press("Enter")
        wait_for_choice(page, "q", "1")


def test_everything_can_be_reached_by_tab(browser, run):
    with Opened(browser, run[1]) as page:
        seen = set()
        for _ in range(200):
            page.keyboard.press("Tab")
            seen.add(
                page.evaluate(
                    "document.activeElement.getAttribute('name')"
                    " || document.activeElement.getAttribute('class')"
                )
            )
        assert {"baseline", "task", "per", "temperature", "q", "a", "b", "skip"} <= seen


def test_methods_differ_by_shape_where_their_colours_are_alike(browser, run):
    with Opened(browser, run[1]) as page:
        marks = page.evaluate(
            "Array.from({ length: 42 }, (_, i) => { const node = mark(i, 0, 0, 5);"
            " return node.getAttribute('class') + node.getAttribute('d'); })"
        )
        assert len(set(marks)) == 42


def test_no_text_of_a_file_is_run(browser, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "target")
    files, asked = hostile_files(tmp_path, tokenizer)
    for more in ([], ["--tokenizer-path", tmp_path / "target"]):
        args = [*more, "--question-file", asked, "--output", tmp_path / "page.html"]
        done = run_tool(REPORT, *files, "--resamples", 100, *args)
        assert done.returncode == 0, done.stderr
        with Opened(browser, tmp_path / "page.html") as page:
            for number in range(len(HOSTILE)):
                page.select_option("#answers select[name=q]", str(number))
                wait_for_choice(page, "q", number)
                page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            for task in page.eval_on_selector_all(
                "[name=task] option", "all => all.map(o => o.value)"
            ):
                page.select_option("select[name=task]", value=task)
            for node in page.locator("[data-tip]").all()[:40]:
                node.dispatch_event("mouseover")
            assert page.evaluate("window.hacked") is None
            assert page.locator("script").count() == 3 and page.locator("img").count() == 0
            assert HOSTILE[0] in page.content().replace("&lt;", "<").replace("&gt;", ">")


def test_a_policy_stops_what_gets_in_all_the_same(browser, run):
    opened = Opened(browser, run[1])
    with opened as page:
        page.evaluate(
            "document.body.insertAdjacentHTML('beforeend',"
            " '<img src=x onerror=\"window.hacked = 1\">')"
        )
        page.wait_for_timeout(200)
        assert page.evaluate("window.hacked") is None
        assert opened.said and all("Content Security Policy" in line for line in opened.said)
        opened.said.clear()


def test_load_runs_and_energy_are_drawn(browser, tmp_path):
    paths = []
    for method, rate in (("vanilla", "1"), ("vanilla", "4"), ("pld", "1"), ("pld", "4")):
        name = f"{method}-rate-{rate}"
        found = [one | {"model_id": name} for one in random_lines(30, int(rate))]
        paths.append(write(tmp_path / f"{name}.jsonl", found, load_meta(name, method, rate=rate)))
    page_path = tmp_path / "page.html"
    done = run_tool(REPORT, *paths, "--slo", "ttft=0.5", "--resamples", 100, "--output", page_path)
    assert done.returncode == 0, done.stderr
    with Opened(browser, page_path) as page:
        assert page.locator("#load polyline").count() == 4
        page.select_option("select[name=latency]", value="e2e")
        assert "e2e, seconds" in page.text_content("#load svg")
        assert page.locator("#energy .bar").count() >= 2
