"""The protocol of docs/ablation.md as plain data: which models are trained, and how each is sampled and measured.

A model is a job of jobs/finetune.py or jobs/train_prior.py with other settings; a measurement is a way to sample it.
"""

from typing import Any, NamedTuple

from pipeline.settings import AblateSettings, RunSettings, Settings, build
from pipeline.train.spec import Job

Overlay = dict[str, dict[str, Any]]
Key = tuple[str, int, str, int, int]  # names one measurement of all seeds: see Measurement.cell

TIME_NOISE = 1.0  # beta_m: latents have about unit variance, and these models see nothing of the clip but the image
STARTS = (0.9, 0.8)  # CIL's M
SIZES = {"size", "hidden_size", "depth", "num_heads", "patch_size"}  # of `model`
STILL = "still"  # the measurement of the image itself, replicated

DIFFUSION: dict[str, Any] = {"process": "diffusion", "saf": False, "prior": "replicated"}
REPLICATED: dict[str, Any] = {"process": "bridge", "saf": False, "prior": "replicated"}
NEURAL = REPLICATED | {"prior": "neural"}

# Table 4: fine-tuned from train.init
TUNED: dict[str, Overlay] = {
    "diffusion": {"bridge": DIFFUSION},
    "no-saf": {"bridge": REPLICATED},
    "saf": {"bridge": REPLICATED | {"saf": True}},
}
TIME_NOISED: Overlay = {"bridge": DIFFUSION | {"time_noise": TIME_NOISE, "time_noise_power": 5.0}}
# Table 5: from scratch; "np" are shown F_eta's output
SCRATCH: dict[str, Overlay] = {
    "vdt-i2v": {"bridge": DIFFUSION},
    "vdt-i2v-np": {"bridge": DIFFUSION, "model": {"prior_condition": True}},
    "bridge": {"bridge": REPLICATED},
    "bridge-replicated-np": {"bridge": REPLICATED, "model": {"prior_condition": True}},
    "bridge-neural": {"bridge": NEURAL},
    "bridge-np": {"bridge": NEURAL, "model": {"prior_condition": True}},
}
# Figures 7 and 8: settings, and evaluations of the network a step; all but the last step of Heun's kind take that many
SAMPLERS: dict[str, dict[str, tuple[dict[str, Any], int]]] = {
    "saf": {
        "sde_first_order": ({}, 1),
        "ode_first_order": ({"sampler": "ode_first_order"}, 1),
        "ode_second_order": ({"sampler": "ode_second_order"}, 2),
        "stochastic_heun, quadratic": ({"sampler": "stochastic_heun", "spacing": "quadratic"}, 3),
        "dbim": ({"sampler": "dbim"}, 1),
        "dbim order 2, quadratic": ({"sampler": "dbim", "order": 2, "spacing": "quadratic"}, 1),
    },
    "diffusion": {"ddim": ({}, 1), "ddpm": ({"eta": 1.0}, 1)},
}


class Model(NamedTuple):
    """One training."""

    name: str
    job: Job
    seed: int
    settings: Settings
    keep: tuple[int, ...]  # export it after these steps, the last included
    needs: str | None  # key of the model that is trained first: F_eta

    @property
    def key(self) -> str:
        """Its name in files: "saf-s0"."""
        return f"{self.name}-s{self.seed}"


class Measurement(NamedTuple):
    """Clips of one model after `step` steps, sampled one way."""

    model: Model
    step: int
    sampler: str  # its name in tables; "" is the paper's for the process
    evaluations: int
    clips: int
    sample: dict[str, Any]  # settings of `sample`

    @property
    def cell(self) -> Key:
        """What the measurement of every seed has in common."""
        return (self.model.name, self.step, self.sampler, self.evaluations, self.clips)

    @property
    def key(self) -> str:
        """Its name in files."""
        words = f"{self.model.key}-step{self.step}-{self.sampler}-{self.evaluations}-{self.clips}"
        return words.replace(", ", "-").replace(" ", "-")


def folder_of(run: RunSettings) -> str:
    """ABLATION: the folder of all results."""
    return f"{run.folder}/ablation"


