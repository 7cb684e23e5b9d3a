"""Plants mistakes in the code, one at a time, and reports which of them no test notices.

python -m tests.mutants --out=mutants.json [--only=masked,AdamW] [--jobs=1] [--again] [--list]

The mistakes are in tests/planted/: a file, a piece of its text, what stands there instead, and the
test files that must notice. Blanks in a piece fit any blanks or none, so that formatting is free.
Everything happens in a copy of the tree in a temporary folder, and each mistake in a process that
was forked after JAX was imported and before it started. What has been run is in `out`, written
after every mistake: the same command goes on from there, and `--again` starts over. Not part of CI.
"""

import argparse
import compileall
import concurrent.futures
import importlib
import itertools
import json
import os
import pathlib
import py_compile
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
LISTS = ("sampling", "training", "networks", "quantizers", "data", "verdicts")
HEAVY = (
    "jax",
    "flax.linen",
    "optax",
    "orbax.checkpoint",
    "scipy.linalg",
    "ml_collections",
    "matplotlib",
    "grain",
    "pytest",
    "hypothesis",
)
OUTCOMES = {0: "unnoticed", 1: "noticed"}


def planted() -> list[dict]:
    """[{"name", "file", "old", "new", "tests"}] of all lists."""
    found = []
    for list_name in LISTS:
        lists = importlib.import_module(f"tests.planted.{list_name}").PLANTED
        for file, (tests, mistakes) in lists.items():
            stem = "/".join(file.removesuffix(".py").split("/")[-2:])
            for what, (old, new) in mistakes.items():
                name = f"{stem}: {what}"
                found.append(dict(name=name, file=file, old=old, new=new, tests=tests))
    names = [mistake["name"] for mistake in found]
    assert len(set(names)) == len(names)
    return found


def pattern(old: str) -> re.Pattern:
    """Fits `old` however it is broken into lines, with or without a comma before a bracket."""
    tokens = re.findall(r"\w+|[^\w\s]", old)
    if not tokens:
        return re.compile("")
    parts = [re.escape(tokens[0])]
    for before, token in itertools.pairwise(tokens):
        words = before[-1].isalnum() and token[0].isalnum()
        comma = r",?\s*" if token in ")]}" else ""
        parts.append((r"\s+" if words else r"\s*") + comma + re.escape(token))
    return re.compile("".join(parts))


def mutated(text: str, old: str, new: str) -> str | None:
    """The text with the first place that fits replaced; None where none does."""
    changed, count = pattern(old).subn(lambda _: new, text, count=1)
    return changed if count else None


def copy_tree(folder: pathlib.Path) -> pathlib.Path:
    """The tracked and untracked files of the checkout, without what git ignores."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return folder


def run(tree: pathlib.Path, mistake: dict, seconds: int, compiled: str) -> dict:
    """What happened: {"outcome", "seconds", "by"}; the tree is as it was before."""
    path, begin = tree / mistake["file"], time.time()
    if not path.exists():
        return dict(outcome="not applicable", seconds=0.0, by="there is no such file")
    text = path.read_text()
    changed = mutated(text, mistake["old"], mistake["new"])
    if changed is None:
        return dict(outcome="not applicable", seconds=0.0, by="no such text")
    try:
        compile(changed, str(path), "exec")
    except SyntaxError as error:
        return dict(outcome="not applicable", seconds=0.0, by=f"syntax: {error}")
    log = tree / "mutant.log"
    path.write_text(changed)
    try:
        pid = os.fork()
        if pid == 0:
            child(tree, mistake["tests"], log, seconds, compiled)
        _, status = os.waitpid(pid, 0)
    finally:
        path.write_text(text)
    output = log.read_text(errors="replace")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    if os.WIFSIGNALED(status):
        outcome = "noticed" if os.WTERMSIG(status) == signal.SIGXCPU else "error"
        failed = failed or ["too long" if outcome == "noticed" else f"signal {status}"]
    else:
        outcome = OUTCOMES.get(os.WEXITSTATUS(status), "error")
    return dict(
        outcome=outcome,
        seconds=round(time.time() - begin, 1),
        by=failed[0] if failed else "" if outcome != "error" else output[-400:],
    )


def child(tree, tests, log, seconds, compiled):
    """Runs the tests in the tree until the first that fails; never returns."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # whatever else is at work
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    shutil.rmtree(tree / "session", ignore_errors=True)  # made by another mistake
    os.environ |= {
        "FSQ_JAX_TESTS": str(tree / "session"),
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    compile_quickly(compiled)
    for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "fsq_jax", "configs")]:
        del sys.modules[name]
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", str(ROOT)))]
    import pytest

    base = str(tree / "pytest")
    options = ["-x", "-q", "-rfE", "-p", "no:cacheprovider", f"--basetemp={base}"]
    code = pytest.main([*options, *(t for t in tests if (tree / t.split("::")[0]).exists())])
    os._exit(int(code))


