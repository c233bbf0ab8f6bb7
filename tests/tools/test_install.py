"""uv is told what pip was told; what it cannot be told, and what fails, is pip's."""

import subprocess
import sys

import install
import pytest

LISTED = """\
:env:.find-links='/opt/wheels /opt/more'
:env:.disable-pip-version-check='1'
download.index-url='https://ignored.example'
global.cert='/etc/ca.pem'
global.index-url='https://mine.example/simple'
global.find-links='/usr/wheels'
global.timeout='60'
install.no-index='false'
install.pre='1'
"""


def test_what_pip_goes_by_is_told_to_uv():
    options, variables = install.for_uv(install.pip_settings(LISTED))
    pairs = {(options[i], options[i + 1]) for i in range(0, len(options), 2)}
    assert pairs == {
        ("--index-strategy", "unsafe-best-match"),
        ("--find-links", "/opt/wheels"),
        ("--find-links", "/opt/more"),
        ("--default-index", "https://mine.example/simple"),
        ("--prerelease", "allow"),
    }
    assert variables == {"SSL_CERT_FILE": "/etc/ca.pem", "UV_HTTP_TIMEOUT": "60"}


def test_pips_own_words_are_understood(tmp_path, monkeypatch):
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nextra-index-url = https://a.example/simple\n    https://b.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_PROXY", "http://proxy.example")
    words = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    settings = install.pip_settings(listed)
    assert settings["extra-index-url"].split()[-2:] == ["https://a.example/simple", "https://b.example/simple"]
    assert install.for_uv({"proxy": settings["proxy"]})[1]["HTTPS_PROXY"] == "http://proxy.example"


@pytest.mark.parametrize(
    ("fails", "expected", "told"),
    [
        ((), ["uv"], ""),
        (("uv",), ["uv", "pip"], "uv could not: pip installs"),
        (("getting uv",), ["pip"], "uv cannot be had here: pip installs"),
        (("knowing",), ["pip"], "pip's setting target is not known"),
    ],
)
def test_pip_installs_where_uv_does_not(monkeypatch, capsys, fails, expected, told):
    installed = []

    def run(words, **_):
        listed = "global.target='/elsewhere'" if "knowing" in fails else ""
        if words[2:] == ["pip", "config", "list"]:
            return subprocess.CompletedProcess(words, 0, stdout=listed)
        if words[-1] == "uv":
            return subprocess.CompletedProcess(words, int("getting uv" in fails))
        assert words[-2:] == ["--editable", ".[all]"]
        installed.append(words[2])
        return subprocess.CompletedProcess(words, int(words[2] in fails))

    monkeypatch.setattr(subprocess, "run", run)
    assert install.main(["--editable", ".[all]"]) == 0
    assert installed == expected
    assert capsys.readouterr().err.startswith(told)


def test_pip_cannot_take_the_lowest(monkeypatch, capsys):
    monkeypatch.setattr(install, "by_uv", lambda words: "uv cannot be had here")
    assert install.main(["--resolution", "lowest-direct", "--editable", "."]) == 1
    assert "pip knows no --resolution" in capsys.readouterr().err
