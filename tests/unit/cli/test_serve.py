"""``halocast serve``: what it answers, what it refuses, and a page whose sliders move numbers."""

import base64
import hashlib
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import pandas as pd
import pytest

from halocast.cli import run
from halocast.errors import MisuseError
from halocast.reports.capacity import capacity_document
from halocast.reports.document import Picture
from halocast.reports.live import live_page, live_scripts, pareto_scale
from halocast.simulator.costs import Costs
from halocast.simulator.whatif import read_whatif

pytest.importorskip("starlette", reason="halocast serve needs the extra 'serve'")

from starlette.testclient import TestClient

from halocast.cli.live import Desk, Preparing
from halocast.cli.serve import allowed_hosts, bind, is_local, live_of
from halocast.cli.web import content_policy, make_app

LOCAL = "http://127.0.0.1"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def desk(served_folder, served_costs):
    return Desk(read_whatif(served_folder), Costs.load(served_costs), served_costs)


@pytest.fixture(scope="module")
def page(desk):
    return live_page(capacity_document(desk.whatif, "capacity"), live_of(desk))


@pytest.fixture(scope="module")
def client(desk, page):
    scripts = live_scripts(capacity_document(desk.whatif, "capacity"))
    with TestClient(make_app(desk, page, scripts, allowed_hosts("127.0.0.1")), base_url=LOCAL) as found:
        yield found


def ask(client, **question):
    """The answer, waited for."""
    limit = time.monotonic() + PATIENCE
    while True:
        answer = client.post("/api/forecast", json=question)
        if answer.status_code != 202:
            return answer
        assert "preparing" in answer.json()
        assert time.monotonic() < limit
        time.sleep(0.05)


def waited(desk, **changes):
    """The same of a desk."""
    limit = time.monotonic() + PATIENCE
    while isinstance(found := desk.answer(desk.read({"inputs": inputs(**changes)})), Preparing):
        assert time.monotonic() < limit
        time.sleep(0.02)
    return found


def inputs(**changes):
    return {"ranks": 2, "device": "A100", "network": "ethernet-10g", "method": "full", "bits": 4, **changes}


def test_answers_are_the_sweeps_own(client, served_folder):
    table = pd.read_parquet(served_folder / "scenarios.parquet")
    for _, row in table[table["ranks"] > 1].iterrows():
        asked = {name: row[name] for name in ("ranks", "device", "network", "method")}
        found = ask(client, inputs=inputs(**asked)).json()
        assert found["name"] == row["name"]
        for name in ("epoch_seconds", "low", "high", "training_seconds", "cost", "peak_bytes"):
            assert found["forecast"][name] == pytest.approx(row[name])
        assert (found["feasible"], found["reason"]) == (row["feasible"], row["reason"])
        assert sum(part["share"] for part in found["parts"]) == pytest.approx(1.0)


def test_names_may_be_written_in_any_case(client):
    assert ask(client, inputs=inputs(device="a100")).json() == ask(client, inputs=inputs(device="A100")).json()


def test_a_rate_of_ones_own_takes_the_links_place(client):
    times = [ask(client, inputs=inputs(), rate_gbit=rate).json()["forecast"]["epoch_seconds"] for rate in (0.05, 0.5, 50.0)]
    assert times[0] > times[1] > times[2]
    same = ask(client, inputs=inputs(), rate_gbit=1.0).json()["forecast"]["epoch_seconds"]
    assert same == ask(client, inputs=inputs(network="1gbit")).json()["forecast"]["epoch_seconds"]


def test_price_and_epochs_scale_cost_and_time(client):
    usual = ask(client, inputs=inputs()).json()["forecast"]
    dear = ask(client, inputs=inputs(), price_per_hour=8.0).json()["forecast"]
    long = ask(client, inputs=inputs(), epochs=3000).json()["forecast"]
    assert dear["cost"] == pytest.approx(4 * usual["cost"])
    assert dear["training_seconds"] == usual["training_seconds"]
    assert long["training_seconds"] == pytest.approx(3 * usual["training_seconds"])
    assert long["cost"] == pytest.approx(3 * usual["cost"])
    assert long["epoch_seconds"] == usual["epoch_seconds"]


