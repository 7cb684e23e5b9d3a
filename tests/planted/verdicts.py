"""Mistakes in how runs become numbers, and numbers verdicts."""

RESULTS = ("tests/experiments/results_test.py",)
LAUNCHER = ("tests/experiments/launcher_test.py",)

PLANTED = {
    "experiments/claims.py": (
        RESULTS,
        {
            "one standard error is enough": (
                "0 if abs(difference) <= 2 * error",
                "0 if abs(difference) <= 1 * error",
            ),
            "the error is not divided by runs": ("d**2 / s.count", "d**2"),
            "higher is lower": ("difference = a.mean - b.mean", "difference = b.mean - a.mean"),
            "a single run has no spread": (
                "deviation if s.deviation is None else s.deviation",
                "0.0 if s.deviation is None else s.deviation",
            ),
            "the smallest deviation": ("max(known) if known", "min(known) if known"),
            "one against is no objection": (
                "if not wrong and 2 * right >= len(signs)",
                "if 2 * right >= len(signs)",
            ),
            "one of many confirms": ("2 * right >= len(signs)", "right >= 1"),
            "as many against refute": ("if wrong > right", "if wrong >= right"),
        },
    ),
    "fsq_jax/reports/spread.py": (
        RESULTS,
        {
            "deviation of a population": (
                "statistics.stdev(numbers)",
                "statistics.pstdev(numbers)",
            ),
            "groups of all sizes count alike": (
                "squares = sum((len(group) - 1) * statistics.variance(group) for group in several)",
                "squares = sum(statistics.variance(group) for group in several)",
            ),
            "deviations are averaged by numbers": (
                "squares / sum(len(group) - 1 for group in several)",
                "squares / sum(len(group) for group in several)",
            ),
            "what was run once counts": (
                "several = [group for group in groups if len(group) > 1]",
                "several = [(*group, group[0]) if len(group) == 1 else group for group in groups]",
            ),
        },
    ),
    "experiments/quantizers.py": (
        RESULTS,
        {
            "longer minus shorter": (
                "pairs = {k: (made, other) for k, made in groups.items()",
                "pairs = {k: (other, made) for k, made in groups.items()",
            ),
            "transformers among the tokenizers": (
                'averages(tokenizers, before["tokenizer"], metrics)',
                "averages(tokenizers, longer, metrics)",
            ),
            "seeds of all tokenizers": (
                '"seeds": [groups[key] for key in repeated]',
                '"seeds": groups.values()',
            ),
        },
    ),
    "experiments/entries.py": (
        RESULTS,
        {
            "any seeds make a pair": (
                "return [first[seed] - second[seed] for seed in sorted(set(first) & set(second))]",
                "return [a - b for a, b in zip(first.values(), sorted(second.values()))]",
            ),
            "theirs minus ours": ("first[seed] - second[seed]", "second[seed] - first[seed]"),
            "one fact is enough": (
                "if all(e.get(name) == value for name, value in facts.items())",
                "if any(e.get(name) == value for name, value in facts.items())",
            ),
        },
    ),
    "experiments/fig3_claims.py": (
        RESULTS,
        {
            "VQ behind at small sizes": (
                "sign if bits < 9 else -sign",
                "-sign if bits < 9 else sign",
            ),
            "VQ may use most of a codebook": (
                'if ours >= 0.9 and all(share["vq", b].mean < 0.5 for b in (12, 14, 16))',
                "if ours >= 0.9",
            ),
            "bits the other way": (
                "claims.by_signs(list(signs.values()), 1, text)",
                "claims.by_signs(list(signs.values()), -1, text)",
            ),
            "samples the other way": (
                "claims.by_signs(list(signs.values()), -1, text)",
                "claims.by_signs(list(signs.values()), 1, text)",
            ),
            "a size not run is left out": (
                "signs[bits] = claims.compare(ours, theirs, deviation)",
                "if ours and theirs: signs[bits] = claims.compare(ours, theirs, deviation)",
            ),
            "saturation at any gain": ("if first <= 0", "if first <= -99"),
        },
    ),
    "experiments/fig4_maskgit256.py": (
        RESULTS,
        {
            "the worst guidance": (
                "return min(known, key=lambda s: at(found, quantizer, s, metric).mean",
                "return max(known, key=lambda s: at(found, quantizer, s, metric).mean",
            ),
            "five per cent only upwards": ("if abs(gap) <= 0.05", "if gap <= 0.05"),
            "stronger is weaker": ("CONFIRMED if fsq > vq", "CONFIRMED if fsq < vq"),
        },
    ),
    "experiments/fig10_levels.py": (
        RESULTS,
        {
            "few levels are better": (
                'return claims.by_signs(signs, 1, "; ".join(texts))',
                'return claims.by_signs(signs, -1, "; ".join(texts))',
            ),
            "an invisible gain is denied": (
                "claims.CONFIRMED if 2 * error <= SEEN * b.mean else claims.OPEN",
                "claims.CONFIRMED",
            ),
            "a gain is overlooked": ("if claims.compare(a, b, None) < 0", "if False"),
        },
    ),
    "experiments/fig8_representation.py": (
        RESULTS,
        {
            "one soup is enough": (
                "claims.CONFIRMED if min(ratios) >= 2",
                "claims.CONFIRMED if max(ratios) >= 99",
            ),
            "any seam is blended": ("if min(shares) >= 1", "if min(shares) >= 99"),
        },
    ),
    "experiments/quantizers_claims.py": (
        RESULTS,
        {
            "seeds that others lack": (
                'if e["stage"] != "tokenizer" or e["seed"] in common',
                "",
            ),
            "seeds of any size": (
                'at_size = [e for e in entries.select(found, bits=bits) if "swept" not in e]',
                'at_size = [e for e in found if "swept" not in e]',
            ),
            "other weights count": (
                'for e in entries.select(found, bits=bits) if "swept" not in e',
                "for e in entries.select(found, bits=bits)",
            ),
            "farther is closer": (
                'distance(found, "reconstruction"), -1)',
                'distance(found, "reconstruction"), 1)',
            ),
            "pairs against the claim": ("expected * difference > 0", "expected * difference < 0"),
            "growth the other way": (
                "claims.compare(means.get(large), means.get(small), single)",
                "claims.compare(means.get(small), means.get(large), single)",
            ),
            "most codes are all": ("mean.mean >= ALL", "mean.mean >= 1.01"),
        },
    ),
    "fsq_jax/launcher/pool.py": (
        LAUNCHER,
        {
            "no second start without a GPU": (
                "NO_GPU in error and self._in_vain[job.run.name] < STARTS",
                "False",
            ),
            "starts without end": (
                "NO_GPU in error and self._in_vain[job.run.name] < STARTS",
                "NO_GPU in error",
            ),
            "starts without a GPU don't count": (
                "self._errors.append(error)",
                "self._errors.append('' if NO_GPU in error else error)",
            ),
            "the rest is begun in vain": (
                "if alike and self.waiting",
                "if False and self.waiting",
            ),
            "progress is forgotten": (
                "if (step := _saved(path)) > job.saved",
                "if (step := _saved(path)) > 10**9",
            ),
            "small runs overtake": (
                "if self._free[gpu] < places: return",
                "if self._free[gpu] < places: continue",
            ),
            "GPUs are shared in full": (
                "share = job.places / self._per_gpu",
                "share = 1.0",
            ),
        },
    ),
}
