"""Fixtures come with the libraries they need, but not to the process that only deals tests to others."""

import os

import pytest

# before anything counts the cores: threads of workers side by side wait for each other by spinning
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    deals = config.getoption("dist", "no") != "no" and not config.getoption("collectonly")
    if hasattr(config, "workerinput") or not deals:
        config.pluginmanager.import_plugin("shared_fixtures")
