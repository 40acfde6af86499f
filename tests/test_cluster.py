"""Cells on a Ray cluster: the same tables as on one machine, whatever dies on the way."""

import heapq
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline import stages
from pipeline.config.compose import compose
from pipeline.config.schema import Config, Device, EngineConfig, Launcher, LauncherConfig
from pipeline.engine.engine import SteeringError
from pipeline.errors import UserError
from pipeline.evaluate import actor, cluster, queue
from pipeline.evaluate.jobs import Job, Jobs, make_jobs
from pipeline.evaluate.runner import in_order
from pipeline.files import ROOT
from pipeline.plan.grid import asked_of, make_grid
from tests.hub import Hub, environment, fill, trained, write_repositories

ray = pytest.importorskip("ray")

OVERRIDES = [
    "experiment=paper",
    "engine=cpu",
    "conditions=sweep",
    "alpha=[-1,-0.5,0.5,0.75,1,1.5]",
    "limit=40",
]
OVERRIDES += ["tasks=[gsm8k,sciq]", "benchmarks.gsm8k.max_gen_toks=200", "stages=[extract,evaluate,render]"]
OVERRIDES += ["benchmarks.gsm8k.variants=[]", "benchmarks.sciq.variants=[]"]
CELLS = 2 * 2 * 7


def cell(architecture: str, weights: str, name: str = "", key: str = "") -> Any:
    family = SimpleNamespace(name=architecture, architecture=architecture)
    named = SimpleNamespace(name=name, label=name, config=SimpleNamespace(runs_code=False))
    inputs = {"weights": weights}
    return SimpleNamespace(family=family, condition=named, benchmark=named, inputs=inputs, key=key or name)


def job(architecture: str, weights: str, name: str = "", seconds: float = 1.0) -> Job:
    return Job(cell(architecture, weights, name), None, seconds)


def test_a_worker_keeps_its_weights_then_its_engine_then_takes_what_nobody_has() -> None:
    def worker(architecture: str = "", weights: str = "") -> queue.Worker:
        return queue.Worker(None, architecture=architecture, weights=weights)

    jobs = [job("a", "1"), job("a", "2"), job("b", "3"), job("b", "4")]
    others = [worker("a", "1"), worker("b", "3")]
    assert queue.choose(jobs, worker("b", "4"), others) is jobs[3]
    assert queue.choose(jobs, worker("b", "9"), others) is jobs[3]
    assert queue.choose(jobs, worker("a", "9"), others) is jobs[1]
    assert queue.choose(jobs, worker(), others) is jobs[1]
    assert queue.choose(jobs[:1], worker("b", "4"), others) is jobs[0], "no worker waits while jobs are left"


def test_the_longest_job_comes_first_and_of_weights_those_with_the_most_work_left() -> None:
    one, two = queue.Worker(None, architecture="a", weights="1"), queue.Worker(None)
    short, long = job("a", "1", seconds=2), job("a", "1", seconds=3)
    assert queue.choose([short, long], one, []) is long
    other = [job("a", "2", seconds=4), job("a", "2", seconds=2)]
    assert queue.choose([short, long, *other], two, []) is other[0], "5 s of work against 6"
    assert queue.choose([long, job("a", "2", seconds=9)], one, []) is long, (
        "its own weights go before longer jobs"
    )
    assert queue.choose([*other, short], two, [one, one]) is other[0]
    assert queue.choose([short, long, other[1]], two, [one, queue.Worker(None, weights="2")]) is long, (
        "of weights that are held it helps where most is left"
    )


@dataclass
class Schedule:
    """What `count` workers make of jobs that last as long as is expected of them."""

    seconds: float = 0.0  # until the last has ended
    engines: int = 0  # that were started


def schedule(jobs: list[Job], count: int, swap: float = 0.0, start: float = 0.0) -> Schedule:
    """Hand out jobs as the queue does; a swap of weights and the start of an engine take so many seconds more."""
    running = {n: queue.Worker(None) for n in range(count)}
    ends = [(0.0, n) for n in running]
    waiting, made = list(jobs), Schedule()
    while waiting:
        now, n = heapq.heappop(ends)
        worker = running.pop(n)
        chosen = queue.choose(waiting, worker, running.values())
        waiting.remove(chosen)
        made.engines += chosen.architecture != worker.architecture
        seconds = chosen.seconds + swap * (chosen.weights != worker.weights)
        seconds += start * (chosen.architecture != worker.architecture)
        worker.architecture, worker.weights = chosen.architecture, chosen.weights
        running[n] = worker
        heapq.heappush(ends, (now + seconds, n))
        made.seconds = max(made.seconds, now + seconds)
    return made


