"""The weights that come with the package: whole, small, paired, and as their cards say."""

import re

import pytest

from experiments import shipped as made
from fsq_jax.demo.__main__ import brought
from fsq_jax.formats import hub
from fsq_jax.pretrained import shipped, weights
from fsq_jax.runs import frozen
from fsq_jax.runtime import manifest
from tests import tiny

PATHS = [shipped.PREFIX + name for name in shipped.names()]


def test_other_paths_stay_as_they_are():
    assert shipped.local_path("runs/pretrained") == "runs/pretrained"
    with pytest.raises(ValueError, match="brings no weights 'scenes-tokeniser'; did you mean"):
        shipped.local_path("pretrained:scenes-tokeniser")
    with pytest.raises(ValueError, match="brings no weights 'x'; there are scenes-"):
        weights.load("pretrained:x")


def test_they_are_small_and_the_demo_knows_them():
    assert sum(path.stat().st_size for path in shipped.FOLDER.rglob("*")) < 12e6
    assert brought() and set(PATHS) == {*brought(), *(p for p in PATHS if p.endswith("-base"))}


@pytest.mark.parametrize("path", PATHS)
def test_a_card_is_of_its_file_and_names_its_run(path):
    file, loaded = shipped.local_path(path), weights.load(path)
    card = open(file.replace(shipped.FILE, hub.CARD)).read()
    assert manifest.sha256(file) in card and f"`{loaded.fingerprint}`" in card
    assert f"| made by | `{made.COMMAND}` |" in card
    (run,) = re.findall(r"\| run \| `(.*)` \|", card)
    assert (tiny.ROOT / run / "results.json").is_file()
    assert f'"weights_file": "{path}"' in card  # measured of what is shipped
    assert "/tmp" not in card and loaded.step == loaded.config.steps
    if "stage_1" in loaded.config:  # trained on the tokens of the other file, as it is
        kind = frozen.reads_stage_1(loaded)
        stage_1 = frozen.load_stage_1(loaded.config.stage_1.workdir, (kind,))
        assert stage_1.path in PATHS
        assert stage_1.fingerprint == loaded.config.stage_1.fingerprint


def test_the_page_of_models_has_their_rows():
    rows = made.table().text()
    assert rows in (tiny.ROOT / "docs" / "models.md").read_text()
    assert rows + "\n" == (made.RESULTS / "table.md").read_text()
