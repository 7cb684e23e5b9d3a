"""Entries become results.json, and tables, figures and verdicts follow from that file alone."""

import json
import random

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import (
    claims,
    entries,
    entropy_groups,
    fig3_claims,
    fig3_tradeoff,
    fig4_maskgit256,
    fig8_representation,
    fig10_levels,
    launcher,
    maskgit_runs,
    pictures,
    quantizers,
    quantizers_claims,
    reproduce,
)
from experiments.claims import CONFIRMED, NOT_RUN, OPEN, REFUTED
from experiments.options import Options
from fsq_jax.launcher import plan
from fsq_jax.reports.spread import rank_correlation
from fsq_jax.runtime.image_grid import image_grid
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import save_config, save_results
from tests import tiny

OPTIONS = Options(workdir="runs/x")


def verdicts(module, found):
    return [claim.judge(found).verdict for claim in module.CLAIMS]


def noisy(value):
    """A value as another seed would give it."""
    return value * (1 + random.uniform(-0.001, 0.001))


def fig3(usage_of_vq=0.3, sampling_of_fsq=0.9):
    """Entries as the paper's Figure 3 has them, or with other usage and other samples."""
    random.seed(0)
    found = []
    for bits in fig3_claims.BITS:
        for quantizer in fig3_claims.QUANTIZERS:
            facts = maskgit_runs.codebook(quantizer, bits)
            vq = quantizer == "vq"
            distance = 20 - bits + ((-1 if bits < 9 else 1) if vq else 0)
            share = usage_of_vq if vq and bits > 11 else 0.95
            for seed in range(3):
                found.append(
                    facts
                    | {
                        "run": f"t{facts['size']}{quantizer}{seed}",
                        "stage": "tokenizer",
                        "seed": seed,
                        "steps": 10,
                        "device": "a GPU",
                        "data": "images",
                        "reconstruction/fd_efficientnet": noisy(distance),
                        "codebook/usage": share,
                        "codebook/used": share * facts["size"],
                    }
                )
            if bits in fig3_claims.STAGE_2:
                sampling = 30 - 2 * min(bits, 12) * (1 if vq else 1 / sampling_of_fsq)
                for seed in range(3 if bits in fig3_tradeoff.REPEATED else 1):
                    found.append(
                        facts
                        | {
                            "run": f"m{facts['size']}{quantizer}{seed}",
                            "stage": "transformer",
                            "seed": seed,
                            "steps": 10,
                            "device": "a GPU",
                            "data": "images",
                            "sampling/fd_efficientnet": noisy(sampling),
                            "compression/bits_per_token": noisy(bits * (0.7 if vq else 0.8)),
                        }
                    )
    return found


def test_figure_3_is_judged_by_its_rules():
    assert verdicts(fig3_tradeoff, fig3()) == [CONFIRMED] * 6
    other = fig3(usage_of_vq=0.8, sampling_of_fsq=1.5)
    assert verdicts(fig3_tradeoff, other) == [
        CONFIRMED,
        CONFIRMED,
        REFUTED,
        CONFIRMED,
        REFUTED,
        CONFIRMED,
    ]
    assert verdicts(fig3_tradeoff, []) == [NOT_RUN] * 6
    single = [entry for entry in fig3() if entry["seed"] == 0]
    assert verdicts(fig3_tradeoff, single)[:2] == [OPEN, OPEN]  # no spread, no verdict


@pytest.mark.parametrize(
    "distances, verdict",
    [
        ((60, 40, 38), CONFIRMED),  # a tenth of what 2^8 to 2^12 brought
        ((60, 40, 33), OPEN),
        ((60, 40, 25), REFUTED),
        ((40, 60, 75), REFUTED),  # nothing stops that never was
    ],
)
def test_samples_stop_improving_only_where_they_had_improved(distances, verdict):
    found = [
        maskgit_runs.codebook("fsq", bits) | {"sampling/fid": value}
        for bits, value in zip((8, 12, 16), distances, strict=True)
    ]
    assert fig3_claims.saturates(found).verdict == verdict


