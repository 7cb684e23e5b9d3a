"""No option of a config is left unread: it is looked at where a run is made, fed, trained, judged.

Reads are noted leaf by leaf while a stage is made and traced, batches are drawn, evaluators are
called and a run is begun. What is read whole, as arguments of a function or fields of a module, is
held against the source: no function of the package ignores a parameter, and no module a field.
"""

import ast
import contextlib
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import ml_collections
import optax
import pytest
from flax import traverse_util

import fsq_jax
from fsq_jax import evaluators, stages, train
from fsq_jax.runs import frozen, inputs, startup
from fsq_jax.stages.stage import Stage, StageFacts, first_state, next_state
from tests import tiny

PACKAGE = pathlib.Path(fsq_jax.__file__).parent


class Reads:
    """Notes which leaves of a config are read; a copy's, and those of what `to_dict` gave, too."""

    def __init__(self, monkeypatch):
        self.seen, self._paths, self._kept, self._quiet = set(), {}, [], 0
        kind = ml_collections.ConfigDict
        get, copy, plain = kind.__getitem__, kind.copy_and_resolve_references, kind.to_dict

        def getitem(node, key):
            value = get(node, key)
            if not self._quiet and id(node) in self._paths and not isinstance(value, kind):
                if "." not in str(key):
                    self.seen.add(f"{self._paths[id(node)]}{key}")
            return value

        def copied(node, *args):
            with self.unnoticed():
                result = copy(node, *args)
            if id(node) in self._paths:
                self.follow(result, self._paths[id(node)])
            return result

        def to_dict(node, *args, **kwargs):
            with self.unnoticed():
                result = plain(node, *args, **kwargs)
            return self.noting(result, self._paths[id(node)]) if id(node) in self._paths else result

        made = kind.__init__

        def init(node, initial=None, *args, **kwargs):
            with self.unnoticed():
                made(node, initial, *args, **kwargs)
            for key, value in dict(initial or {}).items():
                if isinstance(value, Told):
                    self.follow(get(node, key), value.path)

        for name, function in (
            ("__getitem__", getitem),
            ("copy_and_resolve_references", copied),
            ("to_dict", to_dict),
            ("__init__", init),
        ):
            monkeypatch.setattr(kind, name, function)

    @contextlib.contextmanager
    def unnoticed(self):
        self._quiet += 1
        yield
        self._quiet -= 1

    def noting(self, values, path):
        return Told(values, path, self.seen)

    def follow(self, node, path=""):
        """Notes what is read of this config from now on."""
        self._paths[id(node)] = path
        self._kept.append(node)  # lest another gets its id
        with self.unnoticed():
            for key in node:
                if isinstance(node[key], ml_collections.ConfigDict):
                    self.follow(node[key], f"{path}{key}.")
        return node


class Told(dict):
    """What `to_dict` gave of a node at `path`; what is looked up in it is read, too."""

    def __init__(self, values, path, seen):
        super().__init__(
            {
                key: Told(value, f"{path}{key}.", seen) if isinstance(value, dict) else value
                for key, value in values.items()
            }
        )
        self.path, self._seen = path, seen

    def __getitem__(self, key):
        value = super().__getitem__(key)
        if not isinstance(value, Told):
            self._seen.add(f"{self.path}{key}")
        return value

    def get(self, key, default=None):
        return self[key] if key in self else default


# What is read in a setting of its own, and where that is tested.
ELSEWHERE = {"wandb.name": "of a run with a wandb.project: tests/runtime/wandb_writer_test.py"}

CONFIGS = {
    "maskgit_tokenizer": lambda: tiny.tokenizer({"loss.perceptual": 0.1}),
    "maskgit_transformer": lambda: tiny.transformer(""),
    "uvim_base": tiny.label_coder,
    "uvim_lm": lambda: tiny.code_model(""),
}


@pytest.fixture
def reads(monkeypatch):
    return Reads(monkeypatch)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_is_read(name, reads, monkeypatch, tmp_path):
    config = CONFIGS[name]()
    leaves = set(traverse_util.flatten_dict(config.to_dict(), sep="."))
    reads.follow(config)
    predict = make_and_trace(config, reads)
    look_for_what_is_frozen(config, monkeypatch)
    draw_batches(config)
    begin_and_train(config, predict, reads, monkeypatch, str(tmp_path))
    assert not sorted(leaves - reads.seen - ELSEWHERE.keys())


def make_and_trace(config, reads):
    """Makes the stage, traces its update and its predictions, and returns the names of these."""
    shapes = stages.frozen_shapes(config)
    if "stage_1" in shapes:
        assert {f"stage_1.model.{key}" for key in config.stage_1.model} <= reads.seen
    stage = stages.make(config, **shapes)
    with reads.unnoticed():
        size = config.data.size
    batch = {
        "image": jnp.zeros((2, size, size, 3)),
        "label": jnp.zeros(2, int),
        "depth": jnp.zeros((2, size, size)),
    }
    state = jax.eval_shape(stage.init, jax.random.key(0), batch).replace(frozen=stage.frozen)
    jax.eval_shape(stage.update, state, batch, jax.random.key(0))
    side = size // stage.facts.downsampling
    averages = state.replace(params=None, opt_state=None, train_only={})  # all that is saved for it
    for name, predict in stage.predict.items():
        tokens = {"tokens": jnp.zeros((2, side**2), int)} if name == "decode" else {}
        jax.eval_shape(predict, averages, batch | tokens, jax.random.key(0))
    return list(stage.predict)


