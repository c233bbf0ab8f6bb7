# docker build -f docker/cuda.Dockerfile -t diffstyler:cuda .
# docker run --rm --gpus all -v "$PWD:/work" diffstyler:cuda demo --output_dir demo
# torch's wheels bring CUDA themselves; the host needs the driver and the NVIDIA container toolkit.
FROM python:3.12-slim
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/work/.cache/huggingface
# model.compile builds its launchers with a C compiler
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
RUN pip install "torch>=2.8" "torchvision>=0.23"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY diffstyler diffstyler
# hadolint ignore=DL3013
RUN pip install ".[all]" && useradd --create-home --uid 1000 painter
USER 1000
WORKDIR /work
ENTRYPOINT ["diffstyler"]