def test_figure_10_judges_few_levels_and_dense_layers():
    random.seed(1)
    found = []
    for bits, choices in fig10_levels.LEVELS.items():
        for levels in choices:
            for seed in range(3):
                found.append(
                    maskgit_runs.codebook("fsq", bits, levels)
                    | {
                        "stage": "tokenizer",
                        "seed": seed,
                        "reconstruction/fd_efficientnet": noisy(12 if min(levels) < 5 else 10),
                        "sampling/fd_efficientnet": noisy(12 if min(levels) < 5 else 10),
                    }
                )
    dense = [
        found[6] | {"dense_layers": 2, "seed": s, "reconstruction/fd_efficientnet": noisy(10)}
        for s in range(3)
    ]
    assert verdicts(fig10_levels, [*found, *dense])[:2] == [CONFIRMED] * 2
    better = [e | {"reconstruction/fd_efficientnet": noisy(5)} for e in dense]
    assert verdicts(fig10_levels, [*found, *better])[2] == REFUTED
    assert verdicts(fig10_levels, []) == [NOT_RUN] * 3


def test_guidance_is_compared_at_each_quantizers_best():
    random.seed(2)
    found = [
        {
            "run": q,
            "quantizer": q,
            "stage": "sweep",
            "seed": seed,
            "guidance": strength,
            "sampling/fd_efficientnet": noisy(30 + 20 * (strength - at) ** 2),
        }
        for q, at in (("fsq", 0.5), ("vq", 0.1))
        for seed in range(3)
        for strength in fig4_maskgit256.GUIDANCE["bench"]
    ]
    assert fig4_maskgit256.best(found, "fsq") == 0.5
    assert verdicts(fig4_maskgit256, found) == [CONFIRMED, CONFIRMED]
    assert verdicts(fig4_maskgit256, []) == [NOT_RUN, NOT_RUN]


def test_a_quantizer_with_one_sweep_is_judged_by_the_others_deviation():
    found = [
        {
            "run": q,
            "quantizer": q,
            "stage": "sweep",
            "seed": seed,
            "guidance": strength,
            "sampling/fd_efficientnet": distance + 0.1 * seed + 0.5 * sign * strength,
        }
        for q, distance, sign, seeds in (("fsq", 20, -1, 3), ("vq", 30, 1, 1))
        for seed in range(seeds)
        for strength in (0.0, 1.0)
    ]
    assert verdicts(fig4_maskgit256, found) == [REFUTED, CONFIRMED]
    alone = [entry for entry in found if entry["seed"] == 0]
    assert verdicts(fig4_maskgit256, alone) == [OPEN, OPEN]


def test_a_size_that_was_not_run_is_named_and_counts_as_undecided():
    cut = [e for e in fig3() if (e["quantizer"], e["bits"]) != ("vq", 16)]
    finding = fig3_claims.sampling(cut)
    assert finding.verdict == CONFIRMED and "2^16: FSQ" in finding.measured
    assert finding.measured.endswith("VQ not run")
    cut = [e for e in cut if (e["quantizer"], e["bits"]) != ("vq", 14)]
    assert fig3_claims.sampling(cut).verdict == OPEN  # one of three


def test_a_gain_too_small_to_be_seen_is_not_denied():
    plain = maskgit_runs.codebook("fsq", 10, (8, 5, 5, 5)) | {"stage": "tokenizer"}
    for step, verdict in ((0.1, CONFIRMED), (10, OPEN)):
        found = [
            plain | more | {"seed": s, "reconstruction/fd_efficientnet": 40 + step * s}
            for s in range(3)
            for more in ({}, {"dense_layers": 2})
        ]
        assert fig10_levels.dense_help(found).verdict == verdict


def test_quantizers_are_compared_seed_by_seed():
    found = fig3()
    for entry in found:  # as if a seed moved all of its runs by as much
        if "reconstruction/fd_efficientnet" in entry:
            entry["reconstruction/fd_efficientnet"] += 100 * entry["seed"]
    text = fig3_tradeoff.paired(found).text()
    row = next(line for line in text.splitlines() if "2^16" in line)
    mean, deviation = map(float, row.split("|")[2].split(" ± "))
    assert mean == pytest.approx(-1, abs=0.05) and deviation < 0.05


