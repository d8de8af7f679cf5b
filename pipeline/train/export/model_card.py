"""README.md of an export, a model card of the Hugging Face hub: the weights, their training, figures and terms."""

import json
from collections.abc import Mapping
from typing import Any


def model_card(config: Mapping[str, Any], made_with: Mapping[str, Any], source: str, summary: Mapping[str, Any]) -> str:
    """The card in Markdown, from the export's `config`, the run's fingerprint, data.source and the run's summary."""
    prior = config["kind"] == "prior"
    shape = " x ".join(map(str, config["latent_shape"]))
    size = config["data"]
    started = summary["start"]
    return f"""---
license: other
tags: [image-to-video, framebridge]
---

# {"Neural prior" if prior else "Image-to-video model"} ({config["model"].get("backbone", "latte")})

{"The neural prior F_eta of" if prior else "A network of"} FrameBridge (ICML 2025), trained by framebridge-ray. It works
on VAE latents of {shape} (frames, channels, height, width): clips of {size["frames"]} frames at
{size["height"]} x {size["width"]}, stride {size["stride"]}. It was trained {started}.

```python
from pipeline.models.build import {"load_prior" if prior else "load_model"}  # neither Ray nor DeepSpeed is needed
model, config = {"load_prior" if prior else "load_model"}("FOLDER OF THIS FILE")
```

## Trained on

Videos (data.source `{source}`), as a latent cache with the fingerprint `{config["cache_fingerprint"]}`, by the VAE
`{config["vae"]["path"]}` (weights {config["vae"]["weights_hash"]}). The classes: {_some(config["classes"])}.

## Figures

| | |
|---|---|
{chr(10).join(f"| {name} | {value} |" for name, value in _figures(summary).items())}

Losses are means over held-out clips at fixed times and noises: they compare runs of one cache and one target, no more.

## Licence

Not stated by the training: it follows from the terms of the videos, of the weights that the training started from
(train.init {made_with.get("train.init", made_with.get("prior.train.init"))}) and of the VAE. Check these before you
publish the weights, and replace this section.

## Settings

```yaml
{chr(10).join(f"{name}: {json.dumps(value)}" for name, value in made_with.items())}
```
"""


def _figures(summary: Mapping[str, Any]) -> dict[str, str]:
    """The figures of the card."""
    figures = {
        "parameters": f"{summary['parameters']:,}",
        "optimizer steps": f"{summary['steps']:,}",
        "training clips": f"{summary['clips']:,}",
        "held-out clips": f"{summary['held_out']:,}",
        "final training loss": _figure(summary["final_loss"]),
    }
    if summary["validation_losses"]:
        figures["held-out loss, before training"] = _figure(summary["validation_losses"][0][1])
        figures["held-out loss, at the end"] = _figure(summary["validation_losses"][-1][1])
    errors = summary.get("held_out_error", {})
    return figures | {f"held-out error, {name}": _figure(value) for name, value in errors.items()}


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"
