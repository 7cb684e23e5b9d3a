"""The page of a tokenizer's codes holds what was counted, and the bits of who models them."""

import dataclasses

import numpy as np

from fsq_jax import runs
from fsq_jax.reports import codebook as codebook_page
from fsq_jax.runs.frozen import load_stage_1
from fsq_jax.runtime.workdir import save_config, save_results

COUNTS_CK = np.array([[4, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]])


def test_summary():
    table = codebook_page.summary_table(COUNTS_CK.sum(0), (2, 3), {"maskgit": 1.25})
    rows = dict(table.rows)
    assert rows["codes"] == "6 (2 x 3)"
    assert rows["usage"] == "66.67% (4 of 6)" and rows["dead"] == "33.33% (2)"
    assert rows["most frequent code"] == "0 (62.50%)"
    assert rows["bits per token, all codes alike"] == "2.585"
    share = np.array([5, 1, 1, 1]) / 8
    entropy = -(share * np.log2(share)).sum()
    assert rows["bits per token, entropy of the frequencies"] == f"{entropy:.3f}"
    assert rows["bits per token, transformer maskgit"] == "1.250"
    without = dict(codebook_page.summary_table(COUNTS_CK.sum(0), (), {}).rows)
    assert without["codes"] == "6" and without["bits per token, transformer"] == "not run"


def test_dead_codes_are_named(monkeypatch):
    assert codebook_page.dead_codes(COUNTS_CK.sum(0)) == "2 of 6 codes never occur: 4, 5."
    assert codebook_page.dead_codes(np.ones(3)) == "Every code occurs."
    monkeypatch.setattr(codebook_page, "_LISTED", 1)
    assert codebook_page.dead_codes(COUNTS_CK.sum(0)).endswith("never occur: 4, and 1 more.")


def test_classes_are_sorted_by_how_many_codes_they_use(monkeypatch):
    table = codebook_page.classes_table(COUNTS_CK, ("cat", "none", "dog"))
    assert table.rows == [("cat", "4", "16.7%", "1.0", "0"), ("dog", "4", "66.7%", "4.0", "0")]
    assert table.caption == "2 of 3 classes occur"
    monkeypatch.setattr(codebook_page, "_CLASSES", 2)
    many = codebook_page.classes_table(np.tril(np.ones((5, 5), int)), "abcde")
    assert [row[0] for row in many.rows] == ["a", "e"] and "1 narrowest" in many.caption


def test_the_page_of_a_run(trained, tmp_path):
    run = runs.load(trained.tokenizer)
    config = run.config
    run = dataclasses.replace(run, workdir=str(tmp_path / "tokenizer"))
    own = load_stage_1(trained.tokenizer).fingerprint
    for name, tokenizer, bits in (("mg", own, 2.345), ("other", "0123456789abcdef", 3.456)):
        save_config(tmp_path / name, config)
        result = {"value": bits, "protocol": {"stage_1": tokenizer}, "step": 1}
        save_results(str(tmp_path / name), {"compression/bits_per_token": result})
    assert codebook_page.bits_of_models(run) == {"mg": 2.345}
    path = codebook_page.write(run)
    assert path == str(tmp_path / "tokenizer" / "codebook" / "index.html")
    text = open(path).read()
    assert "15 (5 x 3)" in text and "2.345" in text and "3.456" not in text
    assert "red" in text and "never occur" in text and "<td>num_tokens</td><td>320</td>" in text
    assert text.count("<img") == 1 and "http" not in text
