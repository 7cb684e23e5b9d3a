"""Eight simulated devices on the CPU, and short compilations, set before JAX starts.

What tests run is small: to compile it takes longer than to run it. So nothing is optimised, and
what one process of a session has compiled or trained, all its workers and programs find in a
folder, $FSQ_JAX_TESTS.
"""

import collections
import functools
import gc
import importlib.metadata
import os
import pathlib
import sys
import tempfile
import types

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # more of them spin, and wait for each other
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
_flags = [
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_parallel_codegen_split_count=1",  # many parts take longer than one, on few cores
]
if importlib.metadata.version("jaxlib") < "0.11":  # XLA ends a process for a flag it has no more
    _flags.append("--xla_cpu_use_fusion_emitters=false")  # what they emit takes longer to compile
for _flag in _flags:
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
if "FSQ_JAX_TESTS" not in os.environ:  # as it is in a worker
    _folder = tempfile.TemporaryDirectory(prefix="fsq_jax_tests_")
    os.environ["FSQ_JAX_TESTS"] = _folder.name
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["FSQ_JAX_TESTS"] + "/compiled")

ROOT = pathlib.Path(__file__).parent.parent
LONG = {  # files of few tests that take long
    "describe",
    "distributed",
    "launcher",
    "liveness",
    "microbatches",
    "notebook",
    "paper_scale",
    "programs",
    "resume",
    "scaling",
    "sharding",
    "uvim_base",
    "whole_path",
}


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist there is no such hook
def pytest_xdist_make_scheduler(config, log):
    """A file stays with one worker, which compiles and makes what its tests share once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # but `pytest_collection_modifyitems` orders them
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items):
    """What takes long comes first, and what is short fills the time of the worker that is ahead."""
    of_file = collections.Counter(item.path for item in items)

    def rank(item):
        long = item.path.stem.removesuffix("_test") in LONG
        return not long, -of_file[item.path], item.path

    items.sort(key=rank)


def pytest_collection_finish():
    from tests import programs

    gc.collect()
    programs.collect_seldom()


@pytest.fixture(scope="module", autouse=True)
def _forget():
    """A worker keeps what the tests of a file have compiled no longer than that, for its memory."""
    yield
    jax = sys.modules.get("jax")
    if jax is not None:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with reference checkpoints and data that stands beside some checkouts."""
    folder = pathlib.Path(os.environ.get("FSQ_JAX_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set FSQ_JAX_SHARED to the folder with oracles/ and data/")
    return folder


@pytest.fixture
def without_page(monkeypatch):
    """Runs write no page of theirs: to draw one takes longer than the few steps of a test."""
    from fsq_jax.reports import run

    monkeypatch.setattr(run, "write", lambda workdir: None)


@pytest.fixture(scope="session")
def trained():
    """Workdirs `tokenizer` (16 pixels, 4 x 4 tokens of 15) and `transformer` of two tiny runs.

    20 held-out images in batches of 8: the last one is ragged. The transformer has seen each class
    often enough to tell it from the others. One worker trains them, on one device, for all; tests
    write elsewhere.
    """
    from tests import tiny

    folder = pathlib.Path(os.environ["FSQ_JAX_TESTS"], "trained")
    with tiny.only_one(folder), pytest.MonkeyPatch.context() as patch:
        if not (folder / "whole").exists():
            _train(folder, patch)
            (folder / "whole").touch()
    return types.SimpleNamespace(**{n: str(folder / n) for n in ("tokenizer", "transformer")})


def _train(folder: pathlib.Path, patch: pytest.MonkeyPatch) -> None:
    from fsq_jax import train
    from fsq_jax.runtime import sharding
    from fsq_jax.runtime.workdir import load_config, save_config
    from tests import tiny

    patch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, 1))
    data = {
        "data.size": 16,
        "data.train_split": "train[:32]",
        "data.eval_split": "validation[:20]",
        "ema_decay": 0.0,
        "log_every": 10,
        "optim.warmup_steps": 0,
    }
    tokenizer = tiny.tokenizer(
        data
        | {
            "steps": 3,
            "loss.adversarial": 0.0,
            "quantizer.levels": (5, 3),
            "model.channel_multipliers": (1, 1, 1),
            "optim.learning_rate": 1e-3,
        }
    )
    transformer = tiny.transformer(
        folder / "tokenizer",
        data
        | {
            "steps": 40,
            "checkpoint_every": 20,
            "num_classes": 0,
            "optim.learning_rate": 1e-2,
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
        },
    )
    distance = dict(every=5, features="random", reference_split="train", reference_limit=0)
    evals = {
        "tokenizer": dict(codebook=dict(every=5), reconstruction=distance),
        "transformer": dict(compression=dict(every=5), generation=distance | dict(num_samples=36)),
    }
    for name, config in (("tokenizer", tokenizer), ("transformer", transformer)):
        workdir = str(folder / name)
        config.evals = {}  # left to the tests that want them
        with pytest.MonkeyPatch.context() as pages:
            if name == "tokenizer":  # whose page no test looks at
                pages.setattr(train.run_page, "write", lambda workdir: None)
            train.train(config, workdir)
        config = load_config(workdir)
        config.evals = evals[name]
        save_config(workdir, config)
