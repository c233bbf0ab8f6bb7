"""Where the page is, and who may see it; words that are none."""

import socket

import pytest
from studio_jobs import free_port, new_picture, status

from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.studio import server
from diffstyler.studio.folder import Folder
from diffstyler.studio.server import Address


@pytest.mark.filterwarnings("default")
def test_others_need_a_password(tmp_path, engine, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed")
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # set by the studio, and back afterwards
    with pytest.raises(DiffstylerError, match="others could reach the studio; set a name and a password"):
        Address("0.0.0.0", 7860, None)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert Address(host, 7860, None).auth is None
    other, address = Folder(tmp_path / "other"), Address("127.0.0.1", free_port(), ("me", "secret"))
    with server.opened(engine, other, address) as url:
        kept = new_picture(other, "kept", 9)
        for path in ("config", f"gradio_api/file={kept}"):
            assert status(url + path) == 401
        assert status(f"{url}login", b"username=me&password=wrong") == 400
        assert status(f"{url}login", b"username=me&password=secret") == 200


def test_a_port_that_is_taken_is_told(tmp_path, engine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = Address("127.0.0.1", taken.getsockname()[1], None)
        told = r"--port \d+: .*in use; name another port"
        with pytest.raises(DiffstylerError, match=told), server.opened(engine, Folder(tmp_path / "other"), address):
            pass


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--host 0.0.0.0", "others could reach the studio"),
        ("--auth me", "--auth: expected NAME:PASSWORD"),
        ("--model.rnak 3", "'--model.rnak' is not a setting of the studio"),
        ("--data.manifest x.csv", "'--data.manifest' is not a setting of the studio"),
        ("extra", "expected --SETTING VALUE, got 'extra'"),
    ],
)
def test_wrong_words_end_before_anything_starts(words, text, tmp_path, capsys):
    assert main(["studio", "--folder", str(tmp_path / "run"), *words.split()]) == 1
    assert text in capsys.readouterr().err