def models(settings: Settings, seed: int) -> list[Model]:
    """The trainings of one seed, the neural prior before those that need it."""
    wanted, steps, prior = set(settings.ablate.experiments), settings.train.steps, settings.prior
    made: list[Model] = []
    if wanted - {"priors"}:
        made += [_model(settings, name, "finetune", seed, TUNED[name], figure6_steps(steps)) for name in TUNED]
    if "leakage" in wanted:
        made.append(_model(settings, "timenoise", "finetune", seed, TIME_NOISED, (steps,)))
    if "priors" in wanted:
        keep, size = (prior.train.steps,), prior.model.model_dump(include=SIZES)
        made.append(_model(settings, "prior", "prior", seed, {"bridge": REPLICATED}, keep))
        for name, overlay in SCRATCH.items():
            whole = {"train": prior.train.model_dump(mode="json"), "model": size | overlay.get("model", {})}
            made.append(_model(settings, name, "finetune", seed, overlay | whole, keep))
    return made


def figure6_steps(steps: int) -> tuple[int, ...]:
    """A quarter, half and all of the steps of a training."""
    return tuple(sorted({max(1, steps // 4), max(1, steps // 2), steps}))


def _model(settings: Settings, name: str, job: Job, seed: int, overlay: Overlay, keep: tuple[int, ...]) -> Model:
    folder, key = f"{folder_of(settings.run)}/models", f"{name}-s{seed}"
    needs_prior = overlay["bridge"]["prior"] == "neural" or overlay.get("model", {}).get("prior_condition", False)
    prior = f"prior-s{seed}" if needs_prior else None
    place: Overlay = {
        "run": {"storage": folder, "name": key, "seed": seed},
        "cache": {"path": settings.cache_path},
        "bridge": {"prior_path": f"{folder}/{prior}/step{keep[-1]}" if prior else None},
    }
    if len(keep) > 1 or job == "finetune":
        place["train"] = {"checkpoint_every": keep[0]}
    return Model(name, job, seed, build([settings.model_dump(mode="json"), overlay, place]), keep, prior)


def measurements(ablate: AblateSettings, trained: list[Model]) -> list[Measurement]:
    """The measurements of the models of one seed, each once, in the order of the experiments."""
    named, made = {model.name: model for model in trained}, []

    def usual(*names: str) -> list[Measurement]:
        """The paper's sampler of these models, after their last step."""
        return [_usual(named[name], named[name].keep[-1], ablate.clips) for name in names]

    for experiment in ablate.experiments:
        if experiment == "samplers":
            made += _samplers(ablate, named)
        elif experiment == "leakage":
            made += usual("diffusion", "timenoise")
            made += [_start(named["diffusion"], m, how, ablate.clips) for m in STARTS for how in (False, True)]
            made.append(_start(named["timenoise"], STARTS[0], True, ablate.clips))
        elif experiment == "steps":
            made += [_usual(named[name], step, ablate.clips) for name in TUNED for step in named[name].keep]
        else:
            made += usual(*(SCRATCH if experiment == "priors" else TUNED))
    return list({one.key: one for one in made}.values())


def _usual(model: Model, step: int, clips: int) -> Measurement:
    return Measurement(model, step, "", model.settings.sample.steps, clips, {})


def _samplers(ablate: AblateSettings, named: dict[str, Model]) -> list[Measurement]:
    """Every sampler of SAMPLERS within each number of evaluations of ablate.evaluations."""
    made = []
    for name, model in named.items():
        for sampler, (changes, each) in SAMPLERS.get(name, {}).items():
            for budget in ablate.evaluations:
                steps = max((budget - 1) // each + 1, 2)
                count, how = (steps - 1) * each + 1, changes | {"steps": steps}
                made.append(Measurement(model, model.keep[-1], sampler, count, ablate.sampler_clips, how))
    return made


def _start(model: Model, start: float, analytic: bool, clips: int) -> Measurement:
    """CIL: sample from time `start` on, with Analytic-Init or plain noise."""
    moments = f"{model.settings.run.storage.removesuffix('/models')}/moments"
    how = {"start": start, "analytic_init": moments if analytic else None}
    label, evaluations = start_name(start, analytic), model.settings.sample.steps
    return Measurement(model, model.keep[-1], label, evaluations, clips, how)


def start_name(start: float, analytic: bool) -> str:
    """The name of such a measurement in tables."""
    return f"M {start:g}{', Analytic-Init' if analytic else ''}"