def test_pictures_of_runs_are_taken_apart(tmp_path):
    found = []
    for quantizer, green in (("fsq", 0.0), ("vq", 10 / 255)):
        entry = maskgit_runs.codebook(quantizer, 4) | {
            "run": quantizer,
            "stage": "tokenizer",
            "seed": 0,
        }
        images = np.zeros((6, 8, 8, 3), np.float32)
        images[1::2, ..., 1] = green  # the reconstructions
        folder = tmp_path / quantizer
        (folder / "samples").mkdir(parents=True)
        Image.fromarray(image_grid(images)).save(folder / "samples" / "reconstruction_0003.png")
        save_config(str(folder), ConfigDict({"stage": "x", "data": {"size": 8}}))
        found.append(entry)
        np.testing.assert_allclose(
            pictures.last(str(tmp_path), quantizer, "reconstruction"), images, atol=1e-6
        )
    assert list(pictures.reconstructions(str(tmp_path), found, (4,), 3)) == ["reconstructions"]
    assert pictures.samples(str(tmp_path), found, (4,)) == {}
    # Of a run that isn't at hand there is none: what was drawn of all runs stays.
    found.append(found[0] | {"run": "elsewhere", "bits": 6})
    assert pictures.reconstructions(str(tmp_path), found, (4, 6), 3) == {}


def test_groups_of_the_entropy_loss_are_judged():
    found = [
        {"bits": 10, "seed": s, "codebook/usage": share + s / 1000} | group
        for share, group in ((0.4, {}), (0.9, {"entropy_group": 8}))
        for s in range(3)
    ]
    assert verdicts(entropy_groups, found) == [CONFIRMED]
    assert verdicts(entropy_groups, []) == [NOT_RUN]
    assert list(entropy_groups.rows(found, 10)) == ["2^10, groups of 8", "2^10, groups of all"]


def test_representations_are_judged():
    study = {
        "stage": "study",
        "soup/fid": 90.0,
        "reconstruction/fid": 30.0,
        "seam/glued_pixels": 2.0,
        "seam/stitched_codes": 1.2,
    }
    found = [study | {"quantizer": q} for q in ("fsq", "vq")]
    assert verdicts(fig8_representation, found) == [CONFIRMED] * 2
    worse = [e | {"soup/fid": 30.0, "seam/stitched_codes": 2.0} for e in found]
    assert verdicts(fig8_representation, worse) == [REFUTED] * 2
    assert verdicts(fig8_representation, found[:1]) == [NOT_RUN] * 2


def test_a_single_run_takes_the_deviation_of_repeated_ones():
    one, three = entries.spread([1.0]), entries.spread([1.9, 2.0, 2.1])
    assert claims.compare(one, three, None) == 0
    assert claims.compare(one, three, 0.1) == -1 and claims.compare(three, one, 0.1) == 1
    assert claims.compare(one, three, 1.0) == 0
    assert three.text() == "2 ± 0.1"
    groups = [[{"x": 1.0}, {"x": 1.0 + apart}] for apart in (0.1, 0.3, 0.2)]
    largest = entries.spread([1.0, 1.3]).deviation
    assert claims.largest_deviation([*groups, [{"x": 9.0}], []], "x") == pytest.approx(largest)
    assert claims.largest_deviation([[{"x": 9.0}]], "x") is None


def trade_off(better=1.0):
    """Entries of all quantizers in which every paper's claim holds, or whose gains are reversed."""
    random.seed(2)
    ahead = {"bsq", "simvq", "vq_rotation", "residual_fsq_layer_norm", "fsq_noise"}
    used = {"vq_cosine", "vq_projected", "vq_rotation", "vq_reseed"}
    found = []
    for method in quantizers.METHODS:
        for bits in quantizers_claims.BITS:
            usage = 1.0 if method == "simvq" else (0.5 + 0.2 * better * (method in used)) * 0.9
            value = 30 - better * (bits + 3 * (method in ahead)) + (5 if method == "simvq" else 0)
            found += [
                quantizers.codebook(method, bits)
                | {
                    "stage": "tokenizer",
                    "seed": seed,
                    "reconstruction/fd_efficientnet": noisy(value),
                    "codebook/usage": noisy(usage),
                }
                for seed in range(3)
            ]
    return found