def test_a_missed_filter_is_said(client):
    found = ask(client, inputs=inputs(), epochs=10_000_000).json()
    assert not found["feasible"]
    assert found["reason"].startswith("misses the deadline: ")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"inputs": {"ranks": 3}}, "ranks = 3 is not in the grid; allowed: 1, 2, 4"),
        ({"inputs": {"ranks": True}}, "ranks = True is not in the grid"),
        ({"inputs": {"rank": 2}}, "unknown input 'rank'; did you mean 'ranks'?"),
        ({"inputs": {"device": "<b>H100"}}, "device = '<b>H100' is not in the grid; allowed: A100, H100"),
        ({"inputs": {"device": ["H100"]}}, "device = ['H100'] is not in the grid"),
        ({"inputs": {"network": "__import__('os')"}}, "is not in the grid"),
        ({"inputs": []}, "inputs: an object of names and values is expected"),
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'?"),
        ({"epochs": 2.5}, "epochs = 2.5: a whole number from 1 to 1e+07 is expected"),
        ({"epochs": 0}, "epochs = 0"),
        ({"rate_gbit": -1}, "rate_gbit = -1: a number from 0.01 to 10000 is expected"),
        ({"rate_gbit": "1"}, "rate_gbit = '1'"),
        ({"price_per_hour": 1e9}, "price_per_hour = 1000000000.0: a number from 0 to 1e+06 is expected"),
        ([], "a JSON object is expected"),
    ],
)
def test_bad_questions_are_one_line(client, question, message):
    answer = client.post("/api/forecast", json=question)
    assert answer.status_code == 422
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        ("{", {"Content-Type": "application/json"}, "is not JSON"),
        ("{}", {"Content-Type": "text/plain"}, "must be JSON"),
        ('{"epochs": NaN}', {"Content-Type": "application/json"}, "epochs = nan"),
        ('{"rate_gbit": 1e999}', {"Content-Type": "application/json"}, "rate_gbit = inf"),
        ("[" * 16_000, {"Content-Type": "application/json"}, "is not JSON"),
        (" " * 20_000, {"Content-Type": "application/json"}, "longer than 16,384 bytes"),
        ("{}", {"Content-Type": "application/json", "Origin": "http://elsewhere.example"}, "another site"),
        ("{}", {"Content-Type": "application/json", "Origin": "null"}, "another site"),
        ("{}", {"Content-Type": "application/json", "Origin": "http://["}, "another site"),
        ('{"rate_gbit": %s}' % ("9" * 400), {"Content-Type": "application/json"}, "rate_gbit = 9999"),
        ('{"epochs": %s}' % ("9" * 400), {"Content-Type": "application/json"}, "epochs = 9999"),
        ('{"inputs": {"ranks": %s}}' % ("9" * 400), {"Content-Type": "application/json"}, "is not in the grid"),
        ('{"inputs": {"ranks": ' + "[" * 900 + "]" * 900 + "}}", {"Content-Type": "application/json"}, "is not"),
    ],
)
def test_what_is_no_question_of_this_page_is_refused(client, body, headers, message):
    answer = client.post("/api/forecast", content=body, headers=headers)
    assert answer.status_code == 422
    assert message in answer.json()["error"]


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.1.elsewhere.example", "169.254.169.254", ""])
def test_a_name_that_is_not_ours_is_not_answered(client, host):
    for answer in (client.get("/", headers={"Host": host}), client.post("/api/forecast", json={}, headers={"Host": host})):
        assert answer.status_code == 400
        assert_guarded(answer)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/api/forecast", 405), ("GET", "/x", 404), ("POST", "/", 405)])
