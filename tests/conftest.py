"""Fixtures come with the libraries they need, but not to the process that only deals tests to others."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    deals = config.getoption("dist", "no") != "no" and not config.getoption("collectonly")
    if hasattr(config, "workerinput") or not deals:
        config.pluginmanager.import_plugin("shared_fixtures")