def transformers_on(tokenizers, metric, value):
    """Entries of transformers, one for each tokenizer's, with one metric."""
    facts = ({k: v for k, v in e.items() if "/" not in k} for e in tokenizers)
    return [
        f | {"stage": "transformer", metric: value(e)}
        for f, e in zip(facts, tokenizers, strict=True)
    ]


def test_quantizers_are_judged_by_their_own_papers_claims():
    found = trade_off()
    by_text = {c.paper: c.judge(found).verdict for c in quantizers.CLAIMS}
    assert by_text.pop(next(t for t in by_text if t.startswith("SimVQ reconstructs"))) == REFUTED
    assert set(by_text.values()) == {CONFIRMED}
    bsq = next(c.judge(found).measured for c in quantizers.CLAIMS if c.paper.startswith("BSQ"))
    assert bsq.endswith("as claimed in 15 of 15 pairs of one size and seed")
    other = [c.judge(trade_off(better=-1.0)).verdict for c in quantizers.CLAIMS]
    assert other.count(REFUTED) >= 8
    swept = [e | {"swept": {"entropy_weight": 1}, "codebook/usage": 0.0} for e in found]
    assert verdicts(quantizers, found + swept) == verdicts(quantizers, found)
    assert set(verdicts(quantizers, [])) == {NOT_RUN}


def test_tokenizers_are_compared_over_the_seeds_that_all_methods_have(tmp_path):
    found = [
        e
        for e in trade_off()
        if (e["method"], e["bits"], e["seed"]) not in {("lfq", 8, 2), ("bsq", 10, 0)}
    ]
    swept = {**found[0], "swept": {"entropy_weight": 1}, "seed": 2, "bits": 8}

    def seeds(entries, bits):
        groups = (quantizers.group(entries, method, bits) for method in quantizers.METHODS)
        return [{e["seed"] for e in group} for group in groups]

    of_all = len(quantizers.METHODS)
    assert seeds([*found, swept], 8) == of_all * [{0, 1}]
    assert seeds([*found, swept], 10) == of_all * [{1, 2}]
    assert seeds([*found, swept], 12) == of_all * [{0, 1, 2}]
    stage_2 = [{**e, "stage": "transformer"} for e in found]
    assert sum(map(len, seeds(stage_2, 8))) == 3 * of_all - 1
    quantizers.write([*found, swept], str(tmp_path), OPTIONS)
    rows = (tmp_path / "table_paired.md").read_text()
    assert "| vq 2^8 " in rows and "| fsq 2^8 " not in rows
    rows = (tmp_path / "table_transformers.md").read_text()
    assert rows.count("2^10") == of_all and "2^8" not in rows
    assert "entropy_weight=1" in (tmp_path / "table_swept.md").read_text()
    assert not (tmp_path / "table_averages.md").exists()


def test_tokenizers_are_compared_with_those_of_the_longer_average(tmp_path):
    found = trade_off()
    longer = [
        e | {"reconstruction/fd_efficientnet": 3 + e["reconstruction/fd_efficientnet"]}
        for e in found
        if (e["method"], e["bits"]) == ("lfq", 12)
    ]
    (tmp_path / quantizers.LONG_AVERAGE).write_text(json.dumps(longer))
    quantizers.write(found, str(tmp_path), OPTIONS)
    *_, row = (tmp_path / "table_averages.md").read_text().strip().splitlines()
    cells = row.strip("| ").split("|")
    assert cells[0].strip() == "lfq 2^12" and float(cells[1].split(" ± ")[0]) == -3