def compile_quickly(folder: str) -> None:
    """What no mistake has changed is compiled once for all of them, and without optimisation."""
    import jax

    for name, value in {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(name, value)


def worker(mistakes: list[dict], seconds: int, out: str, compiled: str) -> None:
    """Runs mistakes one after the other in a tree of its own."""
    sys.dont_write_bytecode = True  # or a mistake would live on where size and second are the same
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for name in HEAVY:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(pathlib.Path(folder))
        checked = py_compile.PycInvalidationMode.CHECKED_HASH  # not by the time: see above
        compileall.compile_dir(tree, quiet=2, invalidation_mode=checked)
        passing = {}
        for mistake in mistakes:
            if mistake["tests"] not in passing:  # tests that fail anyway notice nothing
                nothing = mistake | {"old": "", "new": ""}
                passing[mistake["tests"]] = run(tree, nothing, 3 * seconds, compiled)
            if passing[mistake["tests"]]["outcome"] == "unnoticed":
                result = run(tree, mistake, seconds, compiled)
            else:
                result = passing[mistake["tests"]] | {"outcome": "fails without it"}
            with open(out, "a") as file:
                line = {"name": mistake["name"], "file": mistake["file"]} | result
                file.write(json.dumps(line) + "\n")
            print(f"{result['outcome']:14} {result['seconds']:6} s  {mistake['name']}", flush=True)


def summary(results: dict[str, dict], total: int) -> dict:
    counts = {}
    for result in results.values():
        counts[result["outcome"]] = counts.get(result["outcome"], 0) + 1
    ran = counts.get("noticed", 0) + counts.get("unnoticed", 0)
    return {
        "planted": total,
        "ran": ran,
        "counts": counts,
        "noticed_share": round(counts.get("noticed", 0) / ran, 4) if ran else None,
        "results": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--seconds", type=int, default=400, help="limit for one mistake, of the processor's time"
    )
    parser.add_argument("--out", default="mutants.json")
    parser.add_argument("--again", action="store_true", help="run what was run before, too")
    parser.add_argument("--compiled", default="", help="folder that keeps what was compiled")
    parser.add_argument("--list", action="store_true", help="show what fits nothing, run nothing")
    options = parser.parse_args()
    every = planted()
    wanted = [m for m in every if any(part in m["name"] for part in options.only.split(","))]
    if options.list:
        for m in wanted:
            path = ROOT / m["file"]
            fits = path.exists() and mutated(path.read_text(), m["old"], m["new"]) is not None
            print("fits" if fits else "FITS NOTHING", m["name"])
        return
    lines = pathlib.Path(options.out).with_suffix(".jsonl")
    results = {}
    if lines.exists():
        results = {r["name"]: r for r in map(json.loads, lines.read_text().splitlines())}
    if not options.again:
        done = {n for n, r in results.items() if r["outcome"] in ("noticed", "unnoticed")}
        wanted = [m for m in wanted if m["name"] not in done]
    with tempfile.TemporaryDirectory() as folder:
        compiled = options.compiled or folder
        with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
            parts = [wanted[i :: options.jobs] for i in range(options.jobs)]
            runs = [pool.submit(worker, p, options.seconds, str(lines), compiled) for p in parts]
            for one in runs:
                one.result()
    if lines.exists():
        results = {r["name"]: r for r in map(json.loads, lines.read_text().splitlines())}
    report = summary(results, len(every))
    pathlib.Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    print({key: value for key, value in report.items() if key != "results"})


if __name__ == "__main__":
    main()