def test_there_is_nothing_else(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert "error" in answer.json()
    assert_guarded(answer)


def assert_guarded(answer):
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_failure_is_one_line_and_guarded_too(desk, page, monkeypatch):
    monkeypatch.setattr(desk, "read", lambda document: 1 / 0)
    app = make_app(desk, page, [], allowed_hosts("127.0.0.1"))
    answer = TestClient(app, base_url=LOCAL, raise_server_exceptions=False).post("/api/forecast", json={})
    assert (answer.status_code, list(answer.json())) == (500, ["error"])
    assert_guarded(answer)


class Scripts(HTMLParser):
    """Elements of a page that run: scripts but those of data, by what stands in them."""

    def __init__(self, text):
        super().__init__()
        self.found, self.runs = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.runs = tag == "script" and dict(attributes).get("type") != "application/json"
        if self.runs:
            assert attributes == []
            self.found.append("")

    def handle_endtag(self, tag):
        self.runs = self.runs and tag != "script"

    def handle_data(self, data):
        if self.runs:
            self.found[-1] += data


def test_an_injected_script_is_not_allowed_to_run(desk, page):
    bad = page.replace("</main>", "<script>alert(1)</script></main>")
    scripts = live_scripts(capacity_document(desk.whatif, "capacity"))
    answer = TestClient(make_app(desk, bad, scripts, allowed_hosts("127.0.0.1")), base_url=LOCAL).get("/")
    assert "alert(1)" in answer.text
    digest = base64.b64encode(hashlib.sha256(b"alert(1)").digest()).decode()
    assert digest not in answer.headers["Content-Security-Policy"]


def test_the_page_may_run_only_the_packages_scripts(client):
    answer = client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    scripts = Scripts(answer.text).found
    assets = resources.files("halocast.reports").joinpath("templates")
    assert scripts == [f"\n{assets.joinpath(name).read_text()}\n" for name in ("page.js", "live.js")]
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.count("sha256-") == len(scripts)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    assert not re.search(r"<[^>]+\son[a-z]+=", answer.text)
    assert "eval(" not in "".join(scripts)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert content_policy([]).count("script-src 'none'") == 1


def test_the_page_starts_with_the_recommended_scenario(desk, page):
    best = desk.view.recommended
    start = desk.evaluator.evaluate(desk.point_of(desk.start))
    assert start["name"] == best["name"]
    assert start["training_seconds"] == pytest.approx(best["training_seconds"])
    assert {control.name for control in desk.controls} == {"ranks", "device", "network", "method"}
    assert 'id="live-ranks"' in page
    assert page.index('id="live-heading"') < page.index('id="top"')


def test_the_page_starts_with_the_recommended_price(served_folder, served_costs):
    whatif = read_whatif(served_folder)
    document = json.loads((served_folder / "whatif.json").read_text())
    device = "A100" if whatif.table.loc[whatif.answers.recommended, "device"] == "A100" else "H100"
    grid = document["grid"] | {"prices": {"currency": "EUR", "A100": [2.0, 1.0], "H100": [4.5, 2.25]}}
    table = whatif.table.assign(price_per_hour=whatif.table["device"].map({"A100": 1.0, "H100": 2.25}))
    lower = replace(whatif, manifest=whatif.manifest.model_copy(update={"grid": grid}), table=table)
    own = Desk(lower, Costs.load(served_costs), served_costs)
    price = {"A100": 1.0, "H100": 2.25}[device]
    assert own.point_of(own.start).price_per_hour == price
    assert live_of(own)["price"]["start"] == live_of(own)["prices"][device] == price
    other = {"A100": "H100", "H100": "A100"}[device]
    assert own.point_of(own.read({"inputs": {"device": other}})).price_per_hour == {"A100": 2.0, "H100": 4.5}[other]
    assert own.point_of(own.read({"inputs": {"device": device}})).price_per_hour == price


def test_what_is_wanted_is_kept_once_for_all_rates(served_folder, served_costs):
    fresh = Desk(read_whatif(served_folder), Costs.load(served_costs), served_costs)
    for rate in range(1, 50):
        assert isinstance(fresh.answer(fresh.read({"inputs": inputs(ranks=4), "rate_gbit": rate})), Preparing)
    assert len(fresh._wanted) == 1


def test_markup_in_the_names_of_values_is_text(desk):
    bad = "</script><script>alert(1)</script>\"'"
    live = live_of(desk)
    for control in live["controls"]:
        control["label"] += bad
        control["values"] = control["texts"] = [bad, *control["texts"][1:]]
    found = live_page(capacity_document(desk.whatif, f"x{bad}"), live)
    assert "alert(1)" in found
    assert "<script>alert" not in found
    assert len(re.findall(r"<script>", found)) == 2


def test_the_scale_of_the_front_figure_puts_points_where_they_are_drawn(desk):
    document = capacity_document(desk.whatif, "capacity")
    scale = pareto_scale(document)
    marks = next(each for each in document.blocks(Picture) if each.identity == "pareto").marks
    row = desk.view.forecast.iloc[3]
    for axis, value, place in (("x", row["training_seconds"], marks.x[3]), ("y", row["cost"], marks.y[3])):
        (low, high), (start, end) = scale[axis]["data"], scale[axis]["pixels"]
        along = math.log if scale[axis]["log"] else float
        assert start + (along(value) - along(low)) / (along(high) - along(low)) * (end - start) == pytest.approx(place, abs=0.6)


def test_what_is_not_prepared_is_said_and_made(served_folder, served_costs):
    fresh = Desk(read_whatif(served_folder), Costs.load(served_costs), served_costs)
    move = fresh.read({"inputs": inputs(ranks=4, method="adaqp")})
    first = fresh.answer(move)
    assert isinstance(first, Preparing)
    assert "preparing 4 ranks" in first.text
    fresh.open()
    found = waited(fresh, ranks=4, method="adaqp")
    fresh.close()
    assert found["forecast"]["ranks"] == 4


def test_what_could_not_be_prepared_is_one_line_and_the_others_go_on(served_folder, served_costs, monkeypatch):
    fresh = Desk(read_whatif(served_folder), Costs.load(served_costs), served_costs)
    evaluate = fresh.evaluator.evaluate

    def broken(point, *more):
        if point.ranks == 4:
            raise ValueError("no such\npartition")
        return evaluate(point, *more)

    monkeypatch.setattr(fresh.evaluator, "evaluate", broken)
    fresh.open()
    with pytest.raises(MisuseError, match="ValueError: no such partition"):
        waited(fresh, ranks=4)
    found = waited(fresh, ranks=2)
    fresh.close()
    assert found["feasible"]


def test_nothing_is_written(client, served_folder):
    before = {path: path.stat().st_mtime_ns for path in served_folder.rglob("*")}
    client.get("/")
    ask(client, inputs=inputs(), epochs=7)
    assert {path: path.stat().st_mtime_ns for path in served_folder.rglob("*")} == before


def test_other_costs_are_refused(served_folder, served_costs, tmp_path):
    document = json.loads(served_costs.read_text())
    document["noise"] = 0.5
    other = tmp_path / "costs.json"
    other.write_text(json.dumps(document))
    assert run(["serve", str(served_folder), "--costs", str(other), "--port", "0"]) == 2


def test_a_folder_of_other_settings_is_refused(served_folder, tmp_path, capsys):
    shutil.copytree(served_folder, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "whatif.json").read_text())
    (tmp_path / "other" / "whatif.json").write_text(json.dumps({**manifest, "digest": "another"}))
    assert run(["serve", str(tmp_path / "other"), "--port", "0"]) == 2
    assert "was made of another graph, run file or hardware file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "0", "--costs", "nowhere.json"], "nowhere.json, which"),
        (["--port", "70000"], "--port 70000 is out of range"),
        (["--port", "0", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
    ],
)
def test_the_command_refuses_in_one_line(served_folder, capsys, arguments, message):
    assert run(["serve", str(served_folder), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_taken_port_is_said(served_folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run(["serve", str(served_folder), "--port", str(taken.getsockname()[1])]) == 2
    assert "--port 0 picks a free port" in capsys.readouterr().err


def test_an_unfinished_folder_is_not_served(served_folder, tmp_path, capsys):
    shutil.copytree(served_folder, tmp_path / "half")
    manifest = json.loads((tmp_path / "half" / "whatif.json").read_text())
    (tmp_path / "half" / "whatif.json").write_text(json.dumps({**manifest, "finished": False}))
    assert run(["serve", str(tmp_path / "half"), "--port", "0"]) == 2
    assert "is unfinished" in capsys.readouterr().err


def test_without_the_extra_one_line_says_so(served_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run(["serve", str(served_folder)]) == 2
    assert "pip install 'halocast[serve]'" in capsys.readouterr().err


def test_hosts_that_are_ours():
    assert {"127.0.0.1", "localhost"} <= set(allowed_hosts("127.0.0.1"))
    assert "*" not in allowed_hosts("0.0.0.0")
    assert socket.gethostname() in allowed_hosts("0.0.0.0")
    assert socket.gethostname() not in allowed_hosts("127.0.0.1")
    assert [is_local(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "192.0.2.1")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    with bind("127.0.0.1", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


@pytest.fixture
def address(served_folder):
    """Of a real server in a process of its own."""
    command = [sys.executable, "-m", "halocast", "serve", str(served_folder), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        text = ""
        while not text.rstrip().endswith("}\n}") and (line := server.stdout.readline()):
            text += line
            if line.rstrip() == "}":
                break
        yield json.loads(text)["url"]
        server.terminate()
        server.wait(PATIENCE)


def test_a_moved_slider_changes_the_numbers_in_a_browser(address, tmp_path):
    pytest.importorskip("websocket", reason="no websocket-client to drive a browser with")
    from served_page import Browser, find_browser

    path = find_browser()
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    with Browser(path, tmp_path / "profile") as browser:
        browser.open(address)
        shown = "document.querySelector('#live-state').dataset.milliseconds !== undefined"
        training = "document.querySelector('[data-text=training]').textContent"
        browser.until(shown)
        before = browser.evaluate(training)
        browser.evaluate("document.querySelector('#live-ranks').focus()")
        browser.press("Home")
        browser.press("ArrowRight")
        browser.press("ArrowRight")
        browser.until(f"{training} !== {before!r} && document.querySelector('#live-ranks-value').textContent === '4'")
        moved = browser.evaluate(training)
        assert browser.evaluate("document.querySelectorAll('#pareto .here').length") == 1
        browser.click("#live-controls button[type=reset]")
        browser.until(f"{training} === {before!r}")
        browser.click("#scenarios th button")
        assert browser.evaluate("document.querySelector('#scenarios th').getAttribute('aria-sort')") == "ascending"
        assert moved != before
        assert browser.said == [], "errors, or scripts that the policy refused"
