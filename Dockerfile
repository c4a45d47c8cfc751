# syntax=docker/dockerfile:1
# ardistill with the locked versions, for NVIDIA GPUs; without --gpus it works on the CPU.
#
#   docker build --tag ardistill .
#   docker run --rm --gpus all --volume "$PWD:/workspace" ardistill doctor
#
# torch brings the CUDA libraries that it was built with, so the base has the CUDA runtime and nothing larger.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# torch.compile calls a C compiler, and Triton includes Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir /workspace && chown 1000:1000 /workspace

ENV PATH=/opt/ardistill/bin:$PATH \
    VIRTUAL_ENV=/opt/ardistill \
    UV_LINK_MODE=copy
RUN python3 -m venv /opt/ardistill && pip install --no-cache-dir uv==0.13.9

# cpu makes a far smaller image, for machines without a GPU: docker build --build-arg UV_TORCH_BACKEND=cpu .
ARG UV_TORCH_BACKEND
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    --mount=type=bind,source=requirements.lock,target=/src/requirements.lock \
    uv pip install --constraint /src/requirements.lock --requirement /src/pyproject.toml \
    --extra completion --extra lora --extra text --extra wandb

# The code is the last and smallest layer: a change of it leaves the packages above as they are.
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,target=/src,readwrite \
    uv pip install --no-deps /src

# Runs, downloads and caches are in the mounted folder or in /tmp, whoever the user is (docker run --user).
ENV HF_HOME=/workspace/.cache/huggingface \
    TORCH_HOME=/workspace/.cache/torch \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton
WORKDIR /workspace
USER 1000:1000
ENTRYPOINT ["ardistill"]
CMD ["--help"]
