"""A config whose data doesn't fit it is refused before training; what it leaves open is found."""

import json

import numpy as np
import pytest

from configs import maskgit_transformer, uvim_base
from fsq_jax.runs import data_checks, inputs
from fsq_jax.runtime.user_error import UserError


def arrays(path, classes=20, records=6, **changed):
    """A panoptic and depth data set of so many classes, void not counted."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        folder = path / split
        folder.mkdir(parents=True)
        semantic = rng.integers(1, classes + 1, (records, 32, 32))
        features = {
            "image": rng.integers(0, 256, (records, 32, 32, 3), np.uint8),
            "label": np.zeros(records, np.int32),
            "depth": rng.uniform(1, 9, (records, 32, 32)).astype(np.float32),
            "segments": np.stack([semantic, np.ones_like(semantic)], -1).astype(np.int16),
        } | changed
        for name, value in features.items():
            np.save(folder / f"{name}.npy", value)
        names = ["void", *(f"c{i}" for i in range(classes))]
        meta = {"class_names": ["image"], "segment_names": names, "things": [1]}
        (folder / "meta.json").write_text(json.dumps(meta))
    return f"arrays:{path}"


def of(module, argument, **changes):
    config = module.get_config(argument)
    config.update_from_flattened_dict(
        {"data.train_split": "train", "data.eval_split": "validation"} | changes
    )
    return config


def test_what_is_left_open_is_as_the_data_has_it(tmp_path):
    data = arrays(tmp_path)
    config = of(uvim_base, f"scale=smoke,task=panoptic,data={data}")
    assert config.task.num_semantics == 0
    data_checks.check_data(config)
    assert config.task.num_semantics == 21
    config = of(
        maskgit_transformer, f"scale=smoke,data={data}", **{"evals.generation.features": ""}
    )
    data_checks.check_data(config)
    assert config.num_classes == 1


def test_other_numbers_of_classes_are_refused(tmp_path):
    data = arrays(tmp_path)
    for number in (8, 22):
        changes = {"task.num_semantics": number}
        config = of(uvim_base, f"scale=smoke,task=panoptic,data={data}", **changes)
        with pytest.raises(UserError, match=f"21 classes.* task.num_semantics is {number}"):
            data_checks.check_data(config)
    config = of(maskgit_transformer, "scale=smoke", num_classes=2)
    with pytest.raises(UserError, match="scenes train has 30 classes .* num_classes is 2"):
        data_checks.check_data(config)
    config.num_classes = 30
    config.data.source = data  # as `evaluate --set=data.source=...` does
    with pytest.raises(UserError, match="has 1 classes .* num_classes is 30"):
        inputs.eval_dataset(config, "eval")


def test_held_out_sets_are_as_large_as_their_metrics_need(tmp_path):
    data = arrays(tmp_path, records=3)
    config = of(uvim_base, f"scale=smoke,task=colorization,data={data}")
    data_checks.check_data(config)
    config.evals.colorization.reference_split = "train[1:2]"
    with pytest.raises(
        UserError, match=r"reference_split needs 2 .* of arrays.* train\[1:2\]; there are 1"
    ):
        data_checks.check_data(config)
    config = of(maskgit_transformer, f"scale=smoke,data={data}")
    with pytest.raises(UserError, match="evals.generation.reference_split needs 4 images or more"):
        data_checks.check_data(config)
    config.evals.generation.reference_split = "vlaidation"
    with pytest.raises(UserError, match="has no split 'vlaidation'"):
        data_checks.check_data(config)


def test_a_crop_of_evaluation_that_no_image_has(tmp_path):
    config = of(
        uvim_base,
        f"scale=smoke,task=depth,data={arrays(tmp_path)}",
        **{"data.eval_crop": (0, 40, 0, 40)},
    )
    with pytest.raises(UserError, match="40.* leaves an image of 32 x 32"):
        data_checks.check_data(config)


def test_held_out_depth_in_millimetres(tmp_path):
    data = arrays(tmp_path)
    np.save(tmp_path / "validation" / "depth.npy", np.full((6, 32, 32), 4_000, np.float32))
    with pytest.raises(UserError, match="validation has depths up to 4000.*millimetres"):
        data_checks.check_data(of(uvim_base, f"scale=smoke,task=depth,data={data}"))
