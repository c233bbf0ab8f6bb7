"""Who does what: the work of a run, shared by its processes."""

from diffstyler.farm.base import Farm, Job, Told
from diffstyler.farm.locks import LockFarm
from diffstyler.farm.ranks import RankFarm
