"""The server: on loopback only, for this machine's names only, with nothing from elsewhere."""

import re

import pytest

from lit_gpt.errors import InputError
from scripts.explorer.reading import Reading
from scripts.explorer.runs import open_runs
from scripts.explorer.server import bind, make_app


@pytest.fixture
def app(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\r\n1,2.5\r\n")
    return make_app(open_runs([tmp_path]), [Reading(tmp_path)])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8050", 200),
        ("localhost:9000", 200),
        ("localhost", 200),
        ("evil.example", 403),
        ("evil.example:8050", 403),
        ("127.0.0.1.evil.example:8050", 403),
        ("192.168.0.7:8050", 403),
    ],
)
def test_other_names_are_refused(app, host, status):
    assert app.server.test_client().get("/", headers={"Host": host}).status_code == status


def test_everything_comes_from_here(app):
    client = app.server.test_client()
    answer = client.get("/", headers={"Host": "localhost"})
    page = answer.get_data(as_text=True)
    assert not re.search(r'(src|href)="(https?:)?//', page)
    scripts = re.findall(r'src="([^"]+)"', page)
    assert scripts
    assert all(client.get(path, headers={"Host": "localhost"}).status_code == 200 for path in scripts)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


@pytest.mark.parametrize(
    ("output", "inputs"),
    [
        ("", None),
        ("nothing.value", []),
        ("..step-summary", ["7", 1, "high", 1, None]),
        ("..step-summary", [{}, 1, "high", 1, None]),
        ("..segment-title", [["0"], None]),
        ("..curves.figure", [{"axis": "nonsense\n\n", "low": 0, "high": 1}, 20, 1]),
        ("..losses-summary", ["losses", "0", {"axis": "step"}, "highest", None]),
    ],
)
def test_what_the_page_never_asks_is_refused_in_one_line(app, caplog, output, inputs):
    client = app.server.test_client()
    known = client.get("/_dash-dependencies", headers={"Host": "localhost"}).get_json()
    body = {} if inputs is None else {"output": output, "outputs": [], "inputs": inputs, "changedPropIds": []}
    for callback in known:
        if callback["output"].startswith(output or "?"):
            names = [place.rsplit(".", 1) for place in callback["output"].strip(".").split("...")]
            body["output"] = callback["output"]
            body["outputs"] = [{"id": name, "property": kind} for name, kind in names]
            body["inputs"] = [
                one | {"value": value} for one, value in zip(callback["inputs"], inputs, strict=True)
            ]
            body["state"] = [one | {"value": None} for one in callback["state"]]
    answer = client.post("/_dash-update-component", json=body, headers={"Host": "localhost"})
    told = answer.get_data(as_text=True)
    assert (answer.status_code, answer.mimetype, len(told.splitlines())) == (400, "text/plain", 1)
    assert [(record.getMessage(), record.exc_info) for record in caplog.records] == [(told, None)]


def test_it_listens_on_loopback_and_names_a_port_that_is_taken(app):
    server = bind(app, 0)
    try:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        with pytest.raises(InputError, match=f"--port {server.server_port}: "):
            bind(app, server.server_port)
    finally:
        server.server_close()
