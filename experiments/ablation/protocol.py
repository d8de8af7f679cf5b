"""Which models are trained and what each is measured with: docs/ablation.md as plain data. Nothing is computed here.

A model is one job of jobs/finetune.py or jobs/train_prior.py with other settings; a measurement is one way to sample it.
"""

from typing import Any, NamedTuple

from pipeline.settings import Settings, build
from pipeline.train.spec import Job

Overlay = dict[str, dict[str, Any]]
Key = tuple[str, int, str, int, int]  # what one measurement of every seed has in common: see Measurement

TIME_NOISE = (
    1.0  # beta_m: latents have about unit variance, and the image is all that these models are shown of the clip
)
STARTS = (0.9, 0.8)  # CIL's M
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
    keep: tuple[int, ...]  # the steps after which it is kept, the last included
    needs: str | None  # the model that must be there first: F_eta

    @property
    def key(self) -> str:
        return f"{self.name}-s{self.seed}"


class Measurement(NamedTuple):
    """Clips of one model after so many steps, sampled one way."""

    model: Model
    step: int
    sampler: str  # what it is called in tables; "" is the paper's for the process
    evaluations: int
    clips: int
    sample: dict[str, Any]  # settings of `sample`

    @property
    def cell(self) -> Key:
        return (self.model.name, self.step, self.sampler, self.evaluations, self.clips)

    @property
    def key(self) -> str:
        words = f"{self.model.key}-step{self.step}-{self.sampler}-{self.evaluations}-{self.clips}"
        return words.replace(", ", "-").replace(" ", "-")


def folder_of(settings: Settings) -> str:
    return f"{settings.run.folder}/ablation"


def models(settings: Settings, seed: int) -> list[Model]:
    """What one seed trains, F_eta before what needs it."""
    wanted = set(settings.ablate.experiments)
    steps = settings.train.steps
    made: list[Model] = []
    if wanted - {"priors"}:
        tuned = TUNED | ({"timenoise": TIME_NOISED} if "leakage" in wanted else {})
        quarters = figure6_steps(settings)
        for name, overlay in tuned.items():
            keep = quarters if name in TUNED else (steps,)
            made.append(_model(settings, name, "finetune", seed, overlay, keep))
    if "priors" in wanted:
        budget = settings.prior.train.model_dump(mode="json")
        size = settings.prior.model.model_dump(include={"size", "hidden_size", "depth", "num_heads", "patch_size"})
        keep = (settings.prior.train.steps,)
        made.append(_model(settings, "prior", "prior", seed, {"bridge": REPLICATED}, keep))
        for name, overlay in SCRATCH.items():
            whole = {"train": budget, **overlay, "model": size | overlay.get("model", {})}
            made.append(_model(settings, name, "finetune", seed, whole, keep))
    return made


def figure6_steps(settings: Settings) -> tuple[int, ...]:
    """After a quarter, half and all of the training."""
    steps = settings.train.steps
    return tuple(sorted({max(1, steps // 4), max(1, steps // 2), steps}))


def _model(settings: Settings, name: str, job: Job, seed: int, overlay: Overlay, keep: tuple[int, ...]) -> Model:
    folder, key = f"{folder_of(settings)}/models", f"{name}-s{seed}"
    needs_prior = overlay["bridge"]["prior"] == "neural" or overlay.get("model", {}).get("prior_condition", False)
    prior = f"prior-s{seed}" if needs_prior else None
    place: Overlay = {
        "run": {"storage": folder, "name": key, "seed": seed},
        "cache": {"path": settings.cache_path},
        "bridge": {"prior_path": f"{folder}/{prior}/step{keep[-1]}" if prior else None},
    }
    if len(keep) > 1 or job == "finetune":
        place["train"] = {"checkpoint_every": keep[0]}
    base = settings.model_dump(mode="json")
    return Model(name, job, seed, build([base, overlay, place]), keep, prior)


def measurements(settings: Settings, trained: list[Model]) -> list[Measurement]:
    """What the models of one seed are measured with, each once, in the order of the experiments."""
    made: list[Measurement] = []
    for experiment in settings.ablate.experiments:
        if experiment == "samplers":
            made += _samplers(settings, trained)
        elif experiment == "leakage":
            made += _usual(settings, trained, ["diffusion", "timenoise"]) + _starts(settings, trained)
        elif experiment == "priors":
            made += _usual(settings, trained, list(SCRATCH))
        else:
            earlier = figure6_steps(settings) if experiment == "steps" else ()
            made += _usual(settings, trained, list(TUNED), earlier)
    return list({one.key: one for one in made}.values())


def _usual(
    settings: Settings, trained: list[Model], names: list[str], steps: tuple[int, ...] = ()
) -> list[Measurement]:
    """The paper's sampler of these models, after their last step or after `steps`."""
    evaluations, clips = settings.sample.steps, settings.ablate.clips
    return [
        Measurement(model, step, "", evaluations, clips, {})
        for model in trained
        if model.name in names
        for step in steps or model.keep[-1:]
    ]


def _samplers(settings: Settings, trained: list[Model]) -> list[Measurement]:
    made = []
    for model in trained:
        for sampler, (changes, each) in SAMPLERS.get(model.name, {}).items():
            for budget in settings.ablate.evaluations:
                steps = max((budget - 1) // each + 1, 2)
                count, how = (steps - 1) * each + 1, changes | {"steps": steps}
                made.append(Measurement(model, model.keep[-1], sampler, count, settings.ablate.sampler_clips, how))
    return made


def _starts(settings: Settings, trained: list[Model]) -> list[Measurement]:
    moments = f"{folder_of(settings)}/moments"
    wanted = [("diffusion", start, analytic) for start in STARTS for analytic in (False, True)]
    named = {model.name: model for model in trained}
    made = []
    for name, start, analytic in [*wanted, ("timenoise", STARTS[0], True)]:
        how = {"start": start, "analytic_init": moments if analytic else None}
        model, label = named[name], start_name(start, analytic)
        made.append(Measurement(model, model.keep[-1], label, settings.sample.steps, settings.ablate.clips, how))
    return made


def start_name(start: float, analytic: bool) -> str:
    return f"M {start:g}{', Analytic-Init' if analytic else ''}"