def test_transformers_on_tokenizers_of_either_average_are_compared(tmp_path):
    found = trade_off()
    stage_2 = transformers_on(found, "compression/bits_per_token", lambda e: 5.0 + e["seed"])
    longer = [
        e | {"compression/bits_per_token": 4.5 + e["seed"]}
        for e in stage_2
        if (e["method"], e["bits"]) in (("lfq", 10), ("lfq", 12))
    ]
    (tmp_path / quantizers.LONG_AVERAGE).write_text(json.dumps(longer))
    quantizers.write([*found, *stage_2], str(tmp_path), OPTIONS)
    *_, row = (tmp_path / "table_averages_transformers.md").read_text().strip().splitlines()
    cells = row.strip("| ").split("|")
    assert cells[0].strip() == "lfq 2^10" and cells[1].split() == ["0.5", "±", "0"]
    assert not (tmp_path / "table_averages.md").exists()
    assert not (tmp_path / "table_again.md").exists()


def test_deviations_of_one_seed_stand_beside_those_of_seeds(tmp_path):
    metric = "reconstruction/fd_efficientnet"
    small = {("lfq", 8), ("bsq", 8)}
    found = [
        e | {metric: (10.0 if (e["method"], e["bits"]) in small else 50.0) * e["seed"]}
        for e in trade_off()
    ]
    first, second = (
        next(e for e in found if (e["method"], e["bits"], e["seed"]) == (method, 8, 0))
        for method in ("lfq", "bsq")
    )
    # Variances of 1 with one degree of freedom and of 4 with two: sqrt((1 + 2 * 4) / 3).
    offsets = [(first, -0.5 * 2**0.5), (first, 0.5 * 2**0.5)]
    offsets += [(second, offset) for offset in (-2.0, 0.0, 2.0)]
    trained = [e | {metric: 3.0 + offset} for e, offset in offsets]
    (tmp_path / quantizers.TRAINED_AGAIN).write_text(json.dumps(trained))
    quantizers.write(found, str(tmp_path), OPTIONS)
    head, _, once, seeds = (tmp_path / "table_again.md").read_text().strip().splitlines()
    assert "2 tokenizers" in head
    assert float(once.split("|")[2]) == pytest.approx(3**0.5, abs=0.01)
    assert float(seeds.split("|")[2]) == 10.0


def test_rank_correlation_is_of_the_order_alone():
    assert rank_correlation([1, 2, 3], [10, 11, 99]) == pytest.approx(1)
    assert rank_correlation([3, 1, 2], [-3, 7, 0]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)


def test_samples_are_drawn_over_reconstructions_with_the_correlation_of_their_orders():
    found = trade_off()
    stage_2 = transformers_on(
        [e for e in found if e["bits"] == 10],
        "sampling/fd_efficientnet",
        lambda e: -e["reconstruction/fd_efficientnet"],
    )
    first, second = quantizers.samples_figure([*found, *stage_2]).axes
    assert "rank correlation -1.00" in first.get_title()
    assert len(first.containers) == len(quantizers.METHODS)
    assert second.get_title() == "$2^{14}$ codes" and not second.has_data()


def test_pooled_deviations_leave_out_what_was_run_once():
    assert entries.pooled([[1.0, 3.0], [7.0]]) == pytest.approx(2**0.5)
    assert entries.pooled([[7.0], []]) is None


def test_a_method_has_runs_of_its_own_and_shares_fig3s():
    runs = {r.name: r for r in quantizers.runs(Options(workdir="runs/x"))}
    shared = {r.name for r in fig3_tradeoff.runs(Options(workdir="runs/x"))}
    plain = {r.facts["method"] for name, r in runs.items() if name in shared and r.facts}
    assert plain == {"fsq", "vq"}
    tokenizers = [r for r in runs.values() if r.facts.get("stage") == "tokenizer"]
    assert len([r for r in tokenizers if "swept" not in r.facts]) == 13 * 5 * 3
    transformers = [r for r in runs.values() if r.facts.get("stage") == "transformer"]
    assert len(transformers) == 13 * 2 * 3
    assert all(0.9 < r.facts["size"] / 2 ** r.facts["bits"] < 1.1 for r in tokenizers)
    two = {(r.facts["stage"], r.facts["quantizer"]) for r in runs.values() if r.places == 2}
    assert two == {("tokenizer", name) for name in maskgit_runs.CODEWORDS}
    of_fig3 = fig3_tradeoff.runs(Options(workdir="runs/x"))
    two = {(r.facts["stage"], r.facts["quantizer"]) for r in of_fig3 if r.places == 2}
    assert two == {("tokenizer", "vq"), ("transformer", "vq"), ("transformer", "fsq")}


