# %% [markdown]
# # From a teacher to a student of four steps
#
# Record trajectories of the embedded teacher `zoo/fashion`, distil them into a student that draws in four evaluations
# of its network, compare it with its teacher, and export it as a diffusers pipeline. Everything runs offline, on two
# cores of a CPU in less than ten minutes; a GPU is used where there is one.
#
# **Install.** In a checkout of the project, `pip install .`. On Colab, upload the wheel that `pip wheel --no-deps .`
# makes there, and run this in a cell of its own; torch is there already:
#
# ```
# %pip install -q ardistill-0.1.0-py3-none-any.whl
# ```

# %%
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image

import ardistill

# %% [markdown]
# The sizes of the run: the same cells again resume it, in the same folder. Twice as many steps and trajectories make
# a better student.

# %% tags=["parameters"]
out = "runs/notebook"
num_trajectories, num_held_out = 1024, 300
max_steps, batch_size = 120, 64

# %% [markdown]
# What is installed, and what it chooses on this machine. `ardistill.doctor()` also trains and draws for ten seconds.

# %%
print(ardistill.doctor(self_test=False).text())

# %% [markdown]
# ## Record
#
# The teacher solves its ODE from seeded noise, in 24 guided steps; the states between are what the student learns
# from. A second recording, from another seed, is held out to judge by.

# %%
teacher = ardistill.Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25)
ardistill.record(teacher, f"{out}/trajectories", num_trajectories=num_trajectories)
ardistill.record(teacher, f"{out}/held_out", num_trajectories=num_held_out, seed=1)
data = ardistill.TrajectoryDataset(f"{out}/trajectories", num_steps=4)

# %% [markdown]
# ## Distil
#
# Each of the student's four steps attends to all earlier ones, in all seven layers. With `history_layers=0` the same
# training is step distillation, the baseline.

# %%
student = ardistill.Student.from_teacher(teacher, data.student_config(history_layers=7))
config = ardistill.TrainingConfig(max_steps=max_steps, batch_size=batch_size, learning_rate=5e-4, ema_decay=0.98)
student = ardistill.distill(student, data, f"{out}/student", config)

# %% [markdown]
# ## Compare
#
# Student, teacher, and the teacher's own solver at as few steps draw from the same noise. FD is the Fréchet distance
# to the teacher's images in the features of a small classifier.

# %%
print(ardistill.compare_students([f"{out}/student"], f"{out}/held_out", f"{out}/comparison").table())

# %%
Image.open(f"{out}/comparison/samples.png")

# %% [markdown]
# ## Export and use
#
# The exported folder loads with torch and diffusers alone.

# %%
if not Path(out, "export").exists():
    ardistill.export(student, teacher, f"{out}/export")
pipeline = DiffusionPipeline.from_pretrained(f"{out}/export", trust_remote_code=True)
images = pipeline(list(range(10))).images

# %%
sheet = Image.new("L", (10 * 28, 28))
for place, image in enumerate(images):
    sheet.paste(image, (28 * place, 0))
sheet.resize((1120, 112))
