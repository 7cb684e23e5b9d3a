"""The README.md of exported weights: what they are, what they reached, how to read them."""

import json
from collections.abc import Mapping

import numpy as np

from fsq_jax import quantizers
from fsq_jax.formats import hub, weights_file
from fsq_jax.pretrained import weights

TITLES = {
    "maskgit_tokenizer": "Image tokenizer (MaskGIT stage I)",
    "maskgit_transformer": "Masked transformer (MaskGIT stage II)",
    "uvim_base": "Label autoencoder (UViM stage I)",
    "uvim_lm": "Language model of label tokens (UViM stage II)",
}
READING = {
    "safetensors": "`model.safetensors` holds every array under its path, and the config, the "
    "results and this card in its metadata. `python -m fsq_jax.evaluate --workdir=FILE` and "
    "`--config.init_from=FILE` read it.",
    "msgpack": '`model.msgpack` is `{{"params": tree}}` as flax\'s `msgpack_restore` reads it, in '
    "the layout of MaskGIT's checkpoints. {unsaid}",
    "npz": "`model.npz` holds arrays whose keys are paths, `params/...` and `state/...`, in the "
    "layout of UViM's checkpoints.",
    "jax-export": "Each `.jax` file is one function with its weights, for CPU, CUDA and TPU and "
    "any batch size. JAX and flatbuffers read it (`pip install jax flatbuffers`): "
    '`jax.export.deserialize(open(FILE, "rb").read()).call(x)`.',
}


def text(
    loaded: weights.Weights,
    results: Mapping[str, Mapping],
    format: str,
    dtype: str = "float32",
    notes: Mapping[str, str] | None = None,
) -> str:
    """The card in Markdown.

    Args:
      loaded: the weights of a run.
      results: what was measured at their step, as in results.json.
      format, dtype: in which they are written, see `fsq_jax.export`.
      notes: further rows of the first table.
    """
    config = loaded.config
    lines = [f"# {TITLES.get(config.stage, config.stage)}", "", "| | |", "|---|---|"]
    rows = facts(loaded, dtype) | dict(notes or {})
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "## Results", ""]
    # What was measured of a file names it; all else is of the run, in float32.
    of_file = all("weights_file" in result["protocol"] for result in results.values())
    if dtype == "bfloat16" and not of_file:
        lines += ["Measured before the weights were rounded to bfloat16.", ""]
    if results:
        lines += ["| metric | value | protocol |", "|---|---|---|"]
        for name, result in sorted(results.items()):
            protocol = json.dumps(result["protocol"], sort_keys=True).replace("|", "\\|")
            lines.append(f"| {name} | {result['value']:.6g} | `{protocol}` |")
    else:
        lines.append(f"Nothing was evaluated at step {loaded.step}.")
    lines += ["", "## Files", "", READING[format].format(unsaid=_unsaid(config)).strip()]
    lines += ["", "## Config", "", "```json", json.dumps(config.to_dict(), indent=2), "```", ""]
    return "\n".join(lines)


def facts(loaded: weights.Weights, dtype: str = "float32") -> dict[str, str]:
    """{name: text} of what the weights are."""
    config = loaded.config
    count = sum(np.size(array) for array in weights_file.flatten(loaded.params).values())
    known = {
        "data": f"{config.data.source}, {config.data.train_split}, {config.data.size} pixels",
        "parameters": f"{count:,}, {dtype}, "
        + ("moving averages" if config.ema_decay else "latest"),
        "step": f"{loaded.step} of {config.steps}, batches of {config.batch_size}",
        "seed": str(config.seed),
        "fingerprint": f"`{loaded.fingerprint}`",
    }
    if "quantizer" in config:
        known["quantizer"] = ", ".join(f"{k}={v}" for k, v in config.quantizer.to_dict().items())
    if config.get("num_classes"):
        known["classes"] = str(config.num_classes)
    if "stage_1" in config:
        known["stage I"] = f"`{config.stage_1.fingerprint}`"
    if config.get("init_from"):
        known["started from"] = str(config.init_from)
    return known


def facts_for_hub(
    loaded: weights.Weights, results: Mapping[str, Mapping], checksums: Mapping[str, str]
) -> dict:
    """What the hub reads at the head of a card: tags, results, and each file's checksum.

    Args:
      loaded, results: as in `text`.
      checksums: {file: SHA-256}, which `formats.hub` holds a download against.
    """
    config = loaded.config
    section = {"stage": config.stage, "step": loaded.step, "fingerprint": loaded.fingerprint}
    if "quantizer" in config:
        section["quantizer"] = {
            k: list(v) if isinstance(v, tuple) else v for k, v in config.quantizer.to_dict().items()
        }
    quantizer = config.get("stage_1", config).quantizer.name
    tags = dict.fromkeys(["jax", "flax", "fsq", quantizer, config.stage])
    known = {"library_name": "fsq_jax", "tags": list(tags)}
    if results:
        measured = {}
        for name, result in sorted(results.items()):
            entry = {"name": name, "type": name, "value": round(float(result["value"]), 6)}
            measured.setdefault(name.split("/")[0], []).append(entry)
        data = {"name": config.data.source, "type": config.data.source}
        known["model-index"] = [
            {
                "name": TITLES.get(config.stage, config.stage),
                "results": [
                    {"task": {"type": task}, "dataset": dict(data), "metrics": metrics}
                    for task, metrics in measured.items()
                ],
            }
        ]
    return known | {hub.SECTION: section | {"files": dict(checksums)}}


def _unsaid(config) -> str:
    """What MaskGIT's layout has no place for, and a reader must know."""
    unsaid = {}
    if config.stage == "maskgit_tokenizer":
        unsaid = {"num_groups": config.model.num_groups}
        if levels := quantizers.levels(quantizers.of_config(config)):
            unsaid["levels"] = levels
    if not unsaid:
        return ""
    listed = ", ".join(f"{name}={value}" for name, value in unsaid.items())
    return f"The arrays do not tell {listed}: `load_maskgit_tokenizer(FILE, {listed})`."
