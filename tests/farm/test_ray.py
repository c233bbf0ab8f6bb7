"""A cluster of nodes on one machine, whose nodes, workers and driver are killed: no job is lost, none done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest

from diffstyler.errors import DiffstylerError
from diffstyler.farm import Farm, Job
from diffstyler.farm.ray import FarmError, RayFarm
from diffstyler.farm.status import Status

ray = pytest.importorskip("ray", reason="Ray is not installed: diffstyler[ray]")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own files and processes, which it leaves to Python to end
MEMORY = 80 << 20
MOST = 4  # jobs that a worker holds
PATIENCE = 150  # seconds that a farm is waited for which hangs
#: a node that does not answer is given up sooner than Ray does by itself
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


@dataclass
class Mark:
    """Work without a model, put under its name at once, as results are; a file beside it tells of each try."""

    folder: str
    seconds: float = 0.05

    def __call__(self, farm: Farm, together: int | None) -> None:
        while claimed := farm.claim(most=MOST):
            for key in claimed:
                if not Path(self.folder, key).exists():
                    mine = Path(self.folder, "tries", f"{key}.{time.time_ns()}.{os.getpid()}")
                    mine.write_text("done\n")
                    time.sleep(self.seconds)
                    mine.with_suffix(".made").write_text("done\n")
                    mine.with_suffix(".made").replace(Path(self.folder, key))
                farm.finish(key)
        farm.close()


def results(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.is_file())


@dataclass
class Hungry:
    """Dies where it has more than one job at once, and always of the job ``poison``."""

    folder: str

    def __call__(self, farm: Farm, together: int | None) -> None:
        most = together or 4
        Path(self.folder, f"{time.time_ns()}.log").write_text(str(most))
        while claimed := farm.claim(most=most):
            if len(claimed) > 1 or "poison" in claimed:
                os.kill(os.getpid(), signal.SIGKILL)
            farm.finish(claimed[0])
        farm.close()


@dataclass
class Wrong:
    def __call__(self, farm: Farm, together: int | None) -> None:
        raise DiffstylerError("a setting that nobody can honor")


@pytest.fixture(scope="module")
def cluster():
    """A head that has no room for workers, and two nodes that have; all its processes are gone afterwards."""
    head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False, "_system_config": QUICK}
    try:
        made = Cluster(initialize_head=True, head_node_args=head)
    except Exception as error:  # it needs shared memory and ports, which not every machine gives
        pytest.skip(f"Ray does not start here: {error}")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def node(cluster):
    """Adds one with room for a worker."""
    added = []

    def add() -> object:
        added.append(cluster.add_node(num_cpus=1, object_store_memory=MEMORY))
        return added[-1]

    yield add
    for one in added:
        if one in cluster.list_all_nodes():
            cluster.remove_node(one)


def names(count: int) -> list[Job]:
    return [Job(f"{number:03}") for number in range(count)]


DRIVER = """
import sys
import ray.cloudpickle
import test_ray
from diffstyler.farm.ray import RayFarm
ray.cloudpickle.register_pickle_by_value(test_ray)  # workers have no tests
RayFarm(sys.argv[1]).run(test_ray.Mark(sys.argv[2]), test_ray.names(60), offered=True)
"""


def test_driver_and_node_are_killed_and_a_node_comes(cluster, node, tmp_path):
    first, _ = node(), node()
    folder = tmp_path / "done"
    (folder / "tries").mkdir(parents=True)
    words = [sys.executable, "-c", DRIVER, cluster.address, str(folder)]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    driver = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": paths})
    began = time.monotonic()
    while len(results(folder)) < 8:
        assert driver.poll() is None
        assert time.monotonic() < began + PATIENCE
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    before = len(results(folder))
    assert before < 60
    events = []

    def watch(counts, workers):
        assert time.monotonic() < began + PATIENCE, counts
        if counts.finished >= before + 4 and not events:
            events.append("lost")
            cluster.remove_node(first, allow_graceful=False)
        elif counts.finished >= before + 8 and events == ["lost"]:
            events.append("added")
            node()

    told = RayFarm(cluster.address).run(Mark(str(folder)), names(60), offered=True, watch=watch)
    assert events == ["lost", "added"]
    assert [(one.id, one.reason) for one in told] == [(job.key, None) for job in names(60)]
    assert results(folder) == [job.key for job in names(60)]
    assert {(folder / name).read_text() for name in results(folder)} == {"done\n"}
    # tried again: at most what the two workers of the driver that was killed, and the one of the node, held
    tries = [file.name.split(".")[0] for file in (folder / "tries").iterdir() if file.suffix != ".made"]
    assert len(tries) - len(set(tries)) <= 3 * MOST


def test_a_worker_that_dies_is_started_again_with_half_at_once_and_poison_is_given_up(cluster, node, tmp_path, caplog):
    node()
    told = RayFarm(cluster.address, workers=1).run(
        Hungry(str(tmp_path)), [*names(5), Job("poison"), *[Job(f"after {n}") for n in range(5)]], offered=True
    )
    together = [int(file.read_text()) for file in sorted(tmp_path.iterdir())]
    assert together[:3] == [4, 2, 1]
    assert set(together[3:]) <= {1}
    failed = [one for one in told if one.reason is not None]
    assert [one.id for one in failed] == ["poison"]
    assert "workers died while they were at it" in failed[0].reason
    assert len(told) == 11
    assert "another one starts, with 2 at once" in caplog.text


def test_what_is_wrong_for_all_is_raised_as_it_is(cluster, node):
    node()
    with pytest.raises(DiffstylerError, match="a setting that nobody can honor"):
        RayFarm(cluster.address).run(Wrong(), names(3), offered=True)


def test_no_cluster_is_told(monkeypatch):
    with pytest.raises(DiffstylerError, match=r"farm\.address 127\.0\.0\.1:1: expected a Ray cluster that runs"):
        RayFarm("127.0.0.1:1").run(Mark(""), names(1), offered=True)
    with pytest.raises(DiffstylerError, match=r"farm\.workers: expected a number above 0, got 0"):
        RayFarm(workers=0)
    assert issubclass(FarmError, RuntimeError)


def test_the_state_of_the_farm_is_a_line_a_file_and_text_for_prometheus(tmp_path):
    from diffstyler.farm.ledger import Ledger

    ledger, lines = Ledger(), []
    ledger.offer(names(4))
    ledger.claim("one", most=2)
    ledger.claim("one")
    ledger.finish("one", "000")
    ledger.fail("one", "001", "why")
    with Status(tmp_path, "pictures", port=0, show=lines.append) as status:
        status(ledger.counts(), 3)
        port = status._server.server_port
        text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    assert "diffstyler_farm_finished 1.0" in text
    assert "diffstyler_farm_workers 3.0" in text
    told = json.loads((tmp_path / "farm.json").read_text())
    assert {name: told[name] for name in ("jobs", "finished", "failed", "waiting")} == {
        "jobs": 4, "finished": 1, "failed": 1, "waiting": 1,
    }  # fmt: skip
    assert told["failures"] == [{"key": "001", "reason": "why"}]
    assert lines[0].startswith("pictures 2/4, 1 failed, 1 running on 3 workers")
