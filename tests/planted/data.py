"""Mistakes in which images are read, how they are cropped and what their results are called."""

CROPS = ("tests/data/crops_test.py",)
NAMES = ("tests/data/file_names_test.py",)
TURNED = (
    "tests/data/decode_test.py::test_a_photograph_turns_unless_its_labels_would_not",
    "tests/data/tfds_source_test.py",
)
RESULTS = ("tests/runtime/workdir_test.py",)
GUIDANCE = ("tests/configs_test.py::test_guidance_is_that_of_the_tokenizer_that_is_loaded",)

PLANTED = {
    "fsq_jax/data/crops.py": (
        CROPS,
        {
            "ratios are log-uniform": (
                "f32(rng.random(dtype=np.float32) * (high - low) + low)",
                "f32(np.exp(rng.uniform(np.log(low), np.log(high))))",
            ),
            "areas are uniform, not heights": (
                "crop_height += int(rng.integers(largest - crop_height + 1))",
                "crop_height = int(np.sqrt(rng.uniform(crop_height**2, largest**2)))",
            ),
            "a crop may end at the edge": (
                "int(rng.integers(room)) if room else 0",
                "int(rng.integers(room + 1))",
            ),
            "the least area is forgotten": (
                "smallest_area = f32(f32(low *",
                "smallest_area = f32(f32(0 *",
            ),
            "ratios of height to width": (
                "int(np.rint(f32(f32(crop_height) * ratio)))",
                "int(np.rint(f32(f32(crop_height) / ratio)))",
            ),
        },
    ),
    "fsq_jax/data/adm_crop.py": (
        CROPS,
        {
            "halved by another filter": ("Resampling.BOX", "Resampling.BILINEAR"),
            "resized by another filter": ("Resampling.BICUBIC", "Resampling.BILINEAR"),
            "never halved": (">= 2 * size", ">= 2000 * size"),
            "halved once too rarely": (">= 2 * size", "> 2 * size"),
            "the upper left square": ("(height - size) // 2, (width - size) // 2", "0, 0"),
        },
    ),
    "fsq_jax/data/file_names.py": (
        NAMES,
        {
            "eight files at a time": ("cycle: int = 16", "cycle: int = 8"),
            "single records in turn": ("block: int = 16", "block: int = 1"),
            "names end with a newline": ('"\\n".join(names)', '"\\n".join([*names, ""])'),
            "records in their own order": (
                "return [place[name] for name in names]",
                "return sorted(place.values())",
            ),
        },
    ),
    "fsq_jax/data/tfds_source.py": (
        TURNED,
        {"images turn without their labels": ("where, upright=False)", "where)")},
    ),
    "fsq_jax/data/decode.py": (
        TURNED,
        {"photographs stay on their side": ("upright: bool = True", "upright: bool = False")},
    ),
    "fsq_jax/runtime/workdir.py": (
        RESULTS,
        {
            "a setting takes another's place": (
                "measured = {_identity(r): r for r in every_result(older, metric)}",
                "measured = {}",
            ),
            "where data lies is a setting": ('"data.data_dir",', ""),
            "a sweep's results are the run's own": (
                'if result["step"] == step and not result.get("overrides"):',
                'if result["step"] == step:',
            ),
        },
    ),
    "fsq_jax/stages/maskgit_transformer.py": (
        GUIDANCE,
        {
            "VQ is guided as FSQ": (
                '{"fsq": 0.2, "vq": 0.1, "vq_ema": 0.1}',
                '{"fsq": 0.2, "vq": 0.2, "vq_ema": 0.2}',
            ),
            "small images are guided": ("if size != 256: return 0.0", ""),
            "the guidance that is asked for is ignored": ("if guidance != -1: return guidance", ""),
        },
    ),
}