@pytest.mark.parametrize("name", launcher.EXPERIMENTS)
def test_every_experiment_writes_what_it_has_and_what_it_has_not(name, tmp_path):
    module = launcher.experiment(name)
    options = Options(workdir=str(tmp_path / "runs"))
    found = fig3() if name == "fig3_tradeoff" else []
    module.write(found, str(tmp_path), options)
    text = (tmp_path / "claims.md").read_text()
    assert ("confirmed |" in text) == bool(found) and ("not run" in text) == (not found)


def test_entries_say_what_was_run_and_how(tmp_path):
    workdir, out = tmp_path / "runs", tmp_path / "out"
    runs = [
        plan.Run(n, (("results.json", ()),), {"quantizer": "fsq", "seed": 0, "stage": "x"})
        for n in "ab"
    ]
    several = plan.Run("c", ((entries.SEVERAL, ()),), {"quantizer": "vq", "stage": "sweep"})
    save_config(str(workdir / "a"), ConfigDict({"stage": "x", "steps": 5, "batch_size": 8}))
    protocol = {"device": "a GPU", "level_histograms": [[1]]}
    save_results(
        str(workdir / "a"), {"codebook/usage": {"value": 0.5, "protocol": protocol, "step": 5}}
    )
    (workdir / "c").mkdir()
    (workdir / "c" / entries.SEVERAL).write_text('[{"guidance": 0.0}, {"guidance": 1.0}]')
    made = entries.write(str(workdir), [*runs, several], str(out))
    assert made[0] == {
        "run": "a",
        "quantizer": "fsq",
        "seed": 0,
        "stage": "x",
        "steps": 5,
        "batch_size": 8,
        "device": "a GPU",
        "codebook/usage": 0.5,
        "protocol": {"codebook": {"device": "a GPU"}},
    }
    assert [e["guidance"] for e in made[1:]] == [0.0, 1.0]
    assert json.loads((out / "results.json").read_text()) == made
    assert (out / "runs" / "a" / "config.json").exists()
    assert not (out / "runs" / "a" / "samples").exists()
    assert entries.missing(str(out)) == [{"run": "b", "why": "not begun"}]
    (workdir / "b").mkdir()
    (workdir / "b" / "launches.jsonl").write_text('{"status": 1, "error": "SomeError: x"}\n')
    entries.write(str(workdir), [*runs, several], str(out))
    assert entries.write(str(tmp_path / "nothing"), [*runs, several], str(out)) == made
    why = "failed 1 of 1 times, last with SomeError: x"
    assert entries.missing(str(out)) == [{"run": "b", "why": why}]


def test_the_list_of_figures_comes_from_results_alone(tmp_path):
    text = reproduce.overview(str(tmp_path)).text()
    assert text.count("not run") == len(reproduce.ITEMS)
    folder = tmp_path / "fig3_tradeoff"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(fig3()))
    fig3_tradeoff.write(fig3(), str(folder), OPTIONS)
    reproduce.write(str(tmp_path))
    readme, page = ((tmp_path / name).read_text() for name in ("README.md", "index.html"))
    assert "bench: 6 confirmed" in readme and "![figure](fig3_tradeoff/figure.png)" in readme
    assert "tokenizer: 54 runs, steps 10, seeds 0, 1, 2" in readme and "on a GPU" in readme
    assert "data:image/png" in page and page.count("Not run.") == len(reproduce.ITEMS) - 1


def test_an_unknown_experiment_is_named():
    with pytest.raises(UserError, match="did you mean 'fig3_tradeoff'"):
        launcher.experiment("fig3_tradeof")


def test_the_readme_of_the_results_is_that_of_the_files_beside_it():
    out = tiny.ROOT / "experiments" / "results"
    assert reproduce.readme(str(out)) == (out / "README.md").read_text()
