"""The program that writes decoded records; data/array_source_test.py looks at what it writes."""

from fsq_jax.data.open import open_dataset
from tests import programs


def test_command(tmp_path):
    out = tmp_path / "scenes"
    arguments = (f"--out={out}", "--size=8", "--splits=train[:20],validation[:3]", "--workers=0")
    done = programs.run("fsq_jax.prepare", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(out / "train"), str(out / "validation")]
    assert len(open_dataset(f"arrays:{out}", "train", 8)) == 20
    again = programs.run("fsq_jax.prepare", *arguments)
    assert again.returncode == 1 and again.stdout == ""
    assert again.stderr == (
        f"Error: '{out / 'train'}' is there already; remove it, or name another --out.\n"
    )