def engines_started(count: int, seconds: dict[str, float]) -> int:
    """How many engines `count` workers start for 20 × 13 cells of each architecture, which last so many seconds."""
    return schedule(
        [job(a, f"{a}{w}", seconds=seconds[a]) for a in seconds for w in range(20) for _ in range(13)], count
    ).engines


def planned(tmp_path: Path, workers: int, *overrides: str) -> list[Job]:
    """The jobs of a part of experiment=paper, with the plan's estimate of what each takes; no model is opened."""
    config = compose(["experiment=paper", f"results={tmp_path}", *overrides])
    grid = make_grid(config)
    cells: dict[str, Any] = {}
    for planned in grid.cells:
        row, known = planned.condition, grid.families[planned.family]
        weights = f"{planned.family} {row.start} {row.added()}"
        key = f"{weights} {row.prompt} {row.order} {planned.benchmark.name}"
        family = SimpleNamespace(name=planned.family, architecture=planned.family, config=known)
        found = SimpleNamespace(family=family, condition=row, inputs={"weights": weights}, key=key)
        found.benchmark = asked_of(known, planned.benchmark)
        cells.setdefault(key, found)
    plan: Any = SimpleNamespace(results=tmp_path, config=config)
    return make_jobs(plan, in_order(cells.values()), workers).waiting


def test_eight_workers_end_the_papers_experiment_together(tmp_path: Path) -> None:
    jobs = planned(tmp_path, 8)
    work = sum(job.seconds for job in jobs)
    assert len(jobs) > 400 and all(job.shard is None for job in jobs), (
        "cells that are short beside the whole stay whole"
    )
    assert schedule(jobs, 8).seconds <= 1.01 * work / 8
    bound = 90 + 15 + work / 8  # each starts an engine, with its first weights
    assert schedule(jobs, 8, swap=15, start=90).seconds <= 1.04 * bound


@pytest.mark.parametrize(
    "part",
    [
        ["families=[7b]", "conditions=[baseline]"],
        ["families=[1.5b]", "conditions=[baseline,vector]"],
        ["families=[7b]", "tasks=[bbh]", "conditions=[baseline,vector]"],
        ["conditions=baseline", "alpha=[-1,0,1]"],
    ],
    ids=" ".join,
)
def test_cells_that_are_long_beside_the_whole_are_cut_so_that_eight_workers_end_together(
    part: list[str], tmp_path: Path
) -> None:
    jobs = planned(tmp_path, 8, *part)
    work = sum(job.seconds for job in jobs)
    assert max(job.seconds for job in jobs) <= work / 8 / 8 * 1.001, "an eighth of a worker's share"
    assert schedule(jobs, 8).seconds <= 1.05 * work / 8
    whole = planned(tmp_path, 8, *part, "launcher=ray", "launcher.shard_documents=null")
    assert all(job.shard is None for job in whole) and sum(job.seconds for job in whole) == pytest.approx(
        work
    )
    assert schedule(whole, 8).seconds >= schedule(jobs, 8).seconds


def test_a_row_that_measures_what_the_batch_moves_is_not_cut(tmp_path: Path) -> None:
    jobs = planned(tmp_path, 8, "families=[7b]", "conditions=[baseline,baseline_again]")
    cut = {job.cell.condition.name for job in jobs if job.shard is not None}
    assert cut == {"baseline"} and any(job.cell.condition.name == "baseline_again" for job in jobs)


def test_one_worker_and_cells_without_an_estimate_have_no_shards(tmp_path: Path) -> None:
    part = ["families=[7b]", "conditions=[baseline]"]
    assert all(job.shard is None for job in planned(tmp_path, 1, *part))
    uncounted = planned(tmp_path, 8, *part, "tasks=[gsm8k,sciq]", "benchmarks.gsm8k.dataset.documents=null")
    unknown = [job for job in uncounted if job.cell.benchmark.name == "gsm8k"]
    assert all(job.shard is None and job.seconds == max(j.seconds for j in uncounted) for job in unknown)


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_share_out_the_architectures_instead_of_starting_an_engine_for_each(workers: int) -> None:
    assert engines_started(workers, {"1.5b": 60, "7b": 60}) == workers
    assert engines_started(workers, {"1.5b": 60, "7b": 180}) <= 1.5 * workers, (
        "those done first help the others"
    )


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources}


