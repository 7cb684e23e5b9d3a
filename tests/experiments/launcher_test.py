"""The launcher fills places, survives failures and cuts, and carries its state on."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from experiments import carry, launcher, maskgit_runs
from experiments.options import Options
from fsq_jax.launcher import gpus, plan, pool
from fsq_jax.launcher.plan import Run
from tests import programs, tiny


def run(path, name, code="pass", needs=(), **more):
    """A run whose command leaves "done" after some Python of its own, in its folder."""
    folder = pathlib.Path(path, name)
    program = f"import os, pathlib, time; os.chdir({str(folder)!r})\n{code}\n"
    program += "pathlib.Path('done').write_text('x')"
    return Run(name, (("done", ("-c", program)),), needs=needs, weights="done", **more)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Works off runs on two GPUs that nobody needs; returns (pool, names in the order finished)."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(plan, "recorded", lambda workdir, r: plan.has_weights(workdir, r))

    def start(runs, per_gpu=1, seconds=0.0):
        runs = [
            Run(
                r.name,
                ((r.weights, r.commands[0][1]),),
                needs=r.needs,
                weights=r.weights,
                places=r.places,
            )
            for r in runs
        ]
        for r in runs:
            (tmp_path / r.name).mkdir(exist_ok=True)
        places = pool.Pool(str(tmp_path), runs, per_gpu, os.environ)
        places._wanted = {r.name for r in runs}
        finished = []
        pool.work(places, seconds, lambda r: finished.append(r.name))
        return places, finished

    return start


def launches(path):
    return [json.loads(line) for line in (path / "launches.jsonl").read_text().splitlines()]


def test_a_training_can_lock_the_folder_that_it_is_started_in(start, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(tiny.ROOT)!r})\n"
    code += "from fsq_jax.runtime import workdir_lock\nworkdir_lock.WorkdirLock('.').close()"
    _, finished = start([run(tmp_path, "a", code)])
    assert finished == ["a"], (tmp_path / "a" / "log.txt").read_text()


def test_a_run_that_another_launcher_is_at_is_named_and_stops_no_other(start, tmp_path):
    (tmp_path / "a").mkdir()
    with pool._locked(str(tmp_path / "a")):
        places, finished = start([run(tmp_path, "a"), *(run(tmp_path, name) for name in "bcd")])
    assert set(finished) == set("bcd")
    assert list(places.failed) == ["a"] and "a' already; end it" in places.failed["a"]


def test_needs_come_first_and_a_failure_stops_only_what_needs_it(start, tmp_path):
    runs = [
        run(tmp_path, "b", needs=("a",)),
        run(tmp_path, "a"),
        run(tmp_path, "e", needs=("d",)),
        run(tmp_path, "d", "print(5); exit(3)"),
        run(tmp_path, "f"),
    ]
    places, finished = start(runs, per_gpu=2)
    assert set(finished) == {"a", "b", "f"} and finished.index("a") < finished.index("b")
    assert "exit status 3" in places.failed["d"] and "needs d" in places.failed["e"]
    assert (tmp_path / "d" / "log.txt").read_text().strip() == "5"
    _, again = start([run(tmp_path, "a", "exit(1)"), run(tmp_path, "f", "exit(1)")])
    assert again == []  # what is finished is not run again


def test_where_all_fail_alike_the_rest_is_not_begun(start, tmp_path, capfd):
    alike = [run(tmp_path, f"a{i}", "raise ValueError('no such file')") for i in range(9)]
    places, finished = start(alike)
    begun = [name for name, text in places.failed.items() if "exit status" in text]
    assert not finished and pool.ALIKE <= len(begun) < 9 and len(places.failed) == 9
    assert "failed alike, and no other is begun: ValueError: no such file" in capfd.readouterr().err
    first, rest = pool.in_short(places.failed)  # nine sentences, all but two the same
    assert first.endswith(f"ValueError: no such file ({len(begun) - 1} others likewise.)")
    assert rest.endswith(f" was not begun. ({9 - len(begun) - 1} others likewise.)")
    other = [run(tmp_path, f"b{i}", f"raise ValueError({i})") for i in range(9)]
    places, _ = start(other)
    assert all("exit status" in text for text in places.failed.values())


def test_a_run_that_came_further_before_it_failed_is_begun_again(start, tmp_path):
    code = "steps = pathlib.Path('checkpoints', '7')\nif not steps.exists():\n"
    code += "    steps.mkdir(parents=True); print('SomeError: no luck'); exit(4)"
    places, finished = start([run(tmp_path, "a", code), run(tmp_path, "b", needs=("a",))])
    assert finished == ["a", "b"] and not places.failed
    first, second = launches(tmp_path / "a")
    assert (first["status"], first["error"]) == (4, "SomeError: no luck")
    assert second["status"] == 0 and "error" not in second


@pytest.mark.parametrize("free_at", [2, pool.STARTS + 1])
def test_a_run_that_finds_no_gpu_is_begun_again_but_not_for_ever(start, tmp_path, free_at):
    code = textwrap.dedent(f"""
        starts = pathlib.Path('starts')
        starts.write_text((starts.read_text() if starts.exists() else '') + 'x')
        if len(starts.read_text()) < {free_at}:
            raise RuntimeError("Unable to initialize backend 'cuda': no supported devices found")
    """)
    places, finished = start([run(tmp_path, "a", code), run(tmp_path, "b")])
    starts = len((tmp_path / "a" / "starts").read_text())
    if free_at == 2:
        assert finished == ["b", "a"] and starts == 2 and not places.failed
    else:
        assert finished == ["b"] and starts == pool.STARTS and "no supported" in places.failed["a"]


def test_where_no_run_finds_a_gpu_the_rest_is_not_begun(start, tmp_path):
    code = "open('starts', 'a').write('x'); raise RuntimeError('Unable to initialize backend')"
    start([run(tmp_path, f"a{i}", code) for i in range(9)])
    starts = sum(len(path.read_text()) for path in tmp_path.glob("a*/starts"))
    assert pool.ALIKE <= starts < 9


def test_runs_are_dealt_out_and_a_large_one_takes_two_places(start, tmp_path):
    note = "pathlib.Path('gpu').write_text(os.environ['CUDA_VISIBLE_DEVICES'] + ' ' "
    note += "+ os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', 'all')); time.sleep(0.5)"
    start(
        [run(tmp_path, "big", note, places=2), run(tmp_path, "x", note), run(tmp_path, "y", note)],
        per_gpu=2,
    )
    seen = {name: (tmp_path / name / "gpu").read_text().split() for name in ("big", "x", "y")}
    assert seen["big"][1] == "all" and seen["x"][1] == seen["y"][1] == "0.375"
    assert seen["x"][0] == seen["y"][0] != seen["big"][0]
    assert launches(tmp_path / "big")[0]["share"] == "2 of 2"


def test_nothing_overtakes_a_run_that_waits_for_several_places(start, tmp_path):
    note = "pathlib.Path('begin').write_text(str(time.time())); time.sleep({})"
    runs = [run(tmp_path, name, note.format(0.5)) for name in "xy"]  # one on each GPU
    runs += [run(tmp_path, "big", note.format(0), places=2), run(tmp_path, "z", note.format(0))]
    start(runs, per_gpu=2)
    begun = {name: float((tmp_path / name / "begin").read_text()) for name in ("x", "big", "z")}
    assert begun["big"] > begun["x"] + 0.5 and begun["z"] > begun["x"] + 0.5


def test_a_lease_ends_in_time_and_the_next_goes_on(start, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "LEAST", 0.0)
    saves = textwrap.dedent("""
        import signal
        signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').write_text('x'), exit(0)))
        if not os.path.exists('saved'): time.sleep(60)
    """)
    begin = time.monotonic()
    places, finished = start([run(tmp_path, "a", saves)], seconds=2.0)
    assert time.monotonic() - begin < 20 and not finished and not places.failed
    assert (tmp_path / "a" / "saved").exists()
    assert start([run(tmp_path, "a", saves)])[1] == ["a"]


def test_the_runs_of_a_launcher_that_was_killed_end_with_it(tmp_path):
    (tmp_path / "a").mkdir()
    program = textwrap.dedent(f"""
        import os
        from fsq_jax.launcher import pool
        from tests.experiments import launcher_test
        run = launcher_test.run({str(tmp_path)!r}, "a",
            "pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)")
        places = pool.Pool({str(tmp_path)!r}, [run], 1, os.environ)
        places._wanted, places.waiting = {{"a"}}, [run]
        pool.work(places, 0.0, print)
    """)
    process = subprocess.Popen([sys.executable, "-c", program])
    pid = tmp_path / "a" / "pid"
    while not pid.exists() or not pid.read_text():
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(50):
        time.sleep(0.1)
        if ended(int(pid.read_text())):
            return
    pytest.fail("it is still at work")


def ended(pid: int) -> bool:
    """Whether there is no such process, or what is left of it waits to be asked how it ended."""
    try:
        os.kill(pid, 0)
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:  # it ended meanwhile, or there is no /proc
        return False


def test_processes_share_memory_and_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert gpus.visible() == ["3", "5"]
    assert gpus.environment("3", 1.0) == {"CUDA_VISIBLE_DEVICES": "3"}
    shared = gpus.environment("5", 0.25, processes=8)
    assert shared["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.188"
    assert shared["OMP_NUM_THREADS"] == "8"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.visible() == [] and gpus.environment("", 1.0) == {}


def test_pieces_carry_results_first_and_weights_as_far_as_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "PIECE", 1_000)
    runs, here = [], tmp_path / "here"
    for name, size in (("a", 5_000), ("b", 50_000)):
        folder = here / name
        (folder / "samples").mkdir(parents=True)
        (folder / "results.json").write_text('{"x": {"value": 1, "step": 1, "protocol": {}}}')
        (folder / "samples" / "x_1.png").write_text("old")
        (folder / "samples" / "x_2.png").write_text("new")
        (folder / "weights").write_bytes(os.urandom(size))
        commands = (("results.json", ()), ("weights", ()))
        runs.append(Run(name, commands, weights="weights"))
    runs.append(Run("c", (("results.json", ()),), needs=("a", "b")))
    (here / "c" / "checkpoints" / "10" / "state").mkdir(parents=True)
    (here / "c" / "checkpoints" / "10" / "state" / "x").write_text("state")
    paths = carry.pack(str(here), runs, str(tmp_path / "out"), limit=20_000)
    assert len(paths) > 1 and all(os.path.getsize(p) <= 1_000 for p in paths)
    there = tmp_path / "there"
    carry.unpack(str(tmp_path / "out"), str(there))
    found = {str(p.relative_to(there)) for p in there.rglob("*") if p.is_file()}
    assert found == {
        "a/results.json",
        "b/results.json",
        "a/samples/x_2.png",
        "b/samples/x_2.png",
        "a/weights",
        "c/checkpoints/10/state/x",
    }
    assert (there / "a/weights").read_bytes() == (here / "a/weights").read_bytes()
    assert carry.unpack(str(tmp_path / "out"), str(there)) == []  # nothing there is older


def test_data_that_stay_behind_are_made_again_whole(tmp_path):
    here, there, out = (str(tmp_path / name) for name in ("here", "there", "out"))
    (data,) = maskgit_runs.data_run(Options(workdir=here))
    reader = Run("reader", (("results.json", ()),), needs=(data.name,))
    for file, _ in data.commands:
        path = tmp_path / "here" / data.name / file
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    carry.pack(here, [data, reader], out, limit=20_000)
    carry.unpack(out, there)
    assert plan.commands_left(there, data, wanted=True) == list(data.commands)


@pytest.mark.parametrize("name", launcher.EXPERIMENTS)
@pytest.mark.parametrize("scale", ["paper", "bench", "smoke"])
def test_every_run_of_an_experiment_has_a_config_that_builds(name, scale):
    options = Options(scale=scale, workdir="runs/x", seeds=2, data_dir="D")
    runs = plan.merged(launcher.experiment(name).runs(options))
    assert len({r.name for r in runs}) == len(runs)
    trained = [r for r in runs if r.facts and r.commands[0][1][1] == "fsq_jax.train"]
    assert {r.facts["seed"] for r in trained} == {0, 1}
    for r in trained:
        config = config_of(r)
        assert config.seed == r.facts["seed"]
        section = config.quantizer if "quantizer" in config else stage_1_of(config).quantizer
        assert section.name.startswith(r.facts["quantizer"])
        if "levels" in r.facts:
            assert tuple(section.levels) == r.facts["levels"]
        if "quantizer" in config and section.get("scaling") == "layer_norm":
            assert section.momentum == config.ema_decay


def config_of(r):
    """The config that a training run's command asks for, with its overrides."""
    import importlib

    from fsq_jax.runs.config import override_config, parse_overrides

    _, arguments = r.commands[0]
    file, _, argument = arguments[2].removeprefix("--config=configs/").partition(":")
    module = importlib.import_module("configs." + file.removesuffix(".py"))
    config = module.get_config(argument)
    given = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    override_config(config, parse_overrides(given))
    assert f"--workdir=runs/x/{r.name}" in arguments
    return config


def stage_1_of(config):
    """The section of a stage II's config that describes its stage I."""
    return next(config[name] for name in ("stage_1", "tokenizer", "base") if name in config)


def test_the_program_prints_commands_with_what_follows_the_dashes():
    done = programs.run(
        "experiments.fig3_tradeoff",
        "--scale=paper",
        "--commands",
        "--only=tokenizer_fsq_5-3_s0",
        "--",
        "--config.fsdp=True",
    )
    assert done.returncode == 0, done.stderr
    comment, train, export, total = done.stdout.splitlines()
    assert "hours of one H100" in comment and "hours of one H100" in total
    assert "scale=paper,quantizer=fsq,levels=5-3,size=128" in train
    assert train.endswith("--config.fsdp=True") and "fsq_jax.export" in export