def look_for_what_is_frozen(config, monkeypatch):
    """Asks for the networks and the token cache that the config names."""

    def refuse(*args, **kwargs):
        raise LookupError

    monkeypatch.setattr(frozen, "load_perceptual", lambda name, path: None)
    monkeypatch.setattr(frozen, "load_stage_1", refuse)
    changed = config.copy_and_resolve_references()
    if "stage_1" in config:
        changed.stage_1.workdir = "runs/x"
        with pytest.raises(LookupError):
            frozen.load(changed)
    else:
        frozen.load(config)


def draw_batches(config):
    """Opens the data for training and for evaluation."""
    inputs.train_batches(config).close()
    inputs.eval_batches(config, inputs.eval_dataset(config, "eval"))


def evaluate(evals, predictor, step=None):
    """Stands in for the evaluators: holds what each is given against what it takes."""
    assert len(predictor.batches("eval", 0)) > 0
    for name, arguments in evals.items():
        arguments = dict(arguments)
        assert arguments.pop("every") > 0
        inspect.signature(evaluators.EVALUATORS[name]).bind(predictor, **arguments)
    return {}


def begin_and_train(config, predict, reads, monkeypatch, workdir):
    """Trains a stage of eight numbers for two steps, with all that a run does around it."""
    optimizer = optax.sgd(0.1)

    def update(state, batch, key):
        grads = jax.tree.map(jnp.ones_like, state.params)
        return next_state(state, grads, optimizer, 0.0), {"loss": jnp.zeros(())}

    stage = Stage(
        init=lambda key, batch: first_state({"a": jnp.zeros(8)}, optimizer, {}),
        update=update,
        predict=dict.fromkeys(predict, lambda state, batch, key: {"image": batch["image"]}),
        facts=StageFacts(codebook_size=2, levels=(), downsampling=1),
    )
    checked = startup.resolve_config

    def resolve_config(config):
        with reads.unnoticed():  # a check is no use
            return checked(config)

    monkeypatch.setattr(startup.frozen, "make_stage", lambda config: stage)
    monkeypatch.setattr(startup, "resolve_config", resolve_config)
    monkeypatch.setattr(train.evaluators, "evaluate", evaluate)
    changed = config.copy_and_resolve_references()
    changed.steps, changed.log_every = 2, 1
    train.train(changed, workdir)


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]


# What a function is given and does not look at, and why that is right.
ALIKE = {
    "rng",
    "train",
    "key",  # functions of one signature, of which some draw, and some do not
    "epsilon",  # of a backward pass that starts from what the forward pass kept
    *"bhirs",  # a kernel's grid: the place of a block follows from some of them
}


@pytest.mark.parametrize(
    "folder",
    [
        "evaluators",
        "features",
        "metrics",
        "models",
        "quantizers",
        "sampling",
        "scoring",
        "stages",
        "tasks",
    ],
)
def test_no_function_ignores_a_parameter(folder):
    for path in sorted((PACKAGE / folder).glob("*.py")):
        assert not ignored_parameters(path), path.name


def ignored_parameters(path) -> list[str]:
    """Those of the file's functions that their bodies never name."""
    ignored = []
    for function in functions(ast.parse(path.read_text())):
        args = function.args
        names = {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
        body = function.body if isinstance(function.body, list) else [function.body]
        used = {n.id for part in body for n in ast.walk(part) if isinstance(n, ast.Name)}
        ignored += [name for name in names - used - ALIKE if name not in ("self", "cls", "_")]
    return ignored


def attributes(tree, *names) -> set[str]:
    """What is read of the variables of these names."""
    return {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute)
        and isinstance(n.value, ast.Name)
        and n.value.id in names
        and isinstance(n.ctx, ast.Load)
    }


@pytest.mark.parametrize("folder", ["models", "quantizers", "tasks"])
def test_no_module_ignores_a_field(folder):
    ignored = []
    for path in sorted((PACKAGE / folder).glob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef) or path.stem == "fsq" and node.name != "FSQ":
                continue
            parents = {ast.unparse(base) for base in node.bases}
            family = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in parents]
            read = attributes(tree, "module", "settings")
            read |= set().union(*(attributes(n, "self") for n in (node, *family)))
            fields = [
                n.target.id
                for n in node.body
                if isinstance(n, ast.AnnAssign)
                and not re.match("ClassVar|dataclasses.KW_ONLY", ast.unparse(n.annotation))
            ]
            ignored += [f"{path.stem}.{node.name}.{name}" for name in fields if name not in read]
    assert not [name for name in ignored if name.split(".")[-1] not in SHARED]


# Fields that a class has for those that inherit from it, or that a function of the file reads.
SHARED = {"width", "dropout", "dtype", "num_groups", "shortcut", "remat"}


def test_reading_is_noticed(reads):
    config = reads.follow(ml_collections.ConfigDict(dict(a=dict(b=1, c=2), d=3)))
    assert config.a.b == 1 and reads.seen == {"a.b"}
    again = ml_collections.ConfigDict({"x": config.to_dict()["a"]})
    assert reads.seen == {"a.b"}
    assert dict(**again.x) == dict(b=1, c=2) and reads.seen == {"a.b", "a.c"}
    assert config.copy_and_resolve_references().d == 3 and "d" in reads.seen


def test_an_option_that_no_code_knows_is_refused():
    config = tiny.tokenizer()
    with config.unlocked():
        config.optim.unread = 1.0
    with pytest.raises(TypeError, match="unread"):
        stages.make(config, **stages.frozen_shapes(config))