def test_there_is_a_worker_for_each_gpu_or_tensor_parallel_group_of_a_node() -> None:
    gpu = EngineConfig(device=Device.gpu, tensor_parallel_size=2)
    nodes = [node(GPU=4, CPU=8), node(GPU=3, CPU=8), node(CPU=2), {"Alive": False, "Resources": {"GPU": 8}}]
    count, options = cluster.resources(gpu, LauncherConfig(), nodes)
    assert count == 3 and options["num_gpus"] == 2
    assert cluster.resources(gpu, LauncherConfig(workers=2), nodes)[0] == 2
    with pytest.raises(UserError, match="no node with 2 GPU"):
        cluster.resources(gpu, LauncherConfig(), [node(GPU=1, CPU=8)])


def test_on_cpus_there_is_a_worker_for_each_node_or_as_many_as_asked() -> None:
    nodes = [node(CPU=8), node(CPU=16)]
    assert cluster.resources(EngineConfig(), LauncherConfig(), nodes)[0] == 2
    count, options = cluster.resources(EngineConfig(), LauncherConfig(workers=4), nodes)
    assert count == 4 and options["num_cpus"] == 4


def test_a_cluster_without_room_for_a_worker_is_refused_once_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **options: None)
    monkeypatch.setattr(ray, "nodes", lambda: [node(CPU=8)])
    with pytest.raises(UserError, match="the cluster has no node with 1 GPU"):
        cluster.connect(Config(engine=EngineConfig(device=Device.gpu)))


def test_where_ray_does_not_start_one_line_says_how_to_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **options: Any) -> None:
        assert address == "local"
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"^launcher=ray: Ray does not start .*107 bytes.*launcher=local"):
        cluster.connect(Config(launcher=LauncherConfig(kind=Launcher.ray)))


def connecting(monkeypatch: pytest.MonkeyPatch, check: Any, connect: Any) -> None:
    """`_check_and_connect` with stand-ins for the check of the input and for Ray."""
    monkeypatch.setattr(stages, "_check", lambda plan, stages: check())
    monkeypatch.setattr(cluster, "connect", lambda config: connect())
    plan: Any = SimpleNamespace(config=Config())
    stages._check_and_connect(plan, [])


def fails(message: str) -> Any:
    def fail() -> None:
        raise UserError(message)

    return fail


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:99999"])
def test_where_no_cluster_answers_one_line_says_so_before_anything_is_downloaded(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "prepare", fails("downloaded"))
    launcher = LauncherConfig(kind=Launcher.ray, address=address)
    with pytest.raises(UserError, match=f"^launcher.address={address}: no Ray cluster answers"):
        stages.run(Config(results=str(tmp_path), name="x", launcher=launcher), lambda line: None)


def test_a_mistake_in_the_input_or_the_cluster_is_told_when_both_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    with pytest.raises(UserError, match="^input$"):
        connecting(monkeypatch, fails("input"), lambda: done.append("connected"))
    with pytest.raises(UserError, match="^cluster$"):
        connecting(monkeypatch, lambda: done.append("checked"), fails("cluster"))
    assert done == ["connected", "checked"]
    connecting(monkeypatch, lambda: None, lambda: None)


@pytest.mark.parametrize("error", [None, UserError("no"), KeyboardInterrupt()])
def test_the_connection_ends_with_the_run_however_it_ends(
    error: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any) -> None:
        if error is not None:
            raise error

    ended: list[bool] = []
    monkeypatch.setattr(stages, "_run", run)
    monkeypatch.setattr(cluster, "disconnect", lambda: ended.append(True))
    config = Config(results=str(tmp_path), name="x", launcher=LauncherConfig(kind=Launcher.ray))
    with nullcontext() if error is None else pytest.raises(type(error)):
        stages.run(config, lambda line: None)
    assert ended == [True]


