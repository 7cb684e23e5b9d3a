"""docs/fidelity.md has every value of scale=paper, as the configs have it, and where it is from."""

import ast
import dataclasses
import json
import re

import pytest
from flax import traverse_util

from configs import maskgit_tokenizer, maskgit_transformer, uvim_base, uvim_lm
from tests import mutants, tiny

PATH = tiny.ROOT / "docs" / "fidelity.md"
MODULES = {
    "maskgit_tokenizer": maskgit_tokenizer,
    "maskgit_transformer": maskgit_transformer,
    "uvim_base": uvim_base,
    "uvim_lm": uvim_lm,
}
REPEATED = ("stage_1.model.", "stage_1.quantizer.")  # in stage II, of stage I's own table


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of one config: its columns' arguments, {option: cells}, {option: source}."""

    columns: list[str]
    cells: dict[str, list[str]]
    sources: dict[str, str]


def cells_of(line: str) -> list[str]:
    return [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def read_tables() -> dict[str, list[Table]]:
    """{config file: its tables}."""
    tables, module, lines = {}, None, PATH.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("## "):
            found = re.search(r"configs/(\w+)\.py", line)
            module = found[1] if found else None
        if module and line.startswith("| option "):
            columns = [c.strip("`") for c in cells_of(line)[1:-2]]
            rows = []
            for row in lines[number + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append(cells_of(row))
            tables.setdefault(module, []).append(
                Table(
                    columns,
                    {row[0].strip("`"): row[1:-2] for row in rows},
                    {row[0].strip("`"): row[-2] for row in rows},
                )
            )
    return tables


TABLES = read_tables()


def options(module: str, arguments: str) -> dict:
    config = MODULES[module].get_config(arguments)
    flat = traverse_util.flatten_dict(config.to_dict(), sep=".")
    return {name: v for name, v in flat.items() if not name.startswith(REPEATED)}


def said(table: Table, option: str, column: int):
    """What a table says of an option; None where the config has none."""
    cells = table.cells[option][: column + 1]
    text = next(cell for cell in reversed(cells) if cell)
    return None if text == "–" else ast.literal_eval(text.strip("`"))


def test_there_is_a_table_of_every_config():
    assert {name: len(tables) for name, tables in TABLES.items()} == {
        "maskgit_tokenizer": 2,
        "maskgit_transformer": 1,
        "uvim_base": 2,
        "uvim_lm": 1,
    }


@pytest.mark.parametrize("module", MODULES)
def test_values_are_the_configs(module):
    for table in TABLES[module]:
        for column, arguments in enumerate(table.columns):
            ours = options(module, arguments)
            for option in table.cells:
                assert said(table, option, column) == ours.get(option), (arguments, option)


@pytest.mark.parametrize("module", MODULES)
def test_every_option_is_in_the_table_with_its_source(module):
    main, *others = TABLES[module]
    plain = options(module, main.columns[0])
    for arguments in main.columns:
        assert set(options(module, arguments)) <= set(main.cells), arguments
    for table in others:  # of another quantizer: all in which it differs
        for arguments in table.columns:
            ours = options(module, arguments)
            differing = {n for n, value in ours.items() if n not in plain or plain[n] != value}
            assert differing <= set(table.cells), arguments
    for table in TABLES[module]:
        assert all(table.sources.values())


def test_sources_are_explained():
    text = PATH.read_text()
    known = ("own", "FSQ", "MaskGIT", "MAGVIT", "UViM", "ADM", "TensorFlow", "as stage I")
    for tables in TABLES.values():
        for table in tables:
            for option, source in table.sources.items():
                assert source.startswith(known), option
    assert all(f"| {name}" in text for name in known)


def test_lists_of_images_are_known_by_their_checksums():
    from fsq_jax.data import file_names

    for checksum in file_names.COLTRAN.values():
        assert f"{checksum[:8]}…{checksum[-6:]}" in PATH.read_text()


def test_planted_mistakes_were_noticed():
    found = json.loads((tiny.ROOT / "experiments" / "results" / "mutants.json").read_text())
    assert found["ran"] >= 120 and found["noticed_share"] >= 0.95
    assert set(found["results"]) <= {mistake["name"] for mistake in mutants.planted()}
