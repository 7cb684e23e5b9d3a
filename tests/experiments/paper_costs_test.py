"""What the paper's runs would take follows from their commands, describe and measured speeds."""

import importlib
import json

from experiments import paper_costs
from tests import tiny

CONFIG = "uvim_lm:scale=paper,task=depth,quantizer=fsq"
FACTS = {
    CONFIG: {
        "parameters": {"language model": 1_234},
        "weight_bytes": 2**30,
        "optimizer_bytes": 2**30,
        "ema_bytes": 2**30,
        "steps": 4_647,
        "batch_size": 512,
        "flops_per_step": 8e15,
    }
}


def test_rows_are_the_papers_and_their_configs_build():
    rows = {row.name: row for row in paper_costs.rows()}
    assert sum(name.startswith("Table 2") for name in rows) == 9
    assert sum(name.startswith("Figure 4") for name in rows) == 2
    assert sum(name.startswith("Figure 3") for name in rows) == 18
    depth = rows["Table 2, depth, fsq"]
    configs = [c for run in depth.runs if (c := paper_costs.config_of(run))]
    assert configs == ["uvim_base:scale=paper,task=depth,quantizer=fsq", *[CONFIG] * 3]
    for row in rows.values():
        for run in row.runs:
            file, _, arguments = paper_costs.config_of(run).partition(":")
            if file:
                importlib.import_module(f"configs.{file}").get_config(arguments)


def test_days_are_flops_over_the_measured_rate():
    row = next(row for row in paper_costs.rows() if row.name == "Table 2, depth, fsq")
    lines = paper_costs.table([row], FACTS, {"uvim_lm": 4e14}).splitlines()
    base, lm = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    assert base[3:] == ["not counted"] * 5
    # 3 runs x 4,647 steps x 8e15 FLOP over 8 x 4e14 FLOP/s: 34,853 s; 3 checkpoints of 3 GiB each.
    assert lm[2:] == ["3", "1,234", "4,647 x 512", "3.72e+19", "0.4", "27"]
    rates = paper_costs.rates(str(tiny.ROOT / paper_costs.SPEED))
    assert set(rates) <= set(paper_costs.STEPS) and all(1e13 < r < 1e15 for r in rates.values())


def test_what_was_counted_is_of_the_configs_as_they_are():
    path = tiny.ROOT / paper_costs.FACTS
    assert "not counted" not in (tiny.ROOT / paper_costs.DOC).read_text()
    for config, facts in (json.loads(path.read_text()) if path.exists() else {}).items():
        file, _, arguments = config.partition(":")
        now = importlib.import_module(f"configs.{file}").get_config(arguments)
        assert (facts["steps"], facts["batch_size"]) == (now.steps, now.batch_size), config


def test_the_section_goes_between_the_marks(tmp_path):
    path = tmp_path / "x.md"
    path.write_text(f"before\n{paper_costs.MARKS[0]}\nold\n{paper_costs.MARKS[1]}\nafter\n")
    for text in ("one", "two"):
        paper_costs.write(str(path), text)
    first, _, rest = path.read_text().partition(paper_costs.MARKS[0])
    assert first == "before\n" and rest == f"\n\ntwo\n\n{paper_costs.MARKS[1]}\nafter\n"
    assert paper_costs.MARKS[0] in (tiny.ROOT / paper_costs.DOC).read_text()