class Broken:
    """In the place of Ray: actors start at once, and those on the first of its GPUs then run at once into a fault."""

    exceptions = ray.exceptions

    def __init__(self, gpus: int) -> None:
        self.free = list(range(gpus))

    def nodes(self) -> list[dict[str, Any]]:
        return [node(CPU=len(self.free))]

    def put(self, value: Any) -> None: ...

    def remote(self, actor: Any) -> Any:
        """An actor's class, with which methods."""

        def start(*_: Any) -> Any:
            gpu = self.free.pop(0)
            run = SimpleNamespace(remote=lambda key, shard: (gpu, object()))
            at_once = SimpleNamespace(remote=lambda: (None, object()))
            return SimpleNamespace(gpu=gpu, start=at_once, run=run, check_again=at_once)

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def wait(self, futures: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        ordered = sorted(futures, key=lambda future: -1 if future[0] is None else future[0])
        return ordered[:1], ordered[1:]

    def get(self, future: Any) -> dict[str, Any]:
        if future[0] == 0:
            error = RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")
            raise ray.exceptions.RayTaskError(
                "run", "traceback", error, "title", 1, "here"
            ).as_instanceof_cause()
        return {"score": 0.5, "n": 1}

    def kill(self, actor: Any) -> None:
        self.free.insert(0, actor.gpu)


@pytest.mark.parametrize("cells", [2, 3, 4, 20])
def test_a_broken_gpu_costs_no_cell_while_another_works(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", Broken(3))
    plan: Any = SimpleNamespace(config=Config(launcher=LauncherConfig(workers=3)))
    lines: list[str] = []
    left = Jobs([job("a", str(n // 3), str(n)) for n in range(cells)], {}, [])
    assert queue.Queue(plan, left, (3, {}), lines.append).drain() == cells
    died = [line for line in lines if "died" in line]
    assert 1 <= len(died) <= queue.MOST_DEATHS
    assert all(
        "(RuntimeError: CUDA error: an illegal memory access was encountered); it is" in line for line in died
    )


@pytest.mark.parametrize(
    ("error", "engine", "kind", "message"),
    [
        (UserError("a prompt is too long"), True, UserError, "a prompt is too long"),
        (UserError("the engine did not start"), False, actor.WorkerFailed, "the engine did not start"),
        (SteeringError("not those of the files"), True, actor.WorkerFailed, "not those of the files"),
        (RuntimeError("CUDA error: x\ny"), True, actor.WorkerFailed, "RuntimeError: CUDA error: x"),
    ],
)
def test_a_worker_tells_mistakes_from_faults(
    error: Exception, engine: bool, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    def run(cell: Any, shard: Any) -> None:
        raise error

    worker = object.__new__(actor.Actor)
    worker.plan, worker.cells = SimpleNamespace(results=tmp_path), {"key": None}  # type: ignore[assignment, dict-item]
    worker.runner = SimpleNamespace(engine=object() if engine else None, run=run)  # type: ignore[assignment]
    with pytest.raises(UserError) as caught:
        worker.run("key", None)
    assert (type(caught.value), str(caught.value)) == (kind, message)


class Fatal:
    """In the place of `actor.Actor`: cells are named by what becomes of the worker that runs them."""

    def __init__(self, process: actor.Process, plan: list[Any]) -> None:
        self.results = Path(ray.get(plan[0]).config.results)
        if (self.results / "stillborn").exists():
            os._exit(1)

    def start(self) -> None:
        pass

    def check_again(self) -> None:
        if (self.results / "moved").exists():
            raise UserError("answers 3 of 32 documents differently")

    def run(self, key: str, shard: Any) -> dict[str, float] | None:
        first = self.results / key
        if key == "always" or (key == "once" and not first.exists()):
            first.touch()
            os._exit(1)
        if key == "fault":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")
        if key == "mistake":
            raise UserError("no such document")
        return {"score": 0.5, "n": 1}


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    yield
    ray.shutdown()


def drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> tuple[int, list[str]]:
    monkeypatch.setattr(queue, "Actor", Fatal)
    config = Config(results=str(tmp_path), launcher=LauncherConfig(workers=2))
    lines: list[str] = []
    plan: Any = SimpleNamespace(config=config)
    room = cluster.resources(config.engine, config.launcher, ray.nodes())
    jobs = Jobs([job("a", n, n) for n in names], {}, [])
    try:
        return queue.Queue(plan, jobs, room, lines.append).drain(), lines
    finally:
        (tmp_path / "lines").write_text("\n".join(lines))


@pytest.mark.slow
def test_a_cell_whose_worker_died_is_tried_again(
    started: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, lines = drain(tmp_path, monkeypatch, "one", "once", "two", "three")
    assert computed == 4
    assert sum("died" in line for line in lines) == 1 and any("tried again" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killer", "cause"),
    [("always", "ActorDiedError: "), ("fault", "RuntimeError: CUDA error: an illegal memory access")],
)
def test_a_cell_that_kills_two_workers_is_given_up_with_the_cause_and_the_others_are_done(
    killer: str, cause: str, started: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = (
        f"^given up after 2 workers died on each: a · {killer} · {killer}; the last one died of: {cause}.*$"
    )
    with pytest.raises(UserError, match=message):
        drain(tmp_path, monkeypatch, killer, "one", "two", "three")
    lines = (tmp_path / "lines").read_text()
    assert all(f"a · {name} · {name} " in lines for name in ("one", "two", "three"))


@pytest.mark.slow
def test_workers_that_never_start_end_the_run(
    started: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stillborn").touch()
    with pytest.raises(
        UserError, match="no worker stays alive, 2 cells are left; the last one died of: Actor"
    ):
        drain(tmp_path, monkeypatch, "one", "two")


@pytest.mark.slow
def test_a_mistake_that_a_worker_finds_is_the_users_one_line(
    started: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="^no such document$"):
        drain(tmp_path, monkeypatch, "one", "mistake", "two")


@pytest.mark.slow
def test_a_worker_whose_answers_moved_ends_the_run(
    started: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moved").touch()
    with pytest.raises(UserError, match="^answers 3 of 32 documents differently$"):
        drain(tmp_path, monkeypatch, "one", "two")


# --- real engines


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled cache of the hub, and the donors of a local run beside it."""
    root = tmp_path_factory.mktemp("cluster")
    config = compose([*OVERRIDES, *trained(root / "local")])
    with Hub(write_repositories(root / "hub", config)) as hub:
        fill(root / "cache", hub, config)
    return root


def start(root: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    donors = trained(root / "local")
    paths = [f"results={root / name}", f"tables={root / name / 'tables'}"]
    command = [sys.executable, "-m", "pipeline", *OVERRIDES, *donors, *paths, *arguments]
    env = environment(root / "cache", HF_HUB_OFFLINE="1")
    out = open(root / f"{name}.log", "w")  # noqa: SIM115 - the process keeps it
    return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env)


def finished(root: Path, name: str) -> list[Path]:
    return list((root / name / "cells").glob("*/record.json"))


def outcome(root: Path, name: str) -> dict[str, bytes]:
    """Tables, but those of what the run cost, and the samples of every cell."""
    folder = root / name / "tables" / "paper"
    tables = [p for p in folder.iterdir() if p.suffix in (".md", ".csv", ".tex") and p.stem != "cost"]
    samples = (root / name / "cells").glob("*/samples.jsonl")
    return {str(p.relative_to(root / name)): p.read_bytes() for p in [*tables, *samples]}


@pytest.fixture(scope="module")
def reference(root: Path) -> dict[str, bytes]:
    assert start(root, "local").wait() == 0, (root / "local.log").read_text()[-3000:]
    assert len(finished(root, "local")) == CELLS
    return outcome(root, "local")


def workers(node: Any) -> list[psutil.Process]:
    """Processes of our actors on a node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [p for p in raylet.children(recursive=True) if p.name().startswith("ray::Actor")]


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("event", ["nothing", "a worker killed", "a node removed"])
def test_tables_and_answers_are_those_of_a_local_run(
    event: str, root: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's own starves its workers on a busy machine
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "300000")

    options = {"num_cpus": 1, "object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    name = event.replace(" ", "-")
    try:
        second = nodes.add_node(**options)
        run = start(root, name, "launcher=ray", f"launcher.address={nodes.address}", "launcher.workers=2")
        while len(finished(root, name)) < 3 and run.poll() is None:
            time.sleep(0.2)
        while not workers(second) and run.poll() is None:
            time.sleep(0.2)
        done = len(finished(root, name))
        if event == "a worker killed":
            workers(second)[0].send_signal(signal.SIGKILL)
        elif event == "a node removed":
            nodes.remove_node(second, allow_graceful=False)
        assert run.wait() == 0, (root / f"{name}.log").read_text()[-3000:]
    finally:
        nodes.shutdown()
    log = (root / f"{name}.log").read_text()
    assert 3 <= done < CELLS, "the run was over before anything happened to it"
    assert log.count("a worker died on ") == (0 if event == "nothing" else 1), log[-3000:]
    assert len(finished(root, name)) == CELLS
    assert outcome(root, name) == reference
