# For NVIDIA GPUs. The image brings CUDA through JAX's wheels; the host needs the driver (580 or
# later for CUDA 13) and the container toolkit.
#
#   docker build -t fsq_jax .
#   docker run --rm --gpus=all --user="$(id -u):$(id -g)" -v "$PWD/runs:/runs" fsq_jax \
#       -m fsq_jax.train --config=configs/maskgit_tokenizer.py:scale=bench --workdir=/runs/tokenizer
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /fsq_jax

# What is installed changes seldom: first a package without code, so that this layer is kept.
COPY pyproject.toml requirements.txt requirements-gpu.txt README.md LICENSE ./
RUN mkdir fsq_jax configs \
    && touch fsq_jax/__init__.py configs/__init__.py \
    && pip install -r requirements-gpu.txt

COPY . .

# Whoever runs it may have no home and no name here.
ENV HOME=/tmp \
    JAX_COMPILATION_CACHE_DIR=/tmp/jax
RUN useradd --create-home --uid=10001 trainer
USER 10001

# SIGTERM (docker stop --time=180) saves a checkpoint first: Python is process 1 and gets it.
ENTRYPOINT ["python"]
CMD ["-m", "fsq_jax.train", "--help"]
