"""The options of every command as frozen dataclasses: a field is an option, its docstring is the option's help.

This module imports nothing under ``TYPE_CHECKING``: jsonargparse executes such imports to resolve annotations, and
``--help`` would wait for torch. The options of quickstart and cost are `QuickstartConfig` and `CostConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ardistill.config import AdversarialConfig, MatchingConfig, TrainingConfig


@dataclass(frozen=True)
class RecordedTrajectories:
    """Trajectories to read."""

    trajectories: str
    """Folder or URL that record wrote."""


@dataclass(frozen=True)
class RecordedTeacher:
    """The teacher of recorded trajectories or of a student."""

    teacher: str | None = None
    """Where the teacher is now (folder, Hub id or .pt file); the name that was recorded if not given."""


@dataclass(frozen=True)
class ImageSize:
    """Size of images."""

    height: int | None = None
    """Image height in pixels; the model's default if not given."""
    width: int | None = None
    """Image width in pixels; the model's default if not given."""


@dataclass(frozen=True)
class ComputeDevice:
    """Where to compute."""

    device: str = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:1, ...; under accelerate launch, each process uses its own device."""


@dataclass(frozen=True)
class ComputePrecision:
    """What to compute in."""

    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """Precision of teacher and students: no, bf16 (matrix products in bfloat16) or auto: bf16 on a GPU that computes in
    it, else no."""


@dataclass(frozen=True)
class DoctorOptions:
    """Options of doctor."""

    self_test: bool = True
    """Record, train one step and draw with the embedded teacher, and compare with the CPU in float64."""


@dataclass(frozen=True)
class RecordOptions:
    """Options of record."""

    teacher: str
    """A diffusers folder, a Hub id, an original DiT's .pt file, or an embedded teacher: zoo/fashion, zoo/emoji or
    zoo/scenes."""
    out: str
    """Folder or URL (s3://bucket/folder) of the trajectories; the same command again records what is missing."""
    num_trajectories: int
    """Number of trajectories; class labels are balanced."""
    guidance_scale: float | list[float]
    """Classifier-free guidance scale that the student will absorb; 1 means no guidance. With two numbers, such as
    [1.0, 4.0], each trajectory draws a scale between them, and the scale becomes an input of the student, so that its
    user can choose."""
    guidance_channels: int | None = None
    """Number of leading channels that are guided (3 in the original DiT); all channels if not given."""
    prompts: str | None = None
    """Prompts of a text-to-image teacher, used in turn: a .txt file with one prompt per line, a .jsonl, .json, .csv,
    .tsv or .parquet file, or the Hub id of a data set. A table has one column named prompt, text or caption; any other
    column is named after a colon. zoo/scenes gives the embedded teacher's prompts."""
    negative_prompt: str = ""
    """Prompt of the unconditional branch of guidance."""
    height: int | list[int] | None = None
    """Image height in pixels; the model's default if not given. With several, such as [512, 768], each shard has one of
    the sizes."""
    width: int | list[int] | None = None
    """Image width in pixels; the model's default if not given. Give as many widths as heights."""
    num_frames: int = 1
    """Number of frames of a video, as the teacher's pipeline counts them."""
    solver_steps: int = 24
    """Number of steps of the ODE solver."""
    num_steps: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 8])
    """Step counts of the students to be trained; the states that they need are stored."""
    seed: int = 0
    """Seed of the noise; record held-out trajectories with another seed."""
    shard_size: int = 256
    """Number of trajectories that are written and read together."""
    batch_size: Literal["auto"] | int = "auto"
    """Number of trajectories of a shard that are solved at once; auto: as many as a GPU's memory takes, measured once,
    and the whole shard on a CPU."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """no, bf16 (matrix products in bfloat16, the solver's states in float32) or auto: that of a recording that is there
    already, else bf16 on a GPU that computes in it, else no."""
    weights: Literal["auto", "float32", "bfloat16", "int8", "nf4"] = "auto"
    """Type of the teacher's weights, its VAE's and text encoders'. int8 and nf4 quantise the linear layers of the
    transformer, and leave the rest in bfloat16; auto: that of a recording that is there already, else bfloat16 on a GPU
    that computes in it, else float32."""
    compile: bool | None = None
    """Compile the blocks of the teacher's transformer; null: on CUDA, where 1,000 passes or more are missing."""
    dtype: Literal["float32", "float16"] = "float32"
    """Data type of stored states; float16 takes half the disk space and rounds to 3 significant digits."""
    manifest_only: bool = False
    """Write the manifest without any shards, for distill --online."""


@dataclass(frozen=True)
class ShowOptions:
    """Options of trajectories show."""

    out: str = "trajectories.png"
    """PNG file to write."""
    count: int = 4
    """Number of trajectories to draw."""
    first: int = 0
    """Number of the first trajectory to draw, counted from 0."""
    num_steps: int | None = None
    """Steps between the states that are shown; as many as were recorded, up to 8, if not given."""


@dataclass(frozen=True)
class ExportTrajectoriesOptions:
    """Options of trajectories export."""

    out: str
    """New folder or URL to write."""


@dataclass(frozen=True)
class PushTrajectoriesOptions:
    """Options of trajectories push."""

    push: str
    """Name of the data set's repository on the Hub, with the user or organization: you/name."""
    private: bool = False
    """Make the repository private, if it is a new one."""
    license: str | None = None
    """Licence for the card, as the Hub writes it (cc-by-4.0); that of the teacher's card, if any, if not given."""
    out: str | None = None
    """Folder for the Parquet files, which is kept; if not given, a hidden one beside the recording, which is removed
    after the push."""


@dataclass(frozen=True)
class DistillOptions:
    """Options of distill."""

    out: str
    """Run folder for settings, log, checkpoints and sample grids; the trained student is in its subfolder student."""
    num_steps: int = 4
    """Number of steps of the student, 1 to 8."""
    knots: list[int] | Literal["stock"] | None = None
    """Recorded solver states that the student's steps run between, such as [0, 6, 15, 21, 24] of 24 solver steps;
    stock: those of the grid that the teacher's diffusers pipeline has by itself, so that it can draw a student without
    history; uniform if not given."""
    expert: Literal["high_noise", "low_noise"] | None = None
    """Of a teacher of two transformers (Wan 2.2), the one to distil at those of these steps that it predicts at; export
    puts the students of both together. If not given, one transformer draws all steps."""
    history_layers: int = 6
    """Number of layers (N, the lowest ones) that attend to earlier steps; 0 is step distillation."""
    mask: Literal["M1", "M2", "M3", "M4"] = "M2"
    """Earlier steps that these layers attend to: M1 none, M2 the previous step, M3 the noise, M4 all."""
    target: Literal["state", "denoised", "anchored"] = "state"
    """What the student regresses: state (the ODE's states), denoised (x0 estimates, as in the authors' code) or
    anchored (x0 estimates, re-noised with the exact noise)."""
    output: Literal["solver", "direct"] = "solver"
    """solver: the network predicts what the teacher predicts; direct: a head per step emits the target."""
    gated: bool = True
    """Attend to earlier steps through a gate per layer that starts closed, so that training starts from a student
    without history; false: one softmax over all steps, as in the paper."""
    lora_rank: int = 0
    """Rank of low-rank adapters (PEFT) that are trained beside the teacher's weights, which teacher and student share;
    0 trains all weights. The adapters are saved in the run's subfolder adapters, and merged in student."""
    conditioning: Literal["recorded", "uniform"] = "recorded"
    """Timesteps that the network is given: the recorded ones, or uniform ones as in the authors' code."""
    start: str | None = None
    """Student to start from in place of the teacher's weights: a run, or one of its checkpoints, such as
    runs/x/checkpoints/step-00004000. The options above must equal that student's."""
    weights: Literal["auto", "float32", "bfloat16", "int8", "nf4"] = "auto"
    """Type of the weights that are not trained: the teacher's where it solves online or adapters are trained beside it,
    its VAE's and text encoders'. int8 and nf4 quantise the linear layers of the transformer, and need lora_rank; auto:
    with online the recording's; with lora_rank bfloat16 on a GPU that computes in it, else float32."""
    online: bool = False
    """Compute the trajectories of a manifest (record --manifest_only true) when they are needed instead of reading
    them: no disk space, more time. Shards are solved whole, so record with a shard size equal to the batch size."""
    draws: Literal["rows", "shards"] | None = None
    """What a batch is drawn from: rows (any rows) or shards (as few shards as hold a batch); shards with online or a
    URL if not given, else rows."""
    training: TrainingConfig = TrainingConfig()  # noqa: RUF009
    """Options of the training."""


@dataclass(frozen=True)
class EncodeOptions:
    """Options of encode."""

    teacher: str
    """Teacher whose VAE and text encoders encode: a folder, a Hub id or an embedded teacher."""
    images: str
    """A folder of images (one subfolder per class, or metadata.jsonl, .csv or .parquet with file_name and a caption or
    label), or the id of a data set. A subfolder is named after its class: the teacher's name of it or its number."""
    out: str
    """File to write, .safetensors."""
    limit: int | None = None
    """Number of images to encode, from the first on; all if not given."""


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of finetune."""

    student: str
    """Run folder of distill or finetune, or one of its checkpoints."""
    trajectories: str
    """Folder that record wrote; the regression onto them continues."""
    out: str
    """Run folder with the same contents as distill's, and adversarial.png or matching.png, which shows the health of
    what judges the student's images."""
    method: Literal["adversarial", "dmd"] = "adversarial"
    """adversarial: against a discriminator on real images (R+D); dmd: distribution matching, which needs none."""
    real: str | None = None
    """File that encode wrote, for method adversarial."""
    weights: Literal["auto", "float32", "bfloat16", "int8", "nf4"] = "auto"
    """Type of the weights of the teacher that judges, as for record; auto: bfloat16 on a GPU that computes in it,
    else float32."""
    training: TrainingConfig = TrainingConfig(inputs="student", learning_rate=1e-5, gate_rate=1.0)  # noqa: RUF009
    """Options of the training. What is judged are the estimates of the last step, which are drawn from noise with
    inputs student, and from the teacher's second to last state with inputs teacher."""
    adversarial: AdversarialConfig = AdversarialConfig()  # noqa: RUF009
    """Options of the discriminator, its training and its loss."""
    matching: MatchingConfig = MatchingConfig()  # noqa: RUF009
    """Options of distribution matching, the training of its fake score and its loss."""


@dataclass(frozen=True)
class SampleOptions:
    """Options of sample."""

    student: str
    """Run folder of distill or finetune, one of its checkpoints, or a folder that export wrote."""
    out: str = "samples.png"
    """File to write: a .png of a grid, a .gif or .mp4 of videos, or an .npz of all images for the ADM evaluation
    suite."""
    count: int = 20
    """Number of images or videos."""
    num_frames: int | None = None
    """Number of frames of a video; that of the trajectories if not given."""
    fps: int = 16
    """Frames per second of a .gif or .mp4."""
    class_labels: list[int] | None = None
    """Classes to draw, in turn; all classes if not given."""
    prompt: str | None = None
    """Prompt of a text-to-image student."""
    prompts: str | None = None
    """Several prompts, drawn in turn: a file or the id of a data set, as for record."""
    guidance_scale: float | None = None
    """Guidance scale, for a student that takes it as an input; the middle of its range if not given."""
    seed: int = 0
    """Seed of the noise."""
    compile: bool = False
    """Compile the blocks of the student's transformer: for many images on a GPU."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of evaluate."""

    student: str
    """Run folder of distill or finetune, or one of its checkpoints."""
    trajectories: str
    """Held-out trajectories of the student's teacher (record them with another seed); every arm starts from their
    noise."""
    out: str | None = None
    """Folder for metrics.json, report.html and pictures; if not given, the run's subfolder evaluation, or
    evaluation-step-... for a checkpoint."""


@dataclass(frozen=True)
class CompareOptions:
    """Options of compare."""

    students: list[str] | None = None
    """Run folders of distill or finetune, or checkpoints; the first is the baseline of the paired intervals."""
    trajectories: str | None = None
    """Held-out trajectories of the students' teacher (record them with another seed)."""
    out: str | None = None
    """Folder for metrics.json, report.html, samples.png and exposure_bias.png. With a recipe: the folder of its runs,
    whose subfolder comparison holds these files; the recipe's own if not given."""
    recipe: str | None = None
    """Study recipe: a YAML file with the sections record, held_out, distill, finetune and arms, such as
    recipes/study_fashion.yaml; not a file for --config."""
    arms: list[str] | None = None
    """Arms of the recipe to compare, the baseline first; all arms if not given."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of export."""

    student: str
    """Run folder of distill or finetune, or one of its checkpoints."""
    out: str
    """New folder to write; with push also one that holds this student's export already, which is then pushed."""
    second: str | None = None
    """Of a teacher of two transformers (Wan 2.2), the run of distill --expert low_noise; student is then the one of
    --expert high_noise, and the export draws with both."""
    form: Literal["pipeline", "lora", "single_file"] = "pipeline"
    """What is written. pipeline: a diffusers folder; lora: the adapters of a finished run (distill --lora_rank) for the
    base model, as diffusers, or PEFT, and ComfyUI load them; single_file: all weights of a student of Flux, SD3 or Wan
    in the layout of the original checkpoint. The last two are for students that a stock pipeline can draw, without
    history."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the transformer's weights are stored in; bfloat16 takes half the space, rounded to 2 digits."""
    max_shard_size: str | None = None
    """Size of a file of these weights at most, such as 5GB; one file if not given."""
    license: str | None = None
    """Licence for the card, as the Hub writes it (apache-2.0); that of the teacher's card if not given."""
    datasets: list[str] | None = None
    """Hub ids, for the card, of the data sets that the student was trained on; one read from hf:// is known."""


@dataclass(frozen=True)
class PushOptions:
    """Options of pushing to the Hub."""

    push: str | None = None
    """Name of the repository on the Hub, with the user or organization: you/name."""
    private: bool = False
    """Make the repository private, if it is a new one."""


@dataclass(frozen=True)
class DemoOptions:
    """Options of demo."""

    student: str | list[str] | None = None
    """Run folder of distill or finetune, a checkpoint, an export or the Hub id of one; several as a list, such as
    [runs/a, runs/b]. The embedded zoo/fashion-student if not given."""
    host: str = "127.0.0.1"
    """Address to serve the page at; 0.0.0.0 lets other machines reach it. A page that others reach draws with the given
    students alone, a page of this machine with any that is named on it."""
    port: int | None = None
    """Port to serve the page at; the first free one from 7860 on if not given."""
    share: bool = False
    """Serve the page at a public address of Gradio, too, for a week at most; whoever has the address can draw."""
    browser: bool = False
    """Open the page in this machine's browser."""
    space: str | None = None
    """New folder: write the page there as a Hugging Face Space, and serve nothing."""
